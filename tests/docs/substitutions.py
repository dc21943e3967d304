"""What is put in the place of sizes, names and hosts when the documentation's commands are run, and what is not run.

Everything that sets a tested command apart from the printed one stands here. Plain Python, no imports of the package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

NOT_RUN: Mapping[tuple[str, ...], str] = {
    ("hf", "auth", "login"): "asks for a token and goes to the real hub",
    ("make",): "installs, or runs whole test suites, demos and benchmarks; its targets are looked up",
    ("pip", "install"): "changes the environment in which the tests run; its extras are looked up",
    ("V/bin/pip", "install"): "installs another library into another environment",
    ("python", "-m", "venv"): "makes an environment for another library",
    ("python", "-m", "benchmarks"): "measures for minutes; tests/benchmarks runs every row with next to no work",
    (
        "python",
        "-m",
        "benchmarks.base_models",
    ): "measures models of base size; tests/benchmarks runs it with small ones",
    ("tensorboard", "--logdir"): "serves until it is stopped",
    ("deepspeed", "--hostfile", "hostfile", "pretrain/run.py"): "goes to the hosts of the hostfile by ssh",
}
"""By their first words: commands that no test runs, and why. Their flags are read all the same."""

TEXT: Sequence[tuple[str, str]] = (
    ("user/", "ada/"),  # whom the stand-in hub knows
    ("step_00001000", "step_00000002"),  # the checkpoint that a run of two steps has
    ("for domain in hm movies_modern movies_classic", "for domain in hm"),
    ("for source in movies_classic hm", "for source in hm"),
    ("--source_users 10000 all", "--source_users 10 all"),
    ("--target_users 1000 all", "--target_users 10 all"),
    ("--target_users 1000 10000 all", "--target_users 3 all"),
    ("--target_users 100 200 400 all", "--target_users 10 all"),
)
"""In the text of every block; ITEM_ID and USER_ID become ids that the domain has, 8000 a port that is free."""

SMALL = {"steps": "2", "width": "16", "pool_size": "8", "max_history": "8", "num_workers": "0"}
"""Flags of every training."""
LEFT_OUT = ("epochs", "patience", "eval_every", "checkpoint_every")
"""Flags with one value that would contradict two steps."""
ONE_HOST = {"--nnodes": "1", "--nproc_per_node": "2", "--master_addr": "127.0.0.1"}
"""Of torchrun and of the deepspeed launcher without ssh."""
SERVICES = {"serve": "/healthz", "explore": "/"}
"""Commands of mmsr-pt that run until they are stopped, and what they answer once they are up."""
_SCRIPTS = ("pretrain/run.py", "finetune/run.py")


def not_run(words: Sequence[str]) -> tuple[str, ...] | None:
    """The entry of NOT_RUN that a command begins with."""
    found = [start for start in NOT_RUN if tuple(words[: len(start)]) == start]
    return max(found, key=len) if found else None


def in_text(text: str, item: str, user: str, port: int) -> str:
    """A block as it is run."""
    for printed, run in TEXT:
        text = text.replace(printed, run)
    return text.replace("ITEM_ID", item).replace("USER_ID", user).replace("8000", str(port))


def as_run(words: Sequence[str], towers: str, port: int, free_port: int) -> list[str]:
    """A command as it is run.

    Args:
        words: the command, expanded by the shell.
        towers: a directory with small `bert`, `clip` and `vit`.
        port: to serve at.
        free_port: another one, for ranks to meet at.
    """
    program, rest = words[0], list(words[1:])
    script = next((place for place, word in enumerate(rest) if word in _SCRIPTS), None)
    if script is not None:
        head, flags = rest[:script], _training_flags(rest[script + 1 :], towers)
        if program == "deepspeed" and "--no_ssh" not in head:
            program, head = "python", []  # the launcher itself: docs/multi-node.md and tests/pretrain
        head = [ONE_HOST.get(before, word) for before, word in zip(["", *head], head)]
        head = [str(free_port) if before == "--master_port" else word for before, word in zip(["", *head], head)]
        head = [re.sub(r"^.*:29500$", f"127.0.0.1:{free_port}", word) for word in head]
        return [program, *head, rest[script], *flags]
    if program == "python" and rest[0] == "shards/build.py":
        return [program, *rest, "--overwrite", "--num_workers", "1"]
    if program == "mmsr-pt" and rest[0] == "cache":
        return [program, "cache", *_training_flags(rest[1:], towers)]
    if program == "mmsr-pt" and rest[0] == "study":
        own = rest.index("--") if "--" in rest else len(rest)
        again = [] if "--dry_run" in rest[:own] else ["--dry_run"]
        return [program, *rest[:own], *again, *rest[own:]]  # runs themselves: tests/studies
    if program == "mmsr-pt" and rest[0] in SERVICES:
        # of both on a page one has the port that the page's requests go to
        own = port if rest[0] == "serve" else free_port
        return [program, *_without(rest, ["port"]), "--port", str(own)]
    return [program, *rest]


def _training_flags(flags: Sequence[str], towers: str) -> list[str]:
    small: list[str] = []
    for before, word in zip(["", *flags], flags):
        if word.startswith("hf:"):
            word = f"hf:{towers}/{'clip' if before == '--vlp' else 'bert'}"
        elif word.startswith("timm:"):
            word = f"timm:local-dir:{towers}/vit"
        small.append(word)
    small = _without(small, [*LEFT_OUT, *SMALL])
    return [*small, *(word for name, value in SMALL.items() for word in (f"--{name}", value))]


def _without(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """The words without these flags and the value behind each."""
    flags = {f"--{name}" for name in names}
    return [word for before, word in zip(["", *words], words) if word not in flags and before not in flags]

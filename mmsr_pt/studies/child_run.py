"""Runs of pretrain/run.py and finetune/run.py, and evaluations, in processes of their own.

A run is started, or taken up where it was broken off; an evaluation is made from the beginning.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mmsr_pt.log import UserError

_ROOT = Path(__file__).resolve().parents[2]
PRETRAIN, FINETUNE = "pretrain", "finetune"


def find_script(name: str = PRETRAIN) -> Path:
    """Where pretrain/run.py is, or finetune/run.py.

    Raises:
        UserError: the package was installed without it.
    """
    script = _ROOT / name / "run.py"
    if not script.is_file():
        raise UserError(
            f"there is no {script}: runs are started from a source checkout, install from one with "
            "pip install --editable ."
        )
    return script


def run_command(run_dir: Path, flags: Sequence[str], num_gpus: int = 0, script: str = PRETRAIN) -> list[str]:
    """What starts a run, or takes it up where it has a checkpoint; arguments as of `finish_run`."""
    words = [*_launcher(num_gpus), str(find_script(script)), *flags, "--run_dir", str(run_dir)]
    return [*words, "--resume"] if has_checkpoint(run_dir) else words


def has_checkpoint(run_dir: Path) -> bool:
    """Whether the run goes on from somewhere; else it begins anew."""
    return (run_dir / "checkpoints" / "latest").exists()


def finish_run(
    run_dir: Path,
    flags: Sequence[str],
    log_file: Path,
    inherited: Sequence[int] = (),
    num_gpus: int = 0,
    script: str = PRETRAIN,
) -> None:
    """Waits for one run, which goes on from its last checkpoint if it has one.

    Args:
        run_dir: of the run, and of nothing else: what is there without a checkpoint is removed.
        flags: all others.
        log_file: where what it prints is added.
        inherited: file descriptors that stay open for as long as it lives.
        num_gpus: of the deepspeed launcher; 0: one plain process.
        script: whose run it is.

    Raises:
        UserError: it did not end well; names what it said last, and the log.
    """
    words = run_command(run_dir, flags, num_gpus, script)
    if not has_checkpoint(run_dir) and run_dir.exists():
        shutil.rmtree(run_dir)
    _wait_for(words, log_file, inherited)


def evaluation_command(flags: Sequence[str], num_gpus: int = 0) -> list[str]:
    """What starts `mmsr-pt evaluate`; arguments as of `finish_run`."""
    launcher = [*_launcher(num_gpus), "--no_local_rank", "--module"] if num_gpus else [sys.executable, "-m"]
    return [*launcher, "mmsr_pt.cli", "evaluate", *flags]


def finish_evaluation(flags: Sequence[str], log_file: Path, inherited: Sequence[int] = (), num_gpus: int = 0) -> None:
    """Waits for one `mmsr-pt evaluate`; arguments and errors as of `finish_run`."""
    _wait_for(evaluation_command(flags, num_gpus), log_file, inherited)


def _wait_for(words: Sequence[str], log_file: Path, inherited: Sequence[int]) -> None:
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("a", encoding="utf-8") as printed:
        before = printed.tell()
        # the code of this checkout, whichever is installed
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
        ended = subprocess.run(words, env=environment, stdout=printed, stderr=printed, pass_fds=inherited)
    if ended.returncode:
        said = _last_words(log_file, before)
        raise UserError(f"a run failed with exit code {ended.returncode} ({said}): {log_file} has all it said")


def _launcher(num_gpus: int) -> list[str]:
    if not num_gpus:
        return [sys.executable]
    # the launcher's own port may be taken by another run on the machine
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = Path(sys.executable).with_name("deepspeed")
    return [str(launcher), "--num_gpus", str(num_gpus), "--master_port", str(port)]


def _last_words(log_file: Path, start: int) -> str:
    """The one sentence of a run that was refused, else the last line that it printed."""
    with log_file.open("rb") as printed:
        printed.seek(start)
        lines = [line.strip() for line in printed.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return next(reversed(errors or lines), "without a word")

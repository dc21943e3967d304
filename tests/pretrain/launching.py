"""Starts pretrain/run.py, or finetune/run.py, as a user does: under the deepspeed launcher, or as one plain process."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from mmsr_pt.data.domain import Domain

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "pretrain" / "run.py"
FINETUNE = ROOT / "finetune" / "run.py"
SMALL = ("--width", "32", "--max_history", "8", "--pool_size", "16", "--log_every", "1", "--hang_seconds", "90")
"""A model and batches that take a tenth of a second a step; where one takes 90, the test shows the ranks' stacks."""


LAUNCHERS_VARIABLES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


@dataclass
class Ended:
    """What a command left when it ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines in which the program says what is wrong."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


def start(
    *flags: object,
    num_ranks: int = 0,
    cwd: Path | None = None,
    script: Path = SCRIPT,
    by_torchrun: bool = False,
    into: IO[str] | None = None,
) -> subprocess.Popen[str]:
    """Starts a run in a process group of its own.

    Args:
        flags: of the script.
        num_ranks: of the deepspeed launcher; 0 is plain python.
        cwd: where it runs.
        script: which one.
        by_torchrun: instead of the deepspeed launcher.
        into: a file for all that it prints, which else `end` gives.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    name, count = ("torchrun", "--nproc_per_node") if by_torchrun else ("deepspeed", "--num_gpus")
    launcher = [str(Path(sys.executable).with_name(name)), count, str(num_ranks), "--master_port", port]
    command = [*(launcher if num_ranks else [sys.executable]), script, *flags]
    # a run started from within another one must not look like part of it
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_VARIABLES}
    environment.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    return subprocess.Popen(
        [str(word) for word in command],
        env=environment,
        cwd=cwd or ROOT,
        stdout=into or subprocess.PIPE,
        stderr=into or subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str], timeout: float = 300) -> Ended:
    """Waits for a run; one that takes too long is killed with all its processes."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"not done after {timeout} s:\n{out[-3000:]}\n{err[-5000:]}") from None
    return Ended(process.returncode, out, err)


def wait_for(path: Path, process: subprocess.Popen[str], timeout: float = 120) -> None:
    """Until `path` is there; the process must still run then."""
    until = time.monotonic() + timeout
    while not path.exists():
        assert process.poll() is None, end(process)
        assert time.monotonic() < until, f"no {path} after {timeout} s"
        time.sleep(0.02)


def launch(
    *flags: object, num_ranks: int = 0, cwd: Path | None = None, timeout: float = 300, script: Path = SCRIPT
) -> Ended:
    """Runs to the end, whatever that is."""
    return end(start(*flags, num_ranks=num_ranks, cwd=cwd, script=script), timeout)


def finish(
    *flags: object, num_ranks: int = 0, cwd: Path | None = None, timeout: float = 300, script: Path = SCRIPT
) -> Ended:
    """Runs to the end, which must be a good one."""
    ended = launch(*flags, num_ranks=num_ranks, cwd=cwd, timeout=timeout, script=script)
    assert ended.code == 0, f"exit code {ended.code}:\n{ended.out[-3000:]}\n{ended.err[-5000:]}"
    return ended


def group_members(group: int) -> list[str]:
    """Processes of a process group that are still there; a zombie is gone."""
    lines = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    fields = [line.split(None, 2) for line in lines.splitlines()]
    return [words[2] for words in fields if int(words[0]) == group and not words[1].startswith("Z")]


def ranks_of(launcher: int, script: str = SCRIPT.name) -> list[psutil.Process]:
    """The ranks of `script` below a launcher's process number, in order."""
    found: dict[int, psutil.Process] = {}
    for one in psutil.Process(launcher).children(recursive=True):
        # some end while they are asked
        with contextlib.suppress(psutil.NoSuchProcess):
            if script in " ".join(one.cmdline()[:3]) and "RANK" in one.environ():
                # loader processes come behind their rank
                found.setdefault(int(one.environ()["RANK"]), one)
    return [found[number] for number in sorted(found)]


def made_once(out: Path, make: Callable[[], object]) -> Path:
    """`out`, which `make` fills, in whichever of several pytest-xdist workers comes first."""
    with out.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            out.mkdir()
            make()
    return out


def shared_root(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The temporary directory that all pytest-xdist workers share."""
    root = tmp_path_factory.getbasetemp()
    return root if worker_id == "master" else root.parent


def ds_config(path: Path, stage: int = 2, micro_batch: int = 8, bf16: bool = False, **others: Any) -> Path:
    """Writes a DeepSpeed configuration and returns where."""
    config = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": bf16},
        "zero_optimization": {"stage": stage},
        **others,
    }
    # renamed into place, since runs of several tests may share the file
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(config))
    return unfinished.replace(path)


def small_run(tmp_path: Path, domain: Domain, *flags: object, name: str = "run") -> list[object]:
    """Flags of a run on `domain` that writes to tmp_path / name; `flags` come last."""
    config = ds_config(tmp_path / "ds_config.json")
    run = ["--ds_config", config, "--data", domain.path, "--run_dir", tmp_path / name]
    return [*run, *SMALL, *flags]


def metrics(run_dir: Path, event: str, **fields: Any) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl of an event, with these values."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event and all(line[k] == v for k, v in fields.items())]


def losses(run_dir: Path) -> list[float]:
    """The loss of every step, which must stand there in order, each once."""
    lines = metrics(run_dir, "train")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]

"""A run of pretrain/run.py in a process of its own: started, or taken up where it was broken off."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mmsr_pt.log import UserError

_ROOT = Path(__file__).resolve().parent.parent
_SCRIPT = _ROOT / "pretrain" / "run.py"


def find_script() -> Path:
    """Where pretrain/run.py is.

    Raises:
        UserError: the package was installed without it.
    """
    if not _SCRIPT.is_file():
        raise UserError(
            f"there is no {_SCRIPT}: runs are started from a source checkout, install from one with "
            "pip install --editable ."
        )
    return _SCRIPT


def run_command(run_dir: Path, flags: Sequence[str], num_gpus: int = 0) -> list[str]:
    """What starts a run, or takes it up where it has a checkpoint; arguments as of `finish_run`."""
    words = [*_launcher(num_gpus), str(find_script()), *flags, "--run_dir", str(run_dir)]
    return [*words, "--resume"] if (run_dir / "checkpoints" / "latest").exists() else words


def finish_run(
    run_dir: Path, flags: Sequence[str], log_file: Path, inherited: Sequence[int] = (), num_gpus: int = 0
) -> None:
    """Waits for one run, which goes on from its last checkpoint if it has one.

    Args:
        run_dir: of the run, and of nothing else: what is there without a checkpoint is removed.
        flags: all others.
        log_file: where what it prints is added.
        inherited: file descriptors that stay open for as long as it lives.
        num_gpus: of the deepspeed launcher; 0: one plain process.

    Raises:
        UserError: it did not end well; names what it said last, and the log.
    """
    words = run_command(run_dir, flags, num_gpus)
    if "--resume" not in words and run_dir.exists():
        shutil.rmtree(run_dir)
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

"""Runs that are asked to end, and ranks that die or hang, under the launchers that people use."""

import time
from pathlib import Path

from tests.pretrain.launching import end, metrics, start
from tests.pretrain.test_resume import wait_for

FAULTY = Path(__file__).with_name("faulty.py")
LONG = ["--steps", 5000, "--patience", 0, "--eval_every", 5000, "--checkpoint_every", 5000, "--num_workers", 1]


def ranks_of(process: int) -> list[int]:
    """Process numbers of the ranks below a launcher, or of the run itself where there is none."""
    import psutil

    family = [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
    ranks = {one.environ()["RANK"]: one for one in reversed(family) if "RANK" in one.environ()}
    return [ranks[number].pid for number in sorted(ranks)] or [process]


def started(tmp_path: Path, *flags: object, **launcher: object) -> "object":
    process = start(*flags, **launcher)  # type: ignore[arg-type]
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    until = time.monotonic() + 120
    while len(metrics(tmp_path / "run", "train")) < 2:
        assert time.monotonic() < until, end(process)
        time.sleep(0.05)
    return process

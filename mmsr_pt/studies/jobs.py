"""What every study does with its runs: a place of its own, one run after the other, progress, a report behind each."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.table import wide_console
from mmsr_pt.log import UserError

log = logging.getLogger(__name__)

RESULTS = "results.json"
"""What every study keeps its figures in, by which its directory is known."""
METRICS = ("HR@10", "NDCG@10")
OWN_FLAGS = {
    "data": "--data before the --",
    "ds_config": "--ds_config before the --",
    "run_dir": "--out before the --, under which each run has its place",
    "seed": "--seeds before the --",
    "resume": "nothing: the same command goes on by itself",
}
"""Flags of a run that a study gives, and what to type for them."""


class Job(Protocol):
    """One of the things that a study runs; its string says which."""

    @property
    def row(self) -> str:
        """What is run."""

    @property
    def domain(self) -> str:
        """On what."""

    @property
    def flags(self) -> tuple[str, ...]:
        """All but the places in the study's directory."""

    def directory(self, out: Path) -> Path:
        """Where a study in `out` keeps it."""

    def command(self, out: Path, num_gpus: int) -> list[str]:
        """What starts it, or takes it up."""

    def figures(self, out: Path) -> Mapping[str, Any] | None:
        """On the test users, as in metrics.jsonl; None: it is not finished."""

    def finish(self, out: Path, log_file: Path, inherited: Sequence[int], num_gpus: int) -> None:
        """Waits for it; see `finish_run`."""


class Report(Protocol):
    """What a study has found so far."""

    def write(self) -> None:
        """Writes it into the study's directory."""


def carry_out(runs: Sequence[Job], out: Path, report: Report, lock: int, num_gpus: int = 0) -> None:
    """Runs what is not finished, in order; the report is written anew behind each.

    Args:
        runs: all that were asked for.
        out: directory of the study.
        report: told of each that is finished.
        lock: file descriptor that every run holds.
        num_gpus: see `study`.

    Raises:
        UserError: a run failed.
    """
    missing = [run for run in runs if run.figures(out) is None]
    if len(missing) < len(runs):
        log.info("%d of %d runs are finished", len(runs) - len(missing), len(runs))
    report.write()
    begun = time.monotonic()
    for number, run in enumerate(missing):
        run_dir, log_file = run.directory(out), run.directory(out).with_suffix(".log")
        log.info("run %d of %d: %s; it logs to %s", number + 1, len(missing), run, log_file)
        try:
            run.finish(out, log_file, [lock], num_gpus)
        except UserError as error:
            raise UserError(f"{run}: {error}; finished rows stay, and the same command goes on") from error
        found = run.figures(out)
        assert found is not None, f"{run_dir} ended well without figures"
        # its bundle is all that is ever read again
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        report.write()
        minutes = (time.monotonic() - begun) / 60 / (number + 1)
        figures = ", ".join(f"{metric} {100 * found[metric]:.2f} %" for metric in METRICS) if found else "nobody asked"
        left = f"; about {minutes * (len(missing) - number - 1):.0f} min left" if number + 1 < len(missing) else ""
        log.info("%s: %s (%.1f min a run%s)", run, figures, minutes, left)


def require_counts(seeds: int, num_gpus: int) -> None:
    """Raises UserError where a study is asked for a number of seeds or GPUs that cannot be."""
    if seeds < 1:
        raise UserError(f"--seeds {seeds} must be at least 1")
    if num_gpus < 0:
        raise UserError(f"--num_gpus {num_gpus} must not be negative")


def default_place(name: str, shared: Mapping[str, Any]) -> Path:
    """Where a study goes that nobody gave a directory: another one for other things that all its runs share."""
    digest = hashlib.sha256(json.dumps(shared).encode()).hexdigest()[:8]
    return Path("runs") / f"{name}-{digest}"


def open_distinct(data: Sequence[Path], flag: str) -> list[Domain]:
    """The domains of a flag; raises UserError where there is none, or two have one name."""
    if not data:
        raise UserError(f"no {flag} given: name one or several domain directories made by shards/build.py")
    domains = [Domain.load(path) for path in data]
    names = [domain.name for domain in domains]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(f"{flag} names two domains called {name}: study them in two directories (--out)")
    return domains


def print_plainly(text: str) -> None:
    """To stdout, without wrapping it or reading anything into it."""
    wide_console().print(text, markup=False, highlight=False, soft_wrap=True)


def check_place(out: Path) -> None:
    """Raises UserError where a study cannot have its place."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a directory")
    if out.is_dir() and not (out / RESULTS).is_file() and any(p.name[0] != "." for p in out.iterdir()):
        raise UserError(f"--out {out} holds something else: name an empty or new directory")


@contextlib.contextmanager
def alone_in(out: Path) -> Iterator[int]:
    """Makes the directory and holds its lock, whose file descriptor is given; runs that inherit it hold it, too.

    Raises:
        UserError: another study, or the run that a killed one left behind, is at work there.
    """
    check_place(out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out {out}: another study is at work there: wait for it, or name another one") from None
        yield lock.fileno()

"""Contestants in turn, A B C A B C ..., each in a process of its own, and what is made of their figures.

A contestant that is not asked is stopped (SIGSTOP) with its loader processes, so that it takes no part of the machine
from the one that runs. A ratio is taken between two runs of the same round, which drifts of the machine touch alike;
what counts is the median over the rounds, and the extremes stand beside it.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmsr_pt.log import UserError

ROOT = Path(__file__).resolve().parent.parent
Figures = dict[str, float]


@dataclass(frozen=True)
class Entrant:
    """How a contestant is made: see benchmarks/contestant.py."""

    make: str
    """module:name of a callable."""
    settings: dict[str, Any] = field(default_factory=dict)
    python: str = sys.executable
    """Interpreter of another environment, where the contestant lives in one."""


@dataclass(frozen=True)
class Comparison:
    """A line of the table: how one contestant stands against another."""

    ours: str
    against: str
    at_least: float | None = None
    """The ratio that must be reached."""
    aim: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """Contestants that are measured in one go."""

    name: str
    work: str
    """What is measured, in words."""
    figure: str
    """Name of the compared figure."""
    unit: str
    entrants: dict[str, Entrant]
    comparisons: Sequence[Comparison]
    repetitions: int = 5
    less_is_better: bool = False
    """False: figures are rates; True: they are costs. A ratio above 1 speaks for ours either way."""
    fresh: bool = False
    """Every repetition in a new process and without warm-up, for figures that only a new process has."""


class Process:
    """A contestant that is running; a context manager that ends it."""

    def __init__(self, entrant: Entrant, log: Path) -> None:
        """Starts it and waits until it is set up; what it prints goes to `log`."""
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        described = json.dumps({"make": entrant.make, "settings": entrant.settings}, default=str)
        with log.open("w") as printed:
            self._process = subprocess.Popen(
                [entrant.python, "-m", "benchmarks.contestant", described],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                text=True,
                start_new_session=True,
            )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def ask(self, request: str) -> Any:
        """The answer to `run` or `work`; nothing else of this contestant runs before or after."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        with suppress(BrokenPipeError):  # that it has ended is said below
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """Ends the contestant and its loader processes."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        said = json.loads(line) if line else {"error": "it ended without a word, as when memory runs out"}
        if "error" in said:
            with self._log.open("a") as printed:
                printed.write(said.get("traceback", ""))
            raise UserError(f"a contestant failed: {' '.join(said['error'].split())} (see {self._log})")
        return said["answer"]

    def _signal(self, number: int) -> None:
        # the group, which loader processes share
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return


def measure(row: Row, logs: Path, say: Callable[[str], None], repetitions: int | None = None) -> dict[str, Any]:
    """Runs a row.

    Args:
        row: what to measure.
        logs: directory for what the contestants print.
        say: told about progress.
        repetitions: other than the row's.

    Returns: JSON: the figures of every contestant by repetition, their work, and the comparisons.
    """
    rounds = repetitions or row.repetitions
    figures: dict[str, list[Figures]] = {name: [] for name in row.entrants}
    work: dict[str, Any] = {}
    if row.fresh:
        for number in range(rounds):
            for name, entrant in row.entrants.items():
                with Process(entrant, logs / f"{row.name}-{name}.log") as process:
                    figures[name].append(process.ask("run"))
                _tell(say, row, name, number + 1, rounds, figures[name][-1])
    else:
        running: dict[str, Process] = {}
        try:
            for name, entrant in row.entrants.items():
                say(f"{row.name}: setting up {name}")
                running[name] = Process(entrant, logs / f"{row.name}-{name}.log")
            for number in range(rounds + 1):
                for name, process in running.items():
                    found = process.ask("run")
                    if number:  # the first round warms up
                        figures[name].append(found)
                    _tell(say, row, name, number, rounds, found)
            work = {name: process.ask("work") for name, process in running.items()}
        finally:
            for process in running.values():
                process.close()
    return {
        "work": row.work,
        "figure": row.figure,
        "unit": row.unit,
        "repetitions": rounds,
        "figures": figures,
        "flops": {name: found for name, found in work.items() if found},
        "comparisons": [compare(comparison, row, figures) for comparison in row.comparisons],
    }


def _tell(say: Callable[[str], None], row: Row, name: str, number: int, rounds: int, found: Figures) -> None:
    which = f"{number} of {rounds}" if number else "warm-up"
    say(f"{row.name}: {name}, {which}: {found[row.figure]:,.4g} {row.unit}")


def compare(comparison: Comparison, row: Row, figures: dict[str, list[Figures]]) -> dict[str, Any]:
    """A line of the table from the figures by repetition: medians, and the ratio of the two runs of every round."""
    ours, against = ([run[row.figure] for run in figures[name]] for name in (comparison.ours, comparison.against))
    ratios = [theirs / own if row.less_is_better else own / theirs for own, theirs in zip(ours, against, strict=True)]
    return {
        "ours": comparison.ours,
        "against": comparison.against,
        "ours_median": statistics.median(ours),
        "against_median": statistics.median(against),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "at_least": comparison.at_least,
        "aim": comparison.aim,
        "note": comparison.note,
    }

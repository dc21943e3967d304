"""What a study has done and would do, and how long that would take: `mmsr-pt study TABLE ... --dry_run`.

Times are of training and evaluation, from what each run says of itself in its metrics.jsonl: so a pause between a kill
and the next start is none. What comes on top is loading, caches and checkpoints.
"""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsr_pt.config import FinetuneConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.flags import parse_flags
from mmsr_pt.log import UserError
from mmsr_pt.run_dir import metric_lines
from mmsr_pt.studies.child_run import has_checkpoint
from mmsr_pt.studies.jobs import Job


@dataclass(frozen=True)
class _Known:
    """What there is of one run."""

    row: str
    domain: str
    users: int | None
    """Who train in an epoch; None: its domain is not there yet."""
    is_finished: bool
    whole: float | None = None
    """Seconds from its beginning to its end, what is still to come at its own pace; None: it has none yet."""
    remaining: float | None = None
    """Seconds of these to come."""


def describe(runs: Sequence[Job], out: Path, num_gpus: int = 0) -> str:
    """Every run with its place, its command and its time, then what is left to do.

    Args:
        runs: all that were asked for.
        out: directory of the study, which need not be there.
        num_gpus: of the deepspeed launcher, for each run; 0: one plain process.
    """
    known = [_known(run, out) for run in runs]
    lines, times = [], []
    for run, one in zip(runs, known, strict=True):
        run_dir = run.directory(out)
        if one.is_finished:
            took = "time unknown" if one.whole is None else _minutes(one.whole)
            lines.append(f"finished  {run} ({took})\n          {run_dir}")
            continue
        seconds, basis = _estimate(one, known)
        times.append(seconds)
        state = "begun     " if has_checkpoint(run_dir) else "to do     "
        about = "time unknown" if seconds is None else f"about {_minutes(seconds)}, {basis}"
        command = shlex.join(run.command(out, num_gpus))
        lines.append(f"{state}{run} ({about})\n          {run_dir}\n          {command}")
    return "\n".join([*lines, "", _sum_up(len(runs) - len(times), times)])


def _known(run: Job, out: Path) -> _Known:
    run_dir = run.directory(out)
    users = _users(run.flags)
    is_finished = run.figures(out) is not None
    lines = metric_lines(run_dir)
    trained = [line for line in lines if line["event"] == "train"]
    asked = [line for line in lines if line["event"] == "eval" and line["slice"] == "all"]
    if users is None or not trained or not trained[-1]["epoch"]:
        return _Known(run.row, run.domain, users, is_finished)
    epochs = [0.0, *(line["epoch"] for line in trained)]
    training = sum(
        users * (after - before) / line["users_per_s"] for before, after, line in zip(epochs, epochs[1:], trained)
    )
    seconds = training + sum(line["seconds"] for line in asked)
    if is_finished:
        return _Known(run.row, run.domain, users, True, seconds, 0.0)
    whole = seconds / epochs[-1] * _epochs_asked(run_dir, trained[-1]["step"] / epochs[-1])
    # one that was broken off before its first checkpoint begins anew
    remaining = whole - seconds if has_checkpoint(run_dir) else whole
    return _Known(run.row, run.domain, users, False, whole, remaining)


def _users(flags: Sequence[str]) -> int | None:
    """Who train in an epoch of such a run."""
    try:
        data = parse_flags(list(flags), FinetuneConfig).data
        numbers = [Domain.load(path).num_users for path in data.data]
        return sum(min(number, data.max_users) if data.max_users else number for number in numbers)
    except UserError:  # a domain that an earlier run of the study is to make
        return None


def _epochs_asked(run_dir: Path, steps_per_epoch: float) -> float:
    run = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))["run"]
    return run["steps"] / steps_per_epoch if run["steps"] else run["epochs"]


def _estimate(one: _Known, known: Sequence[_Known]) -> tuple[float | None, str]:
    """Seconds that are left, and whose they are; the nearest relation that has run counts."""
    if one.remaining is not None:
        return one.remaining, "at its own pace so far, if it does not stop early"
    relations = {
        "as its other seeds": [k for k in known if (k.row, k.domain) == (one.row, one.domain)],
        "as this row elsewhere, by users": [k for k in known if k.row == one.row],
        "roughly: as other rows, which cost more or less": [k for k in known if k.domain == one.domain],
        "roughly: as other rows elsewhere, by users": known,
    }
    for basis, relatives in relations.items():
        times = [k.whole * one.users / k.users for k in relatives if k.whole and k.users and one.users]
        if times:
            return statistics.mean(times), basis
    return None, ""


def _sum_up(num_finished: int, times: Sequence[float | None]) -> str:
    counted = f"finished: {num_finished} of {num_finished + len(times)}"
    known = [seconds for seconds in times if seconds is not None]
    if not times:
        return f"{counted}; nothing is left to do"
    if not known:
        return f"{counted}; how long the others take is unknown: the first run will tell"
    which = f"{len(known)} of the other {len(times)}" if len(known) < len(times) else "the others"
    return (
        f"{counted}; about {_minutes(sum(known))} for {which}, by what runs took so far to train and to evaluate "
        "(loading, caches and checkpoints come on top)"
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

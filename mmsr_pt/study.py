"""A study: the rows of a table of the paper on one or several domains, each row a run of pretrain/run.py.

    mmsr-pt study table3 --data data/hm -- --text hf:NAME --vision timm:NAME --tune frozen --cache

Rows are those of `presets.py`, turned into flags; whatever follows a lone -- goes to every run. One directory holds one
study: the same command goes on with it, further rows, domains and seeds join it, other flags are another study.
Nothing is chosen by test figures: each run stops and keeps its model by its validation, and every seed counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsr_pt.assembly import open_domains
from mmsr_pt.child_run import find_script, finish_run
from mmsr_pt.config import fields_given, parse_flags
from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.cases import questions
from mmsr_pt.evaluation.table import wide_console
from mmsr_pt.log import UserError, naming_a_full_disk
from mmsr_pt.presets import Table, find_table
from mmsr_pt.registry import unknown_name
from mmsr_pt.run_dir import figures_on_test
from mmsr_pt.study_report import METRICS, RESULTS, StudyReport, row_flags, run_directory
from mmsr_pt.training.ds_config import read_ds_config

log = logging.getLogger(__name__)

_OWN = {
    "data": "--data before the --",
    "ds_config": "--ds_config before the --",
    "run_dir": "--out before the --, under which each run has its place",
    "seed": "--seeds before the --",
    "resume": "nothing: the same command goes on by itself",
}
"""Flags of a run that a study gives, and what to type for them."""


@dataclass(frozen=True)
class Run:
    """One cell of the table, for one seed."""

    row: str
    domain: str
    seed: int
    flags: tuple[str, ...]
    """All but --run_dir."""

    def directory(self, out: Path) -> Path:
        """Where it is kept."""
        return run_directory(out, self.domain, self.row, self.seed)

    def __str__(self) -> str:
        return f"{self.row} on {self.domain}, seed {self.seed}"


def study(
    name: str,
    data: Sequence[Path],
    rows: Sequence[str] = (),
    seeds: int = 1,
    out: Path | None = None,
    ds_config: Path = Path("ds_configs/zero2.json"),
    further: Sequence[str] = (),
    num_gpus: int = 0,
) -> dict[str, Any]:
    """Runs what is not finished yet, one after the other, and prints the table.

    Args:
        name: of the table.
        data: domain directories; each row runs on each of them.
        rows: some of the table's; none given: all.
        seeds: runs of each row: seeds 0 to seeds - 1.
        out: directory of the study; none given: runs/study-<table>-<hash of what all runs share>.
        ds_config: of every run.
        further: flags of every run.
        num_gpus: of the deepspeed launcher, for each run; 0: runs are one plain process.

    Returns: what stands in results.json.

    Raises:
        UserError: something that was asked for cannot be; or a run failed, what was finished before stays.
    """
    table = find_table(name)
    for row in rows:
        if row not in table.all_rows:
            raise unknown_name(f"row of {name}", row, table.all_rows)
    if seeds < 1:
        raise UserError(f"--seeds {seeds} must be at least 1")
    if num_gpus < 0:
        raise UserError(f"--num_gpus {num_gpus} must not be negative")
    find_script()
    _check_further(name, table, further)
    domains = _open(data)
    if table.protocol == "cold":
        _require_cold_items(name, domains)
    asked = [row for row in table.all_rows if not rows or row in rows]
    shared = {"table": name, "flags": list(further), "ds_config": read_ds_config(ds_config, max(num_gpus, 1))}
    runs = []
    for seed in range(seeds):
        for row in asked:
            flags = row_flags(table.all_rows[row], further)
            for domain in domains:
                own = ["--ds_config", str(ds_config), "--data", str(domain.path), "--seed", str(seed)]
                runs.append(Run(row, domain.name, seed, (*own, *flags)))
                if seed == 0:  # refused before the first run, not after hours
                    open_domains(parse_flags(list(runs[-1].flags)))
    if out is None:
        digest = hashlib.sha256(json.dumps(shared).encode()).hexdigest()[:8]
        out = Path("runs") / f"study-{name}-{digest}"
    with _alone_in(out) as lock, naming_a_full_disk(out, "free some space; the same command goes on"):
        report = StudyReport(out, table, shared, domains)
        carry_out(runs, out, report, lock, num_gpus)
        wide_console().print(report.markdown(), markup=False, highlight=False, soft_wrap=True)
    log.info("the study is in %s: table.md, %s and the runs", out, RESULTS)
    return report.as_dict()


def varied_fields(table: Table) -> set[str]:
    """The fields in which a table's rows differ, but for those by which some only leave a part out."""
    settings = table.all_rows.values()
    return {field for row in settings for field, value in row.items() if value is not False and value != "none"}


def carry_out(runs: Sequence[Run], out: Path, report: StudyReport, lock: int, num_gpus: int = 0) -> None:
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
    missing = [run for run in runs if figures_on_test(run.directory(out)) is None]
    if len(missing) < len(runs):
        log.info("%d of %d runs are finished", len(runs) - len(missing), len(runs))
    report.write()
    begun = time.monotonic()
    for number, run in enumerate(missing):
        run_dir, log_file = run.directory(out), run.directory(out).with_suffix(".log")
        log.info("run %d of %d: %s; it logs to %s", number + 1, len(missing), run, log_file)
        try:
            finish_run(run_dir, run.flags, log_file, [lock], num_gpus)
        except UserError as error:
            raise UserError(f"{run}: {error}; finished rows stay, and the same command goes on") from error
        assert figures_on_test(run_dir) is not None, f"{run_dir} ended well without figures"
        found = figures_on_test(run_dir, report.protocol)
        # its bundle is all that is ever read again
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        report.write()
        minutes = (time.monotonic() - begun) / 60 / (number + 1)
        figures = ", ".join(f"{metric} {100 * found[metric]:.2f} %" for metric in METRICS) if found else "nobody asked"
        left = f"; about {minutes * (len(missing) - number - 1):.0f} min left" if number + 1 < len(missing) else ""
        log.info("%s: %s (%.1f min a run%s)", run, figures, minutes, left)


def _check_further(name: str, table: Table, further: Sequence[str]) -> None:
    for field in fields_given(further):
        if field in _OWN:
            raise UserError(f"--{field} behind the --: a study gives it to each run, type {_OWN[field]}")
        if field in varied_fields(table):
            raise UserError(f"--{field} behind the --: it is what the rows of {name} differ in, leave it out")


def _open(data: Sequence[Path]) -> list[Domain]:
    if not data:
        raise UserError("no --data given: name one or several domain directories made by shards/build.py")
    domains = [Domain.load(path) for path in data]
    names = [domain.name for domain in domains]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(f"--data names two domains called {name}: study them in two directories (--out)")
    return domains


def _require_cold_items(name: str, domains: Sequence[Domain]) -> None:
    for domain in domains:
        if not questions(domain, "any", 1).held_out.any():
            raise UserError(f"{name} is about cold items, and {domain.path} holds none out: leave it out of --data")


@contextlib.contextmanager
def _alone_in(out: Path) -> Iterator[int]:
    """Makes the directory and holds its lock, whose file descriptor is given; runs that inherit it hold it, too.

    Raises:
        UserError: another study, or the run that a killed one left behind, is at work there.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a directory")
    if out.is_dir() and not (out / RESULTS).is_file() and any(p.name[0] != "." for p in out.iterdir()):
        raise UserError(f"--out {out} holds something else: name an empty or new directory")
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out {out}: another study is at work there: wait for it, or name another one") from None
        yield lock.fileno()

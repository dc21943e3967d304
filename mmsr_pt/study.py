"""A study: the rows of a table or figure of the paper on one or several domains, each a run of pretrain/run.py.

    mmsr-pt study table3  --data data/hm -- --text hf:NAME --vision timm:NAME --tune frozen --cache
    mmsr-pt study figure4 --data data/hm -- --text hf:NAME --vision timm:NAME --tune frozen --cache

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmsr_pt.assembly import open_domains
from mmsr_pt.child_run import find_script, finish_run, run_command
from mmsr_pt.config import fields_given, parse_flags
from mmsr_pt.data.domain import Domain
from mmsr_pt.dry_run import describe
from mmsr_pt.evaluation.cases import ProtocolName, questions
from mmsr_pt.evaluation.table import wide_console
from mmsr_pt.figures.canvas import require_drawing
from mmsr_pt.log import UserError, naming_a_full_disk
from mmsr_pt.presets import TABLES, Table
from mmsr_pt.registry import unknown_name
from mmsr_pt.run_dir import figures_on_test
from mmsr_pt.study_figures import draw_figure, find_study
from mmsr_pt.study_report import METRICS, RESULTS, StudyReport, row_flags, run_directory
from mmsr_pt.training.ds_config import read_ds_config

log = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Run:
    """One cell of the table, for one seed."""

    row: str
    domain: str
    seed: int
    flags: tuple[str, ...]
    """All but --run_dir."""
    protocol: ProtocolName = "leave-one-out"
    """By which it is judged."""

    def directory(self, out: Path) -> Path:
        """Where it is kept."""
        return run_directory(out, self.domain, self.row, self.seed)

    def figures(self, out: Path) -> Mapping[str, Any] | None:
        """See Job."""
        return figures_on_test(self.directory(out), self.protocol)

    def command(self, out: Path, num_gpus: int) -> list[str]:
        """See Job."""
        return run_command(self.directory(out), self.flags, num_gpus)

    def finish(self, out: Path, log_file: Path, inherited: Sequence[int], num_gpus: int) -> None:
        """See Job."""
        finish_run(self.directory(out), self.flags, log_file, inherited, num_gpus)

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
    dry_run: bool = False,
) -> dict[str, Any]:
    """Runs what is not finished yet, one after the other, and prints the table or draws the figure.

    Args:
        name: of the table or figure.
        data: domain directories; each row runs on each of them.
        rows: some of the table's or figure's; none given: all.
        seeds: runs of each row: seeds 0 to seeds - 1.
        out: directory of the study; none given: runs/study-<table>-<hash of what all runs share>.
        ds_config: of every run.
        further: flags of every run.
        num_gpus: of the deepspeed launcher, for each run; 0: runs are one plain process.
        dry_run: only print what would be run, and how long that would take.

    Returns: what stands in results.json.

    Raises:
        UserError: something that was asked for cannot be; or a run failed, what was finished before stays.
    """
    table_name, figure = find_study(name)
    table = TABLES[table_name]
    known = table.all_rows if figure is None else figure.rows
    for row in rows:
        if row not in known:
            raise unknown_name(f"row of {name}", row, known)
    if figure is not None:
        require_drawing()
    if seeds < 1:
        raise UserError(f"--seeds {seeds} must be at least 1")
    if num_gpus < 0:
        raise UserError(f"--num_gpus {num_gpus} must not be negative")
    find_script()
    _check_further(name, table, further)
    domains = open_distinct(data, "--data")
    if table.protocol == "cold":
        _require_cold_items(name, domains)
    asked = [row for row in known if not rows or row in rows]
    runs = _runs(table, asked, seeds, domains, ds_config, further)
    # that of the table, also where a figure is drawn from its runs
    shared = {"table": table_name, "flags": list(further), "ds_config": read_ds_config(ds_config, max(num_gpus, 1))}
    if out is None:
        digest = hashlib.sha256(json.dumps(shared).encode()).hexdigest()[:8]
        out = Path("runs") / f"study-{table_name}-{digest}"
    if dry_run:
        check_place(out)
        found = StudyReport(out, table, shared, domains).as_dict()
        print_plainly(describe(runs, out, num_gpus))
        return found
    with alone_in(out) as lock, naming_a_full_disk(out, "free some space; the same command goes on"):
        report = StudyReport(out, table, shared, domains)
        carry_out(runs, out, report, lock, num_gpus)
        if figure is None:
            print_plainly(report.markdown())
        else:
            log.info("%s is drawn in %s", name, draw_figure(name, out, domains, asked))
    log.info("the study is in %s: table.md, %s and the runs", out, RESULTS)
    return report.as_dict()


def _runs(
    table: Table, rows: Sequence[str], seeds: int, domains: Sequence[Domain], ds_config: Path, further: Sequence[str]
) -> list[Run]:
    """Raises UserError where one of them would be refused: now, and not after hours."""
    runs = []
    for seed in range(seeds):
        for row in rows:
            flags = row_flags(table.all_rows[row], further)
            for domain in domains:
                own = ["--ds_config", str(ds_config), "--data", str(domain.path), "--seed", str(seed)]
                runs.append(Run(row, domain.name, seed, (*own, *flags), table.protocol))
                if seed == 0:
                    open_domains(parse_flags(list(runs[-1].flags)))
    return runs


def varied_fields(table: Table) -> set[str]:
    """The fields in which a table's rows differ, but for those by which some only leave a part out."""
    settings = table.all_rows.values()
    return {field for row in settings for field, value in row.items() if value is not False and value != "none"}


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


def _check_further(name: str, table: Table, further: Sequence[str]) -> None:
    for field in fields_given(further):
        if field in OWN_FLAGS:
            raise UserError(f"--{field} behind the --: a study gives it to each run, type {OWN_FLAGS[field]}")
        if field in varied_fields(table):
            raise UserError(f"--{field} behind the --: it is what the rows of {name} differ in, leave it out")


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


def _require_cold_items(name: str, domains: Sequence[Domain]) -> None:
    for domain in domains:
        if not questions(domain, "any", 1).held_out.any():
            raise UserError(f"{name} is about cold items, and {domain.path} holds none out: leave it out of --data")


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

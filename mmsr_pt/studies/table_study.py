"""A study: the rows of a table or figure of the paper on one or several domains, each a run of pretrain/run.py.

    mmsr-pt study table3  --data data/hm -- --text hf:NAME --vision timm:NAME --tune frozen --cache
    mmsr-pt study figure4 --data data/hm -- --text hf:NAME --vision timm:NAME --tune frozen --cache

Rows are those of `presets.py`, turned into flags; whatever follows a lone -- goes to every run. One directory holds one
study: the same command goes on with it, further rows, domains and seeds join it, other flags are another study.
Nothing is chosen by test figures: each run stops and keeps its model by its validation, and every seed counts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsr_pt.assembly import open_domains
from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.cases import ProtocolName, questions
from mmsr_pt.figures.canvas import require_drawing
from mmsr_pt.flags import fields_given, parse_flags
from mmsr_pt.log import UserError, naming_a_full_disk
from mmsr_pt.presets import TABLES, Table
from mmsr_pt.registry import unknown_name
from mmsr_pt.run_dir import figures_on_test
from mmsr_pt.studies.child_run import find_script, finish_run, run_command
from mmsr_pt.studies.dry_run import describe
from mmsr_pt.studies.jobs import (
    OWN_FLAGS,
    RESULTS,
    alone_in,
    carry_out,
    check_place,
    default_place,
    open_distinct,
    print_plainly,
    require_counts,
)
from mmsr_pt.studies.table_figures import draw_figure, find_study
from mmsr_pt.studies.table_report import StudyReport, row_flags, run_directory
from mmsr_pt.training.ds_config import read_ds_config

log = logging.getLogger(__name__)


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
    require_counts(seeds, num_gpus)
    find_script()
    _check_further(name, table, further)
    domains = open_distinct(data, "--data")
    if table.protocol == "cold":
        _require_cold_items(name, domains)
    asked = [row for row in known if not rows or row in rows]
    runs = _runs(table, asked, seeds, domains, ds_config, further)
    # that of the table, also where a figure is drawn from its runs
    shared = {"table": table_name, "flags": list(further), "ds_config": read_ds_config(ds_config, max(num_gpus, 1))}
    out = out or default_place(f"study-{table_name}", shared)
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


def _check_further(name: str, table: Table, further: Sequence[str]) -> None:
    for field in fields_given(further):
        if field in OWN_FLAGS:
            raise UserError(f"--{field} behind the --: a study gives it to each run, type {OWN_FLAGS[field]}")
        if field in varied_fields(table):
            raise UserError(f"--{field} behind the --: it is what the rows of {name} differ in, leave it out")


def _require_cold_items(name: str, domains: Sequence[Domain]) -> None:
    for domain in domains:
        if not questions(domain, "any", 1).held_out.any():
            raise UserError(f"{name} is about cold items, and {domain.path} holds none out: leave it out of --data")

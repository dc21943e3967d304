"""What a study has found so far, read from its runs, beside the paper's figures: results.json and table.md.

Fractions in the file, percent in the table.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsr_pt.data.domain import Domain
from mmsr_pt.flags import as_flag
from mmsr_pt.log import UserError
from mmsr_pt.presets import Setting, Table
from mmsr_pt.run_dir import figures_on_test, write_text
from mmsr_pt.studies.jobs import METRICS, RESULTS
from mmsr_pt.studies.paper import PAPER_TABLES

_WIDEST = 8
"""Columns of figures in one table; of more, each metric has its own."""


def metrics_of(table: str) -> tuple[str, ...]:
    """What a study of that table reports: METRICS, and whatever else the paper has there."""
    paper = PAPER_TABLES.get(table)
    return paper.metrics if paper is not None and set(METRICS) <= set(paper.metrics) else METRICS


def run_directory(out: Path, domain: str, row: str, seed: int) -> Path:
    """Where a study in `out` keeps a run."""
    return out / domain / row / f"seed-{seed}"


def kept_seeds(out: Path, domain: str, row: str) -> list[int]:
    """The seeds of which a study in `out` keeps a run of a row, finished or not, in order."""
    kept = run_directory(out, domain, row, 0).parent
    return sorted(int(path.name.removeprefix("seed-")) for path in kept.glob("seed-*") if path.is_dir())


def row_flags(setting: Setting, further: Sequence[str] = ()) -> list[str]:
    """The flags of a run: those that all share, then a row's own, which win.

    Args:
        setting: of the row; False takes a switch away.
        further: flags of every run.
    """
    taken_away = {f"--{field}" for field, value in setting.items() if value is False}
    flags = [word for word in further if as_flag(word) not in taken_away]
    for field, value in setting.items():
        if value is True:
            flags.append(f"--{field}")
        elif value is not False:
            flags += [f"--{field}", str(value)]
    return flags


def mean_and_std(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, and standard deviation with n - 1, which one value alone has not."""
    return {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def described_domains(domains: Sequence[Domain]) -> dict[str, dict[str, str]]:
    """What a study's results say of the domains that it ran on."""
    return {d.name: {"fingerprint": d.fingerprint, "data": str(d.path)} for d in domains}


def require_same(
    out: Path, before: Mapping[str, Any], shared: Mapping[str, Any], domains: Mapping[str, Mapping[str, str]]
) -> None:
    """Raises UserError where the results that stand in `out` are another study's.

    Args:
        out: directory of the study.
        before: what stands in its results.json.
        shared: what all its runs share, by the names under which it stands there.
        domains: see `described_domains`.
    """
    for part, value in shared.items():
        if before.get(part) != value:
            given = before.get(part)
            raise UserError(f"--out {out} holds a study with other {part} ({given}): name another directory")
    for name, known in before["domains"].items():
        if domains.get(name, known)["fingerprint"] != known["fingerprint"]:
            raise UserError(f"--out {out} holds runs on another {name} ({known['data']}): name another directory")


def write_results(out: Path, results: Mapping[str, Any], table: str) -> None:
    """Writes results.json and table.md."""
    write_text(out / RESULTS, json.dumps(results, indent=2) + "\n")
    write_text(out / "table.md", table)


class StudyReport:
    """What a study has found so far, read from its runs: results.json and table.md."""

    def __init__(self, out: Path, table: Table, shared: Mapping[str, Any], domains: Sequence[Domain]) -> None:
        """Raises UserError where `out` holds another study."""
        self._out, self._table, self._shared = out, table, shared
        self._metrics, self._paper = metrics_of(shared["table"]), PAPER_TABLES.get(shared["table"])
        self.protocol = table.protocol
        asked = described_domains(domains)
        self._domains = asked
        path = out / RESULTS
        if not path.is_file():
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        require_same(out, before, shared, asked)
        for row, found in before["rows"].items():
            if row not in table.all_rows or found["flags"] != row_flags(table.all_rows[row]):
                raise UserError(f"--out {out} holds a row {row} of another meaning: name another directory")
        self._domains = {**before["domains"], **asked}

    def as_dict(self) -> dict[str, Any]:
        """Fractions: every seed's figures, mean and standard deviation, by row and domain."""
        rows = {}
        for row, setting in self._table.all_rows.items():
            found = {domain: self._seeds(domain, row) for domain in self._domains}
            described = {domain: _described(seeds) for domain, seeds in found.items() if seeds}
            if described:
                rows[row] = {"flags": row_flags(setting), "domains": described}
        paper = {} if self._paper is None else {"paper": self._paper.as_dict()}
        return {**self._shared, "domains": self._domains, "rows": rows, **paper}

    def markdown(self) -> str:
        """The table that people read, in percent; several, one for each metric, where one would be too wide."""
        return self._markdown(self.as_dict()["rows"])

    def _markdown(self, rows: Mapping[str, Any]) -> str:
        width = len(self._columns(self._metrics))
        blocks = [self._metrics] if width <= _WIDEST else [(metric,) for metric in self._metrics]
        tables = "\n".join(self._block(rows, metrics) for metrics in blocks)
        caption = "" if self._paper is None else f"\n{self._paper.caption()}\n"
        targets = "cold valid and test targets" if self.protocol == "cold" else "test targets"
        return (
            f"{self._shared['table']}: percent, {targets}, whole catalogue; mean ± standard deviation (seeds) where "
            f"a row ran with several\n\n{tables}{caption}"
        )

    def _columns(self, metrics: Sequence[str]) -> list[tuple[bool, str, str]]:
        """Whether a column is the paper's, its domain and its metric."""
        columns = [(False, domain, metric) for domain in self._domains for metric in metrics]
        if self._paper is not None:
            theirs = [metric for metric in metrics if metric in self._paper.metrics]
            columns += [(True, domain, metric) for domain in self._paper.domains for metric in theirs]
        return columns

    def _block(self, rows: Mapping[str, Any], metrics: Sequence[str]) -> str:
        columns = self._columns(metrics)
        head = [self._table.about, *(f"{'paper: ' * is_paper}{name} {metric}" for is_paper, name, metric in columns)]
        lines = [head, ["---"] * len(head)]
        for row, found in rows.items():
            cells = [
                self._paper_cell(row, domain, metric) if is_paper else _cell(found["domains"].get(domain), metric)
                for is_paper, domain, metric in columns
            ]
            lines.append([row, *cells])
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

    def _paper_cell(self, row: str, domain: str, metric: str) -> str:
        assert self._paper is not None
        value = self._paper.figure(row, domain, metric)
        return "" if value is None else f"{value:.2f}"

    def write(self) -> None:
        """Writes both files, neither ever by halves."""
        results = self.as_dict()
        write_results(self._out, results, self._markdown(results["rows"]))

    def _seeds(self, domain: str, row: str) -> dict[str, dict[str, float]]:
        seeds = kept_seeds(self._out, domain, row)
        lines = {seed: figures_on_test(run_directory(self._out, domain, row, seed), self.protocol) for seed in seeds}
        return {
            str(seed): {name: line[name] for name in self._metrics} for seed, line in lines.items() if line is not None
        }


def _described(seeds: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    metrics = next(iter(seeds.values()))
    summary = {metric: mean_and_std([figures[metric] for figures in seeds.values()]) for metric in metrics}
    return {"seeds": dict(seeds), **summary}


def _cell(found: Mapping[str, Any] | None, metric: str) -> str:
    if found is None:
        return ""
    mean, std = found[metric]["mean"], found[metric]["std"]
    return f"{100 * mean:.2f}" if std is None else f"{100 * mean:.2f} ± {100 * std:.2f} ({len(found['seeds'])})"

"""What a study has found so far, read from its runs: results.json and table.md.

Fractions in the file, percent in the table.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmsr_pt.config import as_flag
from mmsr_pt.data.domain import Domain
from mmsr_pt.log import UserError
from mmsr_pt.presets import Setting, Table
from mmsr_pt.run_dir import figures_on_test

METRICS = ("HR@10", "NDCG@10")
RESULTS = "results.json"


def run_directory(out: Path, domain: str, row: str, seed: int) -> Path:
    """Where a study in `out` keeps a run."""
    return out / domain / row / f"seed-{seed}"


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


class StudyReport:
    """What a study has found so far, read from its runs: results.json and table.md."""

    def __init__(self, out: Path, table: Table, shared: Mapping[str, Any], domains: Sequence[Domain]) -> None:
        """Raises UserError where `out` holds another study."""
        self._out, self._table, self._shared = out, table, shared
        self.protocol = table.protocol
        asked = {d.name: {"fingerprint": d.fingerprint, "data": str(d.path)} for d in domains}
        self._domains = asked
        path = out / RESULTS
        if not path.is_file():
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        for part, value in shared.items():
            if before[part] != value:
                raise UserError(f"--out {out} holds a study with other {part} ({before[part]}): name another directory")
        for row, found in before["rows"].items():
            if row not in table.all_rows or found["flags"] != row_flags(table.all_rows[row]):
                raise UserError(f"--out {out} holds a row {row} of another meaning: name another directory")
        for name, known in before["domains"].items():
            if asked.get(name, known)["fingerprint"] != known["fingerprint"]:
                raise UserError(f"--out {out} holds runs on another {name} ({known['data']}): name another directory")
        self._domains = {**before["domains"], **asked}

    def as_dict(self) -> dict[str, Any]:
        """Fractions: every seed's figures, mean and standard deviation, by row and domain."""
        rows = {}
        for row, setting in self._table.all_rows.items():
            found = {domain: self._seeds(domain, row) for domain in self._domains}
            described = {domain: _described(seeds) for domain, seeds in found.items() if seeds}
            if described:
                rows[row] = {"flags": row_flags(setting), "domains": described}
        return {**self._shared, "domains": self._domains, "rows": rows}

    def markdown(self) -> str:
        """The table that people read, in percent."""
        head = [self._table.about, *(f"{domain} {metric}" for domain in self._domains for metric in METRICS)]
        lines = [head, ["---"] * len(head)]
        for row, found in self.as_dict()["rows"].items():
            cells = [_cell(found["domains"].get(domain), metric) for domain in self._domains for metric in METRICS]
            lines.append([row, *cells])
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        targets = "cold valid and test targets" if self.protocol == "cold" else "test targets"
        return (
            f"{self._shared['table']}: percent, {targets}, whole catalogue; mean ± standard deviation (seeds) where "
            f"a row ran with several\n\n{table}\n"
        )

    def write(self) -> None:
        """Writes both files, neither ever by halves."""
        texts = {RESULTS: json.dumps(self.as_dict(), indent=2) + "\n", "table.md": self.markdown()}
        for name, text in texts.items():
            fresh = self._out / f".{name}.new"
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(self._out / name)

    def _seeds(self, domain: str, row: str) -> dict[str, dict[str, float]]:
        kept = run_directory(self._out, domain, row, 0).parent
        seeds = sorted(int(path.name.removeprefix("seed-")) for path in kept.glob("seed-*") if path.is_dir())
        lines = {seed: figures_on_test(run_directory(self._out, domain, row, seed), self.protocol) for seed in seeds}
        return {str(seed): {name: line[name] for name in METRICS} for seed, line in lines.items() if line is not None}


def _described(seeds: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    summary = {metric: mean_and_std([figures[metric] for figures in seeds.values()]) for metric in METRICS}
    return {"seeds": dict(seeds), **summary}


def _cell(found: Mapping[str, Any] | None, metric: str) -> str:
    if found is None:
        return ""
    mean, std = found[metric]["mean"], found[metric]["std"]
    return f"{100 * mean:.2f}" if std is None else f"{100 * mean:.2f} ± {100 * std:.2f} ({len(found['seeds'])})"

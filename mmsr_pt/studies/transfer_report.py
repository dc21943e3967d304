"""What a transfer study has found so far, read from its runs: results.json, table.md and convergence.png.

Fractions in the file, percent in the tables. Intervals hold 95 % (evaluation/intervals.py).

A transfer is judged by its difference from the run from scratch of the same seed and target users, on the same test
users: by the interval of the mean of that difference in NDCG@10, which is `gain` above 0, `negative transfer` below 0,
and `no difference` where it holds 0: none was shown, which is not to say that there is none. NDCG@10, since validation
stops and keeps models by it, and since it tells ranks inside the ten apart, which HR@10 (shown beside it) does not.
Improvements are relative to scratch, as ratios of means; the paper divides by the transferred figure in its table 9 and
in HR@10 of its table 10. Intervals are each comparison's own and not corrected for their number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.intervals import interval, resampled_means
from mmsr_pt.evaluation.metrics import per_user_metrics
from mmsr_pt.figures.canvas import save
from mmsr_pt.figures.convergence import Panel, draw_convergence, validation_curve
from mmsr_pt.run_dir import figures_on_test, metric_lines, read_ranks
from mmsr_pt.studies.jobs import METRICS, RESULTS
from mmsr_pt.studies.table_report import described_domains, require_same, write_results
from mmsr_pt.studies.transfer_table import BASELINES, JUDGED_BY, by_kind, by_size, size_name, tables, title, users

Model = Literal["source", "zero-shot", "scratch", "idsr", "transfer"]
EVALUATION = "evaluation.json"
"""What a zero-shot evaluation leaves, beside the ranks."""
PICTURE = "convergence.png"


def directory_of(out: Path, model: Model, seed: int, source_users: int | None, target_users: int | None) -> Path:
    """Where a study in `out` keeps a model's run; see Cell."""
    own = f"{model}-{size_name(source_users)}" if source_users is not None else model
    group = Path() if target_users is None else Path(f"target-{size_name(target_users)}")
    return out / group / own / f"seed-{seed}"


def figures_of_evaluation(directory: Path) -> dict[str, Any] | None:
    """The figures on all test users that `mmsr-pt evaluate` left there; None: it has not."""
    file = directory / EVALUATION
    if not file.is_file():
        return None
    lines = json.loads(file.read_text(encoding="utf-8"))["lines"]
    return next(line for line in lines if line["model"] == "mmsr" and line["slice"] == "all")


@dataclass(frozen=True)
class _Found:
    """The finished runs of one model, and how each test user fared with them."""

    run_dirs: Mapping[int, Path]
    """By seed."""
    values: Mapping[str, np.ndarray]
    """By metric: [S, U] float32, seeds in order."""
    resampled: Mapping[str, np.ndarray]
    """By metric: [B, S], see `resampled_means`."""

    @property
    def seeds(self) -> list[int]:
        return list(self.run_dirs)

    def of(self, seeds: Sequence[int], metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Values and resamples of some of its seeds."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return self.values[metric][rows], self.resampled[metric][:, rows]


def compare(ours: _Found, theirs: _Found) -> dict[str, Any] | None:
    """The difference of two models on the seeds that both have, and what that amounts to; None: they share none."""
    seeds = [seed for seed in ours.seeds if seed in theirs.seeds]
    if not seeds:
        return None
    found: dict[str, Any] = {"seeds": seeds}
    for metric in METRICS:
        (own, own_resampled), (other, other_resampled) = ours.of(seeds, metric), theirs.of(seeds, metric)
        low, high = interval(own - other, own_resampled - other_resampled)
        mean, base = float(own.mean(dtype=np.float64)), float(other.mean(dtype=np.float64))
        improvement = (mean - base) / base if base else None
        found[metric] = {"difference": mean - base, "low": low, "high": high, "improvement": improvement}
    low, high = found[JUDGED_BY]["low"], found[JUDGED_BY]["high"]
    found["verdict"] = "gain" if low > 0 else "negative transfer" if high < 0 else "no difference"
    return found


class TransferReport:
    """What a transfer study has found so far (a Report)."""

    def __init__(self, out: Path, shared: Mapping[str, Any], sources: Sequence[Domain], target: Domain) -> None:
        """Raises UserError where `out` holds another study."""
        self._out, self._shared, self._target = out, shared, target
        self._domains = described_domains([*sources, target])
        if (out / RESULTS).is_file():
            before = json.loads((out / RESULTS).read_text(encoding="utf-8"))
            require_same(out, before, shared, self._domains)

    def write(self) -> None:
        """Reads the runs and writes all files."""
        for known in ("_found", "_results"):
            self.__dict__.pop(known, None)
        write_results(self._out, self.as_dict(), self.markdown())
        panels = self._panels()
        if panels:
            save(draw_convergence(panels, f"Transfer to {self._target.name}"), self._out / PICTURE)

    def as_dict(self) -> dict[str, Any]:
        """Fractions: of each model every seed's figures, their mean and its interval; of transfers against scratch.

        As of the last `write`, if there was one.
        """
        return self._results

    @cached_property
    def _results(self) -> dict[str, Any]:
        zero_shot = {name: _described(found) for name, found in self._found[""].items()}
        targets = {}
        for target in self._targets:
            rows: dict[str, Any] = {name: {"mean": mean} for name, mean in self._baselines(target).items()}
            for name, found in self._found[target].items():
                rows[name] = _described(found)
                against = self._against_scratch(target, name)
                if against is not None:
                    rows[name]["against_scratch"] = against
            targets[target.removeprefix("target-")] = rows
        unsettled = [str(path.relative_to(self._out)) for path in self._run_dirs() if ran_out_of_steps(path)]
        domains = {"domains": self._domains, "test_users": self._target.num_users}
        return {**self._shared, **domains, "zero_shot": zero_shot, "targets": targets, "ran_out_of_steps": unsettled}

    def markdown(self) -> str:
        """The tables that people read."""
        return tables(self.as_dict())

    @cached_property
    def _found(self) -> dict[str, dict[str, _Found]]:
        """By place (a target size's, or the study's own for zero-shot), then by model."""
        run_dirs = {place: self._finished(place) for place in ("", *self._targets)}
        keys, rows = [], []
        asked = None
        for place, models in run_dirs.items():
            for name, seeds in models.items():
                for seed, run_dir in seeds.items():
                    table = read_ranks(run_dir, self._target.name)
                    asked = table.drop("rank") if asked is None else asked
                    assert table.drop("rank").equals(asked), f"{run_dir} asked other users"
                    by_user = per_user_metrics(torch.from_numpy(table["rank"].to_numpy().astype(np.int64)))
                    for metric in METRICS:
                        keys.append((place, name, seed, metric))
                        rows.append(by_user[metric].numpy().astype(np.float32))
        resampled = resampled_means(np.stack(rows)) if rows else np.zeros((0, 0))
        number = {key: position for position, key in enumerate(keys)}
        found: dict[str, dict[str, _Found]] = {place: {} for place in run_dirs}
        for place, models in run_dirs.items():
            for name, seeds in models.items():
                columns = {metric: [number[place, name, seed, metric] for seed in seeds] for metric in METRICS}
                values = {metric: np.stack([rows[c] for c in columns[metric]]) for metric in METRICS}
                found[place][name] = _Found(seeds, values, {m: resampled[:, columns[m]] for m in METRICS})
        return found

    @property
    def _targets(self) -> list[str]:
        """Names of the directories of target sizes, small ones first."""
        return sorted((path.name for path in self._out.glob("target-*")), key=by_size)

    def _finished(self, place: str) -> dict[str, dict[int, Path]]:
        """The finished runs on the target there, by model and seed; what only learns the source is left out."""
        models: dict[str, dict[int, Path]] = {}
        paths = [path for path in (self._out / place).glob("*/seed-*") if path.is_dir()]
        for path in sorted(paths, key=lambda path: (by_size(path.parent.name), int(path.name[5:]))):
            model = path.parent.name
            if not place and not model.startswith("zero-shot-"):
                continue
            figures = figures_on_test(path) if place else figures_of_evaluation(path)
            if figures is not None:
                models.setdefault(model, {})[int(path.name[5:])] = path
        return models

    def _run_dirs(self) -> Iterator[Path]:
        """All finished trainings, on the sources too."""
        for path in sorted([*self._out.glob("source-*/seed-*"), *self._out.glob("target-*/*/seed-*")]):
            if path.is_dir() and figures_on_test(path) is not None:
                yield path

    def _against_scratch(self, target: str, name: str) -> dict[str, Any] | None:
        found = self._found[target]
        if not name.startswith("transfer-") or "scratch" not in found:
            return None
        return compare(found[name], found["scratch"])

    def _baselines(self, target: str) -> dict[str, dict[str, float]]:
        """Means over seeds, as these count other users; they were asked beside every run."""
        means = {}
        run_dirs = self._finished(target).get("scratch", {}).values()
        for model in BASELINES:
            wanted = {"event": "eval", "model": model, "split": "test", "slice": "all"}
            lines = [line for path in run_dirs for line in metric_lines(path) if wanted.items() <= line.items()]
            if lines:
                means[model] = {metric: float(np.mean([line[metric] for line in lines])) for metric in METRICS}
        return means

    def _panels(self) -> list[list[Panel]]:
        """NDCG@10 above HR@10, a column for each target size; nothing where none is finished."""
        grid: list[list[Panel]] = [[], []]
        for target in self._targets:
            models = self._finished(target)
            # scratch and IDSR are drawn alike in all panels, whichever transfers there are
            order = sorted(models, key=by_kind)
            for row, metric in zip(grid, (JUDGED_BY, "HR@10")):
                curves = [validation_curve(title(name), list(models[name].values()), metric) for name in order]
                row.append(Panel(f"{users(target.removeprefix('target-'))} of {self._target.name}", metric, curves))
        return grid if grid[0] else []


def ran_out_of_steps(run_dir: Path) -> bool:
    """Whether validation had not settled by the end: its best figure stands less than --patience evaluations before.

    Of a run without patience: whether the very last evaluation was its best.
    """
    wanted = {"event": "eval", "model": "mmsr", "split": "valid", "slice": "all"}
    figures: dict[int, list[float]] = {}
    for line in metric_lines(run_dir):
        if wanted.items() <= line.items():
            figures.setdefault(line["step"], []).append(line[JUDGED_BY])
    means = [float(np.mean(figures[step])) for step in sorted(figures)]
    patience = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))["run"]["patience"]
    return bool(means) and len(means) - 1 - int(np.argmax(means)) < max(patience, 1)


def _described(found: _Found) -> dict[str, Any]:
    seeds = {
        str(seed): {metric: float(found.values[metric][number].mean(dtype=np.float64)) for metric in METRICS}
        for number, seed in enumerate(found.seeds)
    }
    described: dict[str, Any] = {"seeds": seeds, "mean": {}, "low": {}, "high": {}}
    for metric in METRICS:
        described["mean"][metric] = float(found.values[metric].mean(dtype=np.float64))
        low, high = interval(found.values[metric], found.resampled[metric])
        # beside two or three seeds that differ an interval may reach beyond what a share can be
        described["low"][metric], described["high"][metric] = max(low, 0.0), min(high, 1.0)
    return described

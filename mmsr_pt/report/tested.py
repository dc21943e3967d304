"""The test at the end of a run as tables: every slice of both protocols, the model beside the baselines, intervals.

Figures come from metrics.jsonl. Intervals need every user's rank: the model's stand in test_ranks.parquet, those of the
baselines are counted again, which takes little.

Shapes: C cases, N items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.cases import Split, questions
from mmsr_pt.evaluation.evaluate import BASELINES, evaluate_baselines
from mmsr_pt.evaluation.intervals import case_intervals
from mmsr_pt.evaluation.metrics import METRICS, per_user_metrics
from mmsr_pt.evaluation.slices import SLICES
from mmsr_pt.report.opened import OpenedRun
from mmsr_pt.run_dir import TEST_RANKS

MODEL = "mmsr"
"""What the lines of a run call its model."""
SPLITS: tuple[Split, ...] = ("test", "any")


@dataclass(frozen=True)
class Figure:
    """A mean over cases, as a fraction."""

    value: float
    interval: tuple[float, float] | None
    """95 %, over users; None: the ranks are not known."""


@dataclass(frozen=True)
class Row:
    """One model on one slice."""

    slice: str
    model: str
    users: int
    cases: int
    figures: dict[str, Figure]
    """By metric."""


def test_rows(run: OpenedRun, domain: Domain) -> dict[Split, list[Row]]:
    """The rows of each split that the run's test has figures of, slice by slice, the model first. Collective.

    Args:
        run: finished or not.
        domain: one of its domains.

    Returns:
        Rows by split; a split is missing where the test has not come to it, or where it has no case.
    """
    found: dict[Split, list[Row]] = {}
    lines = [line for line in run.eval_lines(domain=domain.name) if line["split"] in SPLITS]
    ranks = _all_ranks(run, domain, [split for split in SPLITS if any(line["split"] == split for line in lines)])
    for split in SPLITS:
        slices = dict.fromkeys(line["slice"] for line in lines if line["split"] == split)
        for name in slices:
            beside = {line["model"]: line for line in lines if line["split"] == split and line["slice"] == name}
            intervals = _intervals(run, domain, split, name, ranks)
            for model in (MODEL, *BASELINES):
                if model in beside:
                    line = beside[model]
                    figures = {metric: Figure(line[metric], intervals.get((model, metric))) for metric in METRICS}
                    row = Row(name, model, line["users"], line.get("cases", line["users"]), figures)
                    found.setdefault(split, []).append(row)
    return found


def _all_ranks(run: OpenedRun, domain: Domain, splits: list[Split]) -> dict[tuple[str, Split], np.ndarray]:
    """(model, split) -> [C] int64; nothing where the run kept none."""
    if not splits or not (run.run_dir / TEST_RANKS).is_file():
        return {}
    tables: dict[str, list[pl.DataFrame]] = {name: [] for name in BASELINES}
    keep = {name: tables[name].append for name in BASELINES}
    evaluate_baselines(domain, splits, users=run.test_users, keep_ranks=keep)
    tables[MODEL] = [pl.read_parquet(run.run_dir / TEST_RANKS).filter(pl.col("domain") == domain.name)]
    ranks = {}
    for model, parts in tables.items():
        for split in splits:
            of_split = pl.concat(parts).filter(pl.col("split") == split)
            ranks[model, split] = of_split["rank"].to_numpy().astype(np.int64)
    return ranks


def _intervals(
    run: OpenedRun, domain: Domain, split: Split, name: str, ranks: Mapping[tuple[str, Split], np.ndarray]
) -> dict[tuple[str, str], tuple[float, float]]:
    """By (model, metric) on one slice, all models by the same resamples."""
    if not ranks:
        return {}
    asked = questions(domain, split, 1, run.test_users)
    chosen = SLICES[name](asked, torch.from_numpy(domain.train_count())).numpy()
    models = (MODEL, *BASELINES)
    values = []
    for model in models:
        of_model = ranks[model, split]
        assert len(of_model) == len(chosen), f"{len(of_model)} ranks of {model} for {len(chosen)} cases"
        values += [row.numpy() for row in per_user_metrics(torch.from_numpy(of_model[chosen])).values()]
    bounds = case_intervals(np.stack(values), asked.users.numpy()[chosen])
    keys = [(model, metric) for model in models for metric in METRICS]
    return {key: (float(low), float(high)) for key, (low, high) in zip(keys, bounds)}

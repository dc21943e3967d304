"""How training went, from metrics.jsonl: loss, learning rates, validation and throughput against steps."""

from __future__ import annotations

import statistics

from mmsr_pt.report.charts import Chart, Line, curves
from mmsr_pt.report.opened import OpenedRun
from mmsr_pt.report.tested import MODEL

SHOWN_METRICS = ("HR@10", "NDCG@10")
"""Those that have a curve, a chart by slice and a tile."""
_RATES = (
    ("users_per_s", "users/s", "users trained in a second"),
    ("items_encoded_per_s", "items/s", "items encoded in a second"),
    ("data_wait", "share of the step (%)", "share of a step spent waiting for data"),
    ("encoder_calls_saved", "", "encodings saved, as items stand in several places of a batch"),
)
"""Names in metrics.jsonl, units of their axes, what they are; those without unit have no chart."""


def best_step(run: OpenedRun) -> int | None:
    """The step of the model that was kept: the first with the best mean NDCG@10 over the domains."""
    by_step: dict[int, list[float]] = {}
    for line in run.eval_lines(split="valid", model=MODEL, slice="all"):
        by_step.setdefault(line["step"], []).append(line["NDCG@10"])
    return max(by_step, key=lambda step: statistics.mean(by_step[step]), default=None)


def training_charts(run: OpenedRun) -> tuple[list[Chart], list[Chart]]:
    """Loss and learning rates; and what validation found. Either is empty where there is nothing yet."""
    trained = run.train_lines()
    training: list[Chart] = []
    validation: list[Chart] = []
    if trained:
        loss = Line("loss", [(line["step"], line["loss"]) for line in trained])
        groups = sorted({group for line in trained for group in line["lr"]})
        rates = [
            Line(group, [(line["step"], line["lr"][group]) for line in trained if group in line["lr"]])
            for group in groups
        ]
        training = [curves("Training loss", "loss", [loss]), curves("Learning rate", "learning rate", rates)]
    for metric in SHOWN_METRICS:
        lines = [
            Line(
                domain.name,
                [
                    (line["step"], 100 * line[metric])
                    for line in run.eval_lines(split="valid", model=MODEL, slice="all", domain=domain.name)
                ],
            )
            for domain in run.domains
        ]
        lines = [line for line in lines if line.points]
        if lines:
            validation.append(curves(f"Validation {metric}", f"{metric} (%)", lines, best_step(run)))
    return training, validation


def throughput_charts(run: OpenedRun) -> list[Chart]:
    """Users, items and waiting against steps; empty where no step has been logged."""
    trained = run.train_lines()
    charts = []
    for name, unit, what in _RATES:
        scale = 100 if "%" in unit else 1
        if trained and unit:
            line = Line(unit, [(line["step"], scale * line[name]) for line in trained])
            charts.append(curves(what.capitalize(), unit, [line]))
    return charts


def rates(run: OpenedRun) -> list[tuple[str, str, str]]:
    """What was measured of training, its median, and from where to where; empty where no step has been logged."""
    rows = []
    for name, unit, what in _RATES:
        values = sorted(line[name] for line in run.train_lines())
        if values:
            form = "{:,.1f}" if unit.endswith("/s") else "{:.1%}"
            median, low, high = (form.format(value) for value in (statistics.median(values), values[0], values[-1]))
            rows.append((what, median, f"{low} to {high}"))
    return rows

"""What a fast way costs in accuracy: the same training in several settings, over several seeds.

    python -m benchmarks quality --data data/hm --weights WEIGHTS --settings plain cached -- --lr 1e-3 --score cosine

What follows a lone -- goes to every run of pretrain/run.py. Takes hours, so `make bench` leaves it out; runs that are
finished are kept under data/bench/quality and not repeated.
"""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.parts import WORK_DIR, find_parts, write_ds_config
from mmsr_pt.data.domain import Domain
from mmsr_pt.registry import unknown_name
from mmsr_pt.run_dir import figures_on_test, metric_lines
from mmsr_pt.studies.child_run import finish_run

log = logging.getLogger(__name__)

METRICS = ("HR@10", "NDCG@10")


@dataclass(frozen=True)
class Setting:
    """One way to run the same training."""

    bf16: bool
    """Else float32."""
    flags: tuple[str, ...] = ()
    """Of its own."""


SETTINGS = {
    "plain": Setting(bf16=False),
    "cached": Setting(bf16=True, flags=("--cache",)),
    "cached-float32": Setting(bf16=False, flags=("--cache",)),
    "side": Setting(bf16=True, flags=("--cache", "--tune", "side")),
}
DEFAULT = ("plain", "cached")
_BATCH = 64


def study(
    data: Path | None,
    weights: Path | None,
    seeds: int,
    out: Path,
    others: Sequence[str] = (),
    settings: Sequence[str] = DEFAULT,
    directory: Path = WORK_DIR,
) -> dict[str, Any]:
    """Runs what is not there yet, then files and prints the comparison.

    Args:
        data: domain directory.
        weights: directory with minilm-l6 and tf_efficientnet_lite0.
        seeds: runs of each setting.
        out: JSON file to put the figures in.
        others: flags for every run.
        settings: names of SETTINGS; all are compared with the first.
        directory: where the runs are kept.

    Raises:
        UserError: an unknown setting, or a run failed.
    """
    for name in settings:
        if name not in SETTINGS:
            raise unknown_name("setting", name, SETTINGS)
    parts = find_parts(data, weights, None, None, None)
    domain = Domain.load(parts.domain)
    same = ["--data", str(parts.domain), "--text", parts.text, "--vision", parts.vision, *others]
    # other flags are other runs
    runs = directory / "quality" / f"{domain.name}-{hashlib.sha256(json.dumps(same).encode()).hexdigest()[:12]}"
    found: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    for seed in range(seeds):
        for name in settings:
            run_dir = (runs / f"{name}-{seed}").resolve()
            if figures_on_test(run_dir) is None:
                log.info("%s: %s, seed %d of %d", domain.name, name, seed, seeds)
                own = SETTINGS[name].flags
                _run(run_dir, [*same, *own, "--seed", str(seed)], SETTINGS[name].bf16, runs / "logs")
            line = figures_on_test(run_dir)
            assert line is not None, f"{run_dir} ended well without a test line"
            found[name].append({**{metric: line[metric] for metric in METRICS}, "users_per_s": _users_per_s(run_dir)})
            log.info("%s, seed %d: %s", name, seed, found[name][-1])
    result = {"domain": domain.name, "flags": list(others), "runs": found, "summary": summary(found)}
    report.keep(out, "quality", " ".join([domain.name, *settings, *others]), result)
    report.write(_table(domain.name, result))
    return result


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """By metric: mean and standard deviation over the seeds of each setting, and of how it differs from the first."""
    first, *others = found
    described: dict[str, dict[str, dict[str, float]]] = {}
    for metric in METRICS:
        series = {name: [run[metric] for run in runs] for name, runs in found.items()}
        for name in others:
            pairs = zip(series[first], series[name], strict=True)
            series[f"{name} - {first}"] = [after - before for before, after in pairs]
        described[metric] = {
            name: {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}
            for name, values in series.items()
        }
    return described


def _run(run_dir: Path, flags: list[str], bf16: bool, logs: Path) -> None:
    precision = "bf16" if bf16 else "float32"
    ds_config = write_ds_config((logs / f"{precision}.json").resolve(), _BATCH, bf16)
    finish_run(run_dir, ["--ds_config", str(ds_config), *flags], logs / f"{run_dir.name}.log")


def _users_per_s(run_dir: Path) -> float:
    """The median of what the run's log lines say."""
    return statistics.median(line["users_per_s"] for line in metric_lines(run_dir) if line["event"] == "train")


def _table(name: str, result: dict[str, Any]) -> str:
    seeds = len(next(iter(result["runs"].values())))
    head = [f"{name}, {seeds} seeds", *(f"{metric} in percent" for metric in METRICS), "users/s"]
    lines = [head, ["---"] * len(head)]
    for row in result["summary"][METRICS[0]]:
        cells = [result["summary"][metric][row] for metric in METRICS]
        shown = (f"{100 * cell['mean']:.2f} ± {100 * cell['std']:.2f}" for cell in cells)
        speeds = [run["users_per_s"] for run in result["runs"].get(row, ())]
        lines.append([row, *shown, report.amount(statistics.median(speeds)) if speeds else ""])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

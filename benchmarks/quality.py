"""What the fast way costs in accuracy: the cached bf16 run against the plain float32 one, over several seeds.

    python -m benchmarks quality --data data/hm --weights WEIGHTS --seeds 5 -- --lr 1e-3 --score cosine

What follows a lone -- goes to every run of pretrain/run.py. Takes hours, so `make bench` leaves it out; runs that are
finished are kept under data/bench/quality and not repeated.
"""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.harness import ROOT
from benchmarks.parts import WORK_DIR, find_parts, write_ds_config
from mmsr_pt.data.domain import Domain
from mmsr_pt.log import UserError

log = logging.getLogger(__name__)

METRICS = ("HR@10", "NDCG@10")
SETTINGS = {"plain float32": (False, []), "cached bf16": (True, ["--cache"])}
"""Name -> (bf16, flags of its own)."""
_BATCH = 64


def study(
    data: Path | None,
    weights: Path | None,
    seeds: int,
    out: Path,
    others: Sequence[str] = (),
    directory: Path = WORK_DIR,
) -> dict[str, Any]:
    """Runs what is not there yet, then files and prints the comparison.

    Args:
        data: domain directory.
        weights: directory with minilm-l6 and tf_efficientnet_lite0.
        seeds: runs of each setting.
        out: JSON file to put the figures in.
        others: flags for every run.
        directory: where the runs are kept.

    Raises:
        UserError: a run failed.
    """
    parts = find_parts(data, weights, None, None, None)
    domain = Domain.load(parts.domain)
    same = ["--data", str(parts.domain), "--text", parts.text, "--vision", parts.vision, *others]
    # other flags are other runs
    runs = directory / "quality" / f"{domain.name}-{hashlib.sha256(json.dumps(same).encode()).hexdigest()[:12]}"
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    for seed in range(seeds):
        for name, (bf16, own) in SETTINGS.items():
            run_dir = (runs / f"{name.replace(' ', '-')}-{seed}").resolve()
            if _test_line(run_dir) is None:
                log.info("%s: %s, seed %d of %d", domain.name, name, seed, seeds)
                _run([*same, *own, "--seed", str(seed), "--run_dir", str(run_dir)], bf16, runs / "logs")
            line = _test_line(run_dir)
            assert line is not None, f"{run_dir} ended well without a test line"
            found[name].append({metric: line[metric] for metric in METRICS})
            log.info("%s, seed %d: %s", name, seed, found[name][-1])
    result = {"domain": domain.name, "flags": list(others), "runs": found, **summary(found)}
    report.keep(out, "quality", domain.name, result)
    report.write(_table(domain.name, result))
    return result


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """By metric: mean and standard deviation over the seeds for both settings, and the same of their differences."""
    plain, fast = found.values()
    names = [*found, "difference"]
    described: dict[str, Any] = {}
    for metric in METRICS:
        series = [[run[metric] for run in runs] for runs in (plain, fast)]
        series.append([after - before for before, after in zip(*series, strict=True)])
        described[metric] = {
            name: {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}
            for name, values in zip(names, series)
        }
    return {"summary": described}


def _run(flags: list[str], bf16: bool, logs: Path) -> None:
    precision = "bf16" if bf16 else "float32"
    ds_config = write_ds_config((logs / f"{precision}.json").resolve(), _BATCH, bf16)
    run_dir = Path(flags[-1])
    resume = ["--resume"] if (run_dir / "checkpoints" / "latest").exists() else []
    with (logs / f"{run_dir.name}.log").open("a") as printed:
        ended = subprocess.run(
            [sys.executable, "pretrain/run.py", "--ds_config", str(ds_config), *flags, *resume],
            cwd=ROOT,
            stdout=printed,
            stderr=printed,
        )
    if ended.returncode:
        raise UserError(f"a run failed with exit code {ended.returncode}: see {printed.name}")


def _test_line(run_dir: Path) -> dict[str, Any] | None:
    """The line of the model on all test users, where the run has got so far."""
    file = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    wanted = {"event": "eval", "model": "mmsr", "split": "test", "slice": "all"}
    return next((line for line in lines if wanted.items() <= line.items()), None)


def _table(name: str, result: dict[str, Any]) -> str:
    seeds = len(next(iter(result["runs"].values())))
    lines = [f"| {name}, {seeds} seeds, percent | {' | '.join(METRICS)} |", "| --- " * (1 + len(METRICS)) + "|"]
    for row in result["summary"][METRICS[0]]:
        cells = [result["summary"][metric][row] for metric in METRICS]
        shown = (f"{100 * cell['mean']:.2f} ± {100 * cell['std']:.2f}" for cell in cells)
        lines.append(f"| {row} | {' | '.join(shown)} |")
    return "\n".join(lines)

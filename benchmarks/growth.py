"""How the time of a step grows with batch, history, catalogue and ranks, on drawn domains: a table and a picture.

    python -m benchmarks growth

The towers are MiniLM and EfficientNet-Lite0 with random weights at 224 px, top-2, softmax, bf16.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import picture, report
from benchmarks.harness import ROOT, Entrant, Row, measure
from benchmarks.parts import WORK_DIR, drawn_domain, random_text, random_vision, write_ds_config
from mmsr_pt.data.domain import Domain
from mmsr_pt.log import UserError
from mmsr_pt.registry import unknown_name

log = logging.getLogger(__name__)

BATCHES = (8, 16, 32, 64, 128)
HISTORIES = (5, 10, 20, 35, 50)
ITEMS_PER_CELL = (3, 12, 48)
RANKS = (1, 2)
SWEEPS = ("batch", "history", "catalogue", "ranks")
_USERS = 512  # all batches of an epoch are full
_RANK_BATCH, _RANK_STEPS, _RANK_LOG = 32, 16, 2
PICTURE = ROOT / "benchmarks" / "growth.png"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a study sweeps over; tests take less."""

    batches: Sequence[int] = BATCHES
    histories: Sequence[int] = HISTORIES
    items_per_cell: Sequence[int] = ITEMS_PER_CELL
    ranks: Sequence[int] = RANKS
    text: str = ""
    """Text tower; none given: MiniLM's size with random weights."""
    vision: str = ""
    """Vision tower; none given: EfficientNet-Lite0 with random weights."""


def study(
    out: Path,
    repetitions: int,
    sizes: Sizes | None = None,
    image: Path = PICTURE,
    sweeps: Sequence[str] = SWEEPS,
) -> None:
    """Measures sweeps, files them in `out` and draws all that are there into `image`.

    Raises:
        UserError: an unknown sweep.
    """
    for name in sweeps:
        if name not in SWEEPS:
            raise unknown_name("sweep", name, SWEEPS)
    sizes = sizes or Sizes()
    domains = {cell: drawn_domain(_USERS, cell) for cell in {*sizes.items_per_cell, 12}}
    titles = Domain.load(domains[12]).titles()
    model = {"text": sizes.text or random_text("minilm", titles)}
    model["vision"] = sizes.vision or random_vision("tf_efficientnet_lite0")
    measure_sweep: dict[str, Callable[[], dict[str, Any]]] = {
        "batch": lambda: _batch(str(domains[12]), model, sizes.batches, repetitions),
        "history": lambda: _history(str(domains[12]), model, sizes.histories, repetitions),
        "catalogue": lambda: _catalogue(domains, model, sizes.items_per_cell, repetitions),
        # of a small catalogue two ranks would have most items in common
        "ranks": lambda: _ranks(domains[max(sizes.items_per_cell)], model, sizes.ranks, repetitions),
    }
    for name in sweeps:
        report.keep(out, "growth", name, measure_sweep[name]())
    kept = json.loads(out.read_text())["growth"]
    found = {name: kept[name] for name in SWEEPS if name in kept}
    picture.draw(found, image)
    report.write(_table(found))
    log.info("the figures are in %s, the picture in %s", out, image)


def _batch(domain: str, model: dict[str, str], batches: Sequence[int], repetitions: int) -> dict[str, Any]:
    """One batch size after the other: together, the large ones would not fit in memory."""
    sweeps = []
    for batch in batches:
        entrants = {
            f"{kind} {batch}": _entrant(domain, model, batch, cached=kind == "cached")
            for kind in ("cached", "without cache")
        }
        sweeps.append(_sweep("users in a batch", "growth-batch", entrants, repetitions))
    lines = {line: [point for sweep in sweeps for point in sweep["lines"][line]] for line in sweeps[0]["lines"]}
    return {**sweeps[0], "lines": lines}


def _history(domain: str, model: dict[str, str], histories: Sequence[int], repetitions: int) -> dict[str, Any]:
    entrants = {f"cached {length}": _entrant(domain, {**model, "max_history": length}, 32) for length in histories}
    return _sweep("longest history", "growth-history", entrants, repetitions)


def _catalogue(
    domains: dict[int, Path], model: dict[str, str], cells: Sequence[int], repetitions: int
) -> dict[str, Any]:
    entrants = {}
    for cell in cells:
        num_items = Domain.load(domains[cell]).num_items
        entrants[f"cached {num_items}"] = _entrant(str(domains[cell]), model, 32)
        ids = {"item": "id", "text": "none", "vision": "none"}
        settings = {"domain": str(domains[cell]), "model": ids, "batch": 32, "bf16": True, "steps": 20}
        settings |= {"num_workers": 0, "loss": "softmax", "pool_size": num_items}
        entrants[f"ids, softmax over all {num_items}"] = Entrant("benchmarks.training:Training", settings)
    return _sweep("items in the catalogue", "growth-catalogue", entrants, repetitions)


def _entrant(domain: str, model: dict[str, Any], batch: int, cached: bool = True) -> Entrant:
    settings = {"domain": domain, "model": model, "batch": batch, "bf16": True, "loss": "softmax", "num_workers": 0}
    return Entrant(
        "benchmarks.training:Training",
        {**settings, "steps": 3 if cached else 1, "cache": "built" if cached else ""},
    )


def _sweep(axis: str, name: str, entrants: dict[str, Entrant], repetitions: int) -> dict[str, Any]:
    """Seconds of a step at every point; entrants are called line and value."""
    row = Row(name, axis, "step_s", "s/step", entrants, comparisons=[])
    figures = measure(row, WORK_DIR / "logs", log.info, repetitions)["figures"]
    lines: dict[str, list[dict[str, float]]] = {}
    for entrant, runs in figures.items():
        line, _, value = entrant.rpartition(" ")
        seconds = [run["step_s"] for run in runs]
        lines.setdefault(line, []).append(
            {
                "value": float(value),
                "median": statistics.median(seconds),
                "min": min(seconds),
                "max": max(seconds),
                "items": statistics.median(run["items"] for run in runs),
            }
        )
    return {"axis": axis, "unit": "s/step", "lines": lines}


def _ranks(domain: Path, model: dict[str, str], ranks: Sequence[int], repetitions: int) -> dict[str, Any]:
    """Users a second through the launcher, one thread a rank, the same batch on every rank."""
    rates: dict[int, list[float]] = {number: [] for number in ranks}
    for round_number in range(repetitions):
        for number in ranks:
            rates[number].append(_launch(domain, model, number))
            log.info("ranks: %d, %d of %d: %.4g users/s", number, round_number + 1, repetitions, rates[number][-1])
    alone = rates[ranks[0]]
    points = []
    for number, found in rates.items():
        shares = [rate / number / one * ranks[0] for rate, one in zip(found, alone)]
        points.append(
            {
                "value": float(number),
                "median": statistics.median(found),
                "min": min(found),
                "max": max(found),
                "efficiency": statistics.median(shares),
            }
        )
    axis = f"ranks, one thread each; {Domain.load(domain).num_items:,} items"
    return {"axis": axis, "unit": "users/s", "lines": {"cached": points}}


def _launch(domain: Path, model: dict[str, str], num_ranks: int) -> float:
    """Median users a second of a run with --cache, its first log lines left out."""
    # pretrain/run.py runs in the checkout, wherever this was started
    run_dir = WORK_DIR.resolve() / "runs" / f"ranks_{num_ranks}_{os.getpid()}"
    ds_config = write_ds_config(WORK_DIR.resolve() / "growth_ds_config.json", _RANK_BATCH, bf16=True)
    steps, log_every = str(_RANK_STEPS), str(_RANK_LOG)
    flags = ["--ds_config", ds_config, "--data", domain, "--run_dir", run_dir, "--cache", "--num_workers", "0"]
    flags += ["--text", model["text"], "--vision", model["vision"], "--steps", steps, "--log_every", log_every]
    flags += ["--eval_every", steps, "--checkpoint_every", steps, "--keep_checkpoints", "1"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(num_ranks), "--master_port", port]
    ended = subprocess.run(
        [*launcher, "pretrain/run.py", *map(str, flags)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise UserError(f"pretrain/run.py failed on {num_ranks} rank(s): {ended.stderr.strip().splitlines()[-1]}")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rates = [line["users_per_s"] for line in lines if line["event"] == "train"]
    for file in sorted(run_dir.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    run_dir.rmdir()
    return statistics.median(rates[2:])


def _table(found: dict[str, Any]) -> str:
    lines = ["| grows | line | value | median | min-max | items a step | efficiency |", "| --- " * 7 + "|"]
    for sweep in found.values():
        for line, points in sweep["lines"].items():
            for point in points:
                items = report.amount(point["items"]) if "items" in point else ""
                efficiency = f"{point['efficiency']:.0%}" if "efficiency" in point else ""
                lines.append(
                    f"| {sweep['axis']} | {line} | {point['value']:g} | {point['median']:.3g} {sweep['unit']} "
                    f"| {point['min']:.3g}-{point['max']:.3g} | {items} | {efficiency} |"
                )
    return "\n".join(lines)

"""A million titles and two million users: built, streamed and evaluated, with the memory that each takes.

    python -m benchmarks.large

Draws tables (popularity by a power law, sessions of about 20 items, titles of 3 to 8 words), runs the commands that a
user would run, and samples the memory of all their processes. Memory is what /proc calls Pss: pages that processes
share count once.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import tyro
from rich.console import Console
from rich.table import Table

_ROOT = Path(__file__).resolve().parent.parent
_SAMPLE_SECONDS = 0.2
_POPULARITY = 0.8  # exponent: the item of rank r occurs r ** -0.8 times as often as the first
_WORDS = 5_000
_SLICE = 250_000  # users or items drawn at once


@dataclass(frozen=True)
class Settings:
    """How large, how long, where."""

    users: tuple[int, ...] = (200_000, 2_000_000)
    """Users of each domain that is measured."""
    items: int = 1_000_000
    """Items of the catalogue."""
    interactions: int = 20
    """Mean length of a user's history."""
    steps: int = 200
    """Training steps of each run."""
    eval_users: int = 2_000
    """Users that a run is validated and tested on; 0: all of them."""
    directory: Path | None = None
    """Where the tables, domains and runs go, which stay; none given: a temporary directory."""


@dataclass(frozen=True)
class Usage:
    """What a command took."""

    seconds: float
    processor_seconds: float
    """Of the process and all its children, user and system."""
    peak_bytes: int
    """Of the process and all its children at the moment when they held most."""


def draw(root: Path, num_users: int, num_items: int, mean_length: int, seed: int = 0) -> None:
    """Writes items.parquet and interactions.parquet in the layout of `table`, a slice at a time."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    words = pl.Series([f"{a}{b}{c}" for a in "bdfgklmnprstvz" for b in "aeiou" for c in "bdfgklmnprstvz"])
    words = words[rng.integers(0, len(words), _WORDS)] + words[rng.integers(0, len(words), _WORDS)]
    titles = []
    for start in range(0, num_items, _SLICE):
        count = min(_SLICE, num_items - start)
        lengths = rng.integers(3, 9, count)
        picked = pl.DataFrame(
            {"row": np.repeat(np.arange(count), lengths), "word": words[rng.integers(0, _WORDS, lengths.sum())]}
        )
        titles.append(picked.group_by("row", maintain_order=True).agg(pl.col("word").str.join(" "))["word"])
    ids = pl.select(item_id=pl.format("item-{}", pl.int_range(num_items))).to_series()
    pl.DataFrame({"item_id": ids, "title": pl.concat(titles)}).write_parquet(root / "items.parquet")
    share = np.cumsum(np.arange(1, num_items + 1) ** -_POPULARITY)
    parts = root / "interactions.parts"
    parts.mkdir()
    for start in range(0, num_users, _SLICE):
        count = min(_SLICE, num_users - start)
        lengths = rng.integers(mean_length // 2, mean_length + mean_length // 2 + 1, count)
        drawn = np.minimum(np.searchsorted(share, rng.random(lengths.sum()) * share[-1]), num_items - 1)
        users = pl.Series(np.repeat(np.arange(start, start + count), lengths))
        # each user has sessions at days of their own, a few items within minutes
        times = np.repeat(rng.integers(1_500_000_000, 1_700_000_000, count), lengths)
        times += np.cumsum(rng.integers(1, 1000, len(times)))
        table = pl.DataFrame({"user": users, "item_id": ids[drawn], "timestamp": times})
        table.select(pl.format("user-{}", "user").alias("user_id"), "item_id", "timestamp").write_parquet(
            parts / f"{start:09d}.parquet"
        )
    pl.scan_parquet(parts / "*.parquet").sink_parquet(root / "interactions.parquet")
    for part in parts.iterdir():
        part.unlink()
    parts.rmdir()


def watched(command: list[str]) -> Usage:
    """Runs a command to its end; raises RuntimeError with its last lines when it fails."""
    start, spent_before = time.perf_counter(), _children_seconds()
    peak = 0
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=output, stderr=output)
        while process.poll() is None:
            peak = max(peak, tree_bytes(process.pid))
            time.sleep(_SAMPLE_SECONDS)
        seconds = time.perf_counter() - start
        if process.returncode:
            output.seek(0)
            said = output.read().decode(errors="replace").splitlines()[-20:]
            raise RuntimeError("\n".join([f"{' '.join(command)} failed:", *said]))
    return Usage(seconds, _children_seconds() - spent_before, peak)


def _children_seconds() -> float:
    """Processor time of all children that have ended, and of theirs."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def tree_bytes(pid: int) -> int:
    """Memory of a process and all below it, shared pages counted once; processes that end meanwhile count nothing."""
    total, pids = 0, [pid]
    while pids:
        one = Path("/proc") / str(pids.pop())
        try:
            rollup = (one / "smaps_rollup").read_text()
            pids += [
                int(child) for task in (one / "task").iterdir() for child in (task / "children").read_text().split()
            ]
        except (OSError, ValueError):
            continue
        total += next((int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0) * 1024
    return total


def measure(directory: Path, num_users: int, settings: Settings) -> dict[str, Usage]:
    """Draws, builds and trains on one domain; a run ends with its evaluation of both splits."""
    raw, domain = directory / f"raw-{num_users}", directory / f"domain-{num_users}"
    if not raw.is_dir():
        draw(raw, num_users, settings.items, settings.interactions)
    # a step of 32 users; a run's last step is validated and the best model tested
    ds_config = directory / "ds_config.json"
    batch = {"train_micro_batch_size_per_gpu": 32, "gradient_accumulation_steps": 1}
    ds_config.write_text(json.dumps({**batch, "zero_optimization": {"stage": 0}}))
    python = sys.executable
    build = [python, "shards/build.py", "table", "--root", str(raw), "--out", str(domain), "--overwrite"]
    train = [python, "pretrain/run.py", "--ds_config", str(ds_config), "--data", str(domain), "--vision", "none"]
    train += ["--steps", str(settings.steps), "--patience", "0"]
    asked = str(settings.eval_users)
    train += ["--eval_users", asked, "--test_users", asked]
    runs = directory / f"runs-{num_users}"
    runs.mkdir(exist_ok=True)
    run_dirs = [Path(tempfile.mkdtemp(dir=runs)) for _ in range(2)]
    return {
        "build": watched([*build, "--modalities", "text"]),
        "train, tiny text tower": watched([*train, "--run_dir", str(run_dirs[0] / "run")]),
        "train, --item id": watched([*train, "--item", "id", "--run_dir", str(run_dirs[1] / "run")]),
    }


def print_table(found: dict[int, dict[str, Usage]], num_items: int) -> None:
    """Seconds and peak memory, a row for each command and a pair of columns for each number of users."""
    table = Table(title=f"{num_items:,} items, titles only", title_justify="left")
    table.add_column("")
    for users in found:
        table.add_column(f"{users:,} users: s", justify="right")
        table.add_column("peak GB", justify="right")
    for name in next(iter(found.values())):
        numbers = [cell for usage in found.values() for cell in _cells(usage[name])]
        table.add_row(name, *numbers)
    Console(width=120).print(table)


def _cells(usage: Usage) -> tuple[str, str]:
    return f"{usage.seconds:,.0f}", f"{usage.peak_bytes / 1e9:.2f}"


def main(argv: list[str] | None = None) -> dict[int, dict[str, Usage]]:
    """Measures and prints; returns what each command took, by number of users."""
    settings = tyro.cli(Settings, args=argv, use_underscores=True)
    with tempfile.TemporaryDirectory() as scratch:
        directory = settings.directory or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        found = {users: measure(directory.resolve(), users, settings) for users in settings.users}
    print_table(found, settings.items)
    return found


if __name__ == "__main__":
    main()

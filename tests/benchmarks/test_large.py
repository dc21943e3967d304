"""The benchmark of a large catalogue, small: what is drawn, what is watched, and that the commands run."""

import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.large import draw, main, watched


def test_tables_are_as_large_as_asked_and_popularity_falls_as_a_power(tmp_path: Path) -> None:
    draw(tmp_path / "raw", num_users=3000, num_items=200, mean_length=20)
    items = pl.read_parquet(tmp_path / "raw" / "items.parquet")
    assert items["item_id"].n_unique() == items.height == 200
    assert set(items["title"].str.count_matches(" ") + 1) == set(range(3, 9))
    interactions = pl.read_parquet(tmp_path / "raw" / "interactions.parquet")
    lengths = interactions.group_by("user_id").len()["len"]
    assert (len(lengths), lengths.min(), lengths.max()) == (3000, 10, 30)
    counts = interactions["item_id"].value_counts().sort("count", descending=True)["count"].to_numpy()
    expected = np.arange(1, 201) ** -0.8
    np.testing.assert_allclose(counts[:20] / counts.sum(), expected[:20] / expected.sum(), rtol=0.15)


def test_memory_of_children_counts_and_shared_pages_count_once() -> None:
    """A process with 200 MB whose child shares them and has 100 MB of its own."""
    program = """
import os, time
held = bytearray(os.urandom(1_000_000) * 200)
child = os.fork()
own = bytearray(os.urandom(1_000_000) * 100) if child == 0 else None
time.sleep(2)
"""
    usage = watched([sys.executable, "-c", program])
    assert 300e6 < usage.peak_bytes < 420e6
    assert usage.seconds > 2


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="no such luck"):
        watched([sys.executable, "-c", "raise SystemExit('no such luck')"])


@pytest.mark.slow
def test_it_builds_streams_and_evaluates(tmp_path: Path) -> None:
    flags = ["--users", "2000", "--items", "500", "--steps", "2", "--eval_users", "0", "--directory", str(tmp_path)]
    found = main(flags)
    assert list(found) == [2000]
    assert list(found[2000]) == ["build", "train, tiny text tower", "train, --item id"]
    assert all(usage.peak_bytes > 50e6 for usage in found[2000].values())
    assert len(list(tmp_path.glob("runs-2000/*/run/model/model.safetensors"))) == 2

"""A domain in memory and a model whose item vectors can be followed by hand."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from mmsr_pt.batch import ItemInputs


def domain_of(sequences: list[list[int]], num_items: int) -> SimpleNamespace:
    """Each sequence is a user's training part, then the valid and the test target."""
    train_count = np.zeros(num_items, dtype=np.uint32)
    for sequence in sequences:
        for item in sequence[:-2]:
            train_count[item] += 1
    rows = pl.List(pl.UInt32)
    users = pl.DataFrame(
        {
            "user_id": [f"user{number}" for number in range(len(sequences))],
            "user": pl.Series(range(len(sequences)), dtype=pl.UInt32),
            "history": pl.Series([s[:-2] for s in sequences], dtype=rows),
            "valid": pl.Series([s[-2] for s in sequences], dtype=pl.UInt32),
            "test": pl.Series([s[-1] for s in sequences], dtype=pl.UInt32),
        }
    )
    return SimpleNamespace(
        name="made up",
        fingerprint="f00d",
        num_items=num_items,
        num_users=len(sequences),
        items=pl.DataFrame(
            {
                "item_id": [f"id{row:03}" for row in range(num_items)],
                "row": pl.Series(range(num_items), dtype=pl.UInt32),
                "title": [f"Title {row}" for row in range(num_items)],
                "train_count": train_count,
            }
        ),
        eval=users,
        training_users=users,
    )


def random_domain(num_users: int, num_items: int, seed: int = 0) -> SimpleNamespace:
    draw = np.random.default_rng(seed)
    return domain_of([draw.integers(0, num_items, draw.integers(3, 24)).tolist() for _ in range(num_users)], num_items)


def id_source(rows: range, batch_size: int) -> Iterator[ItemInputs]:
    """An ItemSource of numbers only."""
    for first in range(rows.start, rows.stop, batch_size):
        yield ItemInputs(ids=torch.arange(first, min(first + batch_size, rows.stop)))


class FakeModel(nn.Module):
    """An embedding per item; a user is the sum of their items' vectors. Counts its calls."""

    def __init__(self, num_items: int, max_history: int = 20, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.items = nn.Parameter(torch.randn(num_items, 4, generator=generator).to(dtype))
        self.config = SimpleNamespace(max_history=max_history, learns_items=False)
        self.score_scale, self.scores_by_product = 2.0, True
        self.trained_on = [{"name": "made up", "fingerprint": "f00d"}]
        self.batches: list[list[int]] = []
        self.user_calls = 0
        self.modes: set[bool] = set()

    def encode_items(self, items: ItemInputs) -> Tensor:
        self.batches.append(items.ids.tolist())
        self.modes.add(self.training)
        return self.items[items.ids]

    def encode_last(self, vectors: Tensor, mask: Tensor) -> Tensor:
        assert vectors.dtype == self.items.dtype, "users are encoded in the model's own precision"
        self.user_calls += 1
        return (vectors * mask[..., None]).sum(dim=1)

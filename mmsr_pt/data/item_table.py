"""What the stream must know of every item of a domain, in flat arrays that loader processes can share.

No polars object crosses into a loader process: its thread pool does not survive a fork.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mmsr_pt.data.domain import Domain, Titles


@dataclass
class ItemTable:
    """The catalogue of one domain of a run, for random access."""

    domain: Domain
    base: int
    """Number of the domain's first item in this run: item number = base + row."""
    train_count: np.ndarray
    """[N] int64: occurrences in training sequences."""
    pool_size: int
    """Items drawn from this domain into the pool of a step."""
    titles: Titles
    """By row."""

    @classmethod
    def of(cls, domain: Domain, base: int, pool_size: int) -> ItemTable:
        """Reads the columns needed."""
        counts = domain.train_count()
        return cls(domain, base, counts, min(pool_size, len(counts)), domain.titles())

    @property
    def num_items(self) -> int:
        """Items in the catalogue."""
        return len(self.train_count)

    @property
    def pool_rate(self) -> float:
        """Chance that a given item is in the pool of a step."""
        return self.pool_size / self.num_items

    @cached_property
    def num_interactions(self) -> int:
        """Training interactions of the domain, at least 1."""
        return max(int(self.train_count.sum()), 1)

"""Popularity: every user is offered what the others took most. The first line any model must beat."""

from __future__ import annotations

from torch import Tensor


class Popularity:
    """Scores an item by its number of training occurrences, the same for every user."""

    def __init__(self, train_count: Tensor) -> None:
        """Args: train_count [N] int64, occurrences of each item in the training sequences."""
        self._train_count = train_count

    def __call__(self, history: Tensor, mask: Tensor) -> Tensor:
        """[u, L] int64 rows, [u, L] bool -> scores [u, N] int64 (a view: not to be written to)."""
        return self._train_count.expand(len(history), -1)

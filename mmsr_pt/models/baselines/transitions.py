"""Last-item transitions: what followed this user's last item in other sequences. The second line any model must beat.

Shapes: U users, u users of a chunk, L positions, N items, E items of all sequences, P distinct pairs of
consecutive ones.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Transitions:
    """Scores an item by how often it followed the user's last item in training; popularity breaks ties exactly.

    Pairs are kept sorted by their first item (P numbers, never an N x N table).
    """

    def __init__(
        self, sequences: Iterable[tuple[Tensor, Tensor]], train_count: Tensor, last_items: Tensor | None = None
    ) -> None:
        """Counts the pairs.

        Args:
            sequences: the training parts, some users at a time: their items [E] int64, one user after the other, and
                [U] int64, how many of them belong to each user.
            train_count: [N] int64, occurrences of each item in the training sequences.
            last_items: int64 rows, any number: where histories to be scored may end; none given: anywhere.
        """
        self._train_count = train_count
        num_items = len(train_count)
        is_asked = torch.ones_like(train_count, dtype=torch.bool)
        if last_items is not None:
            is_asked = torch.zeros_like(is_asked)
            is_asked[last_items] = True
        counted = [_pairs(items, lengths, is_asked).unique(return_counts=True) for items, lengths in sequences]
        keys, place = torch.cat([keys for keys, _ in counted]).unique(return_inverse=True)
        counts = torch.zeros_like(keys).index_add_(0, place, torch.cat([counts for _, counts in counted]))
        self._next = keys % num_items
        # one integer orders by transitions first and popularity second: no popularity reaches the step between counts
        self._score = counts * (int(train_count.max()) + 1)
        firsts = torch.arange(num_items + 1, device=keys.device) * num_items
        self._first = torch.searchsorted(keys, firsts)

    def __call__(self, history: Tensor, mask: Tensor) -> Tensor:
        """[u, L] int64 rows with real ones left, [u, L] bool -> scores [u, N] int64."""
        last = history.gather(1, mask.sum(dim=1, keepdim=True) - 1).squeeze(1)
        first, num_next = self._first[last], self._first[last + 1] - self._first[last]
        users = torch.arange(len(last), device=last.device).repeat_interleave(num_next)
        # the pairs of user i stand at first[i], first[i] + 1, ...
        within = torch.arange(len(users), device=last.device) - (num_next.cumsum(0) - num_next)[users]
        pairs = first[users] + within
        scores = self._train_count.repeat(len(last), 1)
        scores[users, self._next[pairs]] += self._score[pairs]
        return scores


def _pairs(items: Tensor, lengths: Tensor, is_asked: Tensor) -> Tensor:
    """first * N + second, int64, of all neighbours in a sequence whose first is asked for ([N] bool)."""
    ends = lengths.cumsum(0)
    wanted = is_asked[items[:-1]]
    # the last item of one user is no neighbour of the next one's first
    wanted[ends[(ends > 0) & (ends < len(items))] - 1] = False
    return items[:-1][wanted] * len(is_asked) + items[1:][wanted]

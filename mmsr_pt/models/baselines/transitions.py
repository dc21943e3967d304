"""Last-item transitions: what followed this user's last item in other sequences. The second line any model must beat.

Shapes: U users, u users of a chunk, L positions, N items, E items of all sequences, P distinct pairs of
consecutive ones.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Transitions:
    """Scores an item by how often it followed the user's last item in training; popularity breaks ties exactly.

    Pairs are kept sorted by their first item (P numbers, never an N x N table).
    """

    def __init__(self, items: Tensor, lengths: Tensor, train_count: Tensor) -> None:
        """Counts the pairs.

        Args:
            items: [E] int64, the training parts of all users' items, one user after the other.
            lengths: [U] int64, how many of them belong to each user.
            train_count: [N] int64, occurrences of each item in the training sequences.
        """
        self._train_count = train_count
        num_items = len(train_count)
        ends = lengths.cumsum(0)
        of_one_user = torch.ones(max(0, len(items) - 1), dtype=torch.bool, device=items.device)
        of_one_user[ends[(ends > 0) & (ends < len(items))] - 1] = False
        keys = items[:-1][of_one_user] * num_items + items[1:][of_one_user]
        keys, counts = keys.unique(return_counts=True)
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

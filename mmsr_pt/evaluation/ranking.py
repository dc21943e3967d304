"""The rank of each user's target in the whole catalogue, by counting: no sort, no score matrix kept.

Anything that can score a catalogue can rank it (`ScoreRanker`); what scores by inner products has a faster way
(products.py).

Shapes: C cases, u users of a chunk, N items of the catalogue, L positions, S seen items, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from mmsr_pt.evaluation.cases import Cases, Questions
from mmsr_pt.evaluation.processes import Portion, processes

Scorer = Callable[[Tensor, Tensor], Tensor]
"""(history [u, L] int64 rows with real ones left, mask [u, L] bool) -> scores [u, N], float or int, higher is better.

Anything that can rank a catalogue is one: a model with its catalogue matrix, popularity, transitions.
"""

CHUNK_USERS = 128
CHUNK_SCORES = 2**25
"""Scores held at once (128 MB of float32): a large catalogue is ranked for fewer users at a time."""


class Ranker(Protocol):
    """Finds the ranks of a chunk of users' targets."""

    @property
    def chunk_users(self) -> int:
        """How many users it wants at once."""

    def ranks(self, history: Tensor, mask: Tensor, targets: Tensor, seen: Tensor) -> Tensor:
        """[u, L] int64 rows with real ones left, [u, L] bool, and as in `target_ranks` -> [u] int64, 1 is the best."""


class ScoreRanker:
    """Ranks by all scores of a few users."""

    def __init__(self, scorer: Scorer, num_items: int) -> None:
        self._scorer = scorer
        self._num_items = num_items
        self.chunk_users = max(1, min(CHUNK_USERS, CHUNK_SCORES // num_items))

    def ranks(self, history: Tensor, mask: Tensor, targets: Tensor, seen: Tensor) -> Tensor:
        """See Ranker."""
        scores = self._scorer(history, mask)
        expected = (len(history), self._num_items)
        assert scores.shape == expected, f"a scorer gave {tuple(scores.shape)} for N = {self._num_items}"
        return target_ranks(scores, targets, seen)


def target_ranks(scores: Tensor, targets: Tensor, seen: Tensor) -> Tensor:
    """1 + the number of other unseen items that do not score strictly below the target.

    So ties count against us, and so does a score that is not a number: as a rival's it ranks ahead, as the target's
    it ranks last. The target is never masked, even where it was seen: a repeat purchase can be hit. All of a user's
    scores come from one product, since two products of other shapes may round a tie apart.

    Args:
        scores: [u, N], any dtype.
        targets: [u] int64.
        seen: [u, S] int64 rows in any order, repeats allowed; -1 is padding.

    Returns:
        [u] int64, 1 is the best.
    """
    level = scores.gather(1, targets[:, None])
    below = (scores < level).count_nonzero(dim=1)
    seen, rival = rivals(seen, targets)
    seen_below = ((scores.gather(1, seen.clamp_min(0)) < level) & rival).count_nonzero(dim=1)
    num_candidates = scores.shape[1] - rival.count_nonzero(dim=1)
    return num_candidates - (below - seen_below)


def rivals(seen: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """[u, S] the seen rows in order, and [u, S] bool: True at the first of each that is not the user's target."""
    seen = seen.sort(dim=1).values
    rival = (seen >= 0) & (seen != targets[:, None])
    rival[:, 1:] &= seen[:, 1:] != seen[:, :-1]
    return seen, rival


@torch.no_grad()
def rank_targets(ranker: Ranker, cases: Cases | Questions) -> Tensor:
    """The rank of every case's target, cases split over the processes. Collective: same arguments on all.

    Args:
        ranker: called equally often on every process.
        cases: C of them, at least one, of which only one chunk is looked at in full at a time.

    Returns:
        [C] int64 on every process, the same for any number of processes.
    """
    device = processes().device
    portion = Portion(len(cases), ranker.chunk_users)
    ranks = []
    for chunk in portion.calls():
        asked = cases.of(chunk)
        ranks.append(
            ranker.ranks(*(part.to(device) for part in (asked.history, asked.mask, asked.targets, asked.seen)))
        )
    return portion.gathered(ranks)

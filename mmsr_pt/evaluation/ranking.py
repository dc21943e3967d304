"""The rank of each user's target in the whole catalogue, by counting: no sort, no score matrix kept.

Shapes: U users, u users of a chunk, N items of the catalogue, L positions, S seen items, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmsr_pt.evaluation.cases import Cases
from mmsr_pt.evaluation.processes import Portion, processes

Scorer = Callable[[Tensor, Tensor], Tensor]
"""(history [u, L] int64 rows with real ones left, mask [u, L] bool) -> scores [u, N], float or int, higher is better.

Anything that can rank a catalogue is one: a model with its catalogue matrix, popularity, transitions.
"""

CHUNK_USERS = 128
CHUNK_SCORES = 2**25
"""Scores held at once (128 MB of float32): a large catalogue is ranked for fewer users at a time."""


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
    seen = seen.sort(dim=1).values
    rival = (seen >= 0) & (seen != targets[:, None])
    rival[:, 1:] &= seen[:, 1:] != seen[:, :-1]
    seen_below = ((scores.gather(1, seen.clamp_min(0)) < level) & rival).count_nonzero(dim=1)
    num_candidates = scores.shape[1] - rival.count_nonzero(dim=1)
    return num_candidates - (below - seen_below)


@torch.no_grad()
def rank_targets(scorer: Scorer, cases: Cases, num_items: int) -> Tensor:
    """The rank of every user's target, users split over the processes. Collective: same arguments on all.

    Args:
        scorer: called equally often on every process.
        cases: U users.
        num_items: N.

    Returns:
        [U] int64 on every process, the same for any number of processes.
    """
    device = processes().device
    portion = Portion(len(cases), max(1, min(CHUNK_USERS, CHUNK_SCORES // num_items)))
    ranks = []
    for chunk in portion.calls():
        rows = slice(chunk.start, chunk.stop)
        scores = scorer(cases.history[rows].to(device), cases.mask[rows].to(device))
        assert scores.shape == (len(chunk), num_items), f"a scorer gave {tuple(scores.shape)} for N = {num_items}"
        ranks.append(target_ranks(scores, cases.targets[rows].to(device), cases.seen[rows].to(device)))
    return portion.gathered(ranks)

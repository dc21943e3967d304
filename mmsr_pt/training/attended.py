"""The softmax loss of a model whose scores are no products (CARCA), by blocks that are computed again for gradients.

Shapes: B users, L positions, M positions with a target, C candidates, K positions of a sequence, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK_SCORES = 2**19
"""Scores of a block, L for each user and candidate. While one is worked on, it takes some fifty times as many floats:
logits and values of each head, and what softmax over every prefix keeps on its way."""

ScoreAll = Callable[[Tensor, Tensor], Tensor]
"""[B, L, D] and [C, D] -> [B, L, C] float32, without calling a module: at ZeRO-3 ranks must call equally often."""


def attended_softmax_loss(
    positive: Tensor,
    score_all: ScoreAll,
    users: Tensor,
    candidates: Tensor,
    inclusion: Tensor,
    own: Tensor,
    positions: Tensor,
) -> Tensor:
    """`losses.softmax_loss` with scores from a function, within one domain.

    Args:
        positive: [M] scores of the targets.
        score_all: what scores are.
        users: [B, L, D].
        candidates: [C, D].
        inclusion: [C] chance that the item is among the candidates, in (0, 1].
        own: [B, K] int64 columns that do not count as negatives.
        positions: [M] int64, where targets stand in the B x L positions.

    Returns:
        Scalar sum in float32.
    """
    num_users, length = users.shape[:2]
    left_out = torch.zeros(num_users, len(candidates), dtype=torch.bool, device=users.device).scatter_(1, own, True)
    correction = inclusion.log()

    def partition(some: Tensor, few: Tensor, not_these: Tensor, lower: Tensor) -> Tensor:
        scores = score_all(some, few) - lower
        return scores.masked_fill(not_these[:, None], float("-inf")).logsumexp(dim=2)

    per_block = max(1, BLOCK_SCORES // length)
    width = min(len(candidates), max(256, math.isqrt(per_block)))
    height = max(1, per_block // width)
    rows = []
    for some, not_these in zip(users.split(height), left_out.split(height)):
        parts = [
            checkpoint(partition, some, few, left, lower, use_reentrant=False)
            for few, left, lower in zip(
                candidates.split(width), not_these.split(width, dim=1), correction.split(width), strict=True
            )
        ]
        rows.append(torch.stack(parts).logsumexp(dim=0))
    negative = torch.cat(rows).flatten()[positions]
    positive = positive.float()
    return (torch.logaddexp(positive, negative) - positive).sum()

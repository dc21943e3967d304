"""The two losses, as sums over valid positions; dividing by the global count is the engine's part.

Shapes: B users, L positions, M valid positions (rows in reading order), C candidates, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bce_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """The paper's loss (section 4.4, equation 6): -log sigmoid(positive) - log(1 - sigmoid(negative)), summed.

    Args:
        positive: [M] scores of the targets.
        negative: [M] scores of one uniform negative each.

    Returns:
        Scalar sum in float32.
    """
    return (F.softplus(-positive.float()) + F.softplus(negative.float())).sum()


def softmax_loss(positive: Tensor, scores: Tensor, allowed: Tensor, inclusion: Tensor) -> Tensor:
    """Sampled softmax whose expected partition function is that of the whole catalogue, summed.

    Each candidate is weighted by 1 / (its chance to be a candidate), i.e. its score is lowered by the logarithm of that
    chance (logQ correction; Bengio & Senecal 2008, Yi et al. 2019). As candidates are distinct items, the chance is one
    of inclusion and not an expected count; a popular item that is always there is not penalised further. The target is
    always in the sum with weight 1.

    Args:
        positive: [M] scores of the targets.
        scores: [M, C] scores of the candidates.
        allowed: [M, C] bool: False where the candidate is the target, another item of that user, or of another domain.
        inclusion: [C] chance that the item is among the candidates, in (0, 1].

    Returns:
        Scalar sum in float32.
    """
    corrected = (scores.float() - inclusion.float().log()).masked_fill(~allowed, float("-inf"))
    positive = positive.float()
    return (torch.logaddexp(positive, corrected.logsumexp(dim=1)) - positive).sum()


def inclusion_probability(occurrence_rate: Tensor, num_interactions: Tensor, pool_rate: Tensor) -> Tensor:
    """Chance that an item is among the candidates: met in one of the batch's interactions, or drawn into the pool.

    Args:
        occurrence_rate: [C] the item's share of its domain's training interactions.
        num_interactions: [C] interactions of the item's domain in the batch of all ranks.
        pool_rate: [C] chance to be drawn into the pool.
    """
    missed = torch.exp(num_interactions * torch.log1p(-occurrence_rate.clamp(max=1 - 1e-6)))
    return (1 - missed * (1 - pool_rate)).clamp(min=1e-12)

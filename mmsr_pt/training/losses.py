"""The two losses, as sums over valid positions; dividing by the global count is the engine's part.

Shapes: B users, L positions, M valid positions (rows in reading order), C candidates, P candidates without gradient,
K positions of a sequence, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_SCORES = 2**22
"""Scores held at once: 16 MB in float32, whatever M and C."""


def bce_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """The paper's loss (section 4.4, equation 6): -log sigmoid(positive) - log(1 - sigmoid(negative)), summed.

    Args:
        positive: [M] scores of the targets.
        negative: [M] scores of one uniform negative each.

    Returns:
        Scalar sum in float32.
    """
    return (F.softplus(-positive.float()) + F.softplus(negative.float())).sum()


def softmax_loss(
    positive: Tensor,
    queries: Tensor,
    candidates: Tensor,
    inclusion: Tensor,
    own: Tensor,
    domains: tuple[Tensor, Tensor] | None = None,
    frozen: Tensor | None = None,
) -> Tensor:
    """Sampled softmax whose expected partition function is that of the whole catalogue, summed.

    Each candidate is weighted by 1 / (its chance to be a candidate), i.e. its score is lowered by the logarithm of that
    chance (logQ correction; Bengio & Senecal 2008, Yi et al. 2019). As candidates are distinct items, the chance is one
    of inclusion and not an expected count; a popular item that is always there is not penalised further. The target is
    always in the sum with weight 1.

    Scores are made for some positions at a time, `BLOCK_SCORES` at most (one position at least); the gradient of a
    block is taken while its scores are there, so nothing of size M x C is ever kept or computed twice.

    Args:
        positive: [M] scores of the targets.
        queries: [M, D] user vectors, multiplied by the model's score scale.
        candidates: [C, D] item vectors, distinct items.
        inclusion: [C + P] chance that the item is among the candidates, in (0, 1].
        own: [M, K] int64 columns among the C that do not count as negatives: target and other items of that user.
        domains: [M] and [C + P] int64, of users and candidates, which meet within a domain only; None: all in one.
        frozen: [P, D] vectors of further candidates, to which no gradient flows.

    Returns:
        Scalar sum in float32.
    """
    return _SoftmaxLoss.apply(positive.float(), queries, candidates, inclusion.log(), own, domains, frozen)


class _SoftmaxLoss(torch.autograd.Function):
    """sum_i log(exp(p_i) + sum_c exp(<q_i, v_c> - log inclusion_c)) - p_i."""

    @staticmethod
    def forward(
        ctx: Any,
        positive: Tensor,
        queries: Tensor,
        candidates: Tensor,
        log_inclusion: Tensor,
        own: Tensor,
        domains: tuple[Tensor, Tensor] | None,
        frozen: Tensor | None,
    ) -> Tensor:
        vectors = candidates if frozen is None else torch.cat([candidates, frozen])
        loss = torch.zeros((), device=positive.device)
        to_positive = torch.empty_like(positive)
        to_queries = torch.empty_like(queries)
        to_candidates: Tensor | None = None
        size = max(1, BLOCK_SCORES // len(vectors))
        for start in range(0, len(queries), size):
            rows = slice(start, start + size)
            query, target = queries[rows], positive[rows]
            scores = query @ vectors.T - log_inclusion
            if domains is not None:
                scores.masked_fill_(domains[0][rows, None] != domains[1], float("-inf"))
            scores.scatter_(1, own[rows], float("-inf"))
            largest = torch.maximum(scores.amax(dim=1), target)
            weights = scores.sub_(largest[:, None]).exp_()
            of_target = (target - largest).exp()
            total = weights.sum(dim=1) + of_target
            loss += (total.log() + largest - target).sum()
            to_positive[rows] = of_target / total - 1
            weights = weights.to(queries.dtype)
            # rows are divided by their total behind the products, which are smaller than the block
            to_queries[rows] = (weights @ vectors / total[:, None]).to(queries.dtype)
            part = weights[:, : len(candidates)].T @ (query / total[:, None]).to(queries.dtype)
            # several blocks add up in float32: rounding each sum to bf16 would lose small gradients
            to_candidates = part if to_candidates is None else to_candidates.float().add_(part)
        to_candidates = torch.zeros_like(candidates) if to_candidates is None else to_candidates.to(candidates.dtype)
        ctx.save_for_backward(to_positive, to_queries, to_candidates)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        to_positive, to_queries, to_candidates = (gradient * saved for saved in ctx.saved_tensors)
        return to_positive, to_queries, to_candidates, None, None, None, None


def inclusion_probability(occurrence_rate: Tensor, num_interactions: Tensor, pool_rate: Tensor) -> Tensor:
    """Chance that an item is among the candidates: met in one of the batch's interactions, or drawn.

    Interactions, pool and bank are drawn independently of each other, so an item is missed with the product of their
    chances to miss it: (1 - occurrence rate) ^ interactions (1 - pool size / N) (1 - bank size / N), with N items in
    its domain. That an item drawn from the bank is dropped where it is a candidate already changes nothing: it is in.

    Args:
        occurrence_rate: [C] the item's share of its domain's training interactions.
        num_interactions: [C] interactions of the item's domain in the batch of all ranks.
        pool_rate: [C] chance to be drawn, into the pool or from the bank.
    """
    missed = torch.exp(num_interactions * torch.log1p(-occurrence_rate.clamp(max=1 - 1e-6)))
    return (1 - missed * (1 - pool_rate)).clamp(min=1e-12)

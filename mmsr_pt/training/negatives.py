"""Candidates of the softmax loss: the distinct items of all ranks' batches, and who may count as whose negative."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mmsr_pt.batch import UserBatch
from mmsr_pt.training.distributed import gathered, summed, world_size


def gather_vectors(batch: UserBatch, vectors: Tensor) -> Tensor:
    """The vectors of all ranks' items, each once. Collective: call on every rank.

    Args:
        batch: from `share_items`.
        vectors: [N, D] of the items that this rank encoded.

    Returns:
        [C, D] in the order that `sequence` points into; gradients flow back to the rank that encoded an item.
    """
    if world_size() == 1:
        return vectors
    assert batch.shared is not None, "on several ranks a batch goes through share_items first"
    # a rank that was left without any item has encoded one that nobody reads
    padded = F.pad(vectors, (0, 0, 0, batch.shared.longest - len(vectors)))
    return F.embedding(batch.shared.place, _GatherWithGradient.apply(padded))


def interactions_by_domain(batch: UserBatch, num_domains: int) -> Tensor:
    """[num_domains] float: real positions in the batch of all ranks. Collective: call on every rank."""
    assert batch.domain is not None
    domains = batch.domain[batch.sequence].flatten()
    # bincount would make the host wait for the device
    counts = torch.zeros(num_domains, device=domains.device)
    return summed(counts.index_add_(0, domains, batch.mask.flatten().float()))


def own_columns(batch: UserBatch) -> Tensor:
    """[B, L + 1] int64: the candidates in each user's own sequence; padding repeats the first of them.

    Own items go by item number and never by likeness of vectors, under which negatives vanish as items grow alike.
    """
    return torch.where(batch.mask, batch.sequence, batch.sequence[:, :1])


class _GatherWithGradient(torch.autograd.Function):
    """All ranks' rows, with the sum of all ranks' gradients flowing back to the rank that owns a row."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        return gathered(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        # gloo has no reduce-scatter
        dist.all_reduce(gradient)
        return gradient[dist.get_rank() * ctx.rows : (dist.get_rank() + 1) * ctx.rows]

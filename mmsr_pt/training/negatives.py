"""Candidates of the softmax loss: the distinct items of all ranks' batches, and who may count as whose negative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmsr_pt.batch import UserBatch
from mmsr_pt.training.distributed import summed, world_size


@dataclass
class Candidates:
    """C distinct items over all ranks, sorted by item number."""

    vectors: Tensor
    """[C, D] float; gradients flow back to the rank that encoded the item."""
    ids: Tensor
    """[C] int64 item numbers, ascending."""
    domain: Tensor
    """[C] int64."""
    occurrence_rate: Tensor
    """[C] float."""
    pool_rate: Tensor
    """[C] float."""


def gather_candidates(batch: UserBatch, vectors: Tensor) -> Candidates:
    """All ranks' items, each once. Collective: call on every rank.

    An item that several ranks encoded is taken from the lowest of them: in evaluation mode all copies are equal.
    """
    assert batch.domain is not None
    assert batch.occurrence_rate is not None
    assert batch.pool_rate is not None
    ids, domain = batch.items.ids, batch.domain
    rates = torch.stack([batch.occurrence_rate, batch.pool_rate], dim=1)
    if world_size() > 1:
        longest = torch.tensor(len(ids), device=ids.device)
        dist.all_reduce(longest, op=dist.ReduceOp.MAX)
        missing = int(longest) - len(ids)
        numbers = torch.nn.functional.pad(torch.stack([ids, domain], dim=1), (0, 0, 0, missing), value=-1)
        numbers = _gather(numbers)
        rates = _gather(torch.nn.functional.pad(rates, (0, 0, 0, missing)))
        vectors = _GatherWithGradient.apply(torch.nn.functional.pad(vectors, (0, 0, 0, missing)))
        ids, domain = numbers[:, 0], numbers[:, 1]
    order = torch.argsort(ids, stable=True)
    ordered = ids[order]
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    kept = order[fresh & (ordered >= 0)]
    return Candidates(vectors[kept], ids[kept], domain[kept], rates[kept, 0], rates[kept, 1])


def interactions_by_domain(batch: UserBatch, num_domains: int) -> Tensor:
    """[num_domains] float: real positions in the batch of all ranks. Collective: call on every rank."""
    assert batch.domain is not None
    domains = batch.domain[batch.sequence].flatten()
    # bincount would make the host wait for the device
    counts = torch.zeros(num_domains, device=domains.device)
    return summed(counts.index_add_(0, domains, batch.mask.flatten().float()))


def own_columns(batch: UserBatch, candidates: Candidates) -> Tensor:
    """[B, L + 1] int64: the candidates in each user's own sequence; padding repeats the first of them.

    Own items go by item number and never by likeness of vectors, under which negatives vanish as items grow alike.
    """
    own = torch.searchsorted(candidates.ids, batch.items.ids[batch.sequence])
    return torch.where(batch.mask, own, own[:, :1])


def _gather(tensor: Tensor) -> Tensor:
    """The ranks' tensors (of equal shape) laid end to end."""
    gathered = torch.empty((world_size() * len(tensor), *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
    dist.all_gather_into_tensor(gathered, tensor.contiguous())
    return gathered


class _GatherWithGradient(torch.autograd.Function):
    """All ranks' rows, with the sum of all ranks' gradients flowing back to the rank that owns a row."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        return _gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        # gloo has no reduce-scatter
        dist.all_reduce(gradient)
        return gradient[dist.get_rank() * ctx.rows : (dist.get_rank() + 1) * ctx.rows]

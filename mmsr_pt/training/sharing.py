"""No item is encoded twice in a job: ranks whose batches hold the same item agree on which of them encodes it.

The softmax loss gathers all ranks' vectors anyway (`negatives.gather_vectors`), so each rank finds there what the
others have encoded for it. Item numbers are told before the batch is moved to the device: titles and pixels of an item
that another rank encodes stay on the host.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from mmsr_pt.batch import SharedItems, UserBatch
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.training.distributed import barrier, gathered, largest, rank, sum_over_ranks, world_size
from mmsr_pt.training.negatives import gather_vectors

T = TypeVar("T")

_WORDS = 3  # int64 an item: number, domain, and two float32 rates in one


def share_items(batch: UserBatch, device: torch.device) -> UserBatch:
    """The batch with only those items that this rank is to encode. Collective: call on every rank.

    Every distinct item goes to one of its holders: those that several ranks hold, in order of item number, each to the
    holder with the fewest items so far. A rank that is left with none encodes its first item all the same, as an
    encoder cannot run on nothing; nobody reads that vector.

    Args:
        batch: of this rank, on the host, its items ascending.
        device: where collectives run.
    """
    if world_size() == 1:
        return batch
    numbers, ranks = _all_items(batch, device)
    ids, first = np.unique(numbers[:, 0], return_index=True)
    owner = owners(numbers[:, 0], ranks, world_size())
    place, longest = np.empty(len(ids), dtype=np.int64), 1
    for number in range(world_size()):
        share = np.flatnonzero(owner == number)
        longest = max(longest, len(share))
        place[share] = np.arange(len(share))
    own = batch.items.ids.numpy()
    mine = np.searchsorted(own, ids[owner == rank()])
    items = batch.items.select(torch.from_numpy(mine if len(mine) else np.zeros(1, dtype=np.int64)))
    index = torch.from_numpy(np.searchsorted(ids, own))
    known = torch.from_numpy(numbers[first])
    rates = known[:, 2:].contiguous().view(torch.float32)
    return dataclasses.replace(
        batch,
        items=items.pin_memory() if batch.items.ids.is_pinned() else items,
        sequence=torch.where(batch.mask, index[batch.sequence], 0),
        occurrence_rate=rates[:, 0],
        pool_rate=rates[:, 1],
        domain=known[:, 1],
        shared=SharedItems(torch.from_numpy(ids), torch.from_numpy(owner * longest + place), longest),
    )


def _all_items(batch: UserBatch, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Number, domain and rates of every item that a rank holds, [n, 3], and the rank that holds it, [n]."""
    assert batch.domain is not None
    assert batch.occurrence_rate is not None
    assert batch.pool_rate is not None
    assert len(batch.items), "a rank needs an item to encode"
    rates = torch.stack([batch.occurrence_rate, batch.pool_rate], dim=1).view(torch.int64)
    mine = torch.cat([torch.stack([batch.items.ids, batch.domain], dim=1), rates], dim=1)
    longest = largest(len(mine), device)
    padded = F.pad(mine, (0, 0, 0, longest - len(mine)), value=-1)
    found = gathered(padded.to(device)).cpu().numpy()
    real = found[:, 0] >= 0
    return found[real], np.repeat(np.arange(world_size()), longest)[real]


def owners(ids: np.ndarray, ranks: np.ndarray, num_ranks: int) -> np.ndarray:
    """Who encodes each distinct item, ascending: [C] int64.

    Args:
        ids: [n] items held, each once for every rank that holds it.
        ranks: [n] who holds it.
        num_ranks: of the job.
    """
    order = np.lexsort((ranks, ids))
    holders = ranks[order].tolist()
    _, first, count = np.unique(ids[order], return_index=True, return_counts=True)
    owner = ranks[order][first]
    load = np.bincount(owner[count == 1], minlength=num_ranks).tolist()
    for item in np.flatnonzero(count > 1).tolist():
        owner[item] = min(holders[first[item] : first[item] + count[item]], key=load.__getitem__)
        load[owner[item]] += 1
    return owner


@torch.no_grad()
def sharing_report(model: Recommender, batch: UserBatch, device: torch.device) -> str:
    """What sharing costs and saves in one micro-batch, measured here and now. Collective: call on every rank.

    Args:
        model: leaves in the mode in which it came; encodes in evaluation mode, so that no random number is drawn.
        batch: as the loader gave it.
        device: of the model.
    """
    was_training = model.training
    model.eval()
    shared, telling = _timed(lambda: share_items(batch, device), device)
    items = shared.items.to(device)
    vectors = model.encode_items(items)  # the first call is slower
    vectors, encoding = _timed(lambda: model.encode_items(items), device)
    moved = shared.to(device)
    _, gathering = _timed(lambda: gather_vectors(moved, vectors), device)
    model.train(was_training)
    saved = encoding * (len(batch.items) - len(items)) / len(items)
    counts = [float(len(batch.items)), float(len(items))]
    held, encoded, *seconds = sum_over_ranks([*counts, telling, gathering, saved], device)
    telling, gathering, saved = (1e3 * total / world_size() for total in seconds)
    assert shared.shared is not None
    num_bytes = world_size() * shared.shared.longest * vectors.shape[1] * vectors.element_size() + 8 * _WORDS * held
    return (
        f"{world_size()} ranks encode {encoded:,.0f} items of a micro-batch, each once, instead of {held:,.0f}: "
        f"gathering brings each rank {num_bytes / 1e6:.2f} MB in {telling + gathering:.1f} ms ({telling:.1f} to agree "
        f"on who encodes, {gathering:.1f} for the vectors); encoding the rest too would take it {saved:.1f} ms forward"
    )


def _timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What `work` returns and the seconds that it takes, from a moment when all ranks are ready."""
    barrier()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - start

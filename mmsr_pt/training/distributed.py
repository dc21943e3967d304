"""What the ranks of a run tell each other besides gradients; every function works in a lone process too."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mmsr_pt.log import UserError

T = TypeVar("T")


def world_size() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Waits for all ranks. Collective: call on every rank."""
    if world_size() > 1:
        dist.barrier()


def others_here() -> dict[int, int]:
    """Process numbers of the other ranks that this one's launcher started. Collective: call on every rank."""
    if world_size() == 1:
        return {}
    # process numbers mean something on one host only, and there only to processes of one container
    launcher = (socket.gethostname(), os.getppid())
    found = from_all_ranks((launcher, os.getpid()))
    return {number: process for number, (place, process) in enumerate(found) if place == launcher and number != rank()}


def from_rank0(make: Callable[[], T]) -> T:
    """What rank 0 makes, on every rank; the others do not call `make`. Collective: call on every rank.

    Raises:
        UserError: on every rank, where `make` raises one on rank 0.
    """
    outcome: list[tuple[T | None, str | None]] = [(None, None)]
    if rank() == 0:
        try:
            outcome = [(make(), None)]
        except UserError as error:
            # told to the others too, who would wait for a rank that is gone
            outcome = [(None, str(error))]
    if world_size() > 1:
        dist.broadcast_object_list(outcome, src=0)
    made, mistake = outcome[0]
    if mistake is not None:
        raise UserError(mistake)
    return made  # type: ignore[return-value]


def tensor_from_rank0(
    tensor: Tensor | None, dtype: torch.dtype, shape: Sequence[int], device: torch.device | str
) -> Tensor:
    """Rank 0's tensor, of that type and shape, on every rank's device. Collective: call on every rank.

    Args:
        tensor: on rank 0, anywhere; None on the others.
        dtype: of it.
        shape: of it.
        device: where it is wanted.
    """
    found = torch.empty(tuple(shape), dtype=dtype, device=device) if tensor is None else tensor.to(device)
    if world_size() > 1:
        dist.broadcast(found, src=0)
    return found


def from_all_ranks(value: T) -> list[T]:
    """What each rank gives, in their order; for seldom and small things. Collective: call on every rank."""
    found = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, value)
    return found


def sum_over_ranks(values: Sequence[float], device: torch.device | str = "cpu") -> list[float]:
    """Element-wise sums over all ranks. Collective: call on every rank."""
    return summed(torch.tensor(values, dtype=torch.float64, device=device)).tolist()


def summed(tensor: Tensor) -> Tensor:
    """The sum over all ranks, in place and without waiting for the device. Collective: call on every rank."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def fetched(values: Sequence[Tensor], device: torch.device) -> list[float]:
    """Scalars of the device as numbers, in one transfer: the host waits once for all that is queued there."""
    return torch.stack([value.detach().to(device, torch.float64) for value in values]).tolist()


def largest(value: int, device: torch.device | str) -> int:
    """The largest of the ranks' values. Collective: call on every rank."""
    found = torch.tensor(value, device=device)
    if world_size() > 1:
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def gathered(tensor: Tensor) -> Tensor:
    """The ranks' tensors, of equal shape, laid end to end. Collective: call on every rank."""
    found = torch.empty((world_size() * len(tensor), *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
    dist.all_gather_into_tensor(found, tensor.contiguous())
    return found

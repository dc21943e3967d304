"""Slices of the evaluated users, by what their target is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmsr_pt.data.domain import COLD_BELOW
from mmsr_pt.registry import Registry

Slice = Callable[[Tensor, Tensor], Tensor]
"""(targets [U] int64 rows, train_count [N] int64 of the catalogue) -> [U] bool: who is in the slice."""

SLICES: Registry[Slice] = Registry("slice")


@SLICES.register("all")
def everyone(targets: Tensor, train_count: Tensor) -> Tensor:
    """Every user; [U] bool."""
    return torch.ones_like(targets, dtype=torch.bool)


@SLICES.register("cold")
def cold(targets: Tensor, train_count: Tensor) -> Tensor:
    """Users whose target is a cold item; [U] bool."""
    return train_count[targets] < COLD_BELOW


@SLICES.register("warm")
def warm(targets: Tensor, train_count: Tensor) -> Tensor:
    """Users whose target is not cold; [U] bool."""
    return ~cold(targets, train_count)

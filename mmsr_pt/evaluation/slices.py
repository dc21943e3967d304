"""Slices of the evaluated cases, by what their target is.

Shapes: C cases, N items of the catalogue.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmsr_pt.data.domain import COLD_BELOW
from mmsr_pt.evaluation.cases import ProtocolName, Questions
from mmsr_pt.registry import Registry

Slice = Callable[[Questions, Tensor], Tensor]
"""(C cases, train_count [N] int64 of the catalogue) -> [C] bool: which are in the slice."""

SLICES: Registry[Slice] = Registry("slice")
OF_PROTOCOL: dict[ProtocolName, tuple[str, ...]] = {
    "leave-one-out": ("all", "cold", "warm", "new", "head", "tail"),
    "cold": ("held-out", "new", "all"),
}
"""Those that mean something under each protocol, in the order in which they are shown."""
_HEAD_ONE_IN = 5


@SLICES.register("all")
def everything(asked: Questions, train_count: Tensor) -> Tensor:
    """Every case; [C] bool."""
    return torch.ones(len(asked), dtype=torch.bool)


@SLICES.register("cold")
def cold(asked: Questions, train_count: Tensor) -> Tensor:
    """The target is a cold item; [C] bool."""
    return train_count[asked.targets] < COLD_BELOW


@SLICES.register("warm")
def warm(asked: Questions, train_count: Tensor) -> Tensor:
    """The target is not cold; [C] bool."""
    return ~cold(asked, train_count)


@SLICES.register("new")
def new(asked: Questions, train_count: Tensor) -> Tensor:
    """The target occurs in no training sequence at all; [C] bool."""
    return train_count[asked.targets] == 0


@SLICES.register("head")
def head(asked: Questions, train_count: Tensor) -> Tensor:
    """The target is one of the most popular items: `head_items`; [C] bool."""
    return head_items(train_count)[asked.targets]


@SLICES.register("tail")
def tail(asked: Questions, train_count: Tensor) -> Tensor:
    """The target is any other item, new ones included; [C] bool."""
    return ~head(asked, train_count)


@SLICES.register("held-out")
def held_out(asked: Questions, train_count: Tensor) -> Tensor:
    """The target is a valid or test item, so no model was trained on it as a target; [C] bool."""
    return asked.held_out


def head_items(train_count: Tensor) -> Tensor:
    """The 20 % of the items of the training sequences that occur most in them, rounded up: the field's 80/20 rule.

    (Qin, A Survey of Long-Tail Item Recommendation Methods, 2021.) Of items that occur equally often, those with lower
    rows come first. Items that never occur do not count, however many the catalogue has.

    Args:
        train_count: [N] int64, occurrences of each item in the training sequences.

    Returns:
        [N] bool.
    """
    num_head = -(-int(train_count.count_nonzero()) // _HEAD_ONE_IN)
    is_head = torch.zeros_like(train_count, dtype=torch.bool)
    is_head[train_count.sort(descending=True, stable=True).indices[:num_head]] = True
    return is_head

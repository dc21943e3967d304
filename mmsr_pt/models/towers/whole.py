"""Towers whose forward is not known step by step: one step, with layer groups found by parameter names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mmsr_pt.models.towers.tower import BLOCK, Step, Tower, with_lora_apart


class WholeTower(Tower):
    """A backbone that runs in one piece; its prefix is everything when it is frozen, else nothing."""

    backbone: Any
    bottom: str
    """Name of the group below the blocks."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def group_of_parameters(self) -> Iterator[tuple[str, int | None]]:
        """(parameter name, its block counted from 0 or None for the bottom group) by the longest list of blocks."""
        lists = [(name, part) for name, part in self.named_modules() if isinstance(part, nn.ModuleList)]
        where, blocks = max(lists, key=lambda found: sum(p.numel() for p in found[1].parameters()), default=("", []))
        pattern = re.compile(rf"{re.escape(where)}\.(\d+)\.")
        is_past_blocks = False
        for name, _ in self.named_parameters():
            found = pattern.match(name)
            is_past_blocks |= found is not None
            if found is not None:
                yield name, int(found[1])
            elif is_past_blocks and "embed" not in name:
                yield name, len(blocks) - 1
            else:
                yield name, None

    def run_backbone(self, inputs: Tensor, context: Any) -> Tensor:
        """Title ids or images and the tower's context to tokens."""
        raise NotImplementedError

    def steps(self) -> list[Step]:
        """See Tower."""
        return [Step("whole", ("backbone",), self.run_backbone)]

    def layer_groups(self) -> dict[str, list[str]]:
        """See Tower."""
        by_block: dict[int, list[str]] = {}
        for name, block in self.group_of_parameters():
            by_block.setdefault(-1 if block is None else block, []).append(name)
        return with_lora_apart({self.bottom if b < 0 else f"{BLOCK}{b}": by_block[b] for b in sorted(by_block)})

    def num_prefix_steps(self) -> int:
        """See Tower."""
        return 0 if self.trained_groups else len(self.steps())


def drop_unused(backbone: nn.Module, run: Callable[[], Tensor]) -> int:
    """Removes poolers and heads: parameters that the output of `run` [1, ..., d] does not depend on.

    A group that trains but never gets a gradient is a mistake, and unused weights would be stored and shipped.

    Returns:
        d.
    """
    # in training mode the trial would move the running statistics of every BatchNorm
    backbone.eval()
    named = dict(backbone.named_parameters())
    with torch.enable_grad():
        output = run()
        gradients = torch.autograd.grad(output.sum(), list(named.values()), allow_unused=True)
    unused = {name for name, gradient in zip(named, gradients) if gradient is None}
    for path, module in list(backbone.named_modules()):
        inside = {f"{path}.{name}" for name, _ in module.named_parameters()}
        if path and inside and inside <= unused:
            parent, _, child = path.rpartition(".")
            setattr(backbone.get_submodule(parent), child, nn.Identity())
            unused -= inside
    for name in unused:
        parent, _, child = name.rpartition(".")
        setattr(backbone.get_submodule(parent), child, None)
    return output.shape[-1]

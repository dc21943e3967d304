"""Side networks: tuning policy `side`, small adapters over what a frozen tower says at several depths.

After IISAN (Fu et al. 2024, arXiv 2404.02059). The whole tower is frozen and never differentiated; its hidden states
after some of its layer groups, pooled over the tokens, are the prefix: one vector an item, a few kB in the cache. Side
blocks go up along the depths, from y_0 = 0:

    x_i = mu_i m_i(h_i) + (1 - mu_i) y_(i-1)        y_i = x_i + up_i(gelu(down_i(x_i)))        mu_i = sigmoid(g_i / 0.1)

Departures from the paper and its code:
- h_i is the mean over the tokens, not the class token, which only some towers have; it is normalised, since states of
  different depths differ in scale. m_i is a linear map to the width of the item vectors, since stages of Swin or of a
  convolutional net differ in width.
- Every y_i is a token, not the last one alone, so that an attention fusion mixes the depths of both modalities. That
  is what IISAN's third tower is for, which adds text and vision states depth by depth and asks for equally deep
  encoders; it is left out.

Shapes: N items, T text tokens, K depths, W the widths of all depths together, D width.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsr_pt.log import UserError
from mmsr_pt.models.fusion import masked_mean
from mmsr_pt.models.towers.tower import LORA, SIDE, Activations, Step, Tower
from mmsr_pt.models.towers.vision_tower import VisionTower

log = logging.getLogger(__name__)

TowerT = TypeVar("TowerT", bound=Tower)

_MAX_DEPTHS = 7
"""The embeddings and every other block of 12, as in the paper."""

_BOTTLENECK = 64
"""Width inside an adapter, as in the paper's code."""

_GATE_TEMPERATURE = 0.1
"""Of the paper's code: gates move ten times as fast as the learning rate says."""


class _SideBlock(nn.Module):
    """One depth: mixes its state with what comes from below, then adapts."""

    def __init__(self, in_dim: int, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(in_dim, width)
        self.gate = nn.Parameter(torch.zeros(1))
        self.down, self.up = nn.Linear(width, _BOTTLENECK), nn.Linear(_BOTTLENECK, width)
        for linear in (self.map, self.down):
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
        # the start is a plain average over the depths
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, state: Tensor, below: Tensor) -> Tensor:
        """[N, in_dim], [N, D] -> [N, D]."""
        mixed = torch.lerp(below, self.map(state), torch.sigmoid(self.gate / _GATE_TEMPERATURE))
        return mixed + self.up(F.gelu(self.down(mixed)))


class SideNetwork(nn.Module):
    """The trained part: pooled states of all depths to one token for each."""

    def __init__(self, widths: list[int], width: int) -> None:
        super().__init__()
        self.widths, self.width = widths, width
        self.blocks = nn.ModuleList(_SideBlock(in_dim, width) for in_dim in widths)

    def forward(self, states: Tensor) -> Tensor:
        """[N, 1, W] -> [N, K, D]."""
        side = states.new_zeros(states.shape[0], self.width)
        tokens = []
        for block, state in zip(self.blocks, states.squeeze(1).split(self.widths, dim=1)):
            side = block(state, side)
            tokens.append(side)
        return torch.stack(tokens, dim=1)


class SideTower(Tower):
    """A frozen tower with a side network; its prefix is one vector an item, its tokens are one a depth."""

    is_pooled = True

    def __init__(self, tower: Tower, width: int, depths: Mapping[str, int] | None = None) -> None:
        """Freezes `tower`.

        Args:
            tower: pretrained.
            width: D, of the side network and its tokens.
            depths: group of the tower -> width of the state after it; none given: chosen by `_choose` and measured.
        """
        super().__init__()
        tower.tune("frozen")
        self.tower = tower.eval()
        self.depths = dict(depths) if depths is not None else self._measure(_choose(tower))
        self.side = SideNetwork(list(self.depths.values()), width)
        self.out_dim = width
        self.tune(SIDE)

    def _measure(self, groups: list[str]) -> dict[str, int]:
        with torch.no_grad():
            states = self._states(self._example(), groups)
        return {group: state.shape[1] for group, state in zip(groups, states, strict=True)}

    def _example(self) -> Activations:
        ids = torch.ones((1, 4), dtype=torch.int64)
        return Activations(ids, torch.ones_like(ids, dtype=torch.bool))

    def steps(self) -> list[Step]:
        """See Tower."""
        return [
            Step("tower", ("tower",), lambda hidden, mask: self._collect(Activations(hidden, mask))),
            Step(SIDE, ("side",), lambda states, _: self.side(states)),
        ]

    def context(self, inputs: Activations) -> Tensor | None:
        """[N, T] bool, or None for images."""
        return inputs.mask

    def is_pretrained(self, group: str) -> bool:
        """See Tower."""
        return group != SIDE

    def tune(self, policy: str) -> None:
        """See Tower; `side` is all there is.

        Raises:
            UserError: another policy.
        """
        if policy != SIDE:
            raise UserError(f"a tower with a side network trains by the policy side only, not {policy}: give side")
        super().tune(policy)

    def config(self) -> dict[str, Any]:
        """See Tower."""
        return {"kind": SIDE, "width": self.out_dim, "depths": self.depths, "tower": self.tower.config()}

    def prefix(self, inputs: Activations) -> Activations:
        """[N, 1, W], with a mask [N, 1] for text: the states of all depths, end to end."""
        states = super().prefix(inputs).hidden
        return Activations(states, None if inputs.mask is None else inputs.mask.new_ones(states.shape[:2]))

    def suffix(self, activations: Activations) -> Activations:
        """[N, K, D], with a mask [N, K] for text."""
        tokens, mask = self.side(activations.hidden), activations.mask
        return Activations(tokens, None if mask is None else mask.expand(tokens.shape[:2]))

    def _collect(self, inputs: Activations) -> Tensor:
        return torch.cat(self._states(inputs, self.depths), dim=1).unsqueeze(1)

    def _states(self, inputs: Activations, groups: Mapping[str, int] | list[str]) -> list[Tensor]:
        """[N, d] after each of these groups of the tower, pooled and normalised."""
        states: list[Tensor] = []
        stretch: list[Step] = []
        for group, steps in itertools.groupby(self.tower.steps(), key=lambda step: step.group):
            stretch += steps
            if group in groups:
                inputs = self.tower._run(stretch, inputs)
                tokens = self.tower.as_tokens(inputs.hidden)
                pooled = tokens.mean(dim=1) if inputs.mask is None else masked_mean(tokens, inputs.mask)
                states.append(F.layer_norm(pooled, pooled.shape[1:]))
                stretch = []
        return states


class SideVisionTower(SideTower, VisionTower):
    """The same for images."""

    def __init__(self, tower: VisionTower, width: int, depths: Mapping[str, int] | None = None) -> None:
        """See SideTower."""
        self.image_spec = tower.image_spec
        super().__init__(tower, width, depths)

    def _example(self) -> Activations:
        return Activations(torch.zeros((1, 3, self.image_spec.height, self.image_spec.width), dtype=torch.uint8))


def _choose(tower: Tower) -> list[str]:
    """Every other group, from the bottom one to the last, evenly spaced where that were too many."""
    groups = list(dict.fromkeys(step.group for step in tower.steps()))
    if len(groups) == 1:
        log.info("%s runs as one piece: its side network sees the last hidden state only", type(tower).__name__)
        return groups
    num = min(_MAX_DEPTHS, len(groups) // 2 + 1)
    return [groups[round(i * (len(groups) - 1) / (num - 1))] for i in range(num)]


def tuned(tower: TowerT, policy: str, width: int) -> TowerT:
    """The tower under a tuning policy, with a side network where the policy is `side`.

    Args:
        tower: one that is not pretrained trains in full, whatever the policy; one that has its side network keeps it.
        policy: see Tower.tune.
        width: D, of the side network.

    Raises:
        UserError: an unknown policy, or one that does not fit the tower.
    """
    if policy == SIDE and tower.pretrained and not isinstance(tower, SideTower):
        return cast(TowerT, with_side(tower, width))
    if policy.startswith(f"{LORA}:") and tower.pretrained and tower.can_train:
        from mmsr_pt.models.towers.lora import add_lora, rank_of

        add_lora(tower, rank_of(policy))
    tower.tune(policy)
    return tower


def with_side(tower: Tower, width: int, depths: Mapping[str, int] | None = None) -> SideTower:
    """The tower with a new side network; see SideTower."""
    if isinstance(tower, VisionTower):
        return SideVisionTower(tower, width, depths)
    return SideTower(tower, width, depths)

"""Signs that a training goes wrong while its loss is still a number: spikes, groups that stand still, like vectors.

All of them cost next to nothing: a loss is looked at where it is known already, weights at a sample of their elements
and only when a line is logged, item vectors when a validation has made them.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

_SAMPLED = 256
"""Elements of each tensor that stand for it."""
_ROWS = 2**16
"""Vectors looked at at once."""


class LossSpikes:
    """Tells a loss that stands far above the ones before it."""

    def __init__(self, window: int = 64, least: int = 20, deviations: float = 8.0, share: float = 0.25) -> None:
        """Nothing is known yet.

        Args:
            window: losses that are remembered.
            least: losses without which nothing is a spike.
            deviations: how far above their median it must stand: so many standard deviations, found from the median
                of the distances to it, which earlier spikes hardly move,
            share: and so much of the median itself.
        """
        self._losses: deque[float] = deque(maxlen=window)
        self._least, self._deviations, self._share = least, deviations, share
        self._is_up = False

    def begins(self, loss: float) -> float | None:
        """The median of the losses before this one, where this one is the first of a spike; else None."""
        before = list(self._losses)
        self._losses.append(loss)
        if len(before) < self._least:
            return None
        median = statistics.median(before)
        deviation = 1.4826 * statistics.median(abs(value - median) for value in before)
        was_up = self._is_up
        self._is_up = loss - median > max(self._deviations * deviation, self._share * abs(median))
        return median if self._is_up and not was_up else None


class Movement:
    """Tells which parameter groups have stood still, but for weight decay, since it was last asked."""

    def __init__(self) -> None:
        self._before: dict[str, list[Tensor]] = {}

    def still(self, weights: Iterable[tuple[str, Tensor]], decayed: Mapping[str, float]) -> list[str]:
        """Names of groups no sampled element of which has moved on this rank; none the first time.

        Args:
            weights: group and what this rank has of a weight, always in the same order.
            decayed: by group what weight decay alone has multiplied its weights by since the last call.
        """
        now: dict[str, list[Tensor]] = {}
        for group, weight in weights:
            flat = weight.detach().flatten()
            now.setdefault(group, []).append(flat[:: max(1, len(flat) // _SAMPLED)].clone())
        before, self._before = self._before, now
        moved = {group: self._moved(before[group], now[group], decayed[group]) for group in before}
        return [group for group, has in moved.items() if not bool(has)]

    def _moved(self, before: list[Tensor], now: list[Tensor], decayed: float) -> Tensor:
        old, new = torch.cat(before), torch.cat(now)
        if new.dtype != torch.float32:
            # rounding hides small steps; then only a group that shows none is still
            return (new != old).any()
        return ((new - decayed * old).abs() > 1e-6 * old.abs()).any()


def mean_cosine(vectors: Tensor) -> float:
    """The mean cosine between two different vectors of [N, D], N > 1; 1: all point the same way."""
    total = torch.zeros(vectors.shape[1], dtype=torch.float64, device=vectors.device)
    for rows in vectors.split(_ROWS):
        total += F.normalize(rows.float(), dim=1).sum(dim=0, dtype=torch.float64)
    count = len(vectors)
    return float((total @ total - count) / (count * (count - 1)))

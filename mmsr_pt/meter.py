"""What a run counts between two log lines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from mmsr_pt.batch import UserBatch
from mmsr_pt.training.distributed import sum_over_ranks, world_size


@dataclass
class Meter:
    """Counts between two log lines, on this rank."""

    start: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    users: int = 0
    loss: float = 0.0
    steps: int = 0
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, waited: float, batches: list[UserBatch], loss: float, report: Mapping[str, float]) -> None:
        """Takes in one step."""
        self.waited += waited
        self.users += sum(int((batch.users >= 0).sum()) for batch in batches)
        self.loss += loss
        self.steps += 1
        for name, value in report.items():
            self.counts[name] = self.counts.get(name, 0.0) + value

    def line(self, device: torch.device) -> dict[str, float]:
        """Rates since the start over all ranks. Collective: call on every rank."""
        elapsed = time.perf_counter() - self.start
        names = sorted(self.counts)
        total = sum_over_ranks([float(self.users), self.waited, *(self.counts[name] for name in names)], device)
        counts = dict(zip(names, total[2:]))
        return {
            "loss": self.loss / self.steps,
            "users_per_s": total[0] / elapsed,
            "items_encoded_per_s": counts["items_encoded"] / elapsed,
            "data_wait": total[1] / world_size() / elapsed,
            "encoder_calls_saved": 1 - counts["items_encoded"] / counts["slots"],
            **_negatives(counts),
        }


def _negatives(counts: Mapping[str, float]) -> dict[str, float]:
    if not counts.get("positions"):
        return {}
    without = "positions_without_negatives"
    return {"negatives": counts["negatives"] / counts["positions"], without: counts[without]}

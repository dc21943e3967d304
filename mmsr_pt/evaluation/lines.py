"""What an evaluation found, slice by slice: the `eval` lines of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmsr_pt.evaluation.cases import ProtocolName, Questions, Split, protocol_of
from mmsr_pt.evaluation.metrics import mean_metrics
from mmsr_pt.evaluation.slices import OF_PROTOCOL, SLICES


@dataclass(frozen=True)
class EvalLine:
    """One `eval` line: a model on a slice of what was asked."""

    step: int
    split: Split
    model: str
    slice: str
    users: int
    """Who have a case in the slice."""
    cases: int
    """Each counts once; as many as users under leave-one-out."""
    metrics: dict[str, float]
    """HR@k, NDCG@k and MRR as fractions."""
    seconds: float
    """What this model took for this split, its share of the catalogue's encoding included."""

    @property
    def protocol(self) -> ProtocolName:
        """The one that has this split."""
        return protocol_of(self.split)

    def as_dict(self) -> dict[str, Any]:
        """The line as it stands in metrics.jsonl."""
        return {
            "event": "eval",
            "step": self.step,
            "protocol": self.protocol,
            "split": self.split,
            "model": self.model,
            "slice": self.slice,
            "users": self.users,
            "cases": self.cases,
            **self.metrics,
            "seconds": round(self.seconds, 3),
        }


def eval_lines(
    ranks: Tensor, asked: Questions, train_count: Tensor, split: Split, step: int, model: str, seconds: float
) -> Iterator[EvalLine]:
    """A line for every slice of the split's protocol that has cases; ranks [C] int64, train_count [N] int64."""
    whose = asked.users
    for name in OF_PROTOCOL[protocol_of(split)]:
        chosen = SLICES[name](asked, train_count)
        if chosen.any():
            users = len(whose[chosen].unique())
            metrics = mean_metrics(ranks[chosen])
            yield EvalLine(step, split, model, name, users, int(chosen.sum()), metrics, seconds)

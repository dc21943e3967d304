"""What is done about numbers that go wrong: `--on_nan`, and warnings with the step and the users of its batch.

Warnings stand in the log and, as `event: "warning"`, in metrics.jsonl.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from torch import Tensor

from mmsr_pt.batch import UserBatch
from mmsr_pt.config import RunConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.log import UserError
from mmsr_pt.training.checkpoint import CheckpointManager
from mmsr_pt.training.distributed import from_all_ranks, from_rank0, sum_over_ranks
from mmsr_pt.training.engine import Engine, NonFiniteLoss, StepReport
from mmsr_pt.training.health import LossSpikes, Movement, mean_cosine

log = logging.getLogger(__name__)

_MOST_IN_A_ROW = 10
"""Steps skipped one after the other, and then the run stops: what is broken is not a batch."""
_MOST_ROLLBACKS = 3
"""To one checkpoint."""
_FEW_NEGATIVES = 8.0
_ALIKE = 0.99
_STILL = 2
"""Log lines in a row at which a group has not moved, until that is worth a word."""
_NAMED = 5
"""Users of a rank that a warning names."""


class Guard:
    """Looks at each step's numbers; what all ranks must do alike it does from numbers that all ranks share."""

    def __init__(
        self,
        run: RunConfig,
        engine: Engine,
        checkpoints: CheckpointManager,
        domains: Sequence[Domain],
        record: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Nothing has gone wrong yet.

        Args:
            run: says what to do about a loss that is not finite.
            engine: whose steps these are.
            checkpoints: to roll back to.
            domains: of the run.
            record: takes each warning, a line of metrics.jsonl.
        """
        self._run, self._engine, self._checkpoints, self._domains = run, engine, checkpoints, domains
        self._record = record
        self._skipped_in_a_row, self._rollbacks = 0, 0
        self._rolled_to: Path | None = None
        self._spikes, self._movement = LossSpikes(), Movement()
        self._applied = 0
        self._still: dict[str, int] = {}
        self._standing: set[str] = set()

    def step(self, number: int, batches: Sequence[UserBatch], train: Callable[[], StepReport]) -> StepReport | None:
        """What `train` reports; None where the step was left out. Collective: call on every rank.

        Args:
            number: of the step, from 1.
            batches: this rank's, on the host.
            train: makes the step.

        Raises:
            UserError: on every rank, where the run is not to go on.
        """
        try:
            report = train()
        except NonFiniteLoss as error:
            self._meet(number, batches, error)
            return None
        self._skipped_in_a_row = 0
        self._applied += 1
        median = self._spikes.begins(report.loss)
        if median is not None:
            sentence = f"the loss jumped to {report.loss:.4g} from a median of {median:.4g}"
            self._warn("loss_spike", number, sentence, self._names(batches))
        return report

    def _meet(self, number: int, batches: Sequence[UserBatch], error: NonFiniteLoss) -> None:
        """Stops, skips or rolls back."""
        found = from_all_ranks((error.is_own, self._names(batches)))
        # where no part of the loss is to blame by itself, any batch may be
        users = [name for is_own, names in found if is_own or not any(own for own, _ in found) for name in names]
        last = from_rank0(self._checkpoints.latest)
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        what = error.sentence(number)
        told = f"{what} (users {', '.join(users)})"
        advice = f"{kept}: try a smaller --lr, or gradient_clipping in the ds_config"
        if self._run.on_nan == "stop":
            self._warn("non_finite", number, what, users)
            raise UserError(f"{told}; {advice}, or --on_nan skip")
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row > _MOST_IN_A_ROW:
            raise UserError(f"{told}, and so were the {_MOST_IN_A_ROW} steps before it; {advice}")
        if self._run.on_nan == "skip":
            self._warn("non_finite", number, f"{what}: the step is left out", users)
            return
        self._rollbacks = self._rollbacks + 1 if last == self._rolled_to else 1
        self._rolled_to = last
        if last is None:
            raise UserError(f"{told}; --on_nan rollback finds no checkpoint: give a smaller --checkpoint_every or --lr")
        if self._rollbacks > _MOST_ROLLBACKS:
            raise UserError(f"{told}, for the {self._rollbacks}th time since {last}; {advice}")
        self._checkpoints.load(self._engine)
        self._spikes, self._movement = LossSpikes(), Movement()
        self._warn("non_finite", number, f"{what}: back to {last}, and on with the batch behind it", users)

    def at_log_line(
        self, number: int, batches: Sequence[UserBatch], line: Mapping[str, Any], rates: Mapping[str, float]
    ) -> None:
        """Looks at what is looked at when a line is logged. Collective: call on every rank.

        Args:
            number: of the step.
            batches: its, on the host.
            line: what was logged.
            rates: learning rate of each group.
        """
        negatives, bare = line.get("negatives"), line.get("positions_without_negatives", 0)
        if negatives is not None:
            sentence = f"{negatives:.1f} negatives a position, and none for {bare:.0f} positions: more --pool_size"
            self._warn_once("negatives", number, negatives < _FEW_NEGATIVES or bare > 0, sentence, batches)
        decay, applied = self._engine.decay, self._applied
        self._applied = 0
        if applied == 0:
            return
        decayed = {group: (1 - rate * decay[group]) ** applied for group, rate in rates.items()}
        still = self._movement.still(self._engine.own_weights(), decayed)
        groups = sorted(decay)
        ranks = sum_over_ranks([float(group not in still) for group in groups], self._engine.place.device)
        for group, moved in zip(groups, ranks):
            self._still[group] = 0 if moved else self._still.get(group, 0) + 1
            sentence = f"parameter group {group} has stopped moving at learning rate {rates[group]:.3g}"
            self._warn_once(f"still {group}", number, self._still[group] >= _STILL, sentence, batches)

    def at_validation(self, number: int, domain: Domain, catalogue: Tensor) -> None:
        """Looks at the vectors [N, D] of a domain's items at a step; on rank 0 is enough."""
        if len(catalogue) < 2:
            return
        cosine = mean_cosine(catalogue)
        sentence = f"the items of {domain.name} have become alike: their mean cosine is {cosine:.4f}"
        self._warn_once(f"collapse {domain.name}", number, not cosine < _ALIKE, sentence, ())

    def _warn_once(self, kind: str, number: int, is_so: bool, sentence: str, batches: Sequence[UserBatch]) -> None:
        """Warns where something has come to be so, and not while it stays so."""
        if is_so and kind not in self._standing:
            self._warn(kind.partition(" ")[0], number, sentence, self._names(batches))
        (self._standing.add if is_so else self._standing.discard)(kind)

    def _warn(self, kind: str, number: int, sentence: str, users: Sequence[str]) -> None:
        if self._engine.place.rank == 0:
            log.warning("step %d: %s%s", number, sentence, f" (users {', '.join(users)})" if users else "")
            self._record({"event": "warning", "step": number, "kind": kind, "message": sentence, "users": list(users)})

    def _names(self, batches: Sequence[UserBatch]) -> list[str]:
        """Domain and user_id of the first users of these batches."""
        numbers = [number for batch in batches for number in batch.users.tolist() if number >= 0][:_NAMED]
        return [self._name(number) for number in numbers]

    def _name(self, number: int) -> str:
        for domain in self._domains:
            if number < domain.num_users:
                found = domain.eval.filter(pl.col("user") == number)["user_id"]
                return f"{domain.name}/{found[0] if len(found) else number}"
            number -= domain.num_users
        raise AssertionError("a user of no domain")

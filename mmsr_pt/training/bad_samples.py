"""How much of an epoch could not be read, counted over all ranks, and when that is too much.

A sample is a user or an item of a domain; one that is met often counts once an epoch. Ranks tell each other what they
have met only now and then, as that is a collective, and all of them stop at the same step.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch

from mmsr_pt.batch import BadSample, UserBatch
from mmsr_pt.log import UserError
from mmsr_pt.training.distributed import from_all_ranks, largest, rank

log = logging.getLogger(__name__)

_NAMED = 20
"""Samples that a run names; the others are counted."""


class BadSamples:
    """The bad samples of the epoch that a run is in."""

    def __init__(self, num_users: int, num_items: int, max_bad: float) -> None:
        """None so far.

        Args:
            num_users: that train, of all domains.
            num_items: of all catalogues.
            max_bad: share of the users, and of the items, that may be bad.
        """
        self._totals = {"users": num_users, "items": num_items}
        self._max_bad = max_bad
        self._epoch = 0
        self._known: set[int] = set()
        self._new: dict[int, BadSample] = {}
        self._named: set[int] = set()

    @property
    def count(self) -> int:
        """Of all ranks in this epoch, as far as they have told each other."""
        return len(self._known)

    def take(self, batches: Iterable[UserBatch], epoch: int) -> None:
        """Takes in what this rank met in a step."""
        if epoch != self._epoch:
            self._epoch, self._known, self._new = epoch, set(), {}
        for batch in batches:
            for sample in batch.bad:
                if sample.number not in self._known:
                    self._new.setdefault(sample.number, sample)

    def tell(self, device: torch.device | str = "cpu") -> None:
        """Tells the other ranks what is new, and names it. Collective on `device`: call on every rank."""
        if not largest(len(self._new), device):
            return
        found = {sample.number: sample for samples in from_all_ranks(list(self._new.values())) for sample in samples}
        self._new = {}
        self._known |= found.keys()
        if rank() == 0:
            self._name(found)

    def _name(self, found: dict[int, BadSample]) -> None:
        for number in sorted(found.keys() - self._named):
            if len(self._named) == _NAMED:
                log.warning("more bad samples are only counted: mmsr-pt check --data DOMAIN names all")
            elif len(self._named) < _NAMED:
                log.warning("left out %s", found[number])
            self._named.add(number)

    def require_few(self) -> None:
        """Raises UserError, on all ranks alike, where more are bad than may be."""
        num_users = sum(number < 0 for number in self._known)
        for kind, count in (("users", num_users), ("items", len(self._known) - num_users)):
            total = self._totals[kind]
            if count > self._max_bad * total:
                raise UserError(
                    f"{count} of {total} {kind} could not be read in epoch {self._epoch + 1} (the log names them), "
                    f"--max_bad {self._max_bad:g} allows {self._max_bad:.3%}: copy the domain again or build it again "
                    "with --overwrite, and go on with --resume; mmsr-pt check --data DOMAIN names all that is damaged"
                )

    def state(self) -> dict[str, Any]:
        """For a checkpoint, once all is told: what `resume` takes."""
        return {"epoch": self._epoch, "known": sorted(self._known)}

    def resume(self, state: dict[str, Any]) -> None:
        """Takes up what an earlier process counted in the epoch."""
        self._epoch, self._known = state["epoch"], set(state["known"])

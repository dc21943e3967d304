"""Who is asked what: the histories, targets and seen items of an evaluation.

Two protocols, of which each makes its cases into tensors for a few at a time, as those of millions would not fit:
`LeaveOneOut` asks every user for a held-out item, `ColdCases` for every cold item of their sequence.

Shapes: U users, C cases (U of them under leave-one-out), L positions of history, S seen items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mmsr_pt.data.domain import COLD_BELOW

if TYPE_CHECKING:
    from mmsr_pt.data.domain import Domain

Split = Literal["valid", "test", "any"]
"""Where the targets stand: one of the two held-out places, or any place of a sequence where a cold item is."""
ProtocolName = Literal["leave-one-out", "cold"]
PADDING = -1
USERS_AT_ONCE = 50_000
"""Whose training parts are in memory as tensors together."""


def protocol_of(split: Split) -> ProtocolName:
    """The protocol that has this split."""
    return "cold" if split == "any" else "leave-one-out"


@dataclass(frozen=True)
class Cases:
    """C questions: given this history, what comes next?"""

    history: Tensor
    """[C, L] int64: catalogue rows that the model reads, real ones left, padding 0."""
    mask: Tensor
    """[C, L] bool: True where the position is real."""
    targets: Tensor
    """[C] int64: the row that came next."""
    seen: Tensor
    """[C, S] int64: rows not to be recommended again, padding -1."""

    @classmethod
    def behind(cls, seen: pl.Series, targets: Tensor, max_history: int) -> Cases:
        """From C lists of all that stands before the targets [C]; matrices are as wide as these need."""
        history, mask = pad_rows(seen.list.tail(max_history))
        return cls(history.clamp_min(0), mask, targets, pad_rows(seen)[0])

    def __len__(self) -> int:
        return len(self.targets)

    def of(self, cases: range) -> Cases:
        """Some of them, by number."""
        rows = slice(cases.start, cases.stop)
        return Cases(self.history[rows], self.mask[rows], self.targets[rows], self.seen[rows])


@dataclass(frozen=True)
class LeaveOneOut:
    """Every user's held-out item, one case a user."""

    frame: pl.DataFrame
    """Of U users: `history` and `valid`, which are before it, and `test`; as in eval.parquet."""
    split: Literal["valid", "test"]
    max_history: int
    """L at most: the newest items that the model reads; all older ones stay masked."""

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def users(self) -> Tensor:
        """[U] int64: whose case each is, as the number of a row of the frame."""
        return torch.arange(len(self.frame))

    @property
    def targets(self) -> Tensor:
        """[U] int64."""
        return _int64(self.frame[self.split])

    @property
    def held_out(self) -> Tensor:
        """[U] bool: True, as no target is in a training part."""
        return torch.ones(len(self.frame), dtype=torch.bool)

    def last_items(self) -> Tensor:
        """[U] int64: the newest row of each history."""
        return _int64(self.frame["history"].list.last() if self.split == "valid" else self.frame["valid"])

    def of(self, cases: range) -> Cases:
        """The cases of some users, by number."""
        frame = self.frame[cases.start : cases.stop]
        seen = frame["history"]
        if self.split == "test":
            seen = frame.select(pl.concat_list("history", "valid")).to_series()
        return Cases.behind(seen, _int64(frame[self.split]), self.max_history)


@dataclass(frozen=True)
class ColdCases:
    """Every cold item of a user's sequence that has another before it (section 7.1 and appendix A of the paper).

    The sequence is history + [valid, test], cut behind the cold item: what stands before it is read and masked. So the
    cold items of training parts are targets too, as in the paper, though a model trained on them as targets; `held_out`
    tells them apart. Cases are in the order of users, then of places. All users are asked, as in `test`.
    """

    frame: pl.DataFrame
    """Of U users: `history`, `valid` and `test`; as in eval.parquet."""
    is_cold: pl.Series
    """[N] bool, of the catalogue."""
    max_history: int
    """As in LeaveOneOut."""

    def __len__(self) -> int:
        return len(self._cases)

    @property
    def users(self) -> Tensor:
        """[C] int64: whose case each is, as the number of a row of the frame."""
        return _int64(self._cases["user"])

    @property
    def targets(self) -> Tensor:
        """[C] int64."""
        return _int64(self._cases["target"])

    @property
    def held_out(self) -> Tensor:
        """[C] bool: whether the target is the user's valid or test item, on which nothing was ever trained."""
        return torch.from_numpy(self._cases["held_out"].to_numpy().copy())

    def last_items(self) -> Tensor:
        """[C] int64: the newest row of each history."""
        return _int64(self._cases["last"])

    def of(self, cases: range) -> Cases:
        """Some cases, by number."""
        asked = self._cases[cases.start : cases.stop]
        parts = self.frame.select("history", "valid", "test")[asked["user"]].with_columns(asked["place"])
        seen = parts.select(_SEQUENCE.list.head("place")).to_series()
        return Cases.behind(seen, _int64(asked["target"]), self.max_history)

    @cached_property
    def _cases(self) -> pl.DataFrame:
        """user, place, target, last, held_out: 14 bytes a case, made for some users at a time."""
        parts = [self._cases_of(first) for first in range(0, max(len(self.frame), 1), USERS_AT_ONCE)]
        return pl.concat(parts)

    def _cases_of(self, first: int) -> pl.DataFrame:
        place = pl.col("place")
        steps = (
            self.frame.select("history", "valid", "test")
            .slice(first, USERS_AT_ONCE)
            .with_row_index("user", offset=first)
            .select("user", target=_SEQUENCE, num_trained=pl.col("history").list.len().cast(pl.UInt8))
            .with_columns(
                place=pl.int_ranges(pl.col("target").list.len(), dtype=pl.UInt8), last=pl.col("target").list.shift(1)
            )
            .explode("target", "place", "last")
        )
        return steps.filter(self.is_cold[steps["target"]], place >= 1).select(
            "user", "place", "target", "last", held_out=place >= pl.col("num_trained")
        )


_SEQUENCE = pl.concat_list("history", "valid", "test")
Questions = LeaveOneOut | ColdCases


@dataclass(frozen=True)
class UserSample:
    """Which of a domain's users are asked."""

    size: int = 0
    """How many; 0: all."""
    seed: int = 0

    def of(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Their rows in order; the same at every call."""
        if not 0 < self.size < len(frame):
            return frame
        rows = np.random.default_rng(self.seed).choice(len(frame), self.size, replace=False)
        return frame[np.sort(rows)]


EVERYONE = UserSample()


def questions(domain: Domain, split: Split, max_history: int, users: UserSample = EVERYONE) -> Questions:
    """What is asked about these users: `test` also reads and masks the `valid` item that came before it.

    Where only some users of the domain train, these are asked in `valid`, as no others would be there to ask; `test`
    asks all, so that models of few and of many users are compared on the same questions.

    Args:
        domain: whose eval.parquet.
        split: which of the two held-out items, or `any` item that is cold.
        max_history: L, the newest items that the model reads.
        users: all of them, or a sample.
    """
    frame = users.of(domain.training_users if split == "valid" else domain.eval)
    if split == "any":
        return ColdCases(frame, domain.items["train_count"] < COLD_BELOW, max_history)
    return LeaveOneOut(frame, split, max_history)


def training_parts(histories: pl.Series, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """All users' lists, some users at a time: their items one after the other, and how many each has, both int64."""
    for first in range(0, len(histories), USERS_AT_ONCE):
        part = histories[first : first + USERS_AT_ONCE]
        # an empty list explodes to one null
        yield _int64(part.explode().drop_nulls()).to(device), _int64(part.list.len()).to(device)


def _int64(column: pl.Series) -> Tensor:
    return torch.from_numpy(column.to_numpy().astype(np.int64))


def pad_rows(lists: pl.Series) -> tuple[Tensor, Tensor]:
    """A column of lists as a matrix, left-aligned.

    Args:
        lists: U lists of rows.

    Returns:
        [U, longest] int64 padded with -1, and [U, longest] bool: True where real.
    """
    lengths = lists.list.len().to_numpy()
    mask = np.arange(lengths.max(initial=0))[None, :] < lengths[:, None]
    rows = np.full(mask.shape, PADDING, dtype=np.int64)
    # an empty list explodes to one null
    rows[mask] = lists.explode().drop_nulls().to_numpy()
    return torch.from_numpy(rows), torch.from_numpy(mask)

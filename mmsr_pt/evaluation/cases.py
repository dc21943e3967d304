"""Who is asked what: the histories, targets and seen items of an evaluation.

Shapes: U users, L positions of history, S seen items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

if TYPE_CHECKING:
    from mmsr_pt.data.domain import Domain

Split = Literal["valid", "test"]
PADDING = -1
USERS_AT_ONCE = 50_000
"""Whose training parts are in memory as tensors together."""


@dataclass(frozen=True)
class Cases:
    """U questions: given this history, what comes next?"""

    history: Tensor
    """[U, L] int64: catalogue rows that the model reads, real ones left, padding 0."""
    mask: Tensor
    """[U, L] bool: True where the position is real."""
    targets: Tensor
    """[U] int64: the row that came next."""
    seen: Tensor
    """[U, S] int64: rows not to be recommended again, padding -1."""

    def __len__(self) -> int:
        return len(self.targets)

    def of(self, users: range) -> Cases:
        """Those of some users, by number."""
        rows = slice(users.start, users.stop)
        return Cases(self.history[rows], self.mask[rows], self.targets[rows], self.seen[rows])


@dataclass(frozen=True)
class LeaveOneOut:
    """Every user's held-out item: made into tensors for a few users at a time, as millions would not fit."""

    frame: pl.DataFrame
    """Of U users: `history` and `valid`, which are before it, and `test`; as in eval.parquet."""
    split: Split
    max_history: int
    """L at most: the newest items that the model reads; all older ones stay masked."""

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def targets(self) -> Tensor:
        """[U] int64."""
        return _int64(self.frame[self.split])

    def last_items(self) -> Tensor:
        """[U] int64: the newest row of each history."""
        return _int64(self.frame["history"].list.last() if self.split == "valid" else self.frame["valid"])

    def of(self, users: range) -> Cases:
        """The cases of some users, by number; their matrices are as wide as these users need."""
        frame = self.frame[users.start : users.stop]
        seen = frame["history"]
        if self.split == "test":
            seen = frame.select(pl.concat_list("history", "valid")).to_series()
        history, mask = pad_rows(seen.list.tail(self.max_history))
        return Cases(history.clamp_min(0), mask, _int64(frame[self.split]), pad_rows(seen)[0])


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


def leave_one_out(domain: Domain, split: Split, max_history: int, users: UserSample = EVERYONE) -> LeaveOneOut:
    """What comes next for these users: `test` also reads and masks the `valid` item that came before it.

    Where only some users of the domain train, these are asked in `valid`, as no others would be there to ask; `test`
    asks all, so that models of few and of many users are compared on the same questions.

    Args:
        domain: whose eval.parquet.
        split: which of the two held-out items.
        max_history: L, the newest items that the model reads.
        users: all of them, or a sample.
    """
    frame = domain.training_users if split == "valid" else domain.eval
    return LeaveOneOut(users.of(frame), split, max_history)


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

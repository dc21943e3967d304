"""Who is asked what: the histories, targets and seen items of an evaluation.

Shapes: U users, L positions of history, S seen items.
"""

from __future__ import annotations

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


def leave_one_out(domain: Domain, split: Split, max_history: int) -> Cases:
    """Every user's held-out item of `split`: `test` also reads and masks the `valid` one that came before it.

    Args:
        domain: whose eval.parquet.
        split: which of the two held-out items.
        max_history: L, the newest items that the model reads; all older ones stay masked.
    """
    frame = domain.eval
    seen = frame["history"] if split == "valid" else frame.select(pl.concat_list("history", "valid")).to_series()
    history, mask = pad_rows(seen.list.tail(max_history))
    return Cases(
        history=history.clamp_min(0),
        mask=mask,
        targets=torch.from_numpy(frame[split].to_numpy().astype(np.int64)),
        seen=pad_rows(seen)[0],
    )


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

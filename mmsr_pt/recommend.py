"""Recommends: the items of a catalogue that a model ranks highest behind a history."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.evaluation.ranking import Scorer
from mmsr_pt.log import UserError

_LOOKED_AT_FOR_NEAREST = 20_000
"""Ids compared for a "did you mean": enough for a hint, and no wait on a domain of millions."""


@dataclass(frozen=True)
class Recommendation:
    """One recommended item."""

    rank: int
    """1 is the best."""
    row: int
    item_id: str
    title: str
    score: float


@torch.no_grad()
def recommend(
    scorer: Scorer,
    domain: Domain,
    history: Sequence[int],
    top_k: int,
    max_history: int,
    scale: float = 1.0,
    again: int | None = None,
) -> list[Recommendation]:
    """The best unseen items, best first; equal scores in the order of rows, not a number last.

    Args:
        scorer: popularity, transitions, or any other of this domain's catalogue.
        domain: whose items.
        history: catalogue rows, oldest first, at least one; none of them is recommended again.
        top_k: how many; fewer where the catalogue has no more unseen items.
        max_history: how many of the newest the scorer reads.
        scale: what the scores are multiplied by.
        again: a row that may be recommended though it was seen, as a target may in the test.
    """
    read = torch.tensor([list(history)[-max_history:]], device=processes().device)
    scores = scorer(read, torch.ones_like(read, dtype=torch.bool))[0].cpu()
    seen = [row for row in history if row != again]
    return described(domain.items, *best_unseen(scores, seen, top_k), scale)


def best_unseen(scores: Tensor, seen: Sequence[int], top_k: int) -> tuple[Tensor, Tensor]:
    """Rows and scores of the best items but the seen ones; order as in `recommend`.

    Args:
        scores: [N], of any dtype.
        seen: rows.
        top_k: how many; fewer where there are no more.
    """
    unseen = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    unseen[torch.tensor(list(seen), dtype=torch.int64, device=scores.device)] = False
    rows = unseen.nonzero().squeeze(1)
    of_unseen = scores[rows].double().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    number = min(top_k, len(rows))
    if number < len(rows):
        # only those that can be among the first are sorted
        level = of_unseen.topk(number).values[-1] if number else torch.inf
        able = (of_unseen >= level).nonzero().squeeze(1)
        rows, of_unseen = rows[able], of_unseen[able]
    order = of_unseen.sort(descending=True, stable=True).indices[:number]
    return rows[order], scores[rows[order]]


def described(items: pl.DataFrame, rows: Tensor, scores: Tensor, scale: float) -> list[Recommendation]:
    """Recommendations in the order of `rows` [k]; `items` has item_id and title by row."""
    found = items[rows.tolist()]
    return [
        Recommendation(rank, row, item_id, title or "", scale * score)
        for rank, (row, item_id, title, score) in enumerate(
            zip(rows.tolist(), found["item_id"], found["title"], scores.double().tolist()), start=1
        )
    ]


def history_of_user(domain: Domain, user_id: str) -> list[int]:
    """All that is known of a user, held-out items included, oldest first; raises UserError for an unknown one."""
    found = domain.eval.filter(pl.col("user_id") == user_id)
    if found.is_empty():
        hint = nearest(user_id, domain.eval["user_id"])
        raise UserError(f"unknown --user {user_id!r}: {domain.name} has {len(domain.eval):,} users, {hint}")
    user = found.row(0, named=True)
    return [*user["history"], user["valid"], user["test"]]


def rows_of_items(domain: Domain, item_ids: Sequence[str]) -> list[int]:
    """The catalogue rows of item ids, in their order; raises UserError for unknown ones."""
    wanted = pl.DataFrame({"item_id": list(item_ids)}, schema={"item_id": pl.String})
    found = wanted.join(domain.items.select("item_id", "row"), on="item_id", how="left", maintain_order="left")
    unknown = found.filter(pl.col("row").is_null())["item_id"].to_list()
    if unknown:
        named = ", ".join(repr(item_id) for item_id in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        hint = nearest(unknown[0], domain.items["item_id"])
        raise UserError(f"unknown item {named} in --history: {domain.name} has {domain.num_items:,} items, {hint}")
    return found["row"].to_list()


def nearest(name: str, known: pl.Series) -> str:
    """A hint for an unknown id: the nearest known one, or what known ones look like."""
    alike = known.filter(known.str.starts_with(name[:1])).head(_LOOKED_AT_FOR_NEAREST).to_list()
    near = difflib.get_close_matches(name, alike, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else "for example " + ", ".join(repr(i) for i in known.head(3))

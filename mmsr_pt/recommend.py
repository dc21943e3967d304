"""Recommends: the items of a catalogue that a model ranks highest behind a history."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import torch

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
        scorer: of a model and this domain's catalogue, popularity, or any other.
        domain: whose items.
        history: catalogue rows, oldest first, at least one; none of them is recommended again.
        top_k: how many; fewer where the catalogue has no more unseen items.
        max_history: how many of the newest the scorer reads.
        scale: what the scores are multiplied by (`Recommender.score_scale`).
        again: a row that may be recommended though it was seen, as a target may in the test.
    """
    read = torch.tensor([list(history)[-max_history:]], device=processes().device)
    scores = scorer(read, torch.ones_like(read, dtype=torch.bool))[0].double().cpu()
    unseen = torch.ones(len(scores), dtype=torch.bool)
    unseen[torch.tensor(history)] = False
    if again is not None:
        unseen[again] = True
    rows = unseen.nonzero().squeeze(1)
    order = scores[rows].nan_to_num(nan=-torch.inf).sort(descending=True, stable=True).indices[:top_k]
    best = rows[order].tolist()
    items = domain.items[best]
    return [
        Recommendation(rank, row, item_id, title, scale * scores[row].item())
        for rank, (row, item_id, title) in enumerate(zip(best, items["item_id"], items["title"]), start=1)
    ]


def history_of_user(domain: Domain, user_id: str) -> list[int]:
    """All that is known of a user, held-out items included, oldest first; raises UserError for an unknown one."""
    found = domain.eval.filter(pl.col("user_id") == user_id)
    if found.is_empty():
        hint = _nearest(user_id, domain.eval["user_id"])
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
        hint = _nearest(unknown[0], domain.items["item_id"])
        raise UserError(f"unknown item {named} in --history: {domain.name} has {domain.num_items:,} items, {hint}")
    return found["row"].to_list()


def _nearest(name: str, known: pl.Series) -> str:
    """A hint for an unknown id: the nearest known one, or what known ones look like."""
    alike = known.filter(known.str.starts_with(name[:1])).head(_LOOKED_AT_FOR_NEAREST).to_list()
    near = difflib.get_close_matches(name, alike, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else "for example " + ", ".join(repr(i) for i in known.head(3))

"""What one can ask of an exhibit: what follows on a history, what is similar, where cold items land.

Shapes: N items of the catalogue, n of them unseen, C cold ones of these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmsr_pt.evaluation.ranking import target_ranks
from mmsr_pt.explore.exhibit import POPULARITY, Exhibit
from mmsr_pt.recommend import Recommendation, best_unseen, described

DEPTHS = (10, 50, 100)
"""Ranks down to which cold items are counted."""


@dataclass(frozen=True)
class ColdPlaces:
    """Where one ranking puts the cold items that are not in the history."""

    best: list[Recommendation]
    """The best-placed ones, best first; their ranks are those in the whole catalogue."""
    shares: dict[int, float]
    """By depth: the fraction of the cold items that has this rank or a better one."""
    median: float
    """Of their ranks."""
    tenths: list[float]
    """The fraction of the cold items that stands in each tenth of the ranking, best tenth first."""


@torch.inference_mode()
def scores_of(exhibit: Exhibit, history: Sequence[int]) -> dict[str, Tensor]:
    """[N] by every model and by popularity, without the models' scales.

    Args:
        exhibit: whose models.
        history: rows, oldest first, at least one; each model reads its newest ones.
    """
    found = {}
    for name, scorer in exhibit.scorers.items():
        read = torch.tensor([list(history)[-_reads(exhibit, name) :]], device=_device(exhibit, name))
        found[name] = scorer(read, torch.ones_like(read, dtype=torch.bool))[0]
    return found


def recommended(
    exhibit: Exhibit, scores: Mapping[str, Tensor], history: Sequence[int], top_k: int
) -> dict[str, list[Recommendation]]:
    """The best items that are not in the history, best first, by each of the `scores_of` it."""
    found = {}
    for name, of_one in scores.items():
        scale = 1.0 if name == POPULARITY else exhibit.models[name].model.recommender.score_scale
        found[name] = described(exhibit.items, *best_unseen(of_one, history, top_k), scale)
    return found


def ranks_of(scores: Mapping[str, Tensor], history: Sequence[int], target: int) -> dict[str, int]:
    """The rank of one item behind a history, as the evaluation counts it, by each of the `scores_of` it."""
    seen, wanted = torch.tensor([list(history)]), torch.tensor([target])
    return {name: int(target_ranks(of_one[None].cpu(), wanted, seen)) for name, of_one in scores.items()}


def similar(exhibit: Exhibit, row: int, top_k: int) -> dict[str, list[Recommendation]]:
    """The items most similar to one of the catalogue, by every model; see MMSRModel.similar."""
    item_id = exhibit.items["item_id"][row]
    return {name: shown.model.similar(item_id, shown.catalogue, top_k) for name, shown in exhibit.models.items()}


def cold_places(
    exhibit: Exhibit, scores: Mapping[str, Tensor], history: Sequence[int], top_k: int
) -> dict[str, ColdPlaces]:
    """Where each of the `scores_of` a history puts the cold items; empty where no cold item is unseen.

    Ranks are among all unseen items, and ties count against an item, as in the evaluation.
    """
    is_seen = torch.zeros(len(exhibit.items), dtype=torch.bool)
    is_seen[list(history)] = True
    cold = (exhibit.is_cold & ~is_seen).nonzero()[:, 0]
    if not len(cold):
        return {}
    not_asked = (~exhibit.is_cold | is_seen).nonzero()[:, 0].tolist()
    found = {}
    for name, of_one in scores.items():
        ranks = unseen_ranks(of_one.cpu(), ~is_seen)
        best = described(exhibit.items, *best_unseen(of_one.cpu(), not_asked, top_k), 1.0)
        of_cold = ranks[cold]
        tenth = (of_cold - 1) * 10 // int((~is_seen).sum())
        found[name] = ColdPlaces(
            best=[dataclasses.replace(item, rank=int(ranks[item.row])) for item in best],
            shares={depth: float((of_cold <= depth).double().mean()) for depth in DEPTHS},
            median=float(of_cold.double().quantile(0.5)),
            tenths=(torch.bincount(tenth, minlength=10) / len(cold)).tolist(),
        )
    return found


def unseen_ranks(scores: Tensor, is_unseen: Tensor) -> Tensor:
    """The rank of each item among the unseen ones, as in `target_ranks`; of seen ones it has no meaning.

    Args:
        scores: [N], of any dtype.
        is_unseen: [N] bool.

    Returns:
        [N] int64, 1 is the best.
    """
    scores = scores.double().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    in_order = scores[is_unseen].sort().values
    return len(in_order) - torch.searchsorted(in_order, scores)


def found_by_title(exhibit: Exhibit, words: str) -> list[int]:
    """Rows of the items whose titles or ids hold all of the words, in any case and order; no word: all rows."""
    wanted = words.casefold().split()
    if not wanted:
        return list(range(len(exhibit.items)))
    return [row for row, text in enumerate(exhibit.searched) if all(word in text for word in wanted)]


def _reads(exhibit: Exhibit, name: str) -> int:
    """How many of the newest items a model reads."""
    return 1 if name == POPULARITY else exhibit.models[name].model.recommender.config.max_history


def _device(exhibit: Exhibit, name: str) -> torch.device:
    return torch.device("cpu") if name == POPULARITY else exhibit.models[name].model.device

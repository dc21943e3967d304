"""A sample of test users to look at: what each took, what came next, and what the model and popularity offered.

Shapes: U users, N items of the catalogue, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.cases import LeaveOneOut
from mmsr_pt.evaluation.evaluate import catalogue_ranker, catalogue_scorer
from mmsr_pt.evaluation.ranking import Ranker, Scorer, ScoreRanker, rank_targets
from mmsr_pt.models.baselines.popularity import Popularity
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.pages.cards import Card, Shelf
from mmsr_pt.recommend import recommend

TOP_K = 10
NUM_USERS = 6


@dataclass(frozen=True)
class Offer:
    """What one ranking offers a user."""

    rank: int
    """Of the held-out item, as the test counts it."""
    cards: list[Card]
    """The first ten, best first."""


@dataclass(frozen=True)
class ShownUser:
    """One user of the sample."""

    user_id: str
    history: list[Card]
    """What the model reads before the held-out item, oldest first."""
    num_older: int
    """Items before those, which it does not read."""
    target: Card
    model: Offer
    popularity: Offer


def shown_users(
    domain: Domain, model: Recommender, catalogue: Tensor, hits: pl.Series | None, num_users: int = NUM_USERS
) -> list[ShownUser]:
    """Some users, half of them among those whose item the model has among its first ten, if so many are known.

    Args:
        domain: whose users.
        model: in evaluation mode.
        catalogue: [N, D] from `encode_catalogue`.
        hits: numbers of the users (`user` of eval.parquet) for whom it has; None: not known, all are drawn alike.
        num_users: how many; all where there are no more.
    """
    frame = _drawn(domain.eval, hits, num_users)
    questions = LeaveOneOut(frame, "test", model.config.max_history)
    train_count = torch.from_numpy(domain.train_count()).to(catalogue.device)
    popularity = Popularity(train_count)
    scorers: tuple[Scorer, ...] = (catalogue_scorer(model, catalogue), popularity)
    rankers: tuple[Ranker, ...] = (catalogue_ranker(model, catalogue), ScoreRanker(popularity, domain.num_items))
    ranks = [rank_targets(ranker, questions).tolist() for ranker in rankers]
    shelf = Shelf(domain)
    shown = []
    for number, user in enumerate(frame.iter_rows(named=True)):
        before, target = [*user["history"], user["valid"]], user["test"]
        offers = []
        for scorer, of_scorer in zip(scorers, ranks):
            found = recommend(scorer, domain, before, TOP_K, model.config.max_history, again=target)
            cards = [shelf.card(item.row, target) for item in found]
            offers.append(Offer(of_scorer[number], cards))
        read = before[-model.config.max_history :]
        cards = [shelf.card(row) for row in read]
        older = len(before) - len(read)
        shown.append(ShownUser(user["user_id"], cards, older, shelf.card(target), offers[0], offers[1]))
    return shown


def _drawn(users: pl.DataFrame, hits: pl.Series | None, num_users: int) -> pl.DataFrame:
    """Rows of `users`, hits first; the same at every call."""
    draw = np.random.default_rng(0)
    is_hit = np.zeros(len(users), dtype=bool) if hits is None else users["user"].is_in(hits.implode()).to_numpy()
    with_hit, without = (draw.permutation(np.flatnonzero(of_them)) for of_them in (is_hit, ~is_hit))
    num_hits = min(len(with_hit), max(num_users // 2, num_users - len(without)))
    chosen = [*np.sort(with_hit[:num_hits]), *np.sort(without[: num_users - num_hits])]
    return users[chosen]

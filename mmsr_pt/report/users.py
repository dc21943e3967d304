"""A sample of test users to look at: what each took, what came next, and what the model and popularity offered.

Shapes: U users, N items of the catalogue, D width.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from PIL import Image
from torch import Tensor

from mmsr_pt.data.domain import COLD_BELOW, IMAGE, Domain
from mmsr_pt.data.thumbnails import thumbnail
from mmsr_pt.evaluation.cases import LeaveOneOut
from mmsr_pt.evaluation.evaluate import catalogue_ranker, catalogue_scorer
from mmsr_pt.evaluation.ranking import Ranker, Scorer, ScoreRanker, rank_targets
from mmsr_pt.models.baselines.popularity import Popularity
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.recommend import recommend

TOP_K = 10
NUM_USERS = 6
THUMBNAIL = 160
"""Longer side in pixels: sharp at the 112 of the page on most screens."""


@dataclass(frozen=True)
class Card:
    """An item as the page shows it."""

    item_id: str
    title: str
    """Empty where the domain has no titles."""
    picture: str | None
    """A data URI; None where the domain has no pictures."""
    train_count: int
    is_hit: bool = False
    """Whether it is the held-out item of the user for whom it stands here."""

    @property
    def is_cold(self) -> bool:
        """See COLD_BELOW."""
        return self.train_count < COLD_BELOW


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
    shelf = _Shelf(domain)
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


class _Shelf:
    """The items of a domain as cards; each picture is made small once."""

    def __init__(self, domain: Domain) -> None:
        self._domain, self._titles, self._counts = domain, domain.titles(), domain.train_count()
        self._ids = domain.items["item_id"]
        self._pictures: dict[int, str | None] = {}

    def card(self, row: int, target: int | None = None) -> Card:
        if row not in self._pictures:
            has_picture = IMAGE in self._domain.modalities
            self._pictures[row] = as_jpeg_uri(thumbnail(self._domain, row, THUMBNAIL)) if has_picture else None
        return Card(self._ids[row], self._titles[row], self._pictures[row], int(self._counts[row]), row == target)


def as_jpeg_uri(picture: Image.Image) -> str:
    """A picture as what may stand in `src`."""
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=82)
    return data_uri("image/jpeg", file.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Bytes as what may stand in `src`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

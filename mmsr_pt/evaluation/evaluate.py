"""Evaluates a model and the two lines it must beat on the same users, as the `eval` lines of metrics.jsonl.

Shapes: u users of a chunk, L positions, N items of the catalogue, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING

import polars as pl
import torch
from torch import Tensor

from mmsr_pt.batch import ItemInputs
from mmsr_pt.evaluation.cases import EVERYONE, Questions, Split, UserSample, questions, training_parts
from mmsr_pt.evaluation.lines import EvalLine, eval_lines
from mmsr_pt.evaluation.processes import Portion, processes
from mmsr_pt.evaluation.products import CHUNK_USERS, ProductRanker, can_rank
from mmsr_pt.evaluation.ranking import CHUNK_SCORES, Ranker, Scorer, ScoreRanker, rank_targets, target_ranks
from mmsr_pt.models.baselines.popularity import Popularity
from mmsr_pt.models.baselines.transitions import Transitions
from mmsr_pt.models.layer_groups import is_split

if TYPE_CHECKING:
    from mmsr_pt.data.domain import Domain
    from mmsr_pt.models.recommender import Recommender

ATTENDED_SCORES = 2**19
"""Scores of a block of a model that scores by attention, one for each position: some ten times as many floats."""

POPULARITY, TRANSITIONS = BASELINES = ("popularity", "transitions")
ItemSource = Callable[[range, int], Iterator[ItemInputs]]
"""(catalogue rows, batch size) -> those items in that order, in batches of that size; only the last may be smaller."""

KeepRanks = Callable[[pl.DataFrame], object]
"""Takes the rank of every asked user's target: domain, split, user, target (catalogue row), rank (1 is the best)."""


def without_gradients(model: Recommender) -> AbstractContextManager[object]:
    """What an evaluation of this model runs in: inference mode, unless its weights are split over the ranks.

    ZeRO-3 gathers weights at every call; what was gathered in inference mode could not be trained any more.
    """
    return torch.no_grad() if is_split(model) else torch.inference_mode()


def encode_catalogue(model: Recommender, source: ItemSource, num_items: int, batch_size: int) -> Tensor:
    """Every item's vector, each encoded once, the work split over the processes. Collective: same arguments on all.

    Args:
        model: in evaluation mode; `encode_items` is called equally often on every process.
        source: where this process's share of the items comes from.
        num_items: N.
        batch_size: items encoded at once; the batches' bounds do not depend on the number of processes.

    Returns:
        [N, D] in the model's dtype, on every process.
    """
    device = next(model.parameters()).device
    portion = Portion(num_items, batch_size)
    vectors = []
    with without_gradients(model):
        for batch in source(portion.work, portion.chunk):
            vectors.append(model.encode_items(batch.to(device)))
        for _ in range(portion.num_calls - len(vectors)):
            model.encode_items(batch.to(device))
        return portion.gathered(vectors)


class CatalogueScorer:
    """Scores a catalogue by the inner product with the user vector at the last position of the history."""

    chunk_users = CHUNK_USERS

    def __init__(self, model: Recommender, catalogue: Tensor) -> None:
        """Args: model in evaluation mode; catalogue [N, D] from `encode_catalogue`."""
        self._model = model
        self._catalogue = catalogue

    @cached_property
    def _columns(self) -> Tensor:
        return self._catalogue.float().T

    @cached_property
    def _products(self) -> ProductRanker | None:
        return ProductRanker(self._catalogue) if can_rank(self._catalogue) else None

    def __call__(self, history: Tensor, mask: Tensor) -> Tensor:
        """[u, L] int64 rows with real ones left, [u, L] bool -> scores [u, N] float32, without the model's scale."""
        return self.of(self._catalogue[history], mask)

    def of(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """The same from the items' vectors [u, L, D], which need not be the catalogue's."""
        return self._model.encode_last(vectors, mask).float() @ self._columns

    def ranks(self, history: Tensor, mask: Tensor, targets: Tensor, seen: Tensor) -> Tensor:
        """See Ranker: those of float64 scores on the CPU, elsewhere those of float32 scores.

        Where a user's scores are hardly different, not finite, or in a precision other than the catalogue's, they are
        those of float32 scores on the CPU too.
        """
        users = self._users(history, mask)
        ranks, known = torch.zeros_like(targets), torch.zeros_like(targets, dtype=torch.bool)
        if self._products is not None and users.dtype == self._catalogue.dtype:
            ranks, known = self._products.ranks(users, targets, seen)
        for rows in (~known).nonzero()[:, 0].split(max(1, CHUNK_SCORES // len(self._catalogue))):
            ranks[rows] = target_ranks(users[rows].float() @ self._columns, targets[rows], seen[rows])
        return ranks

    def _users(self, history: Tensor, mask: Tensor) -> Tensor:
        return self._model.encode_last(self._catalogue[history], mask)


class AttendingScorer:
    """Scores a catalogue, some items at a time, by a model whose scores are no products (CARCA)."""

    def __init__(self, model: Recommender, catalogue: Tensor) -> None:
        """Args: model in evaluation mode; catalogue [N, D] from `encode_catalogue`. Collective at ZeRO-3."""
        self._model, self._catalogue = model, catalogue
        with without_gradients(model):
            self._candidates = model.sequence_encoder.as_candidates(catalogue).float()

    def __call__(self, history: Tensor, mask: Tensor) -> Tensor:
        """[u, L] int64 rows with real ones left, [u, L] bool -> scores [u, N] float32."""
        return self.of(self._catalogue[history], mask)

    def of(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """The same from the items' vectors [u, L, D], which need not be the catalogue's."""
        users = self._model.encode_users(vectors, mask).float()
        rows, last = torch.arange(len(users), device=users.device), mask.sum(dim=1) - 1
        num_items, size = len(self._candidates), max(1, ATTENDED_SCORES // mask.numel())
        scores = users.new_empty(len(users), num_items)
        for start in range(0, num_items, size):
            # blocks of one size, as products of other shapes may round a tie apart; the last one begins earlier
            start = max(0, min(start, num_items - size))
            block = slice(start, start + size)
            scores[:, block] = self._model.sequence_encoder.score_all(users, self._candidates[block])[rows, last]
        return scores


def catalogue_ranker(model: Recommender, catalogue: Tensor) -> Ranker:
    """What ranks targets by this model and its catalogue [N, D]. Collective at ZeRO-3."""
    scorer = catalogue_scorer(model, catalogue)
    return scorer if isinstance(scorer, CatalogueScorer) else ScoreRanker(scorer, len(catalogue))


def catalogue_scorer(model: Recommender, catalogue: Tensor) -> CatalogueScorer | AttendingScorer:
    """What scores this catalogue [N, D] by this model. Collective at ZeRO-3."""
    return (CatalogueScorer if model.scores_by_product else AttendingScorer)(model, catalogue)


def evaluate(
    model: Recommender,
    domain: Domain,
    source: ItemSource,
    splits: Sequence[Split],
    batch_size: int,
    step: int = 0,
    name: str = "mmsr",
    catalogue: Tensor | None = None,
    users: UserSample = EVERYONE,
    keep_ranks: KeepRanks | None = None,
    keep_catalogue: Callable[[Tensor], object] | None = None,
) -> list[EvalLine]:
    """The model on every slice of each split; the catalogue is encoded once for all. Collective.

    A split without a case has no lines.

    Args:
        model: on this process's device; it leaves in the mode, training or evaluation, in which it came.
        domain: whose users and catalogue.
        source: the catalogue's content as this model wants it.
        splits: some of `valid`, `test` and `any`, in the order of the lines; see `questions`.
        batch_size: items encoded at once.
        step: optimizer step of the model, for the lines.
        name: what the lines call the model.
        catalogue: what `encode_catalogue` has already made of it with these weights.
        users: who is asked.
        keep_ranks: takes what the lines are means of, split by split, on every process.
        keep_catalogue: takes what `encode_catalogue` made, on every process.
    """
    was_training = model.training
    model.eval()
    try:
        start = time.perf_counter()
        with without_gradients(model):
            if catalogue is None:
                catalogue = encode_catalogue(model, source, domain.num_items, batch_size)
            ranker = catalogue_ranker(model, catalogue)
            share = (time.perf_counter() - start) / len(splits)
            if keep_catalogue is not None:
                keep_catalogue(catalogue)
            asked = {split: questions(domain, split, model.config.max_history, users) for split in splits}
            return _lines(ranker, domain, asked, step, name, share, keep_ranks)
    finally:
        model.train(was_training)


def evaluate_baselines(
    domain: Domain,
    splits: Sequence[Split],
    step: int = 0,
    users: UserSample = EVERYONE,
    keep_ranks: Mapping[str, KeepRanks] | None = None,
) -> list[EvalLine]:
    """Popularity and last-item transitions on the same users; counts come from the training part only. Collective.

    Args:
        domain: whose users and catalogue.
        splits: as in `evaluate`.
        step: for the lines.
        users: who is asked.
        keep_ranks: by name of the baseline, as in `evaluate`.
    """
    kept = keep_ranks or {}
    device = processes().device
    train_count = _train_count(domain).to(device)
    start = time.perf_counter()
    baselines: dict[str, Scorer] = {POPULARITY: Popularity(train_count)}
    asked = {split: questions(domain, split, 1, users) for split in splits}
    last_items = torch.cat([of_split.last_items() for of_split in asked.values()])
    baselines[TRANSITIONS] = Transitions(
        training_parts(domain.training_users["history"], device), train_count, last_items.to(device)
    )
    share = (time.perf_counter() - start) / (len(baselines) * len(splits))
    rankers = {name: ScoreRanker(scorer, domain.num_items) for name, scorer in baselines.items()}
    lines = [_lines(ranker, domain, asked, step, name, share, kept.get(name)) for name, ranker in rankers.items()]
    return [line for of_one in lines for line in of_one]


def _lines(
    ranker: Ranker,
    domain: Domain,
    asked: Mapping[Split, Questions],
    step: int,
    name: str,
    seconds_before: float,
    keep_ranks: KeepRanks | None = None,
) -> list[EvalLine]:
    lines: list[EvalLine] = []
    for split, of_split in asked.items():
        start = time.perf_counter()
        if len(of_split) == 0:
            # only `any` can be without: no item of a sequence is cold, but for first ones
            continue
        ranks = rank_targets(ranker, of_split).cpu()
        seconds = seconds_before + time.perf_counter() - start
        if keep_ranks is not None:
            keep_ranks(_rank_table(domain, of_split, ranks, split))
        lines += eval_lines(ranks, of_split, _train_count(domain), split, step, name, seconds)
    return lines


def _rank_table(domain: Domain, asked: Questions, ranks: Tensor, split: Split) -> pl.DataFrame:
    return asked.frame.select("user")[asked.users.numpy()].select(
        pl.lit(domain.name).alias("domain"),
        pl.lit(split).alias("split"),
        "user",
        pl.Series("target", asked.targets.numpy(), dtype=pl.UInt32),
        pl.Series("rank", ranks.numpy(), dtype=pl.UInt32),
    )


def _train_count(domain: Domain) -> Tensor:
    return torch.from_numpy(domain.items["train_count"].to_numpy().astype("int64"))

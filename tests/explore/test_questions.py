"""Answers against the models' own recommendations, the evaluation's ranks, and arithmetic."""

import dataclasses
import math

import polars as pl
import pytest
import torch

from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.cases import LeaveOneOut
from mmsr_pt.evaluation.evaluate import catalogue_ranker
from mmsr_pt.evaluation.ranking import rank_targets
from mmsr_pt.explore.exhibit import Exhibit
from mmsr_pt.explore.questions import (
    cold_places,
    found_by_title,
    ranks_of,
    recommended,
    scores_of,
    similar,
    unseen_ranks,
)


def of_counts(counts: list[int], titles: list[str | None] | None = None) -> Exhibit:
    """A catalogue of so many items that occur so often, beside popularity alone."""
    ids = [f"i{row}" for row in range(len(counts))]
    items = pl.DataFrame({"item_id": ids, "title": titles or ids, "train_count": counts})
    return Exhibit({"name": "small"}, items, pl.DataFrame(), {}, lambda row: None)


def test_models_recommend_what_they_recommend_alone(exhibit: Exhibit) -> None:
    ids = exhibit.items["item_id"]
    for history in exhibit.users["history"].to_list():
        found = recommended(exhibit, scores_of(exhibit, history), history, 10)
        for name, shown in exhibit.models.items():
            assert found[name] == shown.model.recommend([ids[row] for row in history], shown.catalogue, 10)
        counts = exhibit.train_count.clone()
        counts[history] = -1
        assert [item.row for item in found["Popularity"]] == counts.argsort(descending=True, stable=True)[:10].tolist()


def test_ranks_are_those_of_the_evaluation(exhibit: Exhibit, small_domain: Domain) -> None:
    users = exhibit.users
    frame = small_domain.eval.filter(pl.col("user_id").is_in(users["user_id"].implode()))
    for name, shown in exhibit.models.items():
        ranker = catalogue_ranker(shown.model.recommender, shown.catalogue.vectors)
        with torch.inference_mode():
            expected = rank_targets(ranker, LeaveOneOut(frame, "test", 4)).tolist()
        found = [
            ranks_of(scores_of(exhibit, history), history, target)[name]
            for history, target in users.select("history", "test").iter_rows()
        ]
        assert found == expected


def test_similar_items_are_those_of_the_model_and_never_the_item_itself(exhibit: Exhibit) -> None:
    for row in (0, 100):
        found = similar(exhibit, row, 7)
        assert list(found) == list(exhibit.models)
        for name, shown in exhibit.models.items():
            assert found[name] == shown.model.similar(exhibit.items["item_id"][row], shown.catalogue, 7)
            assert row not in [item.row for item in found[name]]


def test_unseen_ranks_count_ties_against_an_item() -> None:
    scores = torch.tensor([3.0, 1.0, 3.0, 9.0, 2.0, math.nan])
    unseen = torch.tensor([True, True, True, False, True, True])
    # of the five: 3, 3, 2, 1, no number; both threes have one rival that is not below
    assert unseen_ranks(scores, unseen)[unseen].tolist() == [2, 4, 2, 3, 5]


def test_cold_items_land_last_by_popularity() -> None:
    # 12 warm items, of which one is in the history, and 9 cold ones: ranks 12 to 20 among 20
    counts = [30 - row for row in range(12)] + list(range(9, 0, -1))
    exhibit = of_counts(counts)
    places = cold_places(exhibit, scores_of(exhibit, [0]), [0], 3)["Popularity"]
    assert [(item.row, item.rank) for item in places.best] == [(12, 12), (13, 13), (14, 14)]
    assert places.median == 16
    assert places.shares == {10: 0.0, 50: 1.0, 100: 1.0}
    # two ranks a tenth: the sixth holds 11 and 12
    assert places.tenths == pytest.approx([0, 0, 0, 0, 0, 1 / 9, 2 / 9, 2 / 9, 2 / 9, 2 / 9])


def test_cold_items_of_the_history_are_not_counted() -> None:
    exhibit = of_counts([20, 5, 20, 4])
    places = cold_places(exhibit, scores_of(exhibit, [1]), [1], 10)["Popularity"]
    assert [(item.row, item.rank) for item in places.best] == [(3, 3)]
    assert cold_places(exhibit, scores_of(exhibit, [1, 3]), [1, 3], 10) == {}


def test_cold_places_of_a_model_agree_with_its_whole_ranking(exhibit: Exhibit) -> None:
    history = exhibit.users["history"][3].to_list()
    scores = scores_of(exhibit, history)
    for name, places in cold_places(exhibit, scores, history, 5).items():
        if name == "Popularity":
            continue
        whole = recommended(exhibit, scores, history, len(exhibit.items))[name]
        cold = [item for item in whole if exhibit.is_cold[item.row]]
        assert [(item.row, item.rank) for item in places.best] == [(item.row, item.rank) for item in cold[:5]]
        assert places.shares[50] == pytest.approx(sum(item.rank <= 50 for item in cold) / len(cold))
        assert sum(places.tenths) == pytest.approx(1)


def test_titles_and_ids_are_searched_by_all_words() -> None:
    exhibit = of_counts([1, 1, 1, 1], ["Red Hat", "red scarf", "Blue hat", None])
    assert found_by_title(exhibit, "") == [0, 1, 2, 3]
    assert found_by_title(exhibit, "HAT red") == [0]
    assert found_by_title(exhibit, "hat") == [0, 2]
    assert found_by_title(exhibit, "i3") == [3]
    assert found_by_title(exhibit, "green") == []


def test_a_score_is_that_of_the_newest_items_only(exhibit: Exhibit) -> None:
    assert torch.equal(scores_of(exhibit, [9, 1, 2, 3, 4])["MMSR"], scores_of(exhibit, [7, 1, 2, 3, 4])["MMSR"])
    without = dataclasses.replace(exhibit, models={})
    assert list(scores_of(without, [1])) == ["Popularity"]

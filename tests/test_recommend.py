"""Recommendations for one history."""

import math

import pytest
import torch

from mmsr_pt.log import UserError
from mmsr_pt.models.baselines.popularity import Popularity
from mmsr_pt.recommend import history_of_user, recommend, rows_of_items
from tests.evaluation.fakes import domain_of

DOMAIN = domain_of([[0, 1, 2, 3, 4], [4, 3, 2]], num_items=6)


def fixed(scores):
    return lambda history, mask: torch.tensor([scores])


def test_the_best_unseen_items_come_first_with_their_titles():
    found = recommend(fixed([0.9, 0.8, 0.1, 0.5, 0.7, 0.6]), DOMAIN, [0, 4], top_k=3, max_history=20, scale=2.0)
    assert [(item.rank, item.row, item.item_id, item.title) for item in found] == [
        (1, 1, "id001", "Title 1"),
        (2, 5, "id005", "Title 5"),
        (3, 3, "id003", "Title 3"),
    ]
    assert [item.score for item in found] == pytest.approx([1.6, 1.2, 1.0])


def test_a_small_catalogue_gives_what_is_unseen():
    found = recommend(fixed([1.0] * 6), DOMAIN, [5, 0, 0], top_k=100, max_history=20)
    assert [item.row for item in found] == [1, 2, 3, 4]


def test_a_score_that_is_no_number_comes_last():
    found = recommend(fixed([math.nan, 1.0, math.nan, 3.0, 2.0, 0.0]), DOMAIN, [4], top_k=10, max_history=20)
    assert [item.row for item in found] == [3, 1, 5, 0, 2]


def test_the_scorer_reads_the_newest_items_only():
    read = []

    def scorer(history, mask):
        read.append((history.tolist(), mask.tolist()))
        return torch.zeros(1, 6)

    recommend(scorer, DOMAIN, [0, 1, 2], top_k=1, max_history=2)
    assert read == [([[1, 2]], [[True, True]])]


def test_a_baseline_recommends_too():
    popularity = Popularity(torch.tensor([5, 0, 3, 9, 1, 0]))
    assert [item.row for item in recommend(popularity, DOMAIN, [3], top_k=2, max_history=20)] == [0, 2]


def test_a_user_is_known_by_all_their_items():
    assert history_of_user(DOMAIN, "user0") == [0, 1, 2, 3, 4]


def test_item_ids_become_rows_in_their_order():
    assert rows_of_items(DOMAIN, ["id005", "id000", "id005"]) == [5, 0, 5]


def test_an_unknown_user_is_an_error_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown --user 'user9'.* 2 users, did you mean 'user[01]'\?"):
        history_of_user(DOMAIN, "user9")
    with pytest.raises(UserError, match="for example 'user0', 'user1'"):
        history_of_user(DOMAIN, "zzz")


def test_unknown_items_are_an_error_that_names_them():
    with pytest.raises(UserError, match=r"unknown item 'id0O5', 'x' in --history: made up has 6 items, did you mean"):
        rows_of_items(DOMAIN, ["id001", "id0O5", "x"])


def test_a_target_may_come_again_where_it_is_named():
    scores = fixed([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert [item.row for item in recommend(scores, DOMAIN, [0, 1], top_k=2, max_history=20)] == [2, 3]
    assert [item.row for item in recommend(scores, DOMAIN, [0, 1], top_k=2, max_history=20, again=1)] == [1, 2]

"""Ranks by counting, against sorting."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsr_pt.evaluation import ranking
from mmsr_pt.evaluation.cases import Cases
from mmsr_pt.evaluation.ranking import ScoreRanker, rank_targets, target_ranks


def sorted_rank(scores, target, seen):
    """The slow reference: sort the candidates, among equal scores the target last, then look where it stands."""
    candidates = [item for item in range(len(scores)) if item == target or item not in seen]
    candidates.sort(key=lambda item: (-scores[item], item == target))
    return candidates.index(target) + 1


@st.composite
def questions(draw):
    num_items, num_users = draw(st.integers(1, 12)), draw(st.integers(1, 7))
    item = st.integers(0, num_items - 1)

    def of_every_user(values):
        return draw(st.lists(values, min_size=num_users, max_size=num_users))

    # few distinct levels, so that ties are common
    scores = of_every_user(st.lists(st.integers(-2, 2), min_size=num_items, max_size=num_items))
    return scores, of_every_user(item), of_every_user(st.lists(item, max_size=6))


def padded(lists):
    width = max(map(len, lists))
    return torch.tensor([row + [-1] * (width - len(row)) for row in lists], dtype=torch.int64).reshape(
        len(lists), width
    )


@given(questions(), st.sampled_from([torch.float32, torch.float64, torch.int64]))
def test_counting_agrees_with_sorting(question, dtype):
    scores, targets, seen = question
    ranks = target_ranks(torch.tensor(scores, dtype=dtype), torch.tensor(targets), padded(seen))
    assert ranks.tolist() == [sorted_rank(*user) for user in zip(scores, targets, seen)]


@given(questions(), st.integers(1, 3))
def test_chunks_do_not_change_ranks(question, chunk_users):
    scores, targets, seen = question
    table = torch.tensor(scores)
    # the history of user i is row 0 under "item" i, so that the scorer can find its users in any chunk
    history = torch.arange(len(targets))[:, None]
    cases = Cases(history, torch.ones_like(history, dtype=torch.bool), torch.tensor(targets), padded(seen))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "CHUNK_USERS", chunk_users)
        ranks = rank_targets(ScoreRanker(lambda history, mask: table[history[:, 0]], table.shape[1]), cases)
    assert ranks.tolist() == [sorted_rank(*user) for user in zip(scores, targets, seen)]


def test_a_large_catalogue_is_ranked_for_fewer_users_at_a_time(monkeypatch):
    monkeypatch.setattr(ranking, "CHUNK_SCORES", 100)
    widths = []

    def scorer(history, mask):
        widths.append(len(history))
        return torch.zeros(len(history), 30)

    one = torch.zeros(10, 1, dtype=torch.int64)
    ranks = rank_targets(ScoreRanker(scorer, 30), Cases(one, one == 0, one[:, 0], one - 1))
    assert widths == [3, 3, 3, 1]
    assert ranks.tolist() == [30] * 10


def test_a_target_level_with_k_others_ranks_behind_them():
    assert target_ranks(torch.tensor([[5.0, 5, 5, 1, 9]]), torch.tensor([1]), torch.tensor([[-1]])).item() == 1 + 1 + 2


def test_seen_items_are_no_rivals_but_a_seen_target_can_be_hit():
    scores = torch.tensor([[4.0, 3, 2, 1]])
    assert target_ranks(scores, torch.tensor([2]), torch.tensor([[0, 1]])).item() == 1
    assert target_ranks(scores, torch.tensor([2]), torch.tensor([[0, 2]])).item() == 2


def test_repeats_among_the_seen_count_once():
    scores = torch.tensor([[4.0, 3, 2, 1]])
    assert target_ranks(scores, torch.tensor([3]), torch.tensor([[0, 0, 0, -1]])).item() == 3


@pytest.mark.parametrize("everything", [True, False], ids=["every score", "the target's score"])
def test_a_target_that_scores_nan_ranks_last(everything):
    scores = torch.full((1, 6), math.nan) if everything else torch.arange(6.0)[None]
    scores[0, 3] = math.nan
    assert target_ranks(scores, torch.tensor([3]), torch.tensor([[-1]])).item() == 6
    assert target_ranks(scores, torch.tensor([3]), torch.tensor([[5, 3, 0]])).item() == 4


def test_a_rival_that_scores_nan_counts_against_us():
    scores = torch.tensor([[1.0, math.nan, 0.0]])
    assert target_ranks(scores, torch.tensor([0]), torch.tensor([[-1]])).item() == 2


def test_a_target_at_minus_infinity_gains_nothing_from_seen_items():
    scores = torch.tensor([[-math.inf, -math.inf, 0.0]])
    assert target_ranks(scores, torch.tensor([0]), torch.tensor([[2, -1]])).item() == 2


def test_a_scorer_of_another_catalogue_is_refused():
    one = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(AssertionError, match="N = 3"):
        rank_targets(ScoreRanker(lambda history, mask: torch.zeros(1, 4), 3), Cases(one, one == 0, one[:, 0], one))

"""HR, NDCG and MRR against arithmetic."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsr_pt.evaluation.metrics import METRICS, mean_metrics, per_user_metrics


def test_means_are_arithmetic_over_users():
    metrics = mean_metrics(torch.tensor([1, 3, 10, 11, 20, 50, 51, 1000]))
    assert metrics["HR@10"] == 3 / 8
    assert metrics["HR@20"] == 5 / 8
    assert metrics["HR@50"] == 6 / 8
    # 1 / log2(1 + 1) = 1, 1 / log2(3 + 1) = 1/2
    assert metrics["NDCG@10"] == pytest.approx((1 + 1 / 2 + 1 / math.log2(11)) / 8)
    assert metrics["NDCG@20"] == pytest.approx(metrics["NDCG@10"] + (1 / math.log2(12) + 1 / math.log2(21)) / 8)
    assert metrics["NDCG@50"] == pytest.approx(metrics["NDCG@20"] + 1 / math.log2(51) / 8)
    assert metrics["MRR"] == pytest.approx((1 + 1 / 3 + 1 / 10 + 1 / 11 + 1 / 20 + 1 / 50 + 1 / 51 + 1 / 1000) / 8)


def test_a_perfect_ranking_scores_one_everywhere():
    assert mean_metrics(torch.ones(5, dtype=torch.int64)) == dict.fromkeys(METRICS, 1.0)


def test_a_target_just_outside_k_counts_nothing_at_k():
    values = per_user_metrics(torch.tensor([11]))
    assert values["HR@10"].item() == values["NDCG@10"].item() == 0
    assert values["HR@20"].item() == 1


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=50))
def test_metrics_are_fractions_that_grow_with_k_and_average_the_users(ranks):
    users, means = per_user_metrics(torch.tensor(ranks)), mean_metrics(torch.tensor(ranks))
    assert tuple(means) == METRICS
    for name in METRICS:
        assert 0 <= means[name] <= 1
        assert means[name] == pytest.approx(sum(users[name].tolist()) / len(ranks))
    for name in ("HR", "NDCG"):
        assert means[f"{name}@10"] <= means[f"{name}@20"] <= means[f"{name}@50"]
    for k in (10, 20, 50):
        assert means[f"NDCG@{k}"] <= means[f"HR@{k}"]


def test_no_users_is_refused():
    with pytest.raises(AssertionError, match="no users"):
        mean_metrics(torch.tensor([], dtype=torch.int64))

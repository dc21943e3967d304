"""Losses against arithmetic and against the full softmax that sampling estimates."""

import math

import pytest
import torch

from mmsr_pt.training.losses import bce_loss, inclusion_probability, softmax_loss


def test_bce_is_minus_log_of_both_probabilities() -> None:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected = (
        -math.log(sigmoid(2.0)) - math.log(1 - sigmoid(-1.0)) - math.log(sigmoid(0.5)) - math.log(1 - sigmoid(3.0))
    )
    loss = bce_loss(torch.tensor([2.0, 0.5]), torch.tensor([-1.0, 3.0]))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_softmax_over_candidates_that_are_always_there_is_plain_cross_entropy() -> None:
    torch.manual_seed(0)
    scores = torch.randn(5, 7)
    targets = torch.tensor([0, 3, 6, 2, 2])
    allowed = torch.ones_like(scores, dtype=torch.bool).scatter(1, targets[:, None], False)
    loss = softmax_loss(scores[torch.arange(5), targets], scores, allowed, torch.ones(7))
    assert loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(scores, targets, reduction="sum").item(), rel=1e-6
    )


def test_partition_function_is_unbiased_under_sampling() -> None:
    """Items enter by chance; exp(loss + positive) averages to the partition function of the whole catalogue."""
    generator = torch.Generator().manual_seed(3)
    num_items, draws = 40, 20000
    scores = torch.randn(num_items, generator=generator)
    rate = torch.rand(num_items, generator=generator)
    rate = rate / rate.sum()
    pool_rate = torch.full((num_items,), 0.2)
    inclusion = inclusion_probability(rate, torch.full((num_items,), 12.0), pool_rate)
    positive = torch.tensor(0.3)
    met = torch.rand(draws, num_items, generator=generator) < inclusion
    losses = torch.stack([softmax_loss(positive[None], scores[None], row[None], inclusion) for row in met[:4000]])
    estimate = (losses + positive).exp().mean()
    truth = positive.exp() + scores.exp().sum()
    assert estimate.item() == pytest.approx(truth.item(), rel=0.03)


def test_no_allowed_candidate_costs_nothing() -> None:
    loss = softmax_loss(torch.tensor([1.0]), torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool), torch.ones(3))
    assert loss.item() == 0.0


def test_inclusion_probability_is_one_minus_the_chance_to_be_missed_by_both() -> None:
    got = inclusion_probability(torch.tensor([0.1, 0.0]), torch.tensor([3.0, 3.0]), torch.tensor([0.25, 0.25]))
    assert got.tolist() == pytest.approx([1 - 0.9**3 * 0.75, 0.25], rel=1e-5)


def test_losses_of_bfloat16_scores_are_summed_in_float32() -> None:
    scores = torch.zeros(4096, dtype=torch.bfloat16)
    loss = bce_loss(scores, scores)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(4096 * 2 * math.log(2), rel=1e-5)

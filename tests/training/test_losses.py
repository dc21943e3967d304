"""Losses against arithmetic, against the plain formula in float64, and against the softmax that sampling estimates."""

import math

import pytest
import torch
from torch import Tensor

from mmsr_pt.training import losses
from mmsr_pt.training.losses import bce_loss, inclusion_probability, softmax_loss
from tests.training.watch import Watch


def test_bce_is_minus_log_of_both_probabilities() -> None:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected = (
        -math.log(sigmoid(2.0)) - math.log(1 - sigmoid(-1.0)) - math.log(sigmoid(0.5)) - math.log(1 - sigmoid(3.0))
    )
    loss = bce_loss(torch.tensor([2.0, 0.5]), torch.tensor([-1.0, 3.0]))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


class Case:
    """Users of several domains with own items (some of them twice), targets among these, and frozen candidates."""

    def __init__(self, dtype: torch.dtype = torch.float32, num_domains: int = 2) -> None:
        generator = torch.Generator().manual_seed(4)
        num_users, length, width, num_trained, num_frozen = 6, 5, 16, 30, 12
        self.queries = torch.randn(4 * num_users, width, generator=generator).mul(0.5).to(dtype).requires_grad_()
        self.candidates = torch.randn(num_trained, width, generator=generator).to(dtype).requires_grad_()
        self.frozen = torch.randn(num_frozen, width, generator=generator).to(dtype)
        self.inclusion = torch.rand(num_trained + num_frozen, generator=generator).clamp(min=0.05)
        user = torch.arange(num_users).repeat_interleave(4)
        own = torch.randint(0, num_trained, (num_users, length), generator=generator)
        own[0, 3] = own[0, 1]
        self.own = own[user]
        self.target = self.own[torch.arange(len(user)), 1 + torch.arange(len(user)) % 4]
        self.domains = user % num_domains, torch.arange(num_trained + num_frozen) % num_domains

    def leaves(self) -> list[Tensor]:
        return [self.queries, self.candidates]

    def loss(self) -> Tensor:
        positive = (self.queries.float() * self.candidates[self.target].float()).sum(dim=1)
        return softmax_loss(
            positive, self.queries, self.candidates, self.inclusion, self.own, self.domains, self.frozen
        )

    def reference(self) -> tuple[float, list[Tensor]]:
        """One position and one candidate at a time, in float64: value and gradients."""
        queries, candidates = (leaf.detach().double().requires_grad_() for leaf in self.leaves())
        vectors = torch.cat([candidates, self.frozen.double()])
        total = torch.zeros((), dtype=torch.float64)
        for i, query in enumerate(queries):
            positive = query @ candidates[self.target[i]]
            terms = [positive.exp()]
            for c, vector in enumerate(vectors):
                if c not in self.own[i] and self.domains[0][i] == self.domains[1][c]:
                    terms.append((query @ vector).exp() / self.inclusion[c].double())
            total = total + torch.stack(terms).sum().log() - positive
        total.backward()
        assert queries.grad is not None
        assert candidates.grad is not None
        return total.item(), [queries.grad, candidates.grad]


@pytest.mark.parametrize("block", [2**22, 7 * 42, 1])
@pytest.mark.parametrize("num_domains", [1, 2])
def test_softmax_is_the_plain_formula_whatever_the_block(
    monkeypatch: pytest.MonkeyPatch, num_domains: int, block: int
) -> None:
    """7 of 24 positions a block leave a short one at the end; 1 is a position a block."""
    monkeypatch.setattr(losses, "BLOCK_SCORES", block)
    case = Case(num_domains=num_domains)
    expected, gradients = case.reference()
    loss = case.loss()
    (3 * loss).backward()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    for leaf, gradient in zip(case.leaves(), gradients):
        torch.testing.assert_close(leaf.grad, 3 * gradient.float(), rtol=1e-4, atol=1e-5)


def test_softmax_of_bfloat16_vectors_rounds_scores_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "BLOCK_SCORES", 7 * 42)
    case = Case(torch.bfloat16)
    expected, gradients = case.reference()
    loss = case.loss()
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=3e-3)
    for leaf, gradient in zip(case.leaves(), gradients):
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.bfloat16
        assert (leaf.grad.double() - gradient).norm() < 0.01 * gradient.norm()


def test_no_domains_is_one_domain() -> None:
    case = Case(num_domains=1)
    with_domains = case.loss()
    case.domains = None  # type: ignore[assignment]
    assert case.loss().item() == with_domains.item()


def test_softmax_holds_one_block_of_scores_and_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "BLOCK_SCORES", 1000)
    queries, candidates = torch.randn(90, 2, requires_grad=True), torch.randn(300, 2, requires_grad=True)
    own = torch.zeros(90, 3, dtype=torch.int64)
    with Watch() as watch:
        softmax_loss(torch.zeros(90), queries, candidates, torch.ones(300), own).backward()
    assert 600 <= watch.largest <= 1000, "the block, or the candidates' gradient of 600 entries"
    assert "aten.mm" in watch.seen
    assert not watch.waited


def test_softmax_over_candidates_that_are_always_there_is_plain_cross_entropy() -> None:
    torch.manual_seed(0)
    queries, candidates = torch.randn(5, 3), torch.randn(7, 3)
    targets = torch.tensor([0, 3, 6, 2, 2])
    scores = queries @ candidates.T
    loss = softmax_loss(scores[torch.arange(5), targets], queries, candidates, torch.ones(7), targets[:, None])
    assert loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(scores, targets, reduction="sum").item(), rel=1e-6
    )


def test_partition_function_is_unbiased_under_sampling() -> None:
    """Items enter by chance; exp(loss + positive) averages to the partition function of the whole catalogue."""
    generator = torch.Generator().manual_seed(3)
    num_items, draws = 40, 4000
    scores = torch.randn(num_items, generator=generator)
    scores[0] = 0.3
    rate = torch.rand(num_items, generator=generator)
    rate = rate / rate.sum()
    inclusion = inclusion_probability(rate, torch.full((num_items,), 12.0), torch.full((num_items,), 0.2))
    inclusion[0] = 1.0  # the target is always there
    partitions = []
    for _ in range(draws):
        met = torch.rand(num_items, generator=generator) < inclusion
        vectors = scores[met][:, None]
        loss = softmax_loss(scores[:1], torch.ones(1, 1), vectors, inclusion[met], torch.zeros(1, 1, dtype=torch.int64))
        partitions.append((loss + scores[0]).exp())
    assert torch.stack(partitions).mean().item() == pytest.approx(scores.exp().sum().item(), rel=0.03)


def test_a_user_without_other_items_costs_nothing() -> None:
    vectors = torch.randn(2, 3, requires_grad=True)
    loss = softmax_loss(torch.tensor([1.0]), torch.randn(1, 3), vectors, torch.ones(2), torch.tensor([[0, 1]]))
    loss.backward()
    assert loss.item() == 0.0
    assert vectors.grad is not None
    assert not vectors.grad.any()


def test_a_rank_without_positions_gives_zero_and_gradients() -> None:
    """At the end of an epoch a rank may be out of users; the engine still needs its gradients."""
    vectors = torch.randn(4, 3, requires_grad=True)
    nobody = torch.zeros(0, 2, dtype=torch.int64)
    loss = softmax_loss(torch.zeros(0), torch.zeros(0, 3, requires_grad=True), vectors, torch.ones(4), nobody)
    loss.backward()
    assert loss.item() == 0.0
    assert vectors.grad is not None
    assert not vectors.grad.any()


def test_inclusion_probability_is_one_minus_the_chance_to_be_missed_by_both() -> None:
    got = inclusion_probability(torch.tensor([0.1, 0.0]), torch.tensor([3.0, 3.0]), torch.tensor([0.25, 0.25]))
    assert got.tolist() == pytest.approx([1 - 0.9**3 * 0.75, 0.25], rel=1e-5)


def test_losses_of_bfloat16_scores_are_summed_in_float32() -> None:
    scores = torch.zeros(4096, dtype=torch.bfloat16)
    loss = bce_loss(scores, scores)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(4096 * 2 * math.log(2), rel=1e-5)

"""The softmax loss in blocks: that of products where scores are products, and the same for any size of block."""

import pytest
import torch

from mmsr_pt.training import attended
from mmsr_pt.training.attended import attended_softmax_loss
from mmsr_pt.training.losses import softmax_loss

USERS, LENGTH, CANDIDATES, WIDTH = 5, 4, 700, 6
POSITIONS = torch.tensor([0, 1, 2, 4, 5, 8, 12, 13, 14, 15, 16])


def product(users: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    return users @ candidates.T


def losses(
    block: int, monkeypatch: pytest.MonkeyPatch, num_candidates: int = CANDIDATES, own: torch.Tensor | None = None
) -> tuple[list[torch.Tensor], ...]:
    """Loss and gradients by blocks, then by products."""
    monkeypatch.setattr(attended, "BLOCK_SCORES", block)
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(USERS, LENGTH, WIDTH, generator=generator)
    items = torch.randn(num_candidates, WIDTH, generator=generator)
    inclusion = torch.rand(num_candidates, generator=generator) / 2 + 0.4
    if own is None:
        own = torch.randint(num_candidates, (USERS, LENGTH + 1), generator=generator)
    found = []
    for is_blocked in (True, False):
        queries, vectors = users.clone().requires_grad_(), items.clone().requires_grad_()
        asked = queries.flatten(0, 1)[POSITIONS]
        positive = (asked * vectors[own.flatten()[: len(POSITIONS)]]).sum(dim=1)
        if is_blocked:
            loss = attended_softmax_loss(positive, product, queries, vectors, inclusion, own, POSITIONS)
        else:
            loss = softmax_loss(positive, asked, vectors, inclusion, own[POSITIONS // LENGTH])
        loss.backward()
        assert queries.grad is not None
        assert vectors.grad is not None
        found.append([loss.detach(), queries.grad, vectors.grad])
    return tuple(found)


@pytest.mark.parametrize("block", [1, 300, 3000, 2**19])
def test_blocks_give_the_loss_of_products_and_its_gradients(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    for ours, theirs in zip(*losses(block, monkeypatch), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_users_to_whom_all_candidates_belong_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """log exp(p) - p = 0: the sum over negatives is empty, and its logarithm minus infinity."""
    own = torch.arange(LENGTH + 1).expand(USERS, -1)
    blocked, by_products = losses(1, monkeypatch, num_candidates=LENGTH + 1, own=own)
    for ours, theirs in zip(blocked, by_products, strict=True):
        assert not ours.any()
        torch.testing.assert_close(ours, theirs)


def test_no_more_is_scored_at_once_than_a_block_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attended, "BLOCK_SCORES", 4 * 600)
    sizes = []

    def watched(users: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        sizes.append(len(users) * LENGTH * len(candidates))
        return product(users, candidates)

    users, items = torch.randn(USERS, LENGTH, WIDTH, requires_grad=True), torch.randn(CANDIDATES, WIDTH)
    own = torch.zeros(USERS, LENGTH + 1, dtype=torch.int64)
    positive, chances = torch.zeros(len(POSITIONS)), torch.ones(CANDIDATES)
    attended_softmax_loss(positive, watched, users, items, chances, own, POSITIONS).backward()
    assert max(sizes) <= 4 * 600
    assert sum(sizes) == 2 * USERS * LENGTH * CANDIDATES, "once forward, once more for the gradient"

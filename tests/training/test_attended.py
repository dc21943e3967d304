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


def losses(block: int, monkeypatch: pytest.MonkeyPatch, num_domains: int) -> tuple[list[torch.Tensor], ...]:
    """Loss and gradients by blocks, then by products."""
    monkeypatch.setattr(attended, "BLOCK_SCORES", block)
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(USERS, LENGTH, WIDTH, generator=generator)
    items = torch.randn(CANDIDATES, WIDTH, generator=generator)
    inclusion = torch.rand(CANDIDATES, generator=generator) / 2 + 0.4
    own = torch.randint(CANDIDATES, (USERS, LENGTH + 1), generator=generator)
    of_users = torch.randint(num_domains, (USERS,), generator=generator)
    of_items = torch.arange(CANDIDATES) * num_domains // CANDIDATES
    row = POSITIONS // LENGTH
    found = []
    for is_blocked in (True, False):
        queries, vectors = users.clone().requires_grad_(), items.clone().requires_grad_()
        asked = queries.flatten(0, 1)[POSITIONS]
        positive = (asked * vectors[own.flatten()[: len(POSITIONS)]]).sum(dim=1)
        if is_blocked:
            domains = None if num_domains == 1 else (of_users, of_items)
            loss = attended_softmax_loss(positive, product, queries, vectors, inclusion, own, POSITIONS, domains)
        else:
            domains = None if num_domains == 1 else (of_users[row], of_items)
            loss = softmax_loss(positive, asked, vectors, inclusion, own[row], domains)
        loss.backward()
        assert queries.grad is not None
        assert vectors.grad is not None
        found.append([loss.detach(), queries.grad, vectors.grad])
    return tuple(found)


@pytest.mark.parametrize("num_domains", [1, 2])
@pytest.mark.parametrize("block", [1, 300, 3000, 2**19])
def test_blocks_give_the_loss_of_products_and_its_gradients(
    monkeypatch: pytest.MonkeyPatch, block: int, num_domains: int
) -> None:
    blocked, by_products = losses(block, monkeypatch, num_domains)
    for ours, theirs in zip(blocked, by_products, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_a_block_whose_candidates_all_are_of_another_domain_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 3 domains a block of 256 of the 700 candidates lies in one or two of them."""
    blocked, by_products = losses(1, monkeypatch, 3)
    assert all(part.isfinite().all() for part in blocked)
    for ours, theirs in zip(blocked, by_products, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


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

"""Ranks by products of low precision against float64 scores, one user at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr_pt.evaluation import products
from mmsr_pt.evaluation.products import ProductRanker, can_rank
from mmsr_pt.evaluation.ranking import target_ranks

DTYPES = [torch.bfloat16, torch.float32]


def reference(users, items, targets, seen):
    """Every score by itself, summed without error, then counted by the definition."""
    ranks = []
    for user, target, known in zip(users.tolist(), targets.tolist(), seen.tolist()):
        scores = [math.fsum(a * b for a, b in zip(user, item)) for item in items.tolist()]
        rivals = [row for row in range(len(scores)) if row != target and row not in known]
        ranks.append(1 + sum(not scores[row] < scores[target] for row in rivals))
    return ranks


def drawn(num_users, num_items, width, dtype, seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(num_users, width, generator=generator)
    # all items about the same: a small spread makes near ties common
    items = torch.randn(1, width, generator=generator) + spread * torch.randn(num_items, width, generator=generator)
    # a third of the catalogue stands there twice
    twins = torch.randint(num_items, (num_items // 3, 2), generator=generator)
    items[twins[:, 0]] = items[twins[:, 1]]
    targets = torch.randint(num_items, (num_users,), generator=generator)
    seen = torch.randint(-1, num_items, (num_users, 5), generator=generator)
    seen[::3, 2] = targets[::3]
    return users.to(dtype), items.to(dtype), targets, seen


@settings(deadline=None, max_examples=40)
@given(
    num_users=st.integers(1, 6),
    num_items=st.integers(1, 150),
    width=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from([1.0, 0.05, 1e-3, 1e-6]),
    block=st.sampled_from([32, 64, 2048]),
    seed=st.integers(0, 1000),
)
def test_known_ranks_are_those_of_exact_scores(num_users, num_items, width, dtype, spread, block, seed):
    users, items, targets, seen = drawn(num_users, num_items, width, dtype, seed, spread)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "BLOCK_ITEMS", block)
        # all rounding that float64 knows would be no tie to the reference: whole numbers have none
        whole = (users.double() * 64).round().to(dtype), (items.double() * 64).round().to(dtype)
        ranks, known = ProductRanker(whole[1]).ranks(whole[0], targets, seen)
    expected = torch.tensor(reference(*whole, targets, seen))
    assert ranks[known].tolist() == expected[known].tolist()
    if block < 2048 or num_items <= 4 * products.RUN:
        assert known.all(), "a few items are never too many"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "spread"), [(64, 1.0), (768, 1.0), (64, 0.2), (1500, 3.0)])
def test_blocks_of_real_size(dtype, width, spread):
    """So that the processor's own kernels sum: with rows to fill up the last block and more pairs than fit at once."""
    users, items, targets, seen = drawn(60, 4500, width, dtype, seed=width, spread=spread)
    ranks, known = ProductRanker(items).ranks(users, targets, seen)
    assert known.float().mean() > 0.9
    # a product in float64 may round equal vectors apart, so twins of the target are counted by hand
    scores = users.double() @ items.double().T
    level = scores.gather(1, targets[:, None])
    tie = (items[targets][:, None] == items).all(dim=2)
    expected = target_ranks(torch.where(tie, level, scores), targets, seen)
    assert ranks[known].tolist() == expected[known].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_last_bit_decides(dtype):
    """Items that differ from the target by the least there is, up or down, in either sign of the score."""
    step = torch.finfo(dtype).eps
    one, up, down = torch.tensor([1.0, 1.0 + step, 1.0 - step / 2], dtype=dtype)
    items = torch.stack([torch.stack([x, one]) for x in (one, up, down, one)])
    users = torch.tensor([[1.0, 100.0], [-1.0, -100.0]], dtype=dtype)
    ranks, known = ProductRanker(items).ranks(users, torch.tensor([0, 0]), torch.full((2, 1), -1))
    assert known.all()
    # above: `up`, or `down` where scores are turned over; level: the last
    assert ranks.tolist() == [3, 3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_what_is_no_number_or_could_overflow_is_left_to_others(dtype, value):
    users, items, targets, seen = drawn(4, 300, 8, dtype, seed=0)
    poisoned = items.clone()
    poisoned[7, 3] = value
    assert not ProductRanker(poisoned).ranks(users, targets, seen)[1].any()
    users[1, 2] = value
    ranks, known = ProductRanker(items).ranks(users, targets, seen)
    assert known.tolist() == [True, False, True, True]
    assert ranks[known].tolist() == torch.tensor(reference(users[known], items, targets[known], seen[known])).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_user_to_whom_all_is_level_is_left_to_others(dtype):
    users, items, targets, seen = drawn(3, 3000, 8, dtype, seed=0)
    users[1] = 0
    _, known = ProductRanker(items).ranks(users, targets, seen)
    assert known.tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_of_zeros_are_level_with_each_other(dtype):
    items = torch.tensor([[1.0], [0.0], [0.0], [-1.0], [-0.0]], dtype=dtype)
    users = torch.tensor([[2.0], [-2.0], [0.0]], dtype=dtype)
    ranks, known = ProductRanker(items).ranks(users, torch.tensor([1, 1, 1]), torch.tensor([[-1], [0], [2]]))
    assert known.all()
    assert ranks.tolist() == [1 + 1 + 2, 1 + 1 + 2, 1 + 3]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_blocks_of_users_are_ranked_alike_in_any_number_of_threads(monkeypatch, num_threads):
    monkeypatch.setattr(products, "BLOCK_USERS", 4)
    users, items, targets, seen = drawn(11, 300, 8, torch.bfloat16, seed=2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        ranks, known = ProductRanker(items).ranks(users, targets, seen)
        assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)
    assert known.all()
    assert ranks.tolist() == reference(users, items, targets, seen)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e12])
def test_size_does_not_matter(scale):
    """Down to where processors take products for 0."""
    users, items, targets, seen = drawn(6, 120, 8, torch.float32, seed=1)
    users, items = (users * 64).round() * scale, (items * 64).round() * scale
    ranks, known = ProductRanker(items).ranks(users, targets, seen)
    assert known.all()
    assert ranks.tolist() == reference(users, items, targets, seen)


def test_float16_is_taken_for_what_it_is():
    users, items, targets, seen = drawn(6, 120, 8, torch.float16, seed=1)
    assert can_rank(items)
    ranks, known = ProductRanker(items).ranks(users, targets, seen)
    assert known.all()
    assert ranks.tolist() == reference(users, items, targets, seen)


def test_without_a_product_in_bfloat16_it_is_float32s(monkeypatch):
    monkeypatch.setattr(products, "_multiplies_bfloat16", lambda: False)
    users, items, targets, seen = drawn(6, 120, 8, torch.bfloat16, seed=1)
    ranks, known = ProductRanker(items).ranks(users, targets, seen)
    assert known.all()
    assert ranks.tolist() == reference(users, items, targets, seen)


def test_float32_that_is_cut_short_has_no_known_error():
    assert can_rank(torch.zeros(2, 2))
    assert not can_rank(torch.zeros(2, 2, dtype=torch.float64))
    try:
        torch.set_float32_matmul_precision("medium")
        assert not can_rank(torch.zeros(2, 2))
    finally:
        torch.set_float32_matmul_precision("highest")

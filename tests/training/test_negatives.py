"""Candidates: a user's own items, and interactions by domain; test_sharing.py has several ranks."""

import torch

from mmsr_pt.batch import ItemInputs, UserBatch
from mmsr_pt.training.negatives import gather_vectors, interactions_by_domain, own_columns


def test_own_items_are_found_among_the_candidates() -> None:
    """Items 3, 5, 8 of domain 0, 20 and 21 of domain 1; users have 3 8, 5 and 21 20."""
    batch = UserBatch(
        items=ItemInputs(torch.tensor([3, 5, 8, 20, 21])),
        sequence=torch.tensor([[0, 2], [1, 0], [4, 3]]),
        mask=torch.tensor([[True, True], [True, False], [True, True]]),
        users=torch.arange(3),
        domain=torch.tensor([0, 0, 0, 1, 1]),
    )
    assert own_columns(batch).tolist() == [[0, 2], [1, 1], [4, 3]], "padding repeats the first item"
    assert interactions_by_domain(batch, 3).tolist() == [3, 2, 0]
    vectors = torch.randn(5, 2)
    assert gather_vectors(batch, vectors) is vectors, "a lone rank has all"

"""Every slot of the grid becomes an item of its own, and says what it said before."""

import numpy as np
import pytest
import torch

from mmsr_pt.batch import ImageSpec, ItemInputs, UserBatch
from mmsr_pt.data.naive import PADDING_ID, every_slot
from mmsr_pt.data.preprocess import Preprocessor

TITLE_TOKENS = 6


class Words:
    """A tokenizer of which only the padding id is read."""

    pad_id = 1
    vocab_size = 50

    def encode(self, titles, max_tokens):
        raise NotImplementedError

    def save(self, directory):
        raise NotImplementedError


PREPROCESSOR = Preprocessor(Words(), ImageSpec(2, 2, "bilinear", (0.5,) * 3, (0.5,) * 3), TITLE_TOKENS)


@pytest.fixture
def batch() -> UserBatch:
    """User 0 has items 10, 30, 10 and negatives 20, 40; user 1 has 40, 20 and negative 30; the third slot is empty."""
    titles = [np.array([7, 8, 9]), np.array([5]), np.array([6, 6]), np.array([4, 3, 2])]
    title_ids, title_mask = PREPROCESSOR.pad(titles)
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 2, 2).clone()
    return UserBatch(
        items=ItemInputs(torch.tensor([10, 20, 30, 40]), title_ids, title_mask, images),
        sequence=torch.tensor([[0, 2, 0, 0], [3, 1, 0, 0], [0, 0, 0, 0]]),
        mask=torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).bool(),
        users=torch.tensor([5, 6, -1]),
        negatives=torch.tensor([[1, 3, 0], [2, 0, 0], [0, 0, 0]]),
    )


def test_slots_stand_user_by_user_each_position_with_its_negative(batch: UserBatch) -> None:
    made = every_slot(batch, PREPROCESSOR)
    pad = PADDING_ID
    grids = [
        [[10, 20], [30, 40], [10, pad], [pad, pad]],
        [[40, 30], [20, pad], [pad, pad], [pad, pad]],
        [[pad, pad]] * 4,
    ]
    assert made.items.ids.view(3, 4, 2).tolist() == grids
    assert len(made.items) == 3 * 4 * 2


def test_sequences_and_negatives_point_to_the_items_they_pointed_to(batch: UserBatch) -> None:
    made = every_slot(batch, PREPROCESSOR)
    assert made.negatives is not None
    assert batch.negatives is not None
    sequences = made.sequence[made.mask], batch.sequence[batch.mask]
    negatives = made.negatives[made.targets], batch.negatives[batch.targets]
    for index, before in (sequences, negatives):
        assert len(set(index.tolist())) == len(index), "each its own slot"
        assert torch.equal(made.items.ids[index], batch.items.ids[before])
    assert (made.sequence[~made.mask] == 0).all()
    assert torch.equal(made.users, batch.users)


def test_content_is_the_items_own_and_padding_is_blank(batch: UserBatch) -> None:
    items = every_slot(batch, PREPROCESSOR).items
    assert items.title_ids is not None
    assert items.title_mask is not None
    assert items.images is not None
    assert items.title_ids.shape == items.title_mask.shape == (24, TITLE_TOKENS)
    content = {10: [7, 8, 9], 20: [5], 30: [6, 6], 40: [4, 3, 2], PADDING_ID: []}
    gray = {10: 0, 20: 1, 30: 2, 40: 3, PADDING_ID: 128}
    for number, ids, mask, image in zip(items.ids.tolist(), items.title_ids, items.title_mask, items.images):
        assert ids[mask].tolist() == content[number]
        assert (ids[~mask] == Words.pad_id).all()
        assert (image == gray[number]).all()


@pytest.mark.parametrize("missing", ["text", "image"])
def test_a_modality_that_is_not_read_stays_away(batch: UserBatch, missing: str) -> None:
    if missing == "text":
        batch.items.title_ids = batch.items.title_mask = None
    else:
        batch.items.images = None
    items = every_slot(batch, PREPROCESSOR).items
    assert (items.title_ids is None) == (items.title_mask is None) == (missing == "text")
    assert (items.images is None) == (missing == "image")

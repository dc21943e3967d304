"""What the paper's released code encodes, for comparison: one item for every slot of a batch, repeats and padding too.

That code takes a grid of B x (L + 1) x 2 slots through both towers: each sequence with its last target, and a negative
beside every position. Padding, the last negative (there is none) and repeats are encoded like anything else, and titles
are padded to the longest allowed. Model, loss and engine stay as they are, and so does the loss.

Two things are in this mode's favour: a picture that occurs twice in a batch is decoded once, and the towers are ours,
with whatever kernels they use.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsr_pt.batch import ItemInputs, UserBatch
from mmsr_pt.data.preprocess import Preprocessor

PADDING_ID = -1
"""Item number of a slot that holds no item."""
_MID_GRAY = 128  # what normalisation with mean 0.5 takes to zero


class _AsOne(ItemInputs):
    as_one = True


def every_slot(batch: UserBatch, preprocessor: Preprocessor) -> UserBatch:
    """The same users, targets and negatives, over one item for each slot instead of the distinct ones.

    Args:
        batch: finished, with one negative for each target.
        preprocessor: what its titles and pictures were made by.

    Returns: a batch of N = B x (L + 1) x 2 items in the order [user, position, item or negative]; padding slots have
        the item number `PADDING_ID`, a title without a real token and a mid-gray picture, and nothing points to them.
    """
    assert batch.negatives is not None
    grid = torch.stack([batch.sequence, F.pad(batch.negatives, (0, 1))], dim=2)
    is_real = torch.stack([batch.mask, F.pad(batch.targets, (0, 1))], dim=2)
    slot = torch.arange(grid.numel()).view(grid.shape)
    own = torch.where(is_real, slot, 0)
    return UserBatch(
        items=_items(batch.items, grid.flatten(), ~is_real.flatten(), preprocessor),
        sequence=own[:, :, 0],
        mask=batch.mask,
        users=batch.users,
        negatives=own[:, :-1, 1],
        hidden=batch.hidden,
        bad=batch.bad,
    )


def _items(distinct: ItemInputs, index: Tensor, is_padding: Tensor, preprocessor: Preprocessor) -> ItemInputs:
    """The item at `index` for every slot, or padding; both are [slots]."""
    items: ItemInputs = _AsOne(distinct.ids[index].masked_fill(is_padding, PADDING_ID))
    if distinct.title_ids is not None and distinct.title_mask is not None:
        assert preprocessor.tokenizer is not None
        missing = preprocessor.title_tokens - distinct.title_ids.shape[1]
        pad_id, padding = preprocessor.tokenizer.pad_id, is_padding[:, None]
        title_ids = F.pad(distinct.title_ids, (0, missing), value=pad_id)[index].masked_fill(padding, pad_id)
        title_mask = F.pad(distinct.title_mask, (0, missing))[index].masked_fill(padding, False)
        items = replace(items, title_ids=title_ids, title_mask=title_mask)
    if distinct.images is not None:
        images = distinct.images[index]
        images[is_padding] = _MID_GRAY
        items = replace(items, images=images)
    return items

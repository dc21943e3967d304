"""Users -> the batch's distinct items, an index map into them, and the pool.

`encode_part` runs in a loader worker and decodes each distinct item once; `merge` joins the parts of all workers of the
rank into one batch in which an item stands once, however many workers met it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmsr_pt.batch import ItemInputs, UserBatch
from mmsr_pt.data.item_table import ItemTable
from mmsr_pt.data.order import user_generator
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.data.tar_reader import TarReader

_NEWEST_ONLY = 0.1
"""Share of the epochs in which nothing of a user is hidden but the newest item (about that of BERT4Rec's code)."""


@dataclass
class RawUser:
    """One training sequence, and the tar that holds its items' pictures."""

    user: int
    domain: int
    rows: np.ndarray
    tar: TarReader


@dataclass
class Pool:
    """The items drawn at a step as negatives for everyone."""

    by_domain: list[np.ndarray]
    """Item numbers drawn from each domain: the whole pool, known to all."""
    mine: np.ndarray
    """Item numbers that this worker brings along."""


@dataclass
class Part:
    """A worker's share of a micro-batch. Sequences and negatives hold item numbers, not indices."""

    users: np.ndarray
    sequences: list[np.ndarray]
    negatives: list[np.ndarray] | None
    hidden: list[np.ndarray] | None
    """Bool for each target: whether it is hidden."""
    ids: np.ndarray
    """Distinct, ascending."""
    titles: list[np.ndarray] | None
    images: Tensor | None
    """[N, 3, H, W] uint8, channels last in memory."""


def encode_part(
    slots: Sequence[RawUser | None],
    pool: Pool,
    tables: Sequence[ItemTable],
    preprocessor: Preprocessor,
    seed: tuple[int, int],
    with_negatives: bool,
    cloze_rate: float,
    max_sequence: int,
) -> Part:
    """Decodes what these users and this worker's share of the pool need, each distinct item once.

    Args:
        slots: users of this share; None where the epoch has run out of users.
        pool: the step's pool.
        tables: catalogue of each domain.
        preprocessor: what the towers read; parts that the model lacks are neither read nor decoded.
        seed: (seed, epoch) of what is drawn for each user.
        with_negatives: whether to draw one negative a target.
        cloze_rate: share of the targets to hide; 0: nothing is hidden.
        max_sequence: newest positions kept of a sequence.
    """
    users = np.asarray([-1 if slot is None else slot.user for slot in slots], dtype=np.int64)
    sequences, negatives, hidden = [], [], []
    sources: dict[int, TarReader | None] = dict.fromkeys(pool.mine.tolist())
    for slot in slots:
        if slot is None:
            sequences.append(np.empty(0, dtype=np.int64))
            negatives.append(np.empty(0, dtype=np.int64))
            hidden.append(np.empty(0, dtype=bool))
            continue
        base = tables[slot.domain].base
        rows = slot.rows[-max_sequence:]
        sequences.append(base + rows)
        for item in sequences[-1].tolist():
            sources.setdefault(item, slot.tar)
        if not (with_negatives or cloze_rate):
            continue
        rng = user_generator(*seed, slot.user)
        if with_negatives:
            negatives.append(_draw_negatives(slot, base, pool, rng, len(rows) - 1))
        if cloze_rate:
            hidden.append(_draw_hidden(rng, len(rows) - 1, cloze_rate))
    # in the order of the merged batch, so that a single part's pixels go into it as they are
    ids = np.sort(np.fromiter(sources, dtype=np.int64, count=len(sources)))
    titles, images = _contents(ids, sources, tables, preprocessor)
    return Part(
        users=users,
        sequences=sequences,
        negatives=negatives if with_negatives else None,
        hidden=hidden if cloze_rate else None,
        ids=ids,
        titles=titles,
        images=images,
    )


def _draw_negatives(slot: RawUser, base: int, pool: Pool, rng: np.random.Generator, count: int) -> np.ndarray:
    """One negative for each target, uniform over the pool without the user's own items.

    As the pool is uniform over the catalogue, so is each negative over the items that the user does not have
    (section 4.4 of the paper). A user who has the whole pool gets negatives from all of it.
    """
    drawn = pool.by_domain[slot.domain]
    allowed = drawn[~np.isin(drawn, base + slot.rows)]
    if not len(allowed):
        allowed = drawn
    return rng.choice(allowed, count)


def _draw_hidden(rng: np.random.Generator, count: int, rate: float) -> np.ndarray:
    """Which of `count` targets are hidden: at least one, and in some epochs the newest only, as in a recommendation."""
    if rng.random() >= _NEWEST_ONLY:
        hidden = rng.random(count) < rate
        if hidden.any():
            return hidden
    return np.arange(count) == count - 1


def _contents(
    ids: np.ndarray,
    sources: Mapping[int, TarReader | None],
    tables: Sequence[ItemTable],
    preprocessor: Preprocessor,
) -> tuple[list[np.ndarray] | None, Tensor | None]:
    """Token ids and pixels of the items; pictures from the tar of a user who has them, else from the catalogue."""
    bases = np.asarray([table.base for table in tables])
    places = [(tables[number], sources[item], item) for item, number in zip(ids.tolist(), domain_of(ids, bases))]
    titles = images = None
    if preprocessor.tokenizer is not None:
        titles = preprocessor.encode_titles([table.titles[item - table.base] for table, _, item in places])
    if preprocessor.image is not None:
        encoded = (
            table.domain.read_image(item - table.base) if tar is None else tar.picture(item - table.base)
            for table, tar, item in places
        )
        images = preprocessor.decode_images(encoded, len(ids))
    return titles, images


def domain_of(ids: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """[N] int64: which of the run's domains each item number is of; `bases` are their first items' numbers."""
    return np.searchsorted(bases, ids, side="right") - 1


def merge(
    parts: Sequence[Part], tables: Sequence[ItemTable], preprocessor: Preprocessor, max_sequence: int
) -> UserBatch:
    """One batch from the parts of a micro-batch, every distinct item in it once.

    Returns: B = all slots of the parts; sequences padded on the right to `max_sequence` whatever their length,
        so that shapes recur and buffers are reused.
    """
    all_ids = np.concatenate([part.ids for part in parts])
    ids, first = np.unique(all_ids, return_index=True)
    with_negatives = parts[0].negatives is not None
    if with_negatives:
        # what of the pool nobody drew is nobody's negative: it need not be encoded (an encoder needs one item at least)
        wanted = [numbers for part in parts for numbers in (*part.sequences, *(part.negatives or ()))]
        is_wanted = np.isin(ids, np.concatenate(wanted)) | (np.arange(len(ids)) == 0)
        ids, first = ids[is_wanted], first[is_wanted]
    users = np.concatenate([part.users for part in parts])
    sequence = np.zeros((len(users), max_sequence), dtype=np.int64)
    mask = np.zeros((len(users), max_sequence), dtype=bool)
    negatives = np.zeros((len(users), max_sequence - 1), dtype=np.int64)
    hidden = np.zeros((len(users), max_sequence - 1), dtype=bool)
    for row, numbers in enumerate(numbers for part in parts for numbers in part.sequences):
        sequence[row, : len(numbers)] = np.searchsorted(ids, numbers)
        mask[row, : len(numbers)] = True
    if with_negatives:
        for row, numbers in enumerate(numbers for part in parts for numbers in part.negatives or ()):
            negatives[row, : len(numbers)] = np.searchsorted(ids, numbers)
    for row, drawn in enumerate(drawn for part in parts for drawn in part.hidden or ()):
        hidden[row, : len(drawn)] = drawn
    bases = np.asarray([table.base for table in tables])
    domain = domain_of(ids, bases)
    return UserBatch(
        items=_item_inputs(parts, ids, first, preprocessor),
        sequence=torch.from_numpy(sequence),
        mask=torch.from_numpy(mask),
        users=torch.from_numpy(users),
        negatives=torch.from_numpy(negatives) if with_negatives else None,
        occurrence_rate=torch.from_numpy(_rates(ids, domain, tables)),
        pool_rate=torch.from_numpy(np.asarray([table.pool_rate for table in tables], dtype=np.float32)[domain]),
        domain=torch.from_numpy(domain.astype(np.int64)),
        hidden=torch.from_numpy(hidden) if parts[0].hidden is not None else None,
    )


def _rates(ids: np.ndarray, domain: np.ndarray, tables: Sequence[ItemTable]) -> np.ndarray:
    rates = np.empty(len(ids), dtype=np.float32)
    for number, table in enumerate(tables):
        here = domain == number
        rates[here] = table.train_count[ids[here] - table.base] / table.num_interactions
    return rates


def _item_inputs(parts: Sequence[Part], ids: np.ndarray, first: np.ndarray, preprocessor: Preprocessor) -> ItemInputs:
    """The content of `ids`, whose first copies stand at positions `first` of the parts laid end to end."""
    title_ids = title_mask = None
    if parts[0].titles is not None:
        titles = [title for part in parts for title in part.titles or ()]
        title_ids, title_mask = preprocessor.pad([titles[i] for i in first])
    images = parts[0].images
    if images is not None and (len(parts) > 1 or len(ids) < len(images)):
        shape = (len(ids), *images.shape[1:])
        images = torch.empty(shape, dtype=images.dtype, memory_format=torch.channels_last)
        for part in parts:
            assert part.images is not None
            # each pixel is copied once; what two parts hold alike is written twice
            held = np.flatnonzero(np.isin(part.ids, ids))
            places = torch.from_numpy(np.searchsorted(ids, part.ids[held]))
            pixels = part.images if len(held) == len(part.ids) else part.images[torch.from_numpy(held)]
            images.index_copy_(0, places, pixels)
    return ItemInputs(torch.from_numpy(ids), title_ids, title_mask, images)

"""Users -> the batch's distinct items, an index map into them, and the pool.

`encode_part` runs in a loader worker and decodes each distinct item once; `merge` joins the parts of all workers of the
rank into one batch in which an item stands once, however many workers met it.

An item whose picture cannot be read is no input, no target and no negative. A user's item has two copies of it, in the
user's tar and in the catalogue, and is lost where both are; an item of the pool where that in the catalogue is. So what
is left out does not depend on who reads what, unless of the many copies of an item several are damaged, but not all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmsr_pt.batch import BadSample, ItemInputs, UserBatch
from mmsr_pt.data.contents import contents, domain_of
from mmsr_pt.data.item_table import ItemTable
from mmsr_pt.data.order import user_generator
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.data.tar_reader import TarReader
from mmsr_pt.log import UserError

_NEWEST_ONLY = 0.1
"""Share of the epochs in which nothing of a user is hidden but the newest item (about that of BERT4Rec's code)."""


_NOTHING = np.empty(0, dtype=np.int64)


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
    pool: list[np.ndarray]
    """The whole pool, by domain."""
    lost: np.ndarray
    """Items of this worker's share of the pool that cannot be read."""
    bad: list[BadSample]


def encode_part(
    slots: Sequence[RawUser | BadSample | None],
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
        slots: users of this share, or what was found in their place; None where the epoch has run out of users.
        pool: the step's pool.
        tables: catalogue of each domain.
        preprocessor: what the towers read; parts that the model lacks are neither read nor decoded.
        seed: (seed, epoch) of what is drawn for each user.
        with_negatives: whether to draw one negative a target.
        cloze_rate: share of the targets to hide; 0: nothing is hidden.
        max_sequence: newest positions kept of a sequence.
    """
    sequences = [
        tables[slot.domain].base + slot.rows[-max_sequence:] if isinstance(slot, RawUser) else _NOTHING
        for slot in slots
    ]
    tars: dict[int, TarReader] = {}
    for slot, sequence in zip(slots, sequences):
        if isinstance(slot, RawUser):
            for item in sequence.tolist():
                tars.setdefault(item, slot.tar)
    # in the order of the merged batch, so that a single part's pixels go into it as they are
    ids = np.union1d(pool.mine, np.fromiter(tars, dtype=np.int64, count=len(tars)))
    ids, content = contents(ids, set(pool.mine.tolist()), tars, tables, preprocessor)
    if content.bad:
        sequences = [_without(sequence, ids) for sequence in sequences]
    users, negatives, hidden = [], [], []
    for slot, sequence in zip(slots, sequences):
        if not isinstance(slot, RawUser) or not len(sequence):
            users.append(-1)
            negatives.append(_NOTHING)
            hidden.append(_NOTHING.astype(bool))
            continue
        users.append(slot.user)
        if not (with_negatives or cloze_rate):
            continue
        rng = user_generator(*seed, slot.user)
        if with_negatives:
            negatives.append(_draw_negatives(slot, tables[slot.domain].base, pool, rng, len(sequence) - 1))
        if cloze_rate:
            hidden.append(_draw_hidden(rng, len(sequence) - 1, cloze_rate))
    return Part(
        users=np.asarray(users, dtype=np.int64),
        sequences=sequences,
        negatives=negatives if with_negatives else None,
        hidden=hidden if cloze_rate else None,
        ids=ids,
        titles=content.titles,
        images=content.images,
        pool=pool.by_domain,
        lost=content.lost,
        bad=[*(slot for slot in slots if isinstance(slot, BadSample)), *content.bad],
    )


def _without(sequence: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The items of a sequence that are among `ids`; none where no target is left behind the first."""
    kept = sequence[np.isin(sequence, ids)]
    return kept if len(kept) > 1 or len(kept) == len(sequence) else _NOTHING


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


def merge(
    parts: Sequence[Part], tables: Sequence[ItemTable], preprocessor: Preprocessor, max_sequence: int
) -> UserBatch:
    """One batch from the parts of a micro-batch, every distinct item in it once.

    Returns: B = all slots of the parts; sequences padded on the right to `max_sequence` whatever their length,
        so that shapes recur and buffers are reused.

    Raises:
        UserError: nothing at all can be read.
    """
    all_ids = np.concatenate([part.ids for part in parts])
    ids, first = np.unique(all_ids, return_index=True)
    bad = tuple(sample for part in parts for sample in part.bad)
    if bad and not len(ids):
        raise UserError(f"no item of a batch can be read, the first is {bad[0]}: mmsr-pt check --data DOMAIN says more")
    sequences = [numbers for part in parts for numbers in part.sequences]
    drawn = _readable_negatives(parts, sequences, np.asarray([table.base for table in tables]))
    if drawn is not None:
        # what of the pool nobody drew is nobody's negative: it need not be encoded (an encoder needs one item at least)
        wanted = [*sequences, *drawn]
        is_wanted = np.isin(ids, np.concatenate(wanted)) | (np.arange(len(ids)) == 0)
        ids, first = ids[is_wanted], first[is_wanted]
    users = np.concatenate([part.users for part in parts])
    sequence = np.zeros((len(users), max_sequence), dtype=np.int64)
    mask = np.zeros((len(users), max_sequence), dtype=bool)
    negatives = np.zeros((len(users), max_sequence - 1), dtype=np.int64)
    hidden = np.zeros((len(users), max_sequence - 1), dtype=bool)
    for row, numbers in enumerate(sequences):
        sequence[row, : len(numbers)] = np.searchsorted(ids, numbers)
        mask[row, : len(numbers)] = True
    for row, numbers in enumerate(drawn or ()):
        negatives[row, : len(numbers)] = np.searchsorted(ids, numbers)
    for row, chosen in enumerate(chosen for part in parts for chosen in part.hidden or ()):
        hidden[row, : len(chosen)] = chosen
    bases = np.asarray([table.base for table in tables])
    domain = domain_of(ids, bases)
    return UserBatch(
        items=_item_inputs(parts, ids, first, preprocessor),
        sequence=torch.from_numpy(sequence),
        mask=torch.from_numpy(mask),
        users=torch.from_numpy(users),
        negatives=None if drawn is None else torch.from_numpy(negatives),
        occurrence_rate=torch.from_numpy(_rates(ids, domain, tables)),
        pool_rate=torch.from_numpy(np.asarray([table.pool_rate for table in tables], dtype=np.float32)[domain]),
        domain=torch.from_numpy(domain.astype(np.int64)),
        hidden=torch.from_numpy(hidden) if parts[0].hidden is not None else None,
        bad=bad,
    )


def _readable_negatives(
    parts: Sequence[Part], sequences: Sequence[np.ndarray], bases: np.ndarray
) -> list[np.ndarray] | None:
    """Each user's negatives; where one cannot be read, which only the worker that read it knew, another in its place.

    That is the next in the pool that can be read and is not the user's own, the same for whoever has the user.
    """
    if parts[0].negatives is None:
        return None
    drawn = [numbers for part in parts for numbers in part.negatives or ()]
    lost = np.concatenate([part.lost for part in parts])
    if not len(lost):
        return drawn
    replaced = []
    for numbers, sequence in zip(drawn, sequences):
        is_lost = np.isin(numbers, lost)
        if is_lost.any():
            pool = parts[0].pool[int(domain_of(sequence[:1], bases)[0])]
            others = pool[~np.isin(pool, lost)]
            others = others[~np.isin(others, sequence)] if not np.isin(others, sequence).all() else others
            numbers = np.where(is_lost, [_next_of(others, number, pool, sequence[0]) for number in numbers], numbers)
        replaced.append(numbers)
    return replaced


def _next_of(others: np.ndarray, number: int, pool: np.ndarray, without: int) -> int:
    """The one of `others` that comes next behind `number` in the pool, round its end; `without`: there are none."""
    behind = np.roll(pool, -int(np.flatnonzero(pool == number)[0]))
    found = behind[np.isin(behind, others)]
    return int(found[0]) if len(found) else int(without)


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

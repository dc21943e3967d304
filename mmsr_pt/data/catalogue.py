"""A domain's catalogue as batches of items, for encoding all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mmsr_pt.batch import ItemInputs
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.signals import hear_parent_only


class _Batches(Dataset):
    """Batch number -> ItemInputs."""

    def __init__(self, domain: Domain, preprocessor: Preprocessor, rows: np.ndarray, batch_size: int) -> None:
        self._domain, self._preprocessor = domain, preprocessor
        self._rows, self._batch_size = rows, batch_size
        self._titles = domain.titles() if preprocessor.tokenizer is not None else None

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __getitem__(self, number: int) -> ItemInputs:
        rows = self._rows[number * self._batch_size : (number + 1) * self._batch_size]
        titles = None if self._titles is None else [self._titles[row] for row in rows]
        images = None
        if self._preprocessor.image is not None:
            images = [self._domain.read_image(int(row)) for row in rows]
        return self._preprocessor.item_inputs(rows, titles, images)


def iter_item_batches(
    domain: Domain, preprocessor: Preprocessor, rows: Sequence[int] | np.ndarray, batch_size: int, num_workers: int = 0
) -> Iterator[ItemInputs]:
    """The items at `rows`, in that order, `batch_size` at a time; `ids` are the rows.

    Args:
        domain: whose catalogue.
        preprocessor: of the model that reads them; content it does not use is not read.
        rows: catalogue rows.
        batch_size: items in a batch; the last one may be smaller.
        num_workers: loader processes; 0 decodes in this one.
    """
    batches = _Batches(domain, preprocessor, np.asarray(rows, dtype=np.int64), batch_size)
    # a generator of its own, as in training: encoding a catalogue must not change the dropout that comes after it
    yield from DataLoader(
        batches, batch_size=None, num_workers=num_workers, generator=torch.Generator(), worker_init_fn=hear_parent_only
    )


def item_source(
    domain: Domain, preprocessor: Preprocessor, num_workers: int = 0
) -> Callable[[range, int], Iterator[ItemInputs]]:
    """`iter_item_batches` of one domain as a function of (rows, batch size), as evaluation wants it."""

    def batches(rows: range, batch_size: int) -> Iterator[ItemInputs]:
        return iter_item_batches(domain, preprocessor, rows, batch_size, num_workers)

    return batches

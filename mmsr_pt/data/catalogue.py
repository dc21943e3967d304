"""A domain's catalogue as batches of items, for encoding all of it.

Every row must come out, as others are ranked against it. Where an item's picture cannot be read, mid-gray stands in its
place, and the log says so: the item keeps its title and can be ranked by it, hardly ever better than with its picture,
so figures are not better than they are. Up to a hundredth of the catalogue, or --max_bad, is let pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmsr_pt.batch import BadSample, ItemInputs
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.data.shards.tars import item_key
from mmsr_pt.data.unreadable import why
from mmsr_pt.log import UserError
from mmsr_pt.signals import hear_parent_only

log = logging.getLogger(__name__)

MAX_BAD = 0.01
"""Share of a catalogue's pictures that may be unreadable, where nobody says otherwise."""
_NAMED = 20
"""Items that a process names; it counts the others."""


class _Batches(Dataset):
    """Batch number -> ItemInputs, and whose pictures in it could not be read."""

    def __init__(self, domain: Domain, preprocessor: Preprocessor, rows: np.ndarray, batch_size: int) -> None:
        self._domain, self._preprocessor = domain, preprocessor
        self._rows, self._batch_size = rows, batch_size
        self._titles = domain.titles() if preprocessor.tokenizer is not None else None

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __getitem__(self, number: int) -> tuple[ItemInputs, list[BadSample]]:
        rows = self._rows[number * self._batch_size : (number + 1) * self._batch_size]
        titles = None if self._titles is None else [self._titles[row] for row in rows]
        items = self._preprocessor.item_inputs(rows, titles, None)
        bad: list[BadSample] = []
        if self._preprocessor.image is not None:
            items.images = self._preprocessor.stack((self._picture(int(row), bad) for row in rows), len(rows))
        return items, bad

    def _picture(self, row: int, bad: list[BadSample]) -> Tensor:
        try:
            return self._preprocessor.decode_image(self._domain.read_image(row))
        except UserError:
            raise
        except Exception as error:  # decoders of damaged files raise nearly anything
            bad.append(BadSample(row, str(self._domain.picture_tar(row)), item_key(row), why(error)))
            return self._preprocessor.no_picture


def iter_item_batches(
    domain: Domain,
    preprocessor: Preprocessor,
    rows: Sequence[int] | np.ndarray,
    batch_size: int,
    num_workers: int = 0,
    max_bad: float = MAX_BAD,
) -> Iterator[ItemInputs]:
    """The items at `rows`, in that order, `batch_size` at a time; `ids` are the rows.

    Args:
        domain: whose catalogue.
        preprocessor: of the model that reads them; content it does not use is not read.
        rows: catalogue rows.
        batch_size: items in a batch; the last one may be smaller.
        num_workers: loader processes; 0 decodes in this one.
        max_bad: share of the catalogue whose pictures may be unreadable.

    Raises:
        UserError: more are.
    """
    batches = _Batches(domain, preprocessor, np.asarray(rows, dtype=np.int64), batch_size)
    # a generator of its own, as in training: encoding a catalogue must not change the dropout that comes after it
    loader = DataLoader(
        batches, batch_size=None, num_workers=num_workers, generator=torch.Generator(), worker_init_fn=hear_parent_only
    )
    num_bad = 0
    for items, bad in loader:
        num_bad += len(bad)
        _tell(domain, bad)
        if num_bad > max_bad * domain.num_items:
            raise UserError(
                f"{num_bad} or more of the {domain.num_items} items of {domain.path} have a picture that cannot be "
                f"read, the last is {bad[-1]}; {max_bad:.3%} may: copy the domain again, or build it again with "
                f"--overwrite; mmsr-pt check --data {domain.path} names all"
            )
        yield items


def _tell(domain: Domain, bad: Sequence[BadSample]) -> None:
    """Names what this process has not named yet."""
    for sample in bad:
        if sample.number not in domain.told_of:
            domain.told_of.add(sample.number)
            if len(domain.told_of) <= _NAMED:
                log.warning("mid-gray stands for the picture of %s", sample)
            elif len(domain.told_of) == _NAMED + 1:
                log.warning("and for more: mmsr-pt check --data %s names all", domain.path)


def item_source(
    domain: Domain, preprocessor: Preprocessor, num_workers: int = 0, max_bad: float = MAX_BAD
) -> Callable[[range, int], Iterator[ItemInputs]]:
    """`iter_item_batches` of one domain as a function of (rows, batch size), as evaluation wants it."""

    def batches(rows: range, batch_size: int) -> Iterator[ItemInputs]:
        return iter_item_batches(domain, preprocessor, rows, batch_size, num_workers, max_bad)

    return batches

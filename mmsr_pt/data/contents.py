"""Titles and pictures of some items, without those that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mmsr_pt.batch import BadSample
from mmsr_pt.data.item_table import ItemTable
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.data.shards.tars import item_key
from mmsr_pt.data.tar_reader import TarReader
from mmsr_pt.data.unreadable import why


def domain_of(ids: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """[N] int64: which of the run's domains each item number is of; `bases` are their first items' numbers."""
    return np.searchsorted(bases, ids, side="right") - 1


@dataclass
class Content:
    """What could be read of some items."""

    titles: list[np.ndarray] | None
    images: Tensor | None
    lost: np.ndarray
    bad: list[BadSample]


def contents(
    ids: np.ndarray,
    in_pool: set[int],
    tars: Mapping[int, TarReader],
    tables: Sequence[ItemTable],
    preprocessor: Preprocessor,
) -> tuple[np.ndarray, Content]:
    """Those of the items that can be read, and their content.

    Args:
        ids: distinct item numbers, ascending.
        in_pool: those of them that the pool has: their pictures come from the catalogue.
        tars: of a user who has the item: the others' pictures come from there.
        tables: catalogue of each domain.
        preprocessor: what the towers read.
    """
    bases = np.asarray([table.base for table in tables])
    places = [(tables[number], item) for item, number in zip(ids.tolist(), domain_of(ids, bases))]
    titles = images = None
    bad: list[BadSample] = []
    lost: list[int] = []
    if preprocessor.image is not None:
        is_read = np.ones(len(ids), dtype=bool)

        def decoded() -> Iterator[Tensor | None]:
            for place, (table, item) in enumerate(places):
                copies: list[TarReader | None] = [tars[item]] if item in tars else []
                copies.insert(0 if item in in_pool else len(copies), None)
                picture, found = _picture(table, item, copies, preprocessor)
                if found:
                    is_read[place] = picture is not None
                    bad.extend(found)
                    if item in in_pool:
                        lost.append(item)
                yield picture

        images = preprocessor.stack(decoded(), len(ids))
        if bad:
            ids = ids[is_read]
            places = [place for place, is_there in zip(places, is_read) if is_there]
    if preprocessor.tokenizer is not None:
        titles = preprocessor.encode_titles([table.titles[item - table.base] for table, item in places])
    return ids, Content(titles, images, np.asarray(lost, dtype=np.int64), bad)


def _picture(
    table: ItemTable, item: int, copies: Sequence[TarReader | None], preprocessor: Preprocessor
) -> tuple[Tensor | None, list[BadSample]]:
    """An item's picture from the first of the copies that can be read, None being the catalogue's, and the bad ones."""
    row = item - table.base
    bad: list[BadSample] = []
    for tar in copies:
        try:
            data = table.domain.read_image(row) if tar is None else tar.picture(row)
            table.domain.check_picture(row, data)
            return preprocessor.decode_image(data), bad
        except Exception as error:  # decoders of damaged files raise nearly anything
            shard = str(table.domain.picture_tar(row)) if tar is None else tar.path
            bad.append(BadSample(item, shard, item_key(row), why(error)))
    return None, bad

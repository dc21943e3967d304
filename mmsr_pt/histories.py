"""Histories as people write them: items of a catalogue by their ids, or any items by their content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from mmsr_pt.catalogue_index import CatalogueIndex
from mmsr_pt.data.raw_items import ID, IMAGE, TITLE, RawItem, check_raw_item
from mmsr_pt.log import UserError

HistoryItem = str | RawItem
"""An item id of the catalogue, or an item's content, which need not be in it."""


def is_known(item: HistoryItem) -> bool:
    """Whether its vector is the catalogue's: an id, or no more than an id."""
    return isinstance(item, str) or not (TITLE in item or IMAGE in item)


def row_of(item: HistoryItem, catalogue: CatalogueIndex) -> int:
    """Where an item that is named by its id stands; raises UserError where there is none."""
    return catalogue.row(item if isinstance(item, str) else str(item.get(ID)))


def seen_rows(history: Sequence[HistoryItem], catalogue: CatalogueIndex, number: int) -> list[int]:
    """Rows of a history's items in the catalogue; UserError for what is no history."""
    if isinstance(history, (str, Mapping)) or not len(history):
        what = "empty" if not isinstance(history, (str, Mapping)) else f"a {type(history).__name__}"
        raise UserError(f"history {number} is {what}: give a list of at least one item, oldest first")
    rows = []
    for place, item in enumerate(history):
        if not isinstance(item, str):
            check_raw_item(item, place)
        if is_known(item):
            rows.append(row_of(item, catalogue))
        elif isinstance(item, Mapping) and item.get(ID) in catalogue.row_of:
            rows.append(catalogue.row_of[item[ID]])
    return rows


def table_of(items: Sequence[RawItem]) -> pl.DataFrame:
    """item_id and title of raw items by row; UserError where ids do not tell them apart."""
    ids = []
    for place, item in enumerate(items):
        check_raw_item(item, place)
        item_id = item.get(ID)
        if not isinstance(item_id, str) or not item_id:
            raise UserError(f"item {place} has no {ID}: each item of a catalogue needs one, as text")
        ids.append(item_id)
    repeated = pl.Series(ids, dtype=pl.String).value_counts().filter(pl.col("count") > 1)
    if not repeated.is_empty():
        raise UserError(f"the {ID} {repeated.row(0)[0]!r} stands for several items: give each its own")
    titles = [item.get(TITLE) for item in items]
    return pl.DataFrame({"item_id": ids, "title": titles}, schema={"item_id": pl.String, "title": pl.String})

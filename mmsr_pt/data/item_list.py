"""A catalogue without interactions: ROOT/items.csv (or .parquet) and ROOT/images/, as in the layout `table`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import polars as pl

from mmsr_pt.data.raw_items import ID, IMAGE, TITLE, RawItem
from mmsr_pt.data.sources.table import scan_items
from mmsr_pt.log import UserError


def read_item_list(root: Path, with_images: bool) -> list[RawItem]:
    """The items in the order of the file, each with the path of its picture.

    Args:
        root: the directory.
        with_images: look for the pictures.

    Raises:
        UserError: a file, a column or a picture is missing.
    """
    if not root.is_dir():
        raise UserError(f"there is no directory {root}: give one with items.csv and images/")
    with tempfile.TemporaryDirectory() as scratch:
        found = scan_items(root, (), Path(scratch), with_images).select("item_id", "title", "image").collect()
    without = found.filter(pl.col("image").is_null())
    if with_images and not without.is_empty():
        raise UserError(
            f"{len(without):,} of {len(found):,} items have no picture in {root / 'images'}, the first is "
            f"{without.row(0)[0]!r}: add them, or take those items out of the list"
        )
    return [{ID: item_id, TITLE: title or "", IMAGE: image} for item_id, title, image in found.iter_rows()]

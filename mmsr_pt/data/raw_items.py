"""Items as people have them, in no domain: {"id": ..., "title": ..., "image": ...}."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmsr_pt.batch import ItemInputs
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.data.shards.images import as_jpeg
from mmsr_pt.log import UserError

ID, TITLE, IMAGE = KEYS = ("id", "title", "image")
RawItem = Mapping[str, Any]
"""`id` (text, not read by a model), `title` (text) and `image` (path, bytes of a file, or PIL image); those that a
model reads must be there."""


def raw_item_batches(items: Sequence[RawItem], preprocessor: Preprocessor, batch_size: int) -> Iterator[ItemInputs]:
    """The items in their order, `batch_size` at a time, their pictures made what a domain would hold; `ids` are places.

    Args:
        items: each with all that the model reads.
        preprocessor: of the model.
        batch_size: the last batch may be smaller.

    Raises:
        UserError: an item lacks something, or has something that cannot be read; names its place.
    """
    for start in range(0, len(items), batch_size):
        places = range(start, min(start + batch_size, len(items)))
        titles = images = None
        if preprocessor.tokenizer is not None:
            titles = [_title(items[place], place) for place in places]
        if preprocessor.image is not None:
            images = [_picture(items[place], place) for place in places]
        yield preprocessor.item_inputs(np.asarray(places), titles, images)


def with_content(item: RawItem, place: int, preprocessor: Preprocessor) -> RawItem:
    """The item with its picture made what a domain would hold; errors as of `raw_item_batches`."""
    changed = dict(item)
    if preprocessor.tokenizer is not None:
        changed[TITLE] = _title(item, place)
    if preprocessor.image is not None:
        changed[IMAGE] = _picture(item, place)
    return changed


def check_raw_item(item: object, place: int) -> None:
    """Raises UserError for what is no item, or one with unknown keys."""
    if not isinstance(item, Mapping):
        raise UserError(
            f"item {place} is a {type(item).__name__}: give each item as a dictionary with {TITLE} and {IMAGE}"
        )
    unknown = [key for key in item if key not in KEYS]
    if unknown:
        raise UserError(f"{_name(item, place)} has an unknown key {unknown[0]!r}: an item has {', '.join(KEYS)}")


def _name(item: RawItem, place: int) -> str:
    """Which one it is, for people."""
    known = item.get(ID) or item.get(TITLE)
    return f"item {place} ({known!r:.60})" if known else f"item {place}"


def _title(item: RawItem, place: int) -> str:
    check_raw_item(item, place)
    title = item.get(TITLE)
    if not isinstance(title, str):
        raise UserError(f"{_name(item, place)} has {_no(title)} {TITLE}, which the model reads: give it as text")
    return title


def _picture(item: RawItem, place: int) -> bytes:
    check_raw_item(item, place)
    image = item.get(IMAGE)
    if not isinstance(image, (str, Path, bytes, Image.Image)):
        raise UserError(
            f"{_name(item, place)} has {_no(image)} {IMAGE}, which the model reads: give a path, the bytes of a file, "
            "or a PIL image"
        )
    named = image if isinstance(image, (str, Path)) else "its bytes"
    try:
        return as_jpeg(_file_of(image))
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise UserError(
            f"the {IMAGE} of {_name(item, place)} cannot be read ({named}: {type(error).__name__}: {error})"
        ) from error


def _file_of(image: str | Path | bytes | Image.Image) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, Image.Image):
        # lossless, and with the transparency that the picture may have
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()
    return Path(image).read_bytes()


def _no(value: object) -> str:
    return "no" if value is None else f"a {type(value).__name__} as"

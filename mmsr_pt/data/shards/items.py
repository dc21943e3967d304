"""The catalogue: items cleaned, their pictures re-encoded, and written to the items tars."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import polars as pl

from mmsr_pt.data.domain import IMAGE, TEXT
from mmsr_pt.data.entities import unescape_column
from mmsr_pt.data.shards.choice import in_categories
from mmsr_pt.data.shards.images import encode_images
from mmsr_pt.data.shards.problems import MAX_EXAMPLES, Problems
from mmsr_pt.data.shards.tars import Blocks, TarSummary, TarWriter, item_key, to_json
from mmsr_pt.data.shards.workers import Workers, progress
from mmsr_pt.data.sources import RawDomain
from mmsr_pt.log import UserError, reason

_MAX_TAR_ITEMS = 4096
_MAX_TAR_BYTES = 64 * 2**20
_IMAGES_PER_TASK = 16
_ITEMS_PER_SLICE = 4096
_NO_ROW = -1
_PLACE = ("tar", "offset", "size", "image_offset", "image_size", "image_checksum")
_VISIBLE = r"[^\p{C}\p{Z}]"  # a title of zero-width characters alone is as empty as none


def read_items(
    raw: RawDomain, modalities: tuple[str, ...], problems: Problems, categories: tuple[str, ...] = ()
) -> pl.DataFrame:
    """The distinct items of the items table: item_id, title (one line, no HTML entities), image, chosen, usable.

    An item of none of the `categories`, where any are given, stays, marked as not chosen, and one without what
    `modalities` ask for, marked as not usable, so that their interactions can be told from those with unknown items.
    """
    columns = ["item_id", "title", "image", *(["categories"] if categories else [])]
    try:
        items = raw.items.select(columns).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise UserError(f"the items table in {raw.root} cannot be read: {reason(error)}") from error
    items = items.with_columns(unescape_column(items["title"])).with_columns(
        # one line without runs of spaces: what tokenizers and JSON readers see should be what people see
        pl.col("title").str.replace_all(r"[\s\x00]+", " ").str.strip_chars().fill_null("")
    )
    nameless = items["item_id"].is_null()
    problems.add("missing_id", int(nameless.sum()), [f"item with title {t!r}" for t in items.filter(nameless)["title"]])
    items = items.filter(~nameless)
    again = ~items["item_id"].is_first_distinct()
    _count(problems, "duplicate_item", items.filter(again))
    items = items.filter(~again)
    chosen = in_categories(items, categories, raw) if categories else pl.repeat(True, items.height, eager=True)
    items = items.select("item_id", "title", "image", chosen=chosen, usable=chosen)
    lacks = {
        "empty_title": (TEXT, ~pl.col("title").str.contains(_VISIBLE)),
        "missing_image": (IMAGE, pl.col("image").is_null()),
    }
    for kind, (modality, lack) in lacks.items():
        if modality in modalities:
            _count(problems, kind, items.filter(lack & pl.col("usable")))
            items = items.with_columns(usable=pl.col("usable") & ~lack)
    if not items["usable"].any():
        raise UserError(
            f"none of the {chosen.sum():,} items has "
            + " and ".join(f"a usable {m}" for m in modalities)
            + ": check the items table and images/, or leave one out with --modalities"
        )
    return items


def _count(problems: Problems, kind: str, found: pl.DataFrame) -> None:
    problems.add(kind, found.height, [f"item {item_id}" for item_id in found["item_id"].head(MAX_EXAMPLES)])


@dataclass(frozen=True)
class WrittenItems:
    """The items tars of a domain."""

    row_of_item: np.ndarray
    """By place in the items table: the row in the catalogue, -1 for items that have none."""
    paths: list[Path]
    summaries: list[TarSummary]
    blocks: Blocks
    """Where each row's members stand."""
    image_offsets: np.ndarray
    image_sizes: np.ndarray
    image_checksums: np.ndarray
    """crc32."""


def write_items(
    items: pl.DataFrame, directory: Path, with_images: bool, workers: Workers, problems: Problems
) -> WrittenItems:
    """Writes every usable item once, numbering them in the order of the table; unreadable pictures drop theirs."""
    usable = items.with_row_index("place").filter("usable")
    row_of_item = np.full(items.height, _NO_ROW, dtype=np.int64)
    directory.mkdir()
    with _ItemTars(directory) as writer, progress("items", usable.height) as bar:
        for place, item_id, title, image in _contents(usable, with_images, workers):
            if isinstance(image, str):
                problems.add("unreadable_image", 1, [f"item {item_id}: {image}"])
            else:
                row_of_item[place] = writer.add(item_id, title, image)
            bar.update()
        if not writer.num_items:
            raise UserError("no picture can be decoded: check images/, or build with --modalities text")
        return writer.finish(row_of_item)


def keep_items(items: pl.DataFrame, written: WrittenItems, met: np.ndarray, directory: Path) -> WrittenItems:
    """Writes the items tars once more, with the rows that are True in `met` ([N] bool) alone, and numbers them anew."""
    row_of_item = np.full(items.height, _NO_ROW, dtype=np.int64)
    ids, titles = items["item_id"], items["title"]
    sources = [path.open("rb") for path in written.paths]
    directory.mkdir()
    try:
        with _ItemTars(directory) as writer:
            for place in np.flatnonzero(written.row_of_item != _NO_ROW)[met].tolist():
                row = written.row_of_item[place]
                source, size = sources[written.blocks.tars[row]], written.image_sizes[row]
                source.seek(max(0, written.image_offsets[row]))
                image = None if size < 0 else source.read(size)
                row_of_item[place] = writer.add(ids[place], titles[place], image)
            return writer.finish(row_of_item)
    finally:
        for source in sources:
            source.close()


def _contents(
    usable: pl.DataFrame, with_images: bool, workers: Workers
) -> Iterator[tuple[int, str, str, bytes | str | None]]:
    """(place, item id, title, JPEG or why there is none) of each item, in order."""
    if not with_images:
        for part in usable.iter_slices(_ITEMS_PER_SLICE):
            for place, item_id, title in part.select("place", "item_id", "title").iter_rows():
                yield place, item_id, title, None
        return
    tasks = (part["image"].to_list() for part in usable.iter_slices(_IMAGES_PER_TASK))
    for part, images in zip(usable.iter_slices(_IMAGES_PER_TASK), workers.map(encode_images, tasks)):
        for (place, item_id, title), image in zip(part.select("place", "item_id", "title").iter_rows(), images):
            yield place, item_id, title, image


class _ItemTars:
    """Appends items to tars of bounded size."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tar: TarWriter | None = None
        self._in_tar = 0
        self._paths: list[Path] = []
        self._summaries: list[TarSummary] = []
        # 8 bytes a number where a list takes 36: there may be millions of items
        self._place = {name: array("q") for name in _PLACE}

    def __enter__(self) -> _ItemTars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._tar is not None:
            self._tar.close()

    @property
    def num_items(self) -> int:
        return len(self._place["tar"])

    def add(self, item_id: str, title: str, image: bytes | None) -> int:
        """Writes an item; returns its row."""
        row = self.num_items
        if self._tar is None or self._in_tar == _MAX_TAR_ITEMS or self._tar.position >= _MAX_TAR_BYTES:
            self._finish_tar()
            self._paths.append(self._directory / f"items-{len(self._paths):05d}.tar")
            self._tar = TarWriter(self._paths[-1])
        begin = self._tar.position
        key = item_key(row)
        self._tar.add(f"{key}.json", to_json({"row": row, "id": item_id, "title": title}))
        offset = -1 if image is None else self._tar.add(f"{key}.jpg", image)
        size = -1 if image is None else len(image)
        checksum = 0 if image is None else zlib.crc32(image)
        values = (len(self._paths) - 1, begin, self._tar.position - begin, offset, size, checksum)
        for numbers, value in zip(self._place.values(), values):
            numbers.append(value)
        self._in_tar += 1
        return row

    def _finish_tar(self) -> None:
        if self._tar is not None:
            self._summaries.append(self._tar.finish(self._in_tar, self._in_tar))
        self._in_tar = 0

    def finish(self, row_of_item: np.ndarray) -> WrittenItems:
        self._finish_tar()
        tar, offset, size, *image = (np.array(numbers) for numbers in self._place.values())
        blocks = Blocks(np.arange(len(tar)), tar, offset, size)
        return WrittenItems(row_of_item, self._paths, self._summaries, blocks, *image)

"""Amazon reviews of 2014, 2018 and 2023, as their owners hand them out, of one category or several.

2014  ROOT/reviews_Beauty.json.gz  ROOT/meta_Beauty.json.gz       (or reviews_Beauty_5.json.gz)
2018  ROOT/Luxury_Beauty.json.gz   ROOT/meta_Luxury_Beauty.json.gz         (or Luxury_Beauty_5.json.gz)
2023  ROOT/All_Beauty.jsonl.gz     ROOT/meta_All_Beauty.jsonl.gz

Files may be unpacked and lie in subdirectories. Pictures: ROOT/images/<asin>.jpg, in any subdirectory; --download
fetches them. Every review is an interaction, whatever its rating.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import polars as pl

from mmsr_pt.data.sources.amazon_files import IMAGES, CategoryFiles, find_files, recognise_version
from mmsr_pt.data.sources.amazon_meta import Version, category_paths, distinct, picture_url, title_with_categories
from mmsr_pt.data.sources.base import SOURCES, RawDomain, add_images
from mmsr_pt.data.sources.download import DownloadOptions, download_pictures
from mmsr_pt.data.sources.json_lines import as_text, place, read_columns, read_objects, warn_of_bad_lines
from mmsr_pt.log import UserError

log = logging.getLogger(__name__)

_ITEMS_PER_PART = 50_000
_ITEM_COLUMNS: dict[str, Any] = {
    "item_id": pl.String,
    "title": pl.String,
    "categories": pl.List(pl.String),
    "url": pl.String,
}


@SOURCES.register("amazon")
@dataclass(frozen=True)
class Amazon:
    """Amazon reviews of 2014, 2018 or 2023: reviews and meta_ files of one or several categories, and images/."""

    root: Path
    """Directory with the files of reviews and of metadata, and images/."""
    version: Literal["auto", "2014", "2018", "2023"] = "auto"
    """Year of the dataset; auto: by the fields of the first lines."""
    fetch: DownloadOptions = field(default_factory=DownloadOptions)

    def read(self, scratch: Path, with_images: bool) -> RawDomain:
        """See Source."""
        images = self.root / IMAGES
        files = find_files(self.root)
        version = recognise_version(files, self.version)
        if with_images and not self.fetch.download and not images.is_dir():
            raise UserError(
                f"{images} is missing: fetch the pictures with --download, put them there, or build with "
                "--modalities text"
            )
        interactions = _write_reviews(files, version, scratch)
        items = _write_items(files, version, scratch)
        if self.fetch.download and with_images:
            images.mkdir(exist_ok=True)
            download_pictures(_lacking(items, interactions, images), images, self.fetch)
        elif self.fetch.download:
            log.warning("--download is ignored: the items of this domain have no pictures")
        return RawDomain(
            source="amazon",
            root=self.root,
            licence=version.licence,
            interactions=interactions,
            items=add_images(items, images, with_images).drop("url"),
        )


def _write_reviews(files: list[CategoryFiles], version: Version, scratch: Path) -> pl.LazyFrame:
    """user_id, item_id, time in seconds of all reviews, kept in `scratch` as they come out of the large files."""
    parts: list[Path] = []
    for own in files:
        num_rows = 0
        for frame in read_columns(own.reviews, version.review_fields):
            parts.append(scratch / f"reviews-{len(parts):05d}.parquet")
            frame.select(
                user_id=_not_empty(version.user),
                item_id=_not_empty(version.item),
                time=pl.col(version.time).cast(pl.Float64, strict=False) / version.ticks_per_second,
            ).write_parquet(parts[-1])
            num_rows += frame.height
        log.info("%s: %d reviews", own.reviews.name, num_rows)
    return pl.scan_parquet(parts)


def _not_empty(name: str) -> pl.Expr:
    return pl.when(pl.col(name) != "").then(pl.col(name))


def _write_items(files: list[CategoryFiles], version: Version, scratch: Path) -> pl.LazyFrame:
    """The columns of _ITEM_COLUMNS, of all lines of metadata."""
    parts: list[Path] = []
    for own in files:
        rows = _items(own.meta, version)
        while part := list(islice(rows, _ITEMS_PER_PART)):
            parts.append(scratch / f"items-{len(parts):05d}.parquet")
            pl.DataFrame(part, schema=_ITEM_COLUMNS, orient="row").write_parquet(parts[-1])
    return pl.scan_parquet(parts)


def _lacking(items: pl.LazyFrame, interactions: pl.LazyFrame, images: Path) -> pl.DataFrame:
    """item_id, url of the pictures to fetch: of items that somebody reviewed and that have none yet."""
    without = add_images(items.drop_nulls(["item_id", "url"]), images, True).filter(pl.col("image").is_null())
    reviewed = interactions.select("item_id").unique()
    first = without.unique("item_id", keep="first", maintain_order=True)
    return first.join(reviewed, on="item_id", how="semi").select("item_id", "url").collect(engine="streaming")


_Item = tuple[str | None, str | None, list[str], str | None]


def _items(path: Path, version: Version) -> Iterator[_Item]:
    """Item by item; a line that cannot be read becomes one without an id, whose title says where it stands."""
    bad = []
    for number, line in read_objects(path):
        if line is None:
            bad.append(number)
            yield None, place(path, number), [], None
        else:
            yield _item(line, version)
    warn_of_bad_lines(path, bad)


def _item(line: dict[str, Any], version: Version) -> _Item:
    paths = category_paths(line)
    categories = distinct(name for path in paths for name in path)
    return (
        as_text(line.get(version.item_id)) or None,
        title_with_categories(line.get("title"), paths),
        categories,
        picture_url(line),
    )

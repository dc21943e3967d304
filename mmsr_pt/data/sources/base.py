"""What every source gives, and what they share: tables with checked columns, and picture files by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import polars as pl

from mmsr_pt.data.sources.encoding import as_utf8
from mmsr_pt.data.sources.files import holdings, look_below
from mmsr_pt.log import UserError, reason
from mmsr_pt.registry import Registry

LATEST_TIME = 2.0**62
"""What counts as a time lies below: nothing that an int64 could not hold."""
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""In order of preference where an item has several."""


@dataclass(frozen=True)
class RawDomain:
    """A raw dataset, before any cleaning. Ids are text, as they may begin with 0 or hold any character."""

    source: str
    """Name of the layout it came in."""
    root: Path
    """Where it lies, for messages."""
    licence: str
    """Whose it is and on what terms, one line."""
    interactions: pl.LazyFrame
    """user_id str, item_id str, time (a number, null where it cannot be read); rows of one time in their order."""
    items: pl.LazyFrame
    """item_id str, title str, image str (path of the picture file, null where there is none), categories list[str]
    (names that the item can be chosen by; empty or null where the layout has none)."""
    seconds_per_unit: float | None = 1.0
    """Of `time`, which counts from the start of 1970 in UTC; None where times are no dates."""


class Source(Protocol):
    """A raw dataset in its owner's layout; the fields of an implementation are its command-line flags."""

    def read(self, scratch: Path, with_images: bool) -> RawDomain:
        """Opens the dataset lazily.

        Args:
            scratch: an empty directory that outlives the build, for a source that must unpack or draw something.
            with_images: look for picture files; without, `image` is null throughout.

        Raises:
            UserError: a file or column is missing.
        """


SOURCES: Registry[type[Source]] = Registry("source")


def scan_table(path: Path, required: Sequence[str], scratch: Path, optional: Sequence[str] = ()) -> pl.LazyFrame:
    """A CSV (every column as text) or Parquet file, lazily.

    Args:
        path: the file; a CSV in another encoding than UTF-8 is copied to `scratch` in UTF-8.
        required: columns that it must have, whatever the case of their names; they come out named as here.
        scratch: see Source.
        optional: columns that are renamed like the required ones if they are there.

    Raises:
        UserError: the file or a column is missing.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; {holdings(path.parent)}{look_below(path.parent, [path.name])}")
    try:
        if path.suffix == ".parquet":
            table = pl.scan_parquet(path)
        else:
            # infer_schema=False: everything as text, or the leading zeros of ids would be gone
            table = pl.scan_csv(as_utf8(path, scratch), infer_schema=False)
        table = _with_names(table, (*required, *optional))
        found = table.collect_schema().names()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path} cannot be read as a table: {reason(error)}") from error
    missing = [name for name in required if name not in found]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}; its columns are: {', '.join(found)}")
    return table


def _with_names(table: pl.LazyFrame, known: Sequence[str]) -> pl.LazyFrame:
    """Columns that are one of `known` but for case and spaces around them are named as there."""
    found = table.collect_schema().names()
    alike = {name: [other for other in found if other.strip().lower() == name.lower()] for name in known}
    return table.rename({same[0]: name for name, same in alike.items() if name not in found and len(same) == 1})


def join_text(columns: Sequence[pl.Expr]) -> pl.Expr:
    """The columns joined with ", ", empty ones left out."""
    return pl.concat_str([_present(column) for column in columns], separator=", ", ignore_nulls=True)


def _present(column: pl.Expr) -> pl.Expr:
    text = column.cast(pl.String).str.strip_chars()
    return pl.when(text != "").then(text)


def distinct_names(names: pl.Expr) -> pl.Expr:
    """`categories` out of lists of text: stripped, each name once, empty ones left out."""
    stripped = names.list.eval(pl.element().str.strip_chars()).list.drop_nulls()
    return stripped.list.eval(pl.element().filter(pl.element() != "")).list.unique(maintain_order=True)


def add_images(items: pl.LazyFrame, folder: Path, with_images: bool) -> pl.LazyFrame:
    """Adds `image`: the path of the picture file named by `item_id`, anywhere under `folder`."""
    if not with_images:
        return items.with_columns(image=pl.lit(None, pl.String))
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: put the pictures there, or build with --modalities text")
    return items.join(_pictures(folder).lazy(), on="item_id", how="left", maintain_order="left")


def _pictures(folder: Path) -> pl.DataFrame:
    """Picture files under `folder`, one for each name: item_id, image."""
    # listing directories: asking the file system for each item's file takes minutes for a million items
    rows = []
    for directory, _, names in os.walk(folder):
        for name in names:
            stem, suffix = os.path.splitext(name)  # noqa: PTH122 (a Path for each of a million names is slow)
            # a name that is no UTF-8 (surrogates) can belong to no item, and polars would not take it
            if suffix.lower() in PICTURE_SUFFIXES and stem.encode(errors="replace").decode() == stem:
                rows.append((stem, PICTURE_SUFFIXES.index(suffix.lower()), f"{directory}/{name}"))
    table = pl.DataFrame(rows, schema={"item_id": pl.String, "preference": pl.UInt8, "image": pl.String}, orient="row")
    return table.sort("item_id", "preference", "image").unique("item_id", keep="first").drop("preference")

"""What tables of interactions share: files without a header, one line a user, and times of one of two units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from mmsr_pt.data.sources.base import LATEST_TIME
from mmsr_pt.data.sources.encoding import as_utf8
from mmsr_pt.log import UserError, reason

_FIRST_MILLISECONDS = 1e11
"""Times from here on are milliseconds: as seconds they would lie after the year 5000, as milliseconds in 1973."""


def scan_headless(
    path: Path, names: Sequence[str], scratch: Path, separator: str = ",", quote: str | None = '"'
) -> pl.LazyFrame:
    """A file without a header, lazily, its columns named in order, every one as text; columns it lacks are null.

    A first row none of whose values has a digit is a header all the same, and left out: an id has one.
    """
    file = as_utf8(path, scratch)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        first = lines.readline()
    if not first:
        raise UserError(f"{path} is empty")
    return pl.scan_csv(
        file,
        has_header=False,
        skip_lines=0 if any(letter.isdigit() for letter in first) else 1,
        separator=separator,
        quote_char=quote,
        schema=dict.fromkeys(names, pl.String),
        missing_columns="insert",
    )


def scan_sequences(path: Path, scratch: Path) -> pl.LazyFrame:
    """`user TAB item item item ...`, the items in order: user_id, item_id, time, which is the place in the line."""
    lines = scan_headless(path, ("user_id", "items"), scratch, separator="\t", quote=None)
    items = lines.with_columns(item_id=pl.col("items").str.extract_all(r"\S+"))
    placed = items.with_columns(time=pl.int_ranges(pl.col("item_id").list.len()))
    return placed.select("user_id", "item_id", "time").explode("item_id", "time")


def epoch_seconds(column: str) -> pl.Expr:
    """Seconds since 1970 of a column of text with seconds or milliseconds since 1970; null where it has no number."""
    number = pl.col(column).str.strip_chars().cast(pl.Float64, strict=False)
    seconds = pl.when(number >= _FIRST_MILLISECONDS).then(number / 1000).otherwise(number)
    return pl.when(number.abs() < LATEST_TIME).then(seconds)


def collected(table: pl.LazyFrame, path: Path) -> pl.DataFrame:
    """The rows of a table read from `path`; UserError where it is malformed."""
    try:
        return table.collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path} cannot be read as a table: {reason(error)}") from error

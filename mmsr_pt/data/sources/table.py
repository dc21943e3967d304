"""One's own data, in the simplest layout there is.

ROOT/interactions.csv   user_id,item_id,timestamp                            (or interactions.parquet)
ROOT/items.csv          item_id,title[,category]                             (or items.parquet)
ROOT/images/<item_id>.jpg                                                    (or .jpeg, .png, .webp)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mmsr_pt.data.sources.base import LATEST_TIME, SOURCES, RawDomain, add_images, distinct_names, join_text, scan_table
from mmsr_pt.log import UserError

_ISO_FORMATS = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M", "%Y-%m-%d")
_NAMES = pl.List(pl.String)
_MICROSECONDS = 1_000_000


@SOURCES.register("table")
@dataclass(frozen=True)
class Table:
    """interactions.csv, items.csv (or .parquet of both) and images/."""

    root: Path
    """Directory with interactions.csv, items.csv and images/."""
    title_columns: tuple[str, ...] = ()
    """Columns of items.csv joined to the title, `|` in all but the first read as a comma; none given: title, and
    category if there."""
    licence: str = "not stated"
    """Licence note for domain.json."""

    def read(self, scratch: Path, with_images: bool) -> RawDomain:
        """See Source."""
        interactions = scan_table(_either(self.root, "interactions"), ("user_id", "item_id", "timestamp"), scratch)
        return RawDomain(
            source="table",
            root=self.root,
            licence=self.licence,
            interactions=interactions.select(
                pl.col("user_id", "item_id").cast(pl.String),
                time=parsed_time(interactions.collect_schema()["timestamp"]),
            ),
            items=scan_items(self.root, self.title_columns, scratch, with_images),
        )


def scan_items(root: Path, title_columns: Sequence[str], scratch: Path, with_images: bool) -> pl.LazyFrame:
    """The items of this layout, lazily; see Table for `title_columns` and RawDomain for what comes out."""
    required = ("item_id", *(title_columns or ("title",)))
    items = scan_table(_either(root, "items"), required, scratch, optional=("category",))
    found = items.collect_schema().names()
    columns = list(title_columns) or [name for name in ("title", "category") if name in found]
    first, *more = (pl.col(name).cast(pl.String) for name in columns)
    title = join_text([first, *(column.str.replace_all("|", ", ", literal=True) for column in more)])
    names = pl.col("category").cast(pl.String).str.split("|") if "category" in found else pl.lit([], _NAMES)
    described = items.select(pl.col("item_id").cast(pl.String), title=title, categories=distinct_names(names))
    return add_images(described, root / "images", with_images)


def _either(root: Path, name: str) -> Path:
    """ROOT/name.csv or ROOT/name.parquet, whichever is there."""
    csv, parquet = root / f"{name}.csv", root / f"{name}.parquet"
    if csv.is_file() and parquet.is_file():
        raise UserError(f"{root} holds both {csv.name} and {parquet.name}: take one away")
    return parquet if parquet.is_file() else csv


def parsed_time(kind: pl.DataType) -> pl.Expr:
    """`timestamp` as a number: numbers as they are, dates as seconds since 1970 (UTC unless they say otherwise).

    Null where it is neither, or beyond 2^62.
    """
    time = pl.col("timestamp")
    if kind.is_numeric():
        return pl.when(time.cast(pl.Float64).abs() < LATEST_TIME).then(time)
    if kind.is_temporal():
        return _seconds(time.cast(pl.Datetime("us")))
    number = time.str.strip_chars().cast(pl.Float64, strict=False)
    formats = [_seconds(time.str.to_datetime(f, strict=False, time_unit="us", exact=True)) for f in _ISO_FORMATS]
    with_zone = _seconds(time.str.to_datetime("%+", strict=False, time_unit="us", time_zone="UTC"))
    return pl.coalesce(pl.when(number.abs() < LATEST_TIME).then(number), *formats, with_zone)


def _seconds(time: pl.Expr) -> pl.Expr:
    return time.dt.epoch("us") / _MICROSECONDS

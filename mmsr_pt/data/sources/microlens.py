"""MicroLens-50k, -100k and -1M, short videos with covers and titles.

ROOT/MicroLens-100k_pairs.csv      user,item,timestamp in milliseconds
ROOT/MicroLens-100k_pairs.tsv      user TAB item item item ..., in order; read where there is no pairs.csv
ROOT/MicroLens-100k_title_en.csv   item,title with or without a header     (-50k: _titles.csv, -1M: _title.csv, Chinese)
ROOT/MicroLens-100k_covers/<item>.jpg
ROOT/tags_to_summary.csv           item,category without a header          (-100k only)

From recsys.westlake.edu.cn, described in the repository github.com/westlake-repl/MicroLens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mmsr_pt.data.sources.base import SOURCES, RawDomain, add_images, distinct_names, scan_table
from mmsr_pt.data.sources.encoding import as_utf8
from mmsr_pt.data.sources.files import matching, the_one
from mmsr_pt.data.sources.rows import epoch_seconds, scan_headless, scan_sequences
from mmsr_pt.log import UserError

_PAIRS, _SEQUENCES, _COVERS = "*_pairs.csv", "*_pairs.tsv", "*_covers"
_TITLES = ("*_title.csv", "*_titles.csv", "*_title_en.csv", "*_titles_en.csv")
_CATEGORIES = "tags_to_summary.csv"
_NEW_ITEM = re.compile(r'\s*"?(\d+)"?\s*,')


@SOURCES.register("microlens")
@dataclass(frozen=True)
class MicroLens:
    """MicroLens of any size: *_pairs.csv or *_pairs.tsv, *_title*.csv and *_covers/."""

    root: Path
    """Directory with these files."""
    interactions: Path | None = None
    """The file of interactions, where ROOT holds several."""
    titles: Path | None = None
    """The file of titles, where ROOT holds several."""
    images: Path | None = None
    """The folder of covers, where it is not ROOT/*_covers."""

    def read(self, scratch: Path, with_images: bool) -> RawDomain:
        """See Source."""
        wanted = (_PAIRS,) if matching(self.root, (_PAIRS,)) else (_PAIRS, _SEQUENCES)
        interactions = the_one(self.root, wanted, "--interactions", self.interactions)
        titles = read_titles(the_one(self.root, _TITLES, "--titles", self.titles), scratch)
        covers = the_one(self.root, (_COVERS,), "--images", self.images, folders=True) if with_images else self.root
        return RawDomain(
            source="microlens",
            root=self.root,
            licence="MicroLens, Westlake University: no altered copies may be handed on",
            interactions=_read_interactions(interactions, scratch),
            items=add_images(self._with_categories(titles.lazy(), scratch), covers, with_images),
            seconds_per_unit=None if interactions.suffix == ".tsv" else 1.0,
        )

    def _with_categories(self, items: pl.LazyFrame, scratch: Path) -> pl.LazyFrame:
        path = self.root / _CATEGORIES
        if not path.is_file():
            return items.with_columns(categories=pl.lit([], dtype=pl.List(pl.String)))
        table = scan_headless(path, ("item_id", "category"), scratch)
        grouped = table.group_by("item_id", maintain_order=True).agg("category")
        named = grouped.select("item_id", categories=distinct_names(pl.col("category")))
        return items.join(named, on="item_id", how="left", maintain_order="left")


def _read_interactions(path: Path, scratch: Path) -> pl.LazyFrame:
    if path.suffix == ".tsv":
        return scan_sequences(path, scratch)
    pairs = scan_table(path, ("user", "item", "timestamp"), scratch)
    return pairs.select(user_id="user", item_id="item", time=epoch_seconds("timestamp"))


def read_titles(path: Path, scratch: Path) -> pl.DataFrame:
    """item_id, title of a file of titles.

    Not by the rules of CSV, which those of MicroLens-1M break: titles there hold commas, and quotes that nothing
    closes, which would swallow the items behind them. A line that begins with a number and a comma is an item, any
    other goes on with the title above; what stands before the first item is the header.
    """
    ids: list[str] = []
    titles: list[str] = []
    with as_utf8(path, scratch).open(encoding="utf-8-sig", newline="\n") as lines:
        for line in lines:
            if begin := _NEW_ITEM.match(line):
                ids.append(begin.group(1))
                titles.append(line[begin.end() :])
            elif titles:
                titles[-1] += line
    if not ids:
        raise UserError(f"{path} has no line that begins with an item's number and a comma")
    return pl.DataFrame({"item_id": ids, "title": [_unquoted(title.strip()) for title in titles]})


def _unquoted(title: str) -> str:
    """A title without the quotes of CSV, if it has them: one at each end, all within doubled."""
    inner = title[1:-1].replace('""', "")
    if len(title) < 2 or not title.startswith('"') or not title.endswith('"') or '"' in inner:
        return title
    return title[1:-1].replace('""', '"')

"""NineRec: Bili_2M and Bili_500K to pre-train on, and nine datasets to transfer to (QB, TN, KU, DY, Bili_Food ...).

ROOT/QB_pair.csv        item,user,timestamp without a header; in QB and TN without timestamps
ROOT/QB_behaviour.tsv   user TAB item item item ..., in order; read where the pairs have no timestamps
ROOT/QB_item.csv        item,Chinese text,English text without a header
ROOT/QB_cover/<item>.jpg

The README of github.com/westlake-repl/NineRec describes the files and has the user first; its get_behaviour.py reads
the item first. So it is the items table that decides which is which.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from mmsr_pt.data.sources.base import SOURCES, RawDomain, add_images
from mmsr_pt.data.sources.files import matching, the_one
from mmsr_pt.data.sources.rows import collected, epoch_seconds, scan_headless, scan_sequences
from mmsr_pt.log import UserError

log = logging.getLogger(__name__)

_PAIRS, _SEQUENCES, _ITEMS, _COVERS = "*_pair.csv", "*_behaviour.tsv", "*_item.csv", "*_cover"
_IDS = ("first", "second")
_AS_GOOD = 0.9
"""Share of the better column's known ids from which on the other one might as well be the items."""


@SOURCES.register("ninerec")
@dataclass(frozen=True)
class NineRec:
    """NineRec, source and downstream datasets: *_pair.csv or *_behaviour.tsv, *_item.csv and *_cover/."""

    root: Path
    """Directory of one dataset, such as QB."""
    language: Literal["chinese", "english"] = "chinese"
    """Of the titles."""
    interactions: Path | None = None
    """The file of interactions, where ROOT holds several."""
    items: Path | None = None
    """The file of titles, where ROOT holds several."""
    images: Path | None = None
    """The folder of covers, where it is not ROOT/*_cover: Bili_500K shares that of Bili_2M."""
    first_column: Literal["item", "user"] | None = None
    """Of the pairs; none given: the one that the items table knows."""

    def read(self, scratch: Path, with_images: bool) -> RawDomain:
        """See Source."""
        # first what is missing, then what is read: a look at the pairs takes a while
        interactions = self._interactions_file()
        titles = the_one(self.root, (_ITEMS,), "--items", self.items)
        covers = the_one(self.root, (_COVERS,), "--images", self.images, folders=True) if with_images else self.root
        table = scan_headless(titles, ("item_id", "chinese", "english"), scratch)
        items = table.select("item_id", title=pl.col(self.language), categories=pl.lit([], dtype=pl.List(pl.String)))
        events, has_times = self._read_interactions(interactions, items, scratch)
        return RawDomain(
            source="ninerec",
            root=self.root,
            licence="NineRec, Westlake University: no altered copies may be handed on",
            interactions=events,
            items=add_images(items, covers, with_images),
            seconds_per_unit=1.0 if has_times else None,
        )

    def _interactions_file(self) -> Path:
        if self.interactions is None and not matching(self.root, (_PAIRS,)):
            return the_one(self.root, (_PAIRS, _SEQUENCES), "--interactions")
        return the_one(self.root, (_PAIRS,), "--interactions", self.interactions)

    def _read_interactions(self, path: Path, items: pl.LazyFrame, scratch: Path) -> tuple[pl.LazyFrame, bool]:
        """The interactions, and whether their times are times or but an order."""
        if path.suffix == ".tsv":
            return scan_sequences(path, scratch), False
        pairs = scan_headless(path, (*_IDS, "timestamp"), scratch)
        has_times = collected(pairs.select(pl.col("timestamp").is_not_null().any()), path).item()
        if has_times:
            pairs = pairs.with_columns(time=epoch_seconds("timestamp"))
        else:
            sequences = matching(path.parent, (_SEQUENCES,))
            if self.interactions is None and len(sequences) == 1:
                log.info("%s has no timestamps: %s gives the order", path, sequences[0].name)
                return scan_sequences(sequences[0], scratch), False
            log.warning("%s has no timestamps, and no *_behaviour.tsv is chosen: its rows are taken as in order", path)
            pairs = pairs.with_row_index("time")
        item, user = _IDS if self._item_first(pairs, items, path) else reversed(_IDS)
        return pairs.select(user_id=user, item_id=item, time="time"), has_times

    def _item_first(self, pairs: pl.LazyFrame, items: pl.LazyFrame, path: Path) -> bool:
        if self.first_column is not None:
            return self.first_column == "item"
        known = items.select("item_id", known=pl.lit(True)).unique("item_id")
        counts = []
        for column in _IDS:
            ids = pairs.group_by(column).agg(number=pl.len())
            joined = ids.join(known, left_on=column, right_on="item_id", how="semi")
            counts.append(collected(joined.select(pl.col("number").sum()), path).item())
        if min(counts) >= _AS_GOOD * max(counts):
            reason = "the ids of both columns are" if max(counts) else "no id of either column is"
            raise UserError(
                f"{path} does not show which column has the items, as {reason} in the items table: say it with "
                "--first_column item (as NineRec's own get_behaviour.py reads it) or --first_column user"
            )
        return bool(counts[0] > counts[1])

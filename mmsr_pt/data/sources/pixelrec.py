"""PixelRec: Pixel200K, Pixel1M, Pixel8M, PixelRec50K and all of PixelRec, one layout.

ROOT/.../Pixel200K.csv   item_id,user_id,timestamp                               (PixelRec50K: interaction.csv)
ROOT/.../Pixel200K.csv   item_id,...,title,tag,description, in another folder    (PixelRec50K: item_info.csv)
ROOT/cover/<item_id>.jpg

Both tables of a dataset have the same name, in folders that everybody names anew; so their columns tell them apart.
Described in the repository github.com/westlake-repl/PixelRec, its dataset/readme.md and code/REC/data/dataload.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mmsr_pt.data.sources.base import SOURCES, RawDomain, add_images, distinct_names, join_text, scan_table
from mmsr_pt.data.sources.files import holdings, the_one
from mmsr_pt.data.sources.rows import epoch_seconds
from mmsr_pt.log import UserError

_INTERACTION_COLUMNS = ("user_id", "item_id", "timestamp")
_COVERS = ("cover", "covers", "image", "images", "*_cover", "*_covers")


@SOURCES.register("pixelrec")
@dataclass(frozen=True)
class PixelRec:
    """PixelRec of any size: a table of interactions, one of item information, and the folder of covers."""

    root: Path
    """Directory with the two tables, in it or in folders of it, and the covers."""
    title_columns: tuple[str, ...] = ("title", "tag")
    """Columns of the item information joined to the title; there is also description, and title_en in an early copy."""
    interactions: Path | None = None
    """The table of interactions, where ROOT holds several."""
    items: Path | None = None
    """The table of item information, where ROOT holds several."""
    images: Path | None = None
    """The folder of covers, where it is not ROOT/cover or the like."""

    def read(self, scratch: Path, with_images: bool) -> RawDomain:
        """See Source."""
        interactions_file = self.interactions or self._by_columns(_INTERACTION_COLUMNS, "--interactions")
        items_file = self.items or self._by_columns(("item_id", *self.title_columns), "--items")
        covers = the_one(self.root, _COVERS, "--images", self.images, folders=True) if with_images else self.root
        interactions = scan_table(interactions_file, _INTERACTION_COLUMNS, scratch)
        items = scan_table(items_file, ("item_id", *self.title_columns), scratch, optional=("tag",))
        tag = pl.col("tag") if "tag" in items.collect_schema() else pl.lit(None, pl.String)
        described = items.select(
            "item_id",
            title=join_text([pl.col(name) for name in self.title_columns]),
            categories=distinct_names(pl.concat_list(tag)),
        )
        return RawDomain(
            source="pixelrec",
            root=self.root,
            licence="PixelRec, Westlake University: no altered copies may be handed on",
            interactions=interactions.select("user_id", "item_id", time=epoch_seconds("timestamp")),
            items=add_images(described, covers, with_images),
        )

    def _by_columns(self, columns: Sequence[str], flag: str) -> Path:
        """The one CSV in ROOT, or in a folder of it, that has these columns."""
        tables = [*sorted(self.root.glob("*.csv")), *sorted(self.root.glob("*/*.csv"))]
        found = [table for table in tables if {name.lower() for name in columns} <= _header(table)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{' and '.join(map(str, found))} would both do: choose one with {flag}")
        seen = f", but {', '.join(str(t.relative_to(self.root)) for t in tables)} without them" if tables else ""
        raise UserError(
            f"no CSV with the columns {', '.join(columns)} here: {holdings(self.root)}{seen}; name the file with {flag}"
        )


def _header(table: Path) -> set[str]:
    with table.open(encoding="utf-8-sig", errors="replace") as file:
        return {name.strip().strip('"').lower() for name in file.readline().split(",")}

"""A catalogue with the vector of every item, for as many histories as one likes; saved, and checked when it comes back.

    index/
      index.json              of which model and which domain; how it is searched
      items.parquet           item_id and title by row
      vectors.safetensors     [N, D] float32
      search.faiss            only where the search is approximate

Shapes: u users, N items, D width.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmsr_pt.approximate_search import ApproximateSearch
from mmsr_pt.log import UserError
from mmsr_pt.recommend import nearest
from mmsr_pt.run_dir import replace_directory

FORMAT_VERSION = 1
INDEX_FILE = "index.json"
ITEMS_FILE = "items.parquet"
VECTORS_FILE = "vectors.safetensors"
SEARCH_FILE = "search.faiss"
APPROXIMATE_ABOVE = 500_000
"""Items beyond which `auto` searches approximately: an exact answer reads all vectors, 0.5 GB at width 256."""

SearchName = Literal["auto", "exact", "faiss"]


@dataclass(frozen=True, eq=False)
class CatalogueIndex:
    """All items of a catalogue as one model sees them."""

    items: pl.DataFrame
    """item_id and title by row; titles may be null."""
    vectors: Tensor
    """[N, D] float32."""
    model: str
    """Fingerprint of the model that made the vectors."""
    domain: dict[str, str] | None = None
    """Name, fingerprint, source and licence note of the domain whose catalogue it is; None: of a list of items."""
    approximate: ApproximateSearch | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Rows by item id."""
        return {item_id: row for row, item_id in enumerate(self.items["item_id"])}

    def row(self, item_id: str) -> int:
        """Of an item; raises UserError where there is none of that id, with the nearest."""
        if item_id not in self.row_of:
            hint = nearest(item_id, self.items["item_id"])
            raise UserError(f"unknown item {item_id!r}: the catalogue has {len(self):,} items, {hint}")
        return self.row_of[item_id]

    def to(self, device: torch.device) -> CatalogueIndex:
        """The same with its vectors on `device`."""
        return self if self.vectors.device == device else dataclasses.replace(self, vectors=self.vectors.to(device))

    def with_search(self, search: SearchName) -> CatalogueIndex:
        """The same, searched exactly, approximately, or by its size; raises UserError where faiss is not installed."""
        if search == "exact" or (search == "auto" and len(self) <= APPROXIMATE_ABOVE):
            return dataclasses.replace(self, approximate=None)
        return dataclasses.replace(self, approximate=ApproximateSearch.build(self.vectors.cpu().numpy()))

    def save(self, directory: Path | str) -> None:
        """Writes its files into a new directory, or in place of another index; never half of them.

        Raises:
            UserError: the directory holds something else.
        """
        directory = Path(directory)
        holds_files = directory.is_dir() and any(directory.iterdir())
        if (holds_files and not (directory / INDEX_FILE).is_file()) or directory.is_file():
            raise UserError(f"{directory} holds something else than an index: name an empty or new directory")
        replace_directory(directory.absolute(), self._write)

    def _write(self, directory: Path) -> None:
        self.items.write_parquet(directory / ITEMS_FILE)
        save_file({"vectors": self.vectors.cpu().contiguous()}, directory / VECTORS_FILE)
        if self.approximate is not None:
            self.approximate.write(directory / SEARCH_FILE)
        about = {
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "domain": self.domain,
            "num_items": len(self),
            "width": self.vectors.shape[1],
            "search": "exact" if self.approximate is None else self.approximate.describe(),
        }
        (directory / INDEX_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path, model: str) -> CatalogueIndex:
        """Reads what `save` wrote.

        Args:
            directory: of the index.
            model: fingerprint of the model that is to search it.

        Raises:
            UserError: no index, one of another model or format, or a damaged file.
        """
        file = directory / INDEX_FILE
        if not file.is_file():
            raise UserError(f"{directory} is no catalogue index (it has no {INDEX_FILE}): make one with mmsr-pt encode")
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            version = about["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged ({error}): make the index again with mmsr-pt encode") from error
        if version != FORMAT_VERSION:
            raise UserError(
                f"{file} has format {version}, this version reads {FORMAT_VERSION}: make it again with mmsr-pt encode"
            )
        if about["model"] != model:
            raise UserError(
                f"{directory} was made by another model ({about['model'][:12]}, this one is {model[:12]}): "
                "make it again with mmsr-pt encode and this model"
            )
        try:
            items = pl.read_parquet(directory / ITEMS_FILE)
            vectors = load_file(directory / VECTORS_FILE)["vectors"]
        except (OSError, KeyError, SafetensorError, pl.exceptions.PolarsError) as error:
            raise UserError(f"{directory} is damaged ({error}): make it again with mmsr-pt encode") from error
        expected = (about["num_items"], about["width"])
        if (len(items), vectors.shape[1]) != expected or len(vectors) != len(items):
            raise UserError(f"{directory} is damaged (its parts differ in size): make it again with mmsr-pt encode")
        approximate = None
        if about["search"] != "exact":
            approximate = ApproximateSearch.read(directory / SEARCH_FILE, about["search"])
        return cls(items, vectors, about["model"], about["domain"], approximate)

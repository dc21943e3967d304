"""A domain directory: the names in it, and its reader.

domain/
  domain.json              the manifest: counts, split rule, problems met, every tar with its size and sha256
  items/items-00000.tar    the catalogue: every item once
  items.parquet            the catalogue as a table, with the place of every picture in the tars
  train/train-00000.tar    user sequences, training part only, each with the items it needs before it
  eval.parquet             histories and the two held-out items of every user
  tokenizer.model          SentencePiece model of the titles, for the `tiny` text tower
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, overload

import numpy as np
import polars as pl

from mmsr_pt.log import UserError

FORMAT_VERSION = 1
MANIFEST_FILE = "domain.json"
ITEMS_FILE = "items.parquet"
EVAL_FILE = "eval.parquet"
TOKENIZER_FILE = "tokenizer.model"
TEXT, IMAGE = MODALITIES = ("text", "image")
COLD_BELOW = 10
"""An item with fewer training occurrences is cold (section 7.1 of the paper)."""


@dataclass(frozen=True)
class TrainTar:
    """One tar of training sequences."""

    path: Path
    num_users: int
    """Those that train."""
    places: np.ndarray | None = None
    """[num_users] where they stand among all users of the tar, ascending; None: they are all users."""

    def place(self, number: int) -> int:
        """Where the training user of that number stands in the tar."""
        return number if self.places is None else int(self.places[number])


@dataclass(frozen=True, eq=False)
class Titles(Sequence[str]):
    """Many titles as one piece of memory: a million Python strings take four times that, in every process again."""

    text: bytes
    """All of them in UTF-8, end to end."""
    bounds: np.ndarray
    """[N + 1] int64: title i is text[bounds[i] : bounds[i + 1]]."""

    @classmethod
    def of(cls, column: pl.Series) -> Titles:
        """From a column of strings."""
        bounds = np.zeros(len(column) + 1, dtype=np.int64)
        np.cumsum(column.str.len_bytes().to_numpy(), out=bounds[1:])
        return cls(column.str.join("").item().encode(), bounds)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.text[self.bounds[row] : self.bounds[row + 1]].decode()


class Domain:
    """A complete domain directory. Cheap to pickle; safe to use in worker processes once loaded."""

    def __init__(self, path: Path, meta: dict[str, Any], max_users: int = 0, seed: int = 0) -> None:
        """For `load`, which checks what it passes."""
        self.path = path
        self.meta = meta
        self.max_users, self.seed = max_users, seed
        # read now, as polars must not run in a forked loader process, where `read_image` is called
        self._pictures = self._locate_pictures() if IMAGE in self.modalities else None

    @classmethod
    def load(cls, path: Path | str, max_users: int = 0, seed: int = 0) -> Domain:
        """Opens a domain directory.

        Args:
            path: the directory.
            max_users: how many of its users train, drawn by chance; of one seed the smaller numbers' users are among
                the larger ones'. 0, or more than there are: all.
            seed: draws them.

        Raises:
            UserError: nothing there, no domain, another format version, or a file missing or of another size than the
                manifest says.
        """
        path = Path(path)
        manifest = path / MANIFEST_FILE
        if not path.is_dir():
            raise UserError(f"there is no domain directory {path}: build it with shards/build.py --out {path}")
        if not manifest.is_file():
            raise UserError(
                f"{path} is no domain directory (it has no {MANIFEST_FILE}): build one with shards/build.py"
            )
        try:
            meta = json.loads(manifest.read_text(encoding="utf-8"))
            version = meta["format_version"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{manifest} cannot be read: build the domain again with --overwrite") from None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path} has domain format {version}, this version reads {FORMAT_VERSION}: build it again with "
                "shards/build.py --overwrite"
            )
        for name in (ITEMS_FILE, EVAL_FILE, *([TOKENIZER_FILE] if TEXT in meta["modalities"] else [])):
            if not (path / name).is_file():
                raise UserError(f"{path} is incomplete ({name} is missing): build it again with --overwrite")
        for name in (ITEMS_FILE, EVAL_FILE):
            try:
                # stands at the end of the file: shows that the copy is whole
                columns = pl.read_parquet_schema(path / name)
            except pl.exceptions.PolarsError:
                raise UserError(
                    f"{path / name} cannot be read: copy the domain again, or build it again with --overwrite"
                ) from None
        _require_inside(path, [tar["path"] for tar in meta["tars"]])
        for tar in meta["tars"]:
            file = path / tar["path"]
            size = file.stat().st_size if file.is_file() else None
            if size != tar["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes instead of {tar['bytes']}"
                raise UserError(f"{file} {found}: copy the domain again, or build it again with --overwrite")
        if max_users >= meta["counts"]["users"]:
            max_users = 0
        if max_users and "place" not in columns:
            raise UserError(
                f"{path} was built by an earlier version, which does not say where each user stands: build it again "
                f"with --overwrite, or leave out --max_users {max_users}"
            )
        return cls(path, meta, max_users, seed)

    @cached_property
    def items(self) -> pl.DataFrame:
        """The catalogue by row: item_id, row, title, train_count, tar, offset, size (both null without a picture)."""
        items = pl.read_parquet(self.path / ITEMS_FILE)
        return items.with_columns(train_count=self.train_count()) if self.max_users else items

    @cached_property
    def eval(self) -> pl.DataFrame:
        """By user: user_id, user, history (training part), valid, test, cold_cases, place (among those in the tars)."""
        return pl.read_parquet(self.path / EVAL_FILE)

    @cached_property
    def training_users(self) -> pl.DataFrame:
        """The rows of `eval` whose histories train."""
        if not self.max_users:
            return self.eval
        drawn = np.random.default_rng(self.seed).permutation(self.num_users)[: self.max_users]
        return self.eval[np.sort(drawn)]

    @property
    def name(self) -> str:
        """What the domain is called in tables and run directories."""
        return self.meta["name"]

    @property
    def fingerprint(self) -> str:
        """Changes with any byte of the training data, the catalogue, the held-out items or the split rule."""
        return self.meta["fingerprint"]

    @property
    def modalities(self) -> tuple[str, ...]:
        """What items have: text, image or both."""
        return tuple(self.meta["modalities"])

    @property
    def num_items(self) -> int:
        """Items in the catalogue."""
        return self.meta["counts"]["items"]

    @property
    def num_users(self) -> int:
        """Users, each with a training part and two held-out items, whether they train or not."""
        return self.meta["counts"]["users"]

    @property
    def train_tars(self) -> list[TrainTar]:
        """The training tars in order."""
        tars = [TrainTar(self.path / t["path"], t["samples"]) for t in self.meta["tars"] if t["kind"] == "train"]
        if not self.max_users:
            return tars
        starts = np.cumsum([0, *(tar.num_users for tar in tars)])
        places = self.training_users["place"].sort().to_numpy().astype(np.int64)
        own = [part - start for part, start in zip(np.split(places, np.searchsorted(places, starts[1:-1])), starts)]
        return [TrainTar(tar.path, len(part), part) for tar, part in zip(tars, own)]

    def titles(self) -> Titles:
        """Titles by row."""
        return Titles.of(self._column("title"))

    def train_count(self) -> np.ndarray:
        """[N] int64: how often each item occurs in the sequences that train."""
        if not self.max_users:
            return self._column("train_count").to_numpy().astype(np.int64)
        rows = self.training_users["history"].explode().drop_nulls().to_numpy()
        return np.bincount(rows, minlength=self.num_items).astype(np.int64)

    def _column(self, name: str) -> pl.Series:
        """A column of the catalogue; the others, most of it, are not read."""
        return pl.read_parquet(self.path / ITEMS_FILE, columns=[name])[name]

    def read_image(self, row: int) -> bytes:
        """The JPEG of an item; raises UserError when the domain was built without pictures."""
        if self._pictures is None:
            raise UserError(f"{self.path} was built without pictures: build it again with --modalities text image")
        tars, numbers, offsets, sizes = self._pictures
        file = os.open(self.path / tars[numbers[row]], os.O_RDONLY)
        try:
            return os.pread(file, int(sizes[row]), int(offsets[row]))
        finally:
            os.close(file)

    def _locate_pictures(self) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        frame = pl.read_parquet(self.path / ITEMS_FILE, columns=["tar", "offset", "size"])
        tars = frame["tar"].unique().sort()
        _require_inside(self.path, tars.drop_nulls().to_list())
        numbers = frame["tar"].replace_strict(tars, pl.Series(range(len(tars)), dtype=pl.UInt32))
        return tars.to_list(), numbers.to_numpy(), frame["offset"].to_numpy(), frame["size"].to_numpy()

    def __getstate__(self) -> dict[str, Any]:
        known = ("path", "meta", "max_users", "seed", "_pictures")
        return {name: getattr(self, name) for name in known}


def _require_inside(directory: Path, names: Iterable[str]) -> None:
    """Refuses names that lead out of a domain, which may come from anywhere."""
    for name in names:
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise UserError(f"{directory} names the file {name}, which is outside of it: do not use this domain")

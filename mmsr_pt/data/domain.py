"""A domain directory: the names in it, and its reader.

domain/
  domain.json              the manifest: counts, split rule, problems met, every file with its size and sha256
  items/items-00000.tar    the catalogue: every item once
  items.parquet            the catalogue as a table, with the place of every picture in the tars
  train/train-00000.tar    user sequences, training part only, each with the items it needs before it
  eval.parquet             histories and the two held-out items of every user
  tokenizer.model          SentencePiece model of the titles, for the `tiny` text tower
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import polars as pl

from mmsr_pt.data.unreadable import Unreadable, check, read_exactly
from mmsr_pt.log import UserError

FORMAT_VERSION = 1
MANIFEST_FILE = "domain.json"
ITEMS_FILE = "items.parquet"
EVAL_FILE = "eval.parquet"
TOKENIZER_FILE = "tokenizer.model"
TEXT, IMAGE = MODALITIES = ("text", "image")
CHECKSUM = "checksum"
"""Column of items.parquet and eval.parquet: crc32 of the item's JPEG, or of the user's JSON in the train tar."""
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
    users: np.ndarray | None = None
    """Numbers of all users of the tar, in its order; None: the domain does not say."""
    checksums: np.ndarray | None = None
    """uint32: crc32 of the JSON of each of them; None: the domain does not say."""

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
        return self.text[self.bounds[row] : self.bounds[row + 1]].decode(errors="replace")


@dataclass(frozen=True)
class _Pictures:
    """Where the catalogue's pictures stand; arrays are by row."""

    tars: list[str]
    numbers: np.ndarray
    """Of the tar."""
    offsets: np.ndarray
    sizes: np.ndarray
    checksums: np.ndarray | None
    """crc32; None: the domain does not say."""


def inside(domain: Path, name: str) -> Path:
    """The file of that name in a domain directory; raises UserError where the name leads out of it."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{domain} names a file outside of it ({name!r}): build it again with --overwrite")
    return domain / name


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes; of none where it is not there."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Domain:
    """A complete domain directory. Cheap to pickle; safe to use in worker processes once loaded."""

    def __init__(self, path: Path, meta: dict[str, Any], max_users: int = 0, seed: int = 0) -> None:
        """For `load`, which checks what it passes."""
        self.path = path
        self.meta = meta
        self.max_users, self.seed = max_users, seed
        # read now, as polars must not run in a forked loader process, where `read_image` is called
        self._pictures = self._locate_pictures() if IMAGE in self.modalities else None
        self.told_of: set[int] = set()
        """Rows of the catalogue of which this process has said that they cannot be read."""

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
        for tar in meta["tars"]:
            file = inside(path, tar["path"])
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
        entries = [entry for entry in self.meta["tars"] if entry["kind"] == "train"]
        starts = np.cumsum([0, *(entry["samples"] for entry in entries)])
        users, checksums = (
            [None] * len(entries) if column is None else np.split(column, starts[1:-1])
            for column in self._users_by_place
        )
        tars = [
            TrainTar(self.path / entry["path"], entry["samples"], None, *known)
            for entry, *known in zip(entries, users, checksums)
        ]
        if not self.max_users:
            return tars
        places = self.training_users["place"].sort().to_numpy().astype(np.int64)
        own = [part - start for part, start in zip(np.split(places, np.searchsorted(places, starts[1:-1])), starts)]
        return [replace(tar, num_users=len(part), places=part) for tar, part in zip(tars, own)]

    @cached_property
    def _users_by_place(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Number and checksum of every user, in the order of the train tars; None: an earlier version built this."""
        columns = pl.read_parquet_schema(self.path / EVAL_FILE)
        if "place" not in columns:
            return None, None
        known = [name for name in ("user", CHECKSUM) if name in columns]
        users = pl.read_parquet(self.path / EVAL_FILE, columns=["place", *known]).sort("place")
        return users["user"].to_numpy(), users[CHECKSUM].to_numpy() if CHECKSUM in known else None

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
        """The JPEG of an item in the catalogue.

        Raises:
            Unreadable: its bytes are not there, or not those that were written.
            UserError: the domain was built without pictures.
        """
        where = self._located
        try:
            file = os.open(self.picture_tar(row), os.O_RDONLY)
        except OSError as error:
            raise Unreadable(f"{type(error).__name__}: {error.strerror}") from error
        try:
            data = read_exactly(file, int(where.offsets[row]), int(where.sizes[row]))
        finally:
            os.close(file)
        self.check_picture(row, data)
        return data

    def check_picture(self, row: int, data: bytes) -> None:
        """Raises Unreadable where the JPEG of an item, from whichever tar, is not what the builder wrote."""
        checksums = self._located.checksums
        check(data, None if checksums is None else int(checksums[row]))

    def picture_tar(self, row: int) -> Path:
        """The tar in which the catalogue has an item."""
        return self.path / self._located.tars[self._located.numbers[row]]

    @property
    def _located(self) -> _Pictures:
        if self._pictures is None:
            raise UserError(f"{self.path} was built without pictures: build it again with --modalities text image")
        return self._pictures

    def _locate_pictures(self) -> _Pictures:
        known = CHECKSUM in pl.read_parquet_schema(self.path / ITEMS_FILE)
        columns = ["tar", "offset", "size", *([CHECKSUM] if known else [])]
        frame = pl.read_parquet(self.path / ITEMS_FILE, columns=columns)
        tars = frame["tar"].unique().sort()
        for tar in tars.drop_nulls():
            inside(self.path, tar)
        numbers = frame["tar"].replace_strict(tars, pl.Series(range(len(tars)), dtype=pl.UInt32))
        # a picture without a place is one of no bytes, which cannot be read
        offsets, sizes = (frame[name].fill_null(0).to_numpy() for name in ("offset", "size"))
        checksums = frame[CHECKSUM].fill_null(0).to_numpy() if known else None
        return _Pictures(tars.to_list(), numbers.to_numpy(), offsets, sizes, checksums)

    def __getstate__(self) -> dict[str, Any]:
        known = ("path", "meta", "max_users", "seed", "_pictures", "told_of")
        return {name: getattr(self, name) for name in known}

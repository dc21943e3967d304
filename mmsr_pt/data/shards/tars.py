"""Tars written so that the same content gives the same bytes.

No polars and no torch here: writer processes import this module, and should start at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

_WRITTEN_AT_ONCE = 2**20
# what stands before the size, between size and checksum, and behind the checksum of a member's header
_MODE_AND_OWNERS = b"0000644\0" + 2 * b"0000000\0"
_TIME = b"00000000000\0"
_KIND_AND_MAGIC = b"0".ljust(101, b"\0") + b"ustar\00000"
_SPACES = 8 * b" "  # what the checksum takes itself for
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def item_key(row: int) -> str:
    """Name of an item's members in a tar: the row, as an id may hold characters that WebDataset splits at."""
    return f"i{row:08d}"


def user_key(user: int) -> str:
    """Name of a user's member in a tar."""
    return f"u{user:08d}"


def to_json(value: dict[str, Any]) -> bytes:
    """Compact JSON, the same bytes for the same value."""
    return _json(value).encode()


def header(name: str, size: int) -> bytes:
    """A member's header, as tarfile's `TarInfo.tobuf(USTAR_FORMAT)` makes it in five times the time.

    Args:
        name: ASCII, at most 100 characters.
        size: of the data, below 8 GiB.
    """
    fields = name.encode("ascii").ljust(100, b"\0") + _MODE_AND_OWNERS + b"%011o\0" % size + _TIME
    checksum = sum(fields + _SPACES + _KIND_AND_MAGIC)
    return (fields + b"%06o\0 " % checksum + _KIND_AND_MAGIC).ljust(tarfile.BLOCKSIZE, b"\0")


@dataclass(frozen=True)
class TarSummary:
    """What the manifest says of a finished tar."""

    samples: int
    """Items of an items tar, users of a train tar."""
    items: int
    num_bytes: int
    sha256: str
    repeated_bytes: int = 0
    """By how much a train tar would be larger if every occurrence of an item had a copy of it."""
    checksums: Sequence[int] = ()
    """crc32 of the JSON of each user of a train tar, in its order."""


class TarWriter:
    """Writes a tar whose bytes depend on the members alone: no times, owners or padding of the moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self._file = path.open("wb", buffering=0)
        self._waiting = bytearray()
        self._hash = hashlib.sha256()

    def add(self, name: str, data: bytes) -> int:
        """Appends a member; returns the offset of its data."""
        self.copy(header(name, len(data)))
        offset = self.position
        self.copy(data + bytes(-len(data) % tarfile.BLOCKSIZE))
        return offset

    def copy(self, blocks: bytes) -> None:
        """Appends finished members: headers, data and padding."""
        self._waiting += blocks
        self.position += len(blocks)
        if len(self._waiting) >= _WRITTEN_AT_ONCE:
            self._write()

    def _write(self) -> None:
        self._hash.update(self._waiting)
        try:
            with memoryview(self._waiting) as left:
                written = 0
                while written < len(left):
                    written += self._file.write(left[written:])
        except OSError as error:
            error.filename = str(self.path)
            raise
        self._waiting.clear()

    def finish(self, samples: int, items: int, repeated_bytes: int = 0, checksums: Sequence[int] = ()) -> TarSummary:
        """Ends the archive and brings it to disk."""
        self.copy(bytes(2 * tarfile.BLOCKSIZE))
        self._write()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            error.filename = str(self.path)
            raise
        self._file.close()
        return TarSummary(samples, items, self.position, self._hash.hexdigest(), repeated_bytes, checksums)

    def close(self) -> None:
        """Lets go of the file, finished or not."""
        # on a full disk closing may raise again and hide the first error
        with contextlib.suppress(OSError):
            self._file.close()

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Blocks:
    """Where the members of some items stand in the items tars: [N] arrays by position, not by row."""

    rows: np.ndarray
    """Catalogue rows, ascending."""
    tars: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def take(self, rows: np.ndarray) -> Blocks:
        """The blocks of `rows` (ascending) alone."""
        at = np.searchsorted(self.rows, rows)
        return Blocks(rows, self.tars[at], self.offsets[at], self.sizes[at])


@dataclass(frozen=True)
class TrainTarPlan:
    """The content of one train tar, small enough to send to a writer process."""

    path: Path
    item_tars: list[Path]
    blocks: Blocks
    """Of every item that occurs here."""
    users: np.ndarray
    """[U] user numbers."""
    user_ids: list[str]
    starts: np.ndarray
    """[U + 1]: user u's interactions are [starts[u], starts[u + 1])."""
    rows: np.ndarray
    times: np.ndarray


def write_train_tar(plan: TrainTarPlan) -> TarSummary:
    """Writes a train tar: users in order, each item once, right before the first user that needs it."""
    blocks = plan.blocks
    places = np.searchsorted(blocks.rows, plan.rows)
    fresh = np.zeros(len(places), dtype=bool)
    fresh[np.unique(places, return_index=True)[1]] = True
    repeated_bytes = int(blocks.sizes[places[~fresh]].sum())
    new = iter(zip(*(column[places[fresh]].tolist() for column in (blocks.tars, blocks.offsets, blocks.sizes))))
    num_new = np.add.reduceat(fresh, plan.starts[:-1], dtype=np.int64).tolist()
    rows, times, starts = plan.rows.tolist(), plan.times.tolist(), plan.starts.tolist()
    sources = [os.open(path, os.O_RDONLY) for path in plan.item_tars]
    checksums = array("I")
    try:
        with TarWriter(plan.path) as tar:
            for number, (user, user_id) in enumerate(zip(plan.users.tolist(), plan.user_ids)):
                for source, offset, size in islice(new, num_new[number]):
                    tar.copy(os.pread(sources[source], size, offset))
                own = slice(starts[number], starts[number + 1])
                value = {"user": user, "id": user_id, "items": rows[own], "times": times[own]}
                data = to_json(value)
                checksums.append(zlib.crc32(data))
                tar.add(f"{user_key(user)}.json", data)
            return tar.finish(len(plan.users), len(blocks.rows), repeated_bytes, checksums)
    finally:
        for source in sources:
            os.close(source)

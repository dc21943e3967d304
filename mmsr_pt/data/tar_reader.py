"""Random access into the train tars on disk: one pass over a tar's headers says where its users and pictures stand.

A tar can be streamed in one pass, as every item stands before its first user. But lanes begin inside tars, come back to
an item that an earlier user brought along, and shuffle: with the places known, all of that costs a read of just the
bytes wanted, and no bytes wait in memory.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator
from tarfile import BLOCKSIZE
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from mmsr_pt.log import UserError

_WINDOW = 256 * 1024  # bytes read at once: headers stand close together
_NAME_END = 100
_SIZE = slice(124, 135)
_KEY = slice(1, 9)


class TarReader:
    """The users and pictures of one train tar."""

    def __init__(self, path: str, with_pictures: bool) -> None:
        """Reads the headers; raises UserError when the file is no tar. `with_pictures`: note their places too."""
        self._path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115, PTH123 (stays open as long as this object lives)
        users, pictures = (array("q"), array("q")), (array("q"), array("q"), array("q"))
        for name, offset, size in self._members():
            if name[:1] == b"u":
                users[0].append(offset)
                users[1].append(size)
            elif with_pictures and name.endswith(b".jpg"):
                for numbers, value in zip(pictures, (int(name[_KEY]), offset, size)):
                    numbers.append(value)
        self._users = users
        rows = np.asarray(pictures[0], dtype=np.uint32)
        order = np.argsort(rows)
        self._rows = rows[order]
        self._offsets = np.asarray(pictures[1], dtype=np.int64)[order]
        self._sizes = np.asarray(pictures[2], dtype=np.uint32)[order]

    def __len__(self) -> int:
        """Users."""
        return len(self._users[0])

    def user(self, position: int) -> dict[str, Any]:
        """The JSON of the user that comes `position` users after the first."""
        offsets, sizes = self._users
        return json.loads(self._read(offsets[position], sizes[position]))

    def picture(self, row: int) -> bytes:
        """The JPEG of an item that one of the users here has."""
        place = int(np.searchsorted(self._rows, row))
        return self._read(int(self._offsets[place]), int(self._sizes[place]))

    def _read(self, offset: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, offset)

    def _members(self) -> Iterator[tuple[bytes, int, int]]:
        """Name, offset of the data and size of every member."""
        position, begin, window = 0, 0, b""
        while True:
            if position + BLOCKSIZE > begin + len(window):
                begin, window = position, self._read(position, _WINDOW)
            header = window[position - begin : position - begin + BLOCKSIZE]
            if len(header) < BLOCKSIZE or header[0] == 0:  # cut short (which the number of users shows), or the end
                return
            try:
                size = int(header[_SIZE], 8)
            except ValueError:
                raise UserError(
                    f"{self._path} is damaged at byte {position}: copy the domain again, or build it again with "
                    "--overwrite"
                ) from None
            yield header[: header.index(0, 0, _NAME_END)], position + BLOCKSIZE, size
            position += BLOCKSIZE + -(-size // BLOCKSIZE) * BLOCKSIZE


class OpenTars:
    """The tars that somebody reads at the moment, each opened once however many lanes are in it."""

    def __init__(self, with_pictures: bool) -> None:
        self._with_pictures = with_pictures
        self._open: WeakValueDictionary[str, TarReader] = WeakValueDictionary()

    def __call__(self, path: str, num_users: int) -> TarReader:
        """The reader of a tar of which `num_users` are wanted; it stays open while the caller holds it.

        Raises:
            UserError: the tar has fewer, or is damaged.
        """
        reader = self._open.get(path)
        if reader is None:
            reader = self._open[path] = TarReader(path, self._with_pictures)
        if len(reader) < num_users:
            raise UserError(
                f"{path} ends after {len(reader)} users, its manifest promises {num_users} or more: the tar is cut "
                "short; build the domain again"
            )
        return reader

"""Random access into the train tars on disk: one pass over a tar's headers says where its users and pictures stand.

A tar can be streamed in one pass, as every item stands before its first user. But lanes begin inside tars, come back to
an item that an earlier user brought along, and shuffle: with the places known, all of that costs a read of just the
bytes wanted, and no bytes wait in memory.

Nothing is unpacked, so no member's name or link leads anywhere. A header that is damaged costs its own member: the
reader goes on at the next one that is whole.
"""

from __future__ import annotations

import os
import re
import zlib
from array import array
from collections.abc import Iterator
from tarfile import BLOCKSIZE
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from mmsr_pt.data.domain import TrainTar
from mmsr_pt.data.unreadable import Unreadable, check, parse_user, read_exactly
from mmsr_pt.log import UserError

_WINDOW = 256 * 1024  # bytes read at once: headers stand close together
_SIZE, _CHECKSUM, _KIND, _MAGIC = slice(124, 136), slice(148, 156), 156, 257
_NAME, _PREFIX = slice(0, 100), 345
_OCTAL = re.compile(rb"[0-7]+")
_USER = re.compile(rb"u([0-9]{8,10})\.json")
_PICTURE = re.compile(rb"i([0-9]{8,10})\.jpg")
_FILE, _WITHOUT_DATA = b"0\0", b"123456"  # kinds of members: links, devices and directories have no data
_SUMS = 65521  # adler32 adds bytes up modulo this
_TWICE = -2
_ABSENT = -1


class TarReader:
    """The users and pictures of one train tar."""

    def __init__(self, path: str, with_pictures: bool, own: TrainTar | None = None) -> None:
        """Reads the headers; raises UserError when the file is no tar.

        Args:
            path: of the file.
            with_pictures: note their places too.
            own: says which users are to be there, and what their bytes add up to.
        """
        self.path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115, PTH123 (stays open as long as this object lives)
        self._length = os.fstat(self._file.fileno()).st_size
        users, pictures = (array("q"), array("q"), array("q")), (array("q"), array("q"), array("q"))
        is_tar = False
        for name, offset, size in self._members():
            is_tar = True
            found = _USER.fullmatch(name)
            numbers = users
            if found is None and with_pictures:
                found, numbers = _PICTURE.fullmatch(name), pictures
            if found is not None:
                for column, value in zip(numbers, (int(found[1]), offset, size)):
                    column.append(value)
        if not is_tar:
            raise UserError(f"{path} is damaged at byte 0: copy the domain again, or build it again with --overwrite")
        self._numbers, *self._users = (np.asarray(column, dtype=np.int64) for column in users)
        self._expected = self._numbers if own is None or own.users is None else own.users
        self._checksums = None if own is None else own.checksums
        self._at = _places(self._numbers, self._expected)
        rows = np.asarray(pictures[0], dtype=np.int64)
        order = np.argsort(rows, kind="stable")
        self._rows = rows[order].astype(np.uint32)
        self._offsets = np.asarray(pictures[1], dtype=np.int64)[order]
        self._sizes = np.asarray(pictures[2], dtype=np.int64)[order]

    def __len__(self) -> int:
        """Users that are to be here."""
        return len(self._expected)

    @property
    def rows(self) -> np.ndarray:
        """[n] the items whose pictures are here, ascending."""
        return np.unique(self._rows)

    def number(self, position: int) -> int:
        """The number of the user that comes `position` users after the first."""
        return int(self._expected[position])

    def user(self, position: int) -> dict[str, Any]:
        """The JSON of the user that comes `position` users after the first; raises Unreadable where it is none."""
        at, number = int(self._at[position]), self.number(position)
        if at < 0:
            raise Unreadable("it is missing" if at == _ABSENT else "it stands there twice")
        offsets, sizes = self._users
        data = self._read(int(offsets[at]), int(sizes[at]))
        check(data, None if self._checksums is None else int(self._checksums[position]))
        value = parse_user(data)
        if value["user"] != number:
            raise Unreadable(f"its JSON is that of user {value['user']}")
        return value

    def picture(self, row: int) -> bytes:
        """The JPEG of an item that one of the users here has; raises Unreadable where there is none, or two."""
        place = int(np.searchsorted(self._rows, row))
        if place == len(self._rows) or self._rows[place] != row:
            raise Unreadable("its picture is missing")
        if place + 1 < len(self._rows) and self._rows[place + 1] == row:
            raise Unreadable("its picture stands there twice")
        return self._read(int(self._offsets[place]), int(self._sizes[place]))

    def _read(self, offset: int, size: int) -> bytes:
        return read_exactly(self._file.fileno(), offset, size)

    def _members(self) -> Iterator[tuple[bytes, int, int]]:
        """Name, offset of the data and size of every file in the tar; a name that cannot be a key of ours is empty."""
        position, begin, window = 0, 0, b""
        while True:
            if position + BLOCKSIZE > begin + len(window):
                begin, window = position, os.pread(self._file.fileno(), _WINDOW, position)
            header = window[position - begin : position - begin + BLOCKSIZE]
            if len(header) < BLOCKSIZE:  # the end, or cut short
                return
            size = _size_of(header)
            if size is None or position + BLOCKSIZE + size > self._length:
                # the end too, or damaged
                position = self._next_header(position + BLOCKSIZE)
                continue
            kind = header[_KIND]
            if kind in _FILE:
                yield b"" if header[_PREFIX] else header[_NAME].rstrip(b"\0"), position + BLOCKSIZE, size
            position += BLOCKSIZE + (0 if kind in _WITHOUT_DATA else -(-size // BLOCKSIZE) * BLOCKSIZE)

    def _next_header(self, position: int) -> int:
        """Where, from a block's start on, the next whole header stands; the end of the file if none does."""
        while position < self._length:
            window = os.pread(self._file.fileno(), _WINDOW, position)
            found = window.find(b"ustar")
            while found >= 0:
                start = found - _MAGIC
                if start >= 0 and start % BLOCKSIZE == 0 and _size_of(window[start : start + BLOCKSIZE]) is not None:
                    return position + start
                found = window.find(b"ustar", found + 1)
            position += max(len(window) // BLOCKSIZE, 1) * BLOCKSIZE
        return self._length


def _size_of(header: bytes) -> int | None:
    """The size that a member's header states; None where the header is damaged, or empty."""
    stated, size = header[_CHECKSUM].strip(b" \0"), header[_SIZE].strip(b" \0")
    if len(header) < BLOCKSIZE or not _OCTAL.fullmatch(stated) or not _OCTAL.fullmatch(size):
        return None
    # the checksum is the sum of all bytes, where its own eight count as spaces
    total = int(stated, 8) + sum(header[_CHECKSUM]) - 8 * ord(" ")
    return int(size, 8) if zlib.adler32(header) % 2**16 == (1 + total) % _SUMS else None


def _places(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """[n] int64: where each expected user stands among those found, or _ABSENT, or _TWICE."""
    order = np.argsort(found, kind="stable")
    ordered = found[order]
    first = np.searchsorted(ordered, expected)
    count = np.searchsorted(ordered, expected, side="right") - first
    places = np.full(len(expected), _ABSENT, dtype=np.int64)
    places[count == 1] = order[first[count == 1]]
    places[count > 1] = _TWICE
    return places


class OpenTars:
    """The tars that somebody reads at the moment, each opened once however many lanes are in it."""

    def __init__(self, with_pictures: bool) -> None:
        self._with_pictures = with_pictures
        self._open: WeakValueDictionary[str, TarReader] = WeakValueDictionary()

    def __call__(self, path: str, num_users: int, own: TrainTar | None = None) -> TarReader:
        """The reader of a tar of which `num_users` are wanted; it stays open while the caller holds it.

        Raises:
            UserError: the tar has fewer, or is none.
        """
        reader = self._open.get(path)
        if reader is None:
            reader = self._open[path] = TarReader(path, self._with_pictures, own)
        if len(reader) < num_users:
            raise UserError(
                f"{path} ends after {len(reader)} users, its manifest promises {num_users} or more: the tar is cut "
                "short; build the domain again"
            )
        return reader

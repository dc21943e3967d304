"""What makes a sample of a shard unreadable, and the checks that find it."""

from __future__ import annotations

import json
import os
import zlib
from typing import Any

import numpy as np

MAX_BYTES = 64 * 2**20
"""Of a picture, or of a user's JSON: a damaged size must not take all memory."""
_LONGEST_REASON = 200


class Unreadable(OSError):  # noqa: N818
    """A sample that cannot be used; what it says is the reason."""


def read_exactly(file: int, offset: int, size: int) -> bytes:
    """The bytes at [offset, offset + size) of an open file; raises Unreadable where they are not there."""
    if not 0 < size <= MAX_BYTES or offset < 0:
        raise Unreadable(f"{size} bytes at {offset}, 1 to {MAX_BYTES} are allowed")
    data = os.pread(file, size, offset)
    if len(data) < size:
        raise Unreadable(f"the file ends {size - len(data)} bytes before it does")
    return data


def check(data: bytes, checksum: int | None) -> None:
    """Raises Unreadable where the bytes are not those that were written; None: the domain does not say."""
    if checksum is not None and zlib.crc32(data) != checksum:
        raise Unreadable("its bytes are not those that were written: the checksum differs")


def parse_user(data: bytes) -> dict[str, Any]:
    """A user's JSON: an object whose `user` is a number and whose `items` are rows; raises Unreadable otherwise."""
    try:
        value = _decoder.decode(data.decode())
        user, items = value["user"], value["items"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Unreadable(f"no user's JSON: {why(error)}") from error
    numbers = [user, *items] if isinstance(items, list) else [None]
    # a float or a bool would pass as a row
    if not items or any(type(number) is not int or not 0 <= number < 2**31 for number in numbers):
        raise Unreadable("no user's JSON: `user` and `items` are to be numbers of a user and of items")
    return value


def rows_of(value: dict[str, Any], num_items: int) -> np.ndarray:
    """[n] int64: the rows of a user from `parse_user`; raises Unreadable where the catalogue has no such rows."""
    rows = np.asarray(value["items"], dtype=np.int64)
    if rows.max() >= num_items:
        raise Unreadable(f"it has item {rows.max()}, the catalogue ends before {num_items}")
    return rows


def why(error: BaseException) -> str:
    """What a library says was wrong with a sample, on one line that a terminal can show."""
    said = f"{error}" if isinstance(error, Unreadable) else f"{type(error).__name__}: {error}"
    printable = said.encode("ascii", "backslashreplace").decode()
    return "".join(c if c.isprintable() else " " for c in printable[:_LONGEST_REASON])


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_refused)

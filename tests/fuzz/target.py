"""What is fuzzed: any bytes as a train tar, as members of one, as a user's JSON, as a picture.

The first byte says as which. Whatever the bytes are, the reader says that it cannot read them, or what it returns is
what it promises; nothing else is raised, and nothing takes long.
"""

import json
import os
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from mmsr_pt.batch import ImageSpec
from mmsr_pt.data.domain import TrainTar
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.data.tar_reader import TarReader
from mmsr_pt.data.unreadable import Unreadable, parse_user, rows_of, why
from mmsr_pt.log import UserError

KINDS = TAR, MEMBERS, USER, PICTURE = range(4)
NUM_ITEMS = 1000
READS = Preprocessor(None, ImageSpec(16, 16, "bilinear", (0.5,) * 3, (0.5,) * 3))
_FILE = Path(tempfile.mkdtemp(prefix="mmsr_pt_fuzz_")) / "any.tar"


def one_input(data: bytes) -> None:
    """Raises what is not to happen."""
    kind, data = data[:1], data[1:]
    if kind:
        _READ[kind[0] % len(KINDS)](data)


def _tar(data: bytes) -> None:
    _FILE.write_bytes(data)
    try:
        reader = TarReader(str(_FILE), with_pictures=True)
    except UserError:
        return
    for position in range(len(reader)):
        value = _or_unreadable(lambda position=position: reader.user(position))
        if value is not None:
            assert value["user"] == reader.number(position)
            _or_unreadable(lambda value=value: rows_of(value, NUM_ITEMS))
    for row in (*reader.rows.tolist()[:20], 0, 10**9):
        _or_unreadable(lambda row=row: reader.picture(row))
    # a reader that knows what is to be there returns that, or nothing
    expected = np.array([0, 1, 7], dtype=np.uint32)
    sums = np.array([zlib.crc32(b""), zlib.crc32(b"x"), zlib.crc32(data[:100])], dtype=np.uint32)
    knowing = TarReader(str(_FILE), with_pictures=False, own=TrainTar(_FILE, 3, None, expected, sums))
    assert len(knowing) == len(expected)
    for position in range(len(expected)):
        _or_unreadable(lambda position=position: knowing.user(position))


def _members(data: bytes) -> None:
    """As members with headers that are whole: name, size and kind from the bytes, and a right checksum."""
    _tar(b"".join(_member(*fields) for fields in _fields(data)) + bytes(1024))


def _fields(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(what the header says, text for it, the member's data)."""
    while len(data) > 3:
        flags, text, size = data[0], data[1], data[2]
        yield flags, data[3 : 3 + text % 32], data[3 + text % 32 : 3 + text % 32 + 4 * size]
        data = data[3 + text % 32 + 4 * size :]


def _member(flags: int, text: bytes, data: bytes) -> bytes:
    names = (b"u%08d.json" % (flags % 3), b"i%08d.jpg" % (flags % 5), text, b"u" + text)
    sizes = (b"%011o\0" % len(data), text[:12].ljust(12, b"\0"))
    kinds = b"0\0" + b"125xgLK7S"
    header = bytearray(512)
    header[:100] = names[flags % 4].ljust(100, b"\0")[:100]
    header[124:136] = sizes[flags // 16 % 8 == 7]
    header[156] = kinds[flags // 8 % len(kinds)] if flags // 4 % 2 else kinds[0]
    header[257:263] = b"ustar\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % 512)


def _user(data: bytes) -> None:
    value = _or_unreadable(lambda: parse_user(data))
    if value is None:
        return
    rows = _or_unreadable(lambda: rows_of(value, NUM_ITEMS))
    if rows is not None:
        assert rows.dtype == np.int64
        assert 0 <= rows.min() <= rows.max() < NUM_ITEMS
        assert json.loads(data)["items"] == rows.tolist()


def _picture(data: bytes) -> None:
    try:
        pixels = READS.decode_image(data)
    except MemoryError:
        raise
    except Exception:  # the caller lets any error pass as a bad sample
        return
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == torch.uint8


def _or_unreadable(read: Callable[[], object]):  # type: ignore[no-untyped-def]
    try:
        return read()
    except Unreadable as error:
        told = why(error)
    assert told.isprintable()
    return None


_READ = (_tar, _members, _user, _picture)


def seeds() -> list[bytes]:
    """An input of each kind that can be read, to begin with."""
    from tests.data.broken import picture

    user = b'{"user":0,"id":"a","items":[1,2,3],"times":[4,5,6]}'
    pictures = [
        picture(size=(20, 12)),
        picture("P", (9, 9), "PNG"),
        picture("CMYK", (9, 9)),
        picture("L", (9, 9), "GIF"),
    ]
    _FILE.unlink(missing_ok=True)
    with tarfile.open(_FILE, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (("i00000001.jpg", pictures[0]), ("u00000000.json", user), ("u00000001.json", user)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            with tempfile.TemporaryFile() as file:
                file.write(data)
                file.seek(0)
                tar.addfile(info, file)
    whole = _FILE.read_bytes()
    os.truncate(_FILE, 0)
    members = bytes([0, 0, len(user) // 4]) + user[: len(user) // 4 * 4] + bytes([255, 12, 1]) + b"-0000000512\0abcd"
    return [
        bytes([TAR]) + whole,
        bytes([MEMBERS]) + members,
        bytes([USER]) + user,
        *(bytes([PICTURE]) + data for data in pictures),
    ]

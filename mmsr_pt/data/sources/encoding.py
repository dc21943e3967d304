"""Tables as valid UTF-8, which is all that polars reads.

A file that is valid is left alone: looking costs one pass over its bytes. Any other is written anew, line by line, and
the log says what it was taken for and how many of its lines hold bytes that mean nothing in that encoding.
"""

from __future__ import annotations

import codecs
import logging
import re
import tempfile
from pathlib import Path

from mmsr_pt.log import UserError, naming_a_full_disk

log = logging.getLogger(__name__)

_CHUNK_BYTES = 4 * 2**20
_ABOVE_ASCII = bytes(range(128, 256))
_RUN_ABOVE_ASCII = re.compile(rb"[\x80-\xff]+")
_LOST = "\ufffd"
_BY_CHANCE = 0.1
"""At most this share of the lines of a file is valid, or broken, in an encoding that is not, or is, its own."""
_MOSTLY = 0.8
"""Of a text cut off within characters, at least this share of its bytes still makes up valid ones."""
# what UTF-16 files begin with: their line ends are two bytes, so nothing below would read them right
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def as_utf8(path: Path, scratch: Path) -> Path:
    """`path` itself where it is valid UTF-8, else a copy in `scratch` that is.

    Broken bytes become U+FFFD; the log counts the lines that had some.

    Raises:
        UserError: the file is UTF-16, or the disk is full.
    """
    if _is_utf8(path):
        return path
    encodings = guess_encodings(path)
    copy = Path(tempfile.mkdtemp(prefix="utf8-", dir=scratch)) / path.name
    with naming_a_full_disk(copy, "free some space, or set TMPDIR to a directory with more room"):
        num_broken, num_lost = _rewrite(path, encodings, copy)
    level = logging.WARNING if num_broken else logging.INFO
    log.log(
        level,
        "%s is not valid UTF-8: read as %s, %d of its lines with broken characters (%d, now U+FFFD); if that is wrong, "
        "convert it with iconv",
        path,
        " and ".join(encodings),
        num_broken,
        num_lost,
    )
    return copy


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        try:
            while chunk := file.read(_CHUNK_BYTES):
                # isascii is ten times as fast, and a log of interactions is nothing else; bytes held back are not
                if decoder.getstate()[0] or not chunk.isascii():
                    decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def guess_encodings(path: Path) -> tuple[str, ...]:
    """What the lines of a file that is not valid UTF-8 most likely are: the first of these that can read a line.

    utf-8 alone has broken bytes. gb18030 or cp1252 (Latin-1, with typographic quotes where that has control characters)
    stand alone or, in a file put together from several, behind utf-8. Bytes above ASCII stand mostly in groups in
    gb18030, as a Chinese character of GBK is two of them, and mostly alone among letters in cp1252.
    """
    valid_lines = other_lines = num_high = num_valid = num_runs = num_alone = 0
    with path.open("rb") as file:
        if file.read(2) in _UTF_16:
            raise UserError(f"{path} is UTF-16: convert it first, as by iconv -f UTF-16 -t UTF-8")
        file.seek(0)
        for line in file:
            if line.isascii():
                continue
            kept = _num_high(line.decode("utf-8", "ignore").encode())
            if kept == _num_high(line):
                valid_lines += 1
                continue
            other_lines += 1
            num_high += _num_high(line)
            num_valid += kept
            runs = _RUN_ABOVE_ASCII.findall(line)
            num_runs += len(runs)
            num_alone += sum(len(run) == 1 for run in runs)
    share = valid_lines / (valid_lines + other_lines)
    if share >= 1 - _BY_CHANCE or num_valid >= _MOSTLY * num_high:
        return ("utf-8",)
    other = "cp1252" if 2 * num_alone > num_runs else "gb18030"
    return (other,) if share <= _BY_CHANCE else ("utf-8", other)


def _num_high(line: bytes) -> int:
    return len(line) - len(line.translate(None, _ABOVE_ASCII))


def _rewrite(path: Path, encodings: tuple[str, ...], copy: Path) -> tuple[int, int]:
    """Writes `copy` in UTF-8; returns how many lines held broken bytes, and how many U+FFFD stand for them."""
    num_broken = num_lost = 0
    with path.open("rb") as source, copy.open("wb") as target:
        # a newline is no part of any character in these encodings, nor is a comma or a quote
        for line in source:
            text = _decoded(line, encodings)
            if text is None:
                text = line.decode(encodings[-1], "replace")
                num_broken += 1
                num_lost += text.count(_LOST)
            target.write(text.encode())
    return num_broken, num_lost


def _decoded(line: bytes, encodings: tuple[str, ...]) -> str | None:
    for encoding in encodings:
        try:
            return line.decode(encoding)
        except UnicodeDecodeError:
            continue
    return None

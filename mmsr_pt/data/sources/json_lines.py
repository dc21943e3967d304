"""Files of one JSON object a line, gzipped or not, read in pieces of bounded size.

Such a file may hold tens of millions of lines in tens of gigabytes, of which three fields are wanted. Whole lines are
taken out of it a few megabytes at a time; polars reads them without a Python object a line, and only where it finds
fault with a piece are the lines of that piece looked at one by one.
"""

from __future__ import annotations

import ast
import gzip
import io
import json
import logging
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl
from tqdm import tqdm

from mmsr_pt.data.shards.workers import progress
from mmsr_pt.log import UserError

log = logging.getLogger(__name__)

_PIECE_BYTES = 32 * 2**20
_LONGEST_LINE = 64 * 2**20


def read_pieces(path: Path, quiet: bool = False) -> Iterator[tuple[int, bytes]]:
    """Pieces of whole lines, each with the number of its first line, from 1; with a progress bar unless `quiet`.

    Raises:
        UserError: the file is cut off, damaged, or no gzip file in spite of its name.
    """
    first, rest = 1, b""
    with path.open("rb") as file, nullcontext() if quiet else _bytes_bar(path) as bar:
        stream: BinaryIO = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file  # type: ignore[assignment]
        while block := _read(stream, path):
            if bar is not None:
                bar.update(file.tell() - bar.n)
            end = block.rfind(b"\n") + 1
            if end:
                piece = rest + block[:end]
                yield first, piece
                first += piece.count(b"\n")
                rest = block[end:]
            elif len(rest) > _LONGEST_LINE:
                raise UserError(f"{path} is no file of one JSON object a line: line {first:,} does not end")
            else:
                rest += block
    if rest.strip():
        yield first, rest


def _bytes_bar(path: Path) -> tqdm:
    return progress(f"{path.name}, bytes", path.stat().st_size)


def _read(stream: BinaryIO, path: Path) -> bytes:
    try:
        return stream.read(_PIECE_BYTES)
    except EOFError as error:
        raise UserError(f"{path} is cut off: it ends in the middle, get it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path} is damaged or no gzip file ({error}): get it again, or take .gz off its name"
        ) from error


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The object that a line holds, as JSON or as a literal of Python; None where it is neither."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = _literal(line)
    return found if isinstance(found, dict) else None


def _literal(line: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's about "\d" in a literal, one a line
        try:
            # a literal is values only; eval, which the owners of such files advise, would run what a line says
            return ast.literal_eval(line.decode().strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return None


def read_objects(path: Path, quiet: bool = False) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Every line that is not blank, as its number and the object it holds, None where it holds none."""
    for first, piece in read_pieces(path, quiet):
        yield from _objects(first, piece)


def _objects(first: int, piece: bytes) -> Iterator[tuple[int, dict[str, Any] | None]]:
    for number, line in enumerate(piece.split(b"\n"), first):
        if line.strip():
            yield number, parse_line(line)


def read_columns(path: Path, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The wanted fields of all lines, as text, null where a line lacks them.

    A line that is no object is a row of nulls but for the last column, which says where it stands; so it is counted
    and named as a row without an id.
    """
    bad = []
    for first, piece in read_pieces(path):
        frame = _read_piece(piece, columns)
        if frame is None:
            rows = []
            for number, line in _objects(first, piece):
                if line is None:
                    bad.append(number)
                    rows.append((*[None] * (len(columns) - 1), place(path, number)))
                else:
                    rows.append(tuple(as_text(line.get(name)) for name in columns))
            frame = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")
        yield frame
    warn_of_bad_lines(path, bad)


def _read_piece(piece: bytes, columns: Sequence[str]) -> pl.DataFrame | None:
    """The fields, read by polars; None where it refuses a line or takes other lines than there are."""
    try:
        frame = pl.read_ndjson(io.BytesIO(piece), schema=dict.fromkeys(columns, pl.String))
    except pl.exceptions.PolarsError:
        return None
    return frame if frame.height == piece.count(b"\n") + (not piece.endswith(b"\n")) else None


def place(path: Path, number: int) -> str:
    """Where a line stands, for the examples of faults."""
    return f"line {number} of {path.name}"


def warn_of_bad_lines(path: Path, numbers: Sequence[int]) -> None:
    """Says once a file how many of its lines cannot be read."""
    if numbers:
        log.warning("%s: %d lines cannot be read, the first is line %d", path, len(numbers), numbers[0])


def as_text(value: object) -> str | None:
    """A text or a whole number as text that every encoder takes; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    # half a surrogate pair, as careless escaping leaves it, is no character: polars could not hold it
    return str(value).encode(errors="replace").decode()

"""Directories that appear under their name only when they are complete."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmsr_pt.data.domain import MANIFEST_FILE
from mmsr_pt.log import UserError

log = logging.getLogger(__name__)

_SPARE = 1.05  # of the estimated size, for what the estimate leaves out
_MEGABYTE = 1_000_000


def check_output(out: Path, overwrite: bool) -> None:
    """Raises UserError when `out` cannot become a domain directory; called before any long work."""
    if not out.exists():
        parent = next(p for p in out.absolute().parents if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UserError(f"cannot make {out}: {parent} is not a directory that you may write to")
        return
    if out.is_dir() and not any(out.iterdir()):
        return
    if not is_domain(out):
        raise UserError(f"{out} exists and is no domain: choose another --out, or move it away")
    if not overwrite:
        raise UserError(f"{out} already holds a domain: choose another --out, or replace it with --overwrite")


def is_domain(path: Path) -> bool:
    """Whether the directory has the manifest of a domain, of whatever format version."""
    try:
        return "format_version" in json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def check_space(directory: Path, num_bytes: int) -> None:
    """Raises UserError when `directory` cannot take another `num_bytes`."""
    free = shutil.disk_usage(directory).free
    needed = int(num_bytes * _SPARE)
    if needed > free:
        raise UserError(
            f"the domain needs about {needed // _MEGABYTE + 1:,} MB, the disk of {directory.parent} has "
            f"{free // _MEGABYTE:,} MB free: free some space or choose another --out"
        )


@contextmanager
def complete_directory(out: Path, overwrite: bool) -> Iterator[Path]:
    """A new directory that takes the name `out` when the block ends, and vanishes when it fails in any way."""
    check_output(out, overwrite)
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.parent / f".{out.name}.building-{os.getpid()}"
    replaced = out.parent / f".{out.name}.replaced-{os.getpid()}"
    for left in out.parent.glob(f".{out.name}.building-*"):
        log.warning("%s was left by a build that is still running or was killed; if none runs, delete it", left)
    building.mkdir()
    try:
        yield building
        sync_directory(building)
        check_output(out, overwrite)  # somebody else may have built there in the meantime
        if out.exists():
            # a directory cannot take the place of a filled one; for a moment there is none of that name
            out.rename(replaced)
        try:
            building.rename(out)
        except BaseException:
            if replaced.exists():
                replaced.rename(out)
            raise
        sync_directory(out.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def write_file(path: Path, data: bytes) -> None:
    """Writes a whole file and brings it to disk; an OSError names it."""
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)
        raise


def sync_directory(path: Path) -> None:
    """Brings the names in a directory, and in those below it, to disk."""
    for directory in (path, *(p for p in path.iterdir() if p.is_dir())):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

"""Domains with faults put in by hand, and a manifest that knows of them: what the builder itself might have written."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from mmsr_pt.data.domain import CHECKSUM, Domain

Member = tuple[tarfile.TarInfo, bytes]
Edit = Callable[[str, bytes], list[Member]]
"""Name and data of a member -> the members to put in its place."""


def copy_of(domain: Domain, out: Path, with_checksums: bool = True) -> Path:
    """A copy to break; without checksums as an earlier version built it."""
    shutil.copytree(domain.path, out)
    if not with_checksums:
        for name in ("items.parquet", "eval.parquet"):
            pl.read_parquet(out / name).drop(CHECKSUM).write_parquet(out / name)
    return out


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE, link: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


def edit_tar(root: Path, tar: str, edit: Edit) -> None:
    """Writes a tar of a domain again, `edit` deciding on each member, and has manifest and catalogue agree with it."""
    places: dict[str, tuple[int, int]] = {}
    written = io.BytesIO()
    with tarfile.open(root / tar) as old, tarfile.open(fileobj=written, mode="w", format=tarfile.USTAR_FORMAT) as new:
        for info in old:
            for changed, data in edit(info.name, old.extractfile(info).read()):  # type: ignore[union-attr]
                new.addfile(changed, io.BytesIO(data))
                places[changed.name] = (new.offset - -(-len(data) // 512) * 512, len(data))
    (root / tar).write_bytes(written.getvalue())
    if tar.startswith("items/"):
        items = pl.read_parquet(root / "items.parquet")
        moved = [
            places.get(f"i{row:08d}.jpg", (0, 0)) if own == tar else (offset, size)
            for row, own, offset, size in items.select("row", "tar", "offset", "size").iter_rows()
        ]
        columns = zip(("offset", "size"), zip(*moved))
        items.with_columns(pl.Series(name, values, dtype=items[name].dtype) for name, values in columns).write_parquet(
            root / "items.parquet"
        )
    reseal(root)


def reseal(root: Path) -> None:
    """Has the manifest say what the files are like now."""
    meta = json.loads((root / "domain.json").read_text())
    for entry in meta["tars"]:
        data = (root / entry["path"]).read_bytes()
        entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    for name in meta["files"]:
        meta["files"][name] = hashlib.sha256((root / name).read_bytes()).hexdigest()
    (root / "domain.json").write_text(json.dumps(meta))


def replace_member(root: Path, tar: str, name: str, *new: Member) -> None:
    """Puts other members, or none, in the place of one."""
    edit_tar(root, tar, lambda found, data: list(new) if found == name else [member(found, data)])


def tars_with(root: Path, name: str) -> list[str]:
    """The tars of a domain that have a member of that name."""
    found = []
    for path in sorted([*root.glob("items/*.tar"), *root.glob("train/*.tar")]):
        with tarfile.open(path) as archive:
            if name in archive.getnames():
                found.append(path.relative_to(root).as_posix())
    return found


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flips a bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def picture(mode: str = "RGB", size: tuple[int, int] = (90, 60), kind: str = "JPEG", **how: object) -> bytes:
    """A picture file whose left half is dark and right half bright."""
    values = Image.new("L", size, 30)
    values.paste(220, (size[0] // 2, 0, *size))
    shown = Image.fromarray(np.asarray(values).astype(np.uint16) * 257) if mode == "I;16" else values.convert(mode)
    file = io.BytesIO()
    shown.save(file, kind, **how)
    return file.getvalue()

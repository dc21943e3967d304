"""Looks at every byte of a domain, and names the users, items and caches that are not as they were written."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmsr_pt.data.activations import LAYOUT_FILE, ActivationStore
from mmsr_pt.data.domain import IMAGE, MANIFEST_FILE, Domain, TrainTar, file_sha256, inside
from mmsr_pt.data.shards.tars import item_key, user_key
from mmsr_pt.data.tar_reader import TarReader
from mmsr_pt.data.unreadable import rows_of, why
from mmsr_pt.log import UserError


def files_of(directory: Path) -> dict[str, str]:
    """sha256 of each file of a domain by its name, as the manifest has it; raises UserError where there is none."""
    meta = _manifest(directory)
    return {**meta.get("files", {}), **{entry["path"]: entry["sha256"] for entry in meta["tars"]}}


def damages(directory: Path, watch: Callable[[str], object] = lambda name: None) -> Iterator[str]:
    """What of a domain is not as it was written, a line each: the file, and which of its samples.

    Args:
        directory: of the domain.
        watch: is told the name of each file once it has been looked at.

    Raises:
        UserError: there is no manifest to compare with.
    """
    wrong = []
    for name, sha256 in files_of(directory).items():
        if file_sha256(inside(directory, name)) != sha256:
            wrong.append(name)
            yield f"{name} ({'other bytes than were written' if (directory / name).is_file() else 'missing'})"
        watch(name)
    tables = [name for name in wrong if not name.endswith(".tar")]
    if wrong and not tables:  # the tables say what is to be in the tars
        yield from _samples(Domain(directory, _manifest(directory)), wrong)
    for layout in sorted((directory / "cache").glob(f"*/{LAYOUT_FILE}")):
        name = layout.parent.relative_to(directory).as_posix()
        try:
            yield from (f"{name}/{place}" for place in ActivationStore(layout.parent).damages())
        except UserError as error:
            yield f"{name} ({error})"
        watch(name)


def _manifest(directory: Path) -> dict[str, Any]:
    file = directory / MANIFEST_FILE
    if not file.is_file():
        raise UserError(f"{directory} is no domain directory (it has no {MANIFEST_FILE}): build it again")
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        assert meta["tars"]
    except (ValueError, KeyError, TypeError, AssertionError):
        raise UserError(f"{file} cannot be read: build the domain again with --overwrite") from None
    return meta


def _samples(domain: Domain, tars: Sequence[str]) -> Iterator[str]:
    """The users and pictures that the damage in these tars has met."""
    train = {tar.path: tar for tar in domain.train_tars}
    for name in tars:
        path = domain.path / name
        if not path.is_file():
            continue
        if path in train:
            yield from (f"{name}: {found}" for found in _of_train_tar(domain, train[path]))
        elif IMAGE in domain.modalities:
            rows = np.flatnonzero(domain.items["tar"].to_numpy() == name).tolist()
            yield from (f"{name}: {found}" for found in _of_pictures(domain, rows, domain.read_image))


def _of_train_tar(domain: Domain, tar: TrainTar) -> Iterator[str]:
    try:
        reader = TarReader(str(tar.path), IMAGE in domain.modalities, tar)
    except UserError as error:
        yield str(error)
        return
    for position in range(len(reader)):
        try:
            rows_of(reader.user(position), domain.num_items)
        except OSError as error:
            yield f"{user_key(reader.number(position))} ({why(error)})"
    yield from _of_pictures(domain, reader.rows.tolist(), reader.picture)


def _of_pictures(domain: Domain, rows: Sequence[int], read: Callable[[int], bytes]) -> Iterator[str]:
    for row in rows:
        try:
            data = read(row)
            domain.check_picture(row, data)
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
        except Exception as error:  # decoders of damaged files raise nearly anything
            yield f"{item_key(row)} ({why(error)})"

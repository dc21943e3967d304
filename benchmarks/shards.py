"""Contestants that only add up: bytes of the train tars as they are, and with a copy of every item per occurrence."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator

from mmsr_pt.data.domain import Domain

_BLOCK = 512
"""Bytes a tar's header takes, and the multiple to which a member's bytes are filled up."""


class Stored:
    """The train tars of a domain."""

    def __init__(self, domain: str) -> None:
        """Opens its manifest."""
        self._domain = Domain.load(domain)

    def run(self) -> dict[str, float]:
        """Returns: bytes."""
        return {"bytes": float(sum(tar["bytes"] for tar in self._domain.meta["tars"] if tar["kind"] == "train"))}


class PerOccurrence(Stored):
    """The same sequences where each position brings its picture and its title along."""

    def run(self) -> dict[str, float]:
        """Returns: bytes; the members are those of the tars, each as often as a sequence needs it."""
        total = 0
        for tar in self._domain.train_tars:
            items: dict[str, int] = {}
            for name, content in _members(tar.path):
                key, _, kind = name.partition(".")
                if key.startswith("i"):
                    items[key] = items.get(key, 0) + _stored(len(content))
                elif kind == "json":
                    total += _stored(len(content))
                    total += sum(items[f"i{row:08d}"] for row in json.loads(content)["items"])
        return {"bytes": float(total)}


def _members(path: object) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(str(path)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            yield member.name, (file or io.BytesIO()).read()


def _stored(size: int) -> int:
    return _BLOCK + -(-size // _BLOCK) * _BLOCK

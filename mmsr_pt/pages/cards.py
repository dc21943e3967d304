"""Items as pages show them: picture, title and a line below."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from PIL import Image

from mmsr_pt.data.domain import COLD_BELOW, IMAGE, Domain
from mmsr_pt.data.thumbnails import as_jpeg, thumbnail

THUMBNAIL = 160
"""Longer side in pixels: sharp at the 112 of the page on most screens."""


@dataclass(frozen=True)
class Card:
    """An item as a page shows it."""

    item_id: str
    title: str
    """Empty where there is none."""
    picture: str | None
    """A data URI; None where there is none, or none that can be read."""
    note: str = ""
    """Below the title."""
    is_hit: bool = False
    """Whether it is the held-out item of the user for whom it stands here."""


class Shelf:
    """The items of a domain as cards; each picture is made small once."""

    def __init__(self, domain: Domain) -> None:
        self._domain, self._titles, self._counts = domain, domain.titles(), domain.train_count()
        self._ids = domain.items["item_id"]
        self._pictures: dict[int, str | None] = {}

    def card(self, row: int, target: int | None = None, note: str | None = None) -> Card:
        """The card of an item.

        Args:
            row: of the item.
            target: of the held-out item, if the card stands for one's hit.
            note: none given: how often the item occurs in training.
        """
        if row not in self._pictures:
            picture = thumbnail(self._domain, row, THUMBNAIL) if IMAGE in self._domain.modalities else None
            self._pictures[row] = None if picture is None else as_jpeg_uri(picture)
        count = int(self._counts[row])
        said = f"{count} in training{', cold' if count < COLD_BELOW else ''}" if note is None else note
        return Card(self._ids[row], self._titles[row], self._pictures[row], said, row == target)


def as_jpeg_uri(picture: Image.Image) -> str:
    """A picture as what may stand in `src`."""
    return data_uri("image/jpeg", as_jpeg(picture))


def data_uri(kind: str, content: bytes) -> str:
    """Bytes as what may stand in `src`."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

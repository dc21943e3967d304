"""What the service takes and gives, as its OpenAPI description shows it."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmsr_pt.data.raw_items import ID, IMAGE, TITLE
from mmsr_pt.histories import HistoryItem
from mmsr_pt.log import UserError

MAX_TITLE = 2_000
MAX_ID = 500
MAX_HISTORY = 1_000
MAX_TOP_K = 1_000


class Item(BaseModel):
    """An item of the catalogue by its id, or any item by its content."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(max_length=MAX_ID)] | None = None
    """Of the catalogue; with content beside it, only kept from being recommended again."""
    title: Annotated[str, Field(max_length=MAX_TITLE)] | None = None
    image: str | None = None
    """A picture file (JPEG, PNG, WebP, ...) in base64."""

    @model_validator(mode="after")
    def _says_something(self) -> Item:
        if self.id is None and self.title is None and self.image is None:
            raise ValueError("an item needs an id, or a title and an image as the model reads them")
        return self

    def as_history_item(self) -> HistoryItem:
        """What MMSRModel takes; raises UserError where `image` is no base64."""
        if self.title is None and self.image is None:
            assert self.id is not None
            return self.id
        item: dict[str, object] = {}
        if self.id is not None:
            item[ID] = self.id
        if self.title is not None:
            item[TITLE] = self.title
        if self.image is not None:
            try:
                item[IMAGE] = base64.b64decode(self.image, validate=True)
            except (binascii.Error, ValueError) as error:
                raise UserError("an image is not base64: encode the bytes of the picture file") from error
        return item


class RecommendRequest(BaseModel):
    """A history, and how many items are wanted."""

    model_config = ConfigDict(extra="forbid")

    history: Annotated[list[Item], Field(min_length=1, max_length=MAX_HISTORY)]
    """Oldest first; the model reads the newest ones."""
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] = 10


class SimilarRequest(BaseModel):
    """An item, and how many like it are wanted."""

    model_config = ConfigDict(extra="forbid")

    item: Item
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K)] = 10


class ScoredItem(BaseModel):
    """One recommended item."""

    rank: int
    id: str
    title: str
    score: float


class Answer(BaseModel):
    """Items, best first."""

    items: list[ScoredItem]


class Health(BaseModel):
    """What is being served."""

    status: str
    model: str
    """Fingerprint."""
    items: int
    search: str
    """exact or faiss."""

"""Faults of a raw dataset: each kind counted and named, or the first one an error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mmsr_pt.log import UserError

MAX_EXAMPLES = 5

KINDS = {
    "missing_id": "rows without a user or item id, dropped",
    "unparsable_time": "interactions whose time cannot be read, dropped",
    "unknown_item": "interactions with an item that the items table lacks, dropped",
    "duplicate_interaction": "rows that repeat user, item and time, dropped",
    "duplicate_item": "items listed again, first one kept",
    "empty_title": "items without a title, dropped",
    "missing_image": "items without a picture file, dropped",
    "unreadable_image": "items whose picture cannot be decoded, dropped",
    "item_dropped": "interactions with one of the dropped items, dropped",
}
"""What each kind means and what becomes of it."""


class Problems:
    """Counts faults by kind and keeps a few examples of each."""

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self._counts: dict[str, int] = {}
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, count: int, examples: Iterable[str]) -> None:
        """Notes `count` faults of a kind.

        Raises:
            UserError: there is one, and the build is strict.
        """
        assert kind in KINDS, kind
        if not count:
            return
        kept = self._examples.setdefault(kind, [])
        kept.extend(list(examples)[: MAX_EXAMPLES - len(kept)])
        self._counts[kind] = self._counts.get(kind, 0) + count
        if self._strict:
            raise UserError(
                f"{kind}: {kept[0]} ({count:,} of this kind; without --strict: {KINDS[kind]}); mend the data or "
                "leave out --strict"
            )

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """For the manifest: kind -> count and examples, in the order of KINDS."""
        return {
            kind: {"count": self._counts[kind], "examples": self._examples[kind]}
            for kind in KINDS
            if kind in self._counts
        }

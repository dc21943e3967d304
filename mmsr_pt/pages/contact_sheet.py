"""Recommendations as one page: the history and what follows from it, with pictures.

mmsr-pt recommend --model runs/mine --data data/mine --user U --out page.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmsr_pt.catalogue_index import CatalogueIndex
from mmsr_pt.data.domain import Domain
from mmsr_pt.pages.cards import Card, Shelf
from mmsr_pt.pages.render import render
from mmsr_pt.recommend import Recommendation


@dataclass(frozen=True)
class ContactSheet:
    """What the page shows."""

    title: str
    model: str
    """Where it comes from."""
    history: list[Card]
    """What the model reads, oldest first."""
    num_older: int
    """Items before those, which it does not read."""
    recommended: list[Card]
    """Best first."""


def contact_sheet(
    title: str,
    model: str,
    max_history: int,
    catalogue: CatalogueIndex,
    domain: Domain | None,
    history: Sequence[str],
    found: Sequence[Recommendation],
) -> str:
    """The page as HTML.

    Args:
        title: of the page.
        model: where it comes from.
        max_history: newest items that it reads.
        catalogue: whose items.
        domain: the same items with their pictures; None: there are none at hand.
        history: item ids, oldest first.
        found: what was recommended.
    """
    shelf = None if domain is None else Shelf(domain)

    def card(row: int, note: str | None = None) -> Card:
        if shelf is not None:
            return shelf.card(row, note=note)
        item_id, item_title = catalogue.items.row(row)
        return Card(item_id, item_title or "", None, note or "")

    read = [card(catalogue.row(item_id)) for item_id in history[-max_history:]]
    offered = [card(item.row, f"score {item.score:.3f}") for item in found]
    return render("contact_sheet.html", ContactSheet(title, model, read, len(history) - len(read), offered))

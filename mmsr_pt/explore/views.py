"""The parts of the explorer's page as HTML: each is the answer to one question, with pictures.

Whatever is clicked is a button with `data-action` (add, remove, similar), `data-row` and `data-place`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mmsr_pt.data.domain import COLD_BELOW
from mmsr_pt.explore.exhibit import Exhibit
from mmsr_pt.explore.questions import DEPTHS, ColdPlaces, cold_places, ranks_of, recommended, similar
from mmsr_pt.pages.cards import data_uri
from mmsr_pt.pages.render import render
from mmsr_pt.recommend import Recommendation

TOP_K = 10
NO_HISTORY = "The history is empty: choose a user, or click pictures of the catalogue."


@dataclass(frozen=True)
class Tile:
    """An item as the page shows it."""

    row: int
    title: str
    picture: str | None
    """A data URI; None where there is none."""
    note: str = ""
    is_cold: bool = False
    is_hit: bool = False
    """Whether it is what the user took next."""
    rank: str = ""


@dataclass(frozen=True)
class Group:
    """One column."""

    name: str
    tiles: list[Tile]
    note: str = ""


@dataclass(frozen=True)
class ColdRow:
    """Where one ranking puts cold items, as a row of the table."""

    name: str
    bars: list[float]
    """Heights in percent of the highest bar of all rows."""
    spoken: str
    """The bars in words."""
    median: str
    shares: list[str]


def header(exhibit: Exhibit) -> str:
    """What is shown here."""
    models: dict[str, list[str]] = {}
    for name, shown in exhibit.models.items():
        trained_on = ", ".join(entry["name"] for entry in shown.model.recommender.trained_on)
        models.setdefault(trained_on or "nothing that was recorded", []).append(name)
    cold = f"{int(exhibit.is_cold.sum()):,} of them cold, fewer than {COLD_BELOW} times in training"
    counts = f"{len(exhibit.items):,} items, {cold}"
    return render("explore.html", {"part": "head", "domain": exhibit.domain, "counts": counts, "models": models})


def history_page(exhibit: Exhibit, history: Sequence[int], target: int | None) -> str:
    """What is taken out by a click, newest first, and what came next; None: not known."""
    tiles = [(place, _tile(exhibit, row)) for place, row in enumerate(history)]
    reads = sorted({shown.model.recommender.config.max_history for shown in exhibit.models.values()})
    said = f"The models read the newest {' or '.join(map(str, reads))} items of it."
    if not reads or len(history) <= reads[0]:
        said = "" if history else NO_HISTORY
    after = None if target is None else _tile(exhibit, target)
    return render("explore.html", {"part": "history", "tiles": tiles[::-1], "said": said, "after": after})


def catalogue_page(exhibit: Exhibit, rows: Sequence[int]) -> str:
    """A piece of the catalogue; a click adds to the history."""
    return render("explore.html", {"part": "catalogue", "tiles": [_tile(exhibit, row) for row in rows]})


def recommended_page(exhibit: Exhibit, scores: Mapping[str, Tensor], history: Sequence[int], target: int | None) -> str:
    """What each model and popularity recommend, side by side; empty scores: there is no history.

    Args:
        exhibit: whose models.
        scores: of the history.
        history: rows.
        target: what the user took next; None: not known.
    """
    ranks = {} if target is None or not scores else ranks_of(scores, history, target)
    groups = []
    for name, found in recommended(exhibit, scores, history, TOP_K).items():
        note = f"what came next: rank {ranks[name]:,}" if name in ranks else ""
        groups.append(Group(name, [_tile(exhibit, item.row, str(item.rank), target) for item in found], note))
    said = "" if scores else NO_HISTORY
    return render("explore.html", {"part": "recommended", "groups": groups, "said": said})


def similar_page(exhibit: Exhibit, row: int | None) -> str:
    """What is similar to an item, by each model; None: no item is chosen."""
    groups = []
    for name, found in ({} if row is None else similar(exhibit, row, TOP_K)).items():
        groups.append(Group(name, [_near(exhibit, item) for item in found]))
    empty = "Click the ≈ of any item to see what is similar to it."
    chosen = None if row is None else _tile(exhibit, row)
    return render("explore.html", {"part": "similar", "chosen": chosen, "groups": groups, "empty": empty})


def cold_page(exhibit: Exhibit, scores: Mapping[str, Tensor], history: Sequence[int]) -> str:
    """Where cold items land behind the history, by each model and popularity; empty scores: there is no history."""
    found = cold_places(exhibit, scores, history, TOP_K) if scores else {}
    ranked = len(exhibit.items) - len(set(history))
    num_cold = int(exhibit.is_cold.sum()) - len({row for row in history if exhibit.is_cold[row]})
    said = (
        f"{num_cold:,} of the {ranked:,} items that can be recommended are cold. By chance one in ten would stand in "
        "each tenth; popularity can only put them last. Ties count against an item."
    )
    if not found:
        said = NO_HISTORY if not scores else "No item outside of the history is cold."
    page = {
        "part": "cold",
        "said": said,
        "depths": DEPTHS,
        "rows": _cold_rows(found, ranked),
        "groups": [
            Group(name, [_tile(exhibit, item.row, f"{item.rank:,}") for item in places.best])
            for name, places in found.items()
        ],
    }
    return render("explore.html", page)


def _cold_rows(found: Mapping[str, ColdPlaces], ranked: int) -> list[ColdRow]:
    highest = max((max(places.tenths) for places in found.values()), default=1.0)
    rows = []
    for name, places in found.items():
        spoken = ", ".join(f"{share:.0%}" for share in places.tenths)
        bars = [round(100 * share / highest, 1) for share in places.tenths]
        shares = [f"{places.shares[depth]:.1%}" for depth in DEPTHS]
        rows.append(ColdRow(name, bars, spoken, f"{places.median:,.0f}", shares))
    if rows:
        even = [round(10 / highest, 1)] * 10
        by_chance = [f"{min(1, depth / ranked):.1%}" for depth in DEPTHS]
        rows.append(ColdRow("by chance", even, "10 % each", f"{(ranked + 1) / 2:,.0f}", by_chance))
    return rows


def _near(exhibit: Exhibit, item: Recommendation) -> Tile:
    return _tile(exhibit, item.row, str(item.rank), note=f"cosine {item.score:.2f}")


def _tile(exhibit: Exhibit, row: int, rank: str = "", target: int | None = None, note: str | None = None) -> Tile:
    picture = exhibit.picture(row)
    return Tile(
        row,
        exhibit.titles[row],
        None if picture is None else data_uri("image/jpeg", picture),
        f"{int(exhibit.train_count[row]):,} times" if note is None else note,
        bool(exhibit.is_cold[row]),
        row == target,
        rank,
    )

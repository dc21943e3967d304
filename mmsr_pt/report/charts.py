"""The pictures of a report: curves against steps, slices with their intervals, items and users by t-SNE; as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmsr_pt.data.domain import Domain
from mmsr_pt.figures.canvas import COLOURS, DASHES, MARKERS, canvas, svg
from mmsr_pt.figures.vectors import (
    NEIGHBOURS,
    NUM_ITEMS,
    NUM_USERS,
    draw_items,
    draw_users,
    item_cloud,
    popularity_numbers,
    user_cloud,
    user_numbers,
)
from mmsr_pt.model import MMSRModel
from mmsr_pt.pages.cards import data_uri
from mmsr_pt.report.tested import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_POINTS = 2000
"""Of a curve: more could not be told apart."""
_WIDTH, _HEIGHT = 5.6, 3.3
"""Inches of a chart, of which two stand side by side."""


@dataclass(frozen=True)
class Chart:
    """A picture with the words that belong to it."""

    source: str
    """A data URI."""
    said: str
    """What one would tell somebody who cannot see it."""
    caption: str


@dataclass(frozen=True)
class Line:
    """One curve."""

    label: str
    points: Sequence[tuple[int, float]]
    """(step, value) in order."""


def curves(caption: str, unit: str, lines: Sequence[Line], best_step: int | None = None) -> Chart:
    """Values against steps.

    Args:
        caption: what is shown.
        unit: of the values, for the axis.
        lines: each with a point at least.
        best_step: marked, as that of the model that was kept; None: there is none.
    """
    figure, grid = _plain_canvas(_WIDTH, _HEIGHT)
    axes = grid[0][0]
    for number, line in enumerate(lines):
        every = math.ceil(len(line.points) / _MOST_POINTS)
        # the last point stands, whatever is left out
        steps, values = zip(*line.points[::-1][::every][::-1])
        marker = MARKERS[number % len(MARKERS)] if len(steps) <= 25 else None
        look = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
        axes.plot(steps, values, label=line.label, marker=marker, markersize=4, linewidth=1.5, **look)
    if best_step is not None:
        axes.axvline(best_step, color="#777777", linewidth=0.9, linestyle=":", label=f"kept: step {best_step:,}")
    _dress(axes, "steps", unit)
    if len(lines) > 1 or best_step is not None:
        axes.legend(frameon=False, fontsize=8, loc="best")
    return Chart(_uri(figure), f"{caption}: {'; '.join(_in_words(line) for line in lines)}.", caption)


def _in_words(line: Line) -> str:
    (first_step, first), (last_step, last) = line.points[0], line.points[-1]
    return f"{line.label} {first:.4g} at step {first_step:,}, {last:.4g} at step {last_step:,}"


def slices(rows: Sequence[Row], metric: str, names: Mapping[str, str]) -> Chart:
    """A metric on every slice, models beside each other, with 95 % intervals.

    Args:
        rows: of one protocol.
        metric: such as HR@10.
        names: what the page calls the models, in order.
    """
    figure, grid = _plain_canvas(_WIDTH, _HEIGHT)
    axes = grid[0][0]
    of_slices = list(dict.fromkeys(row.slice for row in rows))
    for number, (model, label) in enumerate(names.items()):
        mine = [row for row in rows if row.model == model]
        at = [of_slices.index(row.slice) + 0.22 * (number - (len(names) - 1) / 2) for row in mine]
        found = [row.figures[metric] for row in mine]
        values = [100 * figure.value for figure in found]
        ends = [figure.interval or (figure.value, figure.value) for figure in found]
        # the mean of floats may lie beyond the end of its own interval by a rounding
        below = [max(0.0, value - 100 * low) for value, (low, _) in zip(values, ends)]
        above = [max(0.0, 100 * high - value) for value, (_, high) in zip(values, ends)]
        look: dict[str, Any] = {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": "none"}
        axes.errorbar(at, values, yerr=[below, above], markersize=5, capsize=2.5, linewidth=1.2, label=label, **look)
    users = {row.slice: row.users for row in rows}
    axes.set_xticks(range(len(of_slices)), [f"{name}\n{users[name]:,}" for name in of_slices])
    _dress(axes, "slice, and its users", f"{metric} (%)")
    axes.legend(frameon=False, fontsize=8, loc="best")
    told = [f"{row.slice}, {names[row.model]}: {100 * row.figures[metric].value:.1f} %" for row in rows]
    caption = f"{metric} by slice; bars are 95 % intervals"
    return Chart(_uri(figure), f"{caption}: {'; '.join(told)}.", caption)


def vectors(model: MMSRModel, domain: Domain, catalogue: Tensor) -> list[Chart]:
    """Items by popularity and some users (the paper's figures 8 and 9); none of what the domain is too small for."""
    charts = []
    parts = (model.recommender, model.preprocessor, domain)
    if domain.num_items > NEIGHBOURS:
        cloud = item_cloud(domain.name, *parts, catalogue=catalogue, num_items=NUM_ITEMS)
        said = "rank correlation of an item's occurrences with those of its neighbours: {neighbours:.2f}"
        figure = _with_plain_text(lambda: draw_items([[cloud]], ""))
        told = said.format(**popularity_numbers(cloud))
        charts.append(
            Chart(
                _uri(figure),
                f"{len(cloud.marks):,} items placed by t-SNE; {told}.",
                "Items by popularity",
            )
        )
    if len(domain.eval) > 1:
        users = user_cloud(domain.name, *parts, catalogue=catalogue, num_users=NUM_USERS)
        figure = _with_plain_text(lambda: draw_users([[users]], ""))
        num_users = int(users.marks.max()) + 1
        told = f"silhouette by user {user_numbers(users)['silhouette']:.2f}"
        charts.append(
            Chart(
                _uri(figure),
                f"{len(users.marks):,} positions of {num_users} users placed by t-SNE; {told}.",
                f"{num_users} users, each with a mark of its own at every position of the newest items",
            )
        )
    return charts


def _dress(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if "%" in y or "/s" in y:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(True, color="#999999", alpha=0.35, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _plain_canvas(width: float, height: float) -> tuple[Figure, Any]:
    return _with_plain_text(lambda: canvas(1, 1, width, height))


def _with_plain_text(draw: Callable[[], Any]) -> Any:
    """What `draw` gives, in which a $ of people's text begins no formula."""
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):
        return draw()


def _uri(figure: Figure) -> str:
    return data_uri("image/svg+xml", _with_plain_text(lambda: svg(figure)))

"""The picture of how cost grows: one panel for each thing that grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_COLOURS = ("#1b6ca8", "#d1603d")
_TITLES = {
    "batch": "Batch (history of 20, 1,200 items)",
    "history": "History (32 users, 1,200 items)",
    "catalogue": "Catalogue (32 users, history of 20)",
    "ranks": "Ranks (32 users each)",
}


def draw(found: dict[str, Any], file: Path) -> None:
    """Draws the sweeps of benchmarks/growth.py by name; medians as lines or bars, extremes as bands or whiskers."""
    # imported here: only this needs it
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 2, figsize=(9, 7), layout="constrained")
    for axes, (name, sweep) in zip(grid.flat, found.items()):
        _rates(axes, sweep) if sweep["unit"] == "users/s" else _times(axes, sweep)
        axes.set_title(_TITLES[name], fontsize=10, loc="left")
        axes.set_xlabel(sweep["axis"])
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Cost of a training step (bf16, MiniLM + EfficientNet-Lite0 at 224 px, drawn domain)", fontsize=11)
    figure.savefig(file, dpi=140)
    pyplot.close(figure)


def _times(axes: Any, sweep: dict[str, Any]) -> None:
    """Seconds of a step, both axes by ratio."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

    for colour, (name, points) in zip(_COLOURS, sweep["lines"].items()):
        values, medians, low, high = ([point[key] for point in points] for key in ("value", "median", "min", "max"))
        axes.plot(values, medians, "o-", color=colour, label=name, markersize=4)
        axes.fill_between(values, low, high, color=colour, alpha=0.15, linewidth=0)
    points = [point for line in sweep["lines"].values() for point in line]
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted({point["value"] for point in points})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_yscale("log")
    # room for the legend above, and at least one labelled tick
    axes.set_ylim(min(point["min"] for point in points) / 1.5, 3 * max(point["max"] for point in points))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_ylabel("seconds per step")
    axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=2)


def _rates(axes: Any, sweep: dict[str, Any]) -> None:
    """Users a second, with what they would be in proportion to the ranks."""
    (points,) = sweep["lines"].values()
    places = range(len(points))
    medians = [point["median"] for point in points]
    below = [point["median"] - point["min"] for point in points]
    above = [point["max"] - point["median"] for point in points]
    axes.bar(places, medians, width=0.5, color=_COLOURS[0], yerr=[below, above], ecolor="#444444", capsize=4)
    for place, point in zip(places, points):
        ideal = medians[0] * point["value"] / points[0]["value"]
        label = "" if place else "in proportion"
        axes.plot([place - 0.3, place + 0.3], [ideal, ideal], "--", color=_COLOURS[1], label=label)
        efficiency = f"{point['efficiency']:.0%}"
        axes.text(place, point["median"] / 2, efficiency, ha="center", color="white", fontweight="bold")
    axes.set_xticks(list(places), [f"{point['value']:g}" for point in points])
    axes.set_ylim(0, 1.25 * max(*(point["max"] for point in points), medians[0] * points[-1]["value"]))
    axes.set_ylabel("users per second")
    axes.legend(frameon=False, fontsize=9, loc="upper left")

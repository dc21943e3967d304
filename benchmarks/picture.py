"""The picture of how cost grows: one panel for each thing that grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_COLOURS = ("#1b6ca8", "#d1603d", "#5b8c5a")


def draw(found: dict[str, Any], file: Path) -> None:
    """Draws the sweeps of benchmarks/growth.py; medians as lines, extremes as bands."""
    # imported here: only this needs it
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    figure, grid = pyplot.subplots(2, 2, figsize=(9, 6.6), layout="constrained")
    for axes, sweep in zip(grid.flat, found.values()):
        for colour, (name, points) in zip(_COLOURS, sweep["lines"].items()):
            values = [point["value"] for point in points]
            axes.plot(values, [point["median"] for point in points], "o-", color=colour, label=name, markersize=4)
            low, high = ([point[end] for point in points] for end in ("min", "max"))
            axes.fill_between(values, low, high, color=colour, alpha=0.15, linewidth=0)
        ticks = [point["value"] for points in sweep["lines"].values() for point in points]
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted(set(ticks))))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_xlabel(sweep["axis"])
        axes.set_ylim(bottom=0)
        if sweep["unit"] == "users/s":
            one = sweep["lines"]["cached"][0]
            ideal = [one["median"] * value / one["value"] for value in sorted(set(ticks))]
            axes.plot(sorted(set(ticks)), ideal, "--", color="gray", linewidth=1, label="proportional")
            axes.set_ylabel("users per second")
            axes.set_ylim(bottom=0)
        elif len(sweep["lines"]) > 1:
            axes.set_yscale("log")
            axes.set_ylim(bottom=None)
            axes.set_ylabel("seconds per step (log)")
        else:
            axes.set_ylabel("seconds per step")
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    figure.suptitle("Cost of a training step (bf16, MiniLM + EfficientNet-Lite0 at 224 px, drawn domain)", fontsize=11)
    figure.savefig(file, dpi=140)
    pyplot.close(figure)

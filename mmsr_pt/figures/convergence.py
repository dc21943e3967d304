"""Validation figures against epochs, as in the paper's figures 4, 6 and 7 (appendices D and E).

curves = [validation_curve("MMSR", [run_of_seed_0, run_of_seed_1], "HR@10"), ...]
save(draw_convergence([[Panel("hm", "HR@10", curves)]], "Convergence"), Path("figure.png"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsr_pt.figures.canvas import COLOURS, DASHES, MARKERS, canvas, headline
from mmsr_pt.run_dir import metric_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_MARKERS = 15
"""On one curve."""


@dataclass(frozen=True)
class Curve:
    """How one model got on in validation."""

    label: str
    seeds: tuple[Mapping[float, float], ...]
    """Of each seed: epochs trained -> fraction."""

    def common(self) -> list[tuple[float, float, float, float]]:
        """(epoch, mean, lowest, highest) at the epochs that every seed reached, in order.

        So that a seed that stopped early does not move the mean by its absence.
        """
        shared = set.intersection(*(set(seed) for seed in self.seeds)) if self.seeds else set()
        rows = []
        for epoch in sorted(shared):
            values = [seed[epoch] for seed in self.seeds]
            rows.append((epoch, sum(values) / len(values), min(values), max(values)))
        return rows


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    metric: str
    curves: Sequence[Curve]


def validation_curve(label: str, run_dirs: Sequence[Path], metric: str, domain: str | None = None) -> Curve:
    """What the runs of a model, one for each seed, found in validation.

    Args:
        label: of the curve.
        run_dirs: of its seeds; one that has not been validated yet is left out.
        metric: such as HR@10.
        domain: whose users were asked, of a run on several.
    """
    seeds = [_figures(run_dir, metric, domain) for run_dir in run_dirs]
    return Curve(label, tuple(seed for seed in seeds if seed))


def _figures(run_dir: Path, metric: str, domain: str | None) -> dict[float, float]:
    lines = metric_lines(run_dir)
    trained = [line for line in lines if line["event"] == "train"]
    if not trained or not trained[-1]["epoch"]:
        return {}
    steps_per_epoch = round(trained[-1]["step"] / trained[-1]["epoch"])
    wanted = {"event": "eval", "model": "mmsr", "split": "valid", "slice": "all"}
    if domain is not None:
        wanted["domain"] = domain
    return {round(line["step"] / steps_per_epoch, 3): line[metric] for line in lines if wanted.items() <= line.items()}


def draw_convergence(panels: Sequence[Sequence[Panel]], title: str) -> Figure:
    """Curves in a grid of panels: means over seeds as lines, from the lowest to the highest seed as bands.

    Args:
        panels: row by row, all rows equally long; curves of the same number look the same in all.
        title: of the whole.
    """
    figure, grid = canvas(len(panels), len(panels[0]), width=4.8, height=3.9)
    for axes_row, panel_row in zip(grid, panels, strict=True):
        for axes, panel in zip(axes_row, panel_row, strict=True):
            _draw(axes, panel)
    most = max((len(curve.seeds) for row in panels for panel in row for curve in panel.curves), default=0)
    headline(figure, title, f"means of up to {most} seeds; bands: lowest to highest" * (most > 1))
    return figure


def _draw(axes: Any, panel: Panel) -> None:
    for number, curve in enumerate(panel.curves):
        points = curve.common()
        if not points:
            continue
        epochs = [epoch for epoch, *_ in points]
        mean, low, high = ([100 * point[place] for point in points] for place in (1, 2, 3))
        colour = COLOURS[number % len(COLOURS)]
        best = max(range(len(mean)), key=mean.__getitem__)
        axes.plot(
            epochs,
            mean,
            linestyle=DASHES[number % len(DASHES)],
            marker=MARKERS[number % len(MARKERS)],
            markevery=max(1, len(epochs) // _MOST_MARKERS),
            markersize=4,
            linewidth=1.4,
            color=colour,
            label=f"{curve.label} (best {mean[best]:.1f})",
        )
        if len(curve.seeds) > 1:
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("epochs")
    axes.set_ylabel(f"validation {panel.metric} (%)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        # below: wherever it stood among the curves, some would run through it
        below = {"loc": "upper center", "bbox_to_anchor": (0.45, -0.17)}
        axes.legend(frameon=False, fontsize=8, ncols=2, columnspacing=1, handlelength=2.4, **below)

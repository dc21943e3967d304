"""What all pictures share: a canvas without a window, marks that a black and white print keeps apart, a file.

matplotlib and scikit-learn come with `pip install --editable '.[figures]'` and are imported where something is drawn.
"""

from __future__ import annotations

import importlib.util
import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsr_pt.log import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#d1603d", "#3d8b4f", "#7b4fa3", "#8c6d1f", "#444444", "#c23b80", "#2a9d9d", "#9a9a9a", "#5a3e2b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
DASHES = ("-", "--", "-.", ":")
"""The same number of a curve or a user has the same colour, marker and dashes in every panel."""


def require_drawing() -> None:
    """Raises UserError where what draws is not installed; to be called before hours of training."""
    for module, name in (("matplotlib", "matplotlib"), ("sklearn", "scikit-learn")):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"pictures need {name}, which is not installed: type pip install --editable '.[figures]'")


def canvas(num_rows: int, num_columns: int, width: float, height: float) -> tuple[Figure, Any]:
    """A figure and its axes [num_rows, num_columns]; width and height of one of them in inches."""
    require_drawing()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(num_columns * width, num_rows * height), layout="constrained")
    return figure, figure.subplots(num_rows, num_columns, squeeze=False)


def headline(figure: Figure, title: str, note: str) -> None:
    """Writes what the whole is, and below it what is to be known, in as many lines as its width takes."""
    letters = int(12 * figure.get_size_inches()[0])
    figure.suptitle(f"{textwrap.fill(title, letters)}\n{textwrap.fill(note, letters)}".strip(), fontsize=10)


def svg(figure: Figure) -> bytes:
    """The figure as SVG, without background, for a page; the same figure gives the same bytes."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "mmsr_pt"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return file.getvalue()


def save(figure: Figure, file: Path) -> None:
    """Writes a PNG, never by halves; the same figure gives the same bytes."""
    fresh = file.with_name(f".{file.name}.new")
    # no name and version of the library in it
    figure.savefig(fresh, format="png", dpi=150, metadata={"Software": None})
    fresh.replace(file)

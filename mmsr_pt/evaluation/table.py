"""Evaluation lines as the table that people read; percent stands only here."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from mmsr_pt.evaluation.evaluate import EvalLine
from mmsr_pt.evaluation.metrics import METRICS

MIN_WIDTH = 120


def wide_console() -> Console:
    """A console on stdout that is wide enough for a table also where stdout is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, MIN_WIDTH))


def results_table(lines: Iterable[EvalLine], title: str) -> Table:
    """One row per line: model, slice, users, the metrics in percent, seconds."""
    table = Table(title=f"{title} (percent)", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("model", "slice"):
        table.add_column(column, no_wrap=True)
    for column in ("users", *METRICS, "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        percent = [f"{100 * line.metrics[name]:.2f}" for name in METRICS]
        table.add_row(line.model, line.slice, f"{line.users:,}", *percent, f"{line.seconds:.1f}")
    return table

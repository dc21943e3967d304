"""Evaluation lines as the table that people read; percent stands only here."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmsr_pt.evaluation.cases import Split
from mmsr_pt.evaluation.lines import EvalLine
from mmsr_pt.evaluation.metrics import METRICS

MIN_WIDTH = 120
_SPLITS: dict[Split, str] = {
    "any": "cold items (all: also those of training parts)",
    "valid": "valid",
    "test": "test",
}
"""In the order of their tables, so that a run closes with `test`; with what the titles call them."""


def wide_console() -> Console:
    """A console on stdout that is wide enough for a table also where stdout is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, MIN_WIDTH))


def print_results(lines: Sequence[EvalLine], domain_name: str) -> None:
    """Prints a table for every split that has lines, on stdout."""
    for split, what in _SPLITS.items():
        of_split = [line for line in lines if line.split == split]
        if of_split:
            wide_console().print(results_table(of_split, f"{domain_name}, {what}, whole catalogue"))


def results_table(lines: Sequence[EvalLine], title: str) -> Table:
    """Models below each other for every slice: slice, users, model, the metrics in percent, seconds.

    Args:
        lines: of one split.
        title: above the table.
    """
    of_slice: dict[str, list[EvalLine]] = {}
    for line in lines:
        of_slice.setdefault(line.slice, []).append(line)
    counts = ("users", "cases") if any(line.protocol == "cold" for line in lines) else ("users",)
    table = Table(title=f"{escape(title)} (percent)", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("slice", no_wrap=True)
    for count in counts:
        table.add_column(count, justify="right", no_wrap=True)
    table.add_column("model", overflow="fold")
    for column in (*METRICS, "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, beside in of_slice.items():
        for line in beside:
            percent = [f"{100 * line.metrics[metric]:.2f}" for metric in METRICS]
            asked = [f"{getattr(line, count):,}" for count in counts]
            table.add_row(name, *asked, escape(line.model), *percent, f"{line.seconds:.1f}")
        table.add_section()
    return table

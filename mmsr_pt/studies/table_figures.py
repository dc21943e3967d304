"""The paper's figures as studies: which runs of which table each is drawn from, and the drawing of it.

    mmsr-pt study figure4 --data data/hm -- --text hf:NAME --vision timm:NAME --tune frozen --cache

The runs are those of the same table's study, in the same directory: neither trains them again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.figures.canvas import save
from mmsr_pt.figures.convergence import Panel, draw_convergence, validation_curve
from mmsr_pt.figures.vectors import NUM_USERS, Cloud, draw_items, draw_users, item_cloud, user_cloud
from mmsr_pt.model import MMSRModel
from mmsr_pt.presets import TABLES
from mmsr_pt.registry import unknown_name
from mmsr_pt.studies.jobs import METRICS
from mmsr_pt.studies.table_report import kept_seeds, run_directory

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class StudyFigure:
    """One figure of the paper."""

    table: str
    """Whose rows it shows."""
    rows: Mapping[str, str]
    """What each is called."""
    draw: Callable[[StudyFigure, Path, Sequence[Domain], Sequence[str]], Figure]
    """(this, directory of the study, domains, rows) -> the picture."""
    title: str


def _convergence(figure: StudyFigure, out: Path, domains: Sequence[Domain], rows: Sequence[str]) -> Figure:
    """A row of panels for each domain, a panel for each metric; every seed counts."""
    panels = []
    for domain in domains:
        runs = {
            row: [run_directory(out, domain.name, row, seed) for seed in kept_seeds(out, domain.name, row)]
            for row in rows
        }
        panels.append(
            [
                Panel(domain.name, metric, [validation_curve(figure.rows[row], runs[row], metric) for row in rows])
                for metric in METRICS
            ]
        )
    return draw_convergence(panels, figure.title)


def _items(figure: StudyFigure, out: Path, domains: Sequence[Domain], rows: Sequence[str]) -> Figure:
    return draw_items(_clouds(item_cloud, figure, out, domains, rows), figure.title)


def _users(figure: StudyFigure, out: Path, domains: Sequence[Domain], rows: Sequence[str]) -> Figure:
    return draw_users(_clouds(user_cloud, figure, out, domains, rows), figure.title)


def _clouds(
    make: Callable[..., Cloud], figure: StudyFigure, out: Path, domains: Sequence[Domain], rows: Sequence[str]
) -> list[list[Cloud]]:
    """Of each domain and row, from the model of seed 0."""
    panels: list[list[Cloud]] = []
    for domain in domains:
        panels.append([])
        for row in rows:
            run_dir = run_directory(out, domain.name, row, 0)
            seen = _as_trained_on(run_dir, domain)
            model = MMSRModel.from_pretrained(run_dir).to(processes().device)
            model.require_readable(seen)
            title = f"{domain.name}: {figure.rows[row]}"
            panels[-1].append(make(title, model.recommender, model.preprocessor, seen))
    return panels


def _as_trained_on(run_dir: Path, domain: Domain) -> Domain:
    """The domain with the users of a run, from whom the occurrences of its items follow."""
    data = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))["data"]
    # drawn by the seed of the run, which is 0
    return Domain.load(domain.path, data.get("max_users", 0))


_FOUR = {"sasrec-id": "IDSR", "sasrec-text": "MMSR-T", "sasrec-vision": "MMSR-V", "sasrec": "MMSR"}
_TWO = {"sasrec-id": "IDSR", "sasrec": "MMSR"}
_VLPS = {"clip": "CLIP", "groupvit": "GroupViT", "vilt": "ViLT", "visualbert": "VisualBERT", "flava": "FLAVA"}

FIGURES: dict[str, StudyFigure] = {
    "figure4": StudyFigure("table4", _FOUR, _convergence, "Convergence in validation"),
    "figure6": StudyFigure("table6", _VLPS, _convergence, "Convergence of models of pictures and texts"),
    "figure8": StudyFigure("table4", _TWO, _items, "Items by popularity"),
    "figure9": StudyFigure("table4", _TWO, _users, f"{NUM_USERS} users, each with a mark of its own"),
}
"""By the paper's numbers; figure 7 is of transfers."""


def find_study(name: str) -> tuple[str, StudyFigure | None]:
    """The table that a study of this name trains rows of, and the figure if it is one.

    Raises:
        UserError: there is no such table and no such figure.
    """
    if name in FIGURES:
        return FIGURES[name].table, FIGURES[name]
    if name not in TABLES:
        raise unknown_name("table or figure", name, [*TABLES, *FIGURES])
    return name, None


def draw_figure(name: str, out: Path, domains: Sequence[Domain], rows: Sequence[str]) -> Path:
    """Draws a figure from the finished runs of a study; returns the PNG."""
    figure, file = FIGURES[name], out / f"{name}.png"
    save(figure.draw(figure, out, domains, rows), file)
    return file

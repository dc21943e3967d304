"""The page itself: its sections, each of what a run has to show, or a sentence that says why there is nothing yet.

    mmsr-pt report runs/mine

Everything it needs stands in the one file, pictures too; what people wrote (titles, ids, names) is escaped.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch

from mmsr_pt.cache import open_cache
from mmsr_pt.config import FinetuneConfig, PretrainConfig, to_json
from mmsr_pt.data.domain import COLD_BELOW, Domain
from mmsr_pt.evaluation.cases import Split
from mmsr_pt.evaluation.evaluate import POPULARITY, TRANSITIONS, ItemSource, encode_catalogue
from mmsr_pt.evaluation.metrics import METRICS
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.figures.canvas import require_drawing
from mmsr_pt.hub.card import kind
from mmsr_pt.model import MMSRModel
from mmsr_pt.pages.render import render
from mmsr_pt.report.charts import Chart, slices, vectors
from mmsr_pt.report.opened import OpenedRun, open_run
from mmsr_pt.report.progress import SHOWN_METRICS, best_step, rates, throughput_charts, training_charts
from mmsr_pt.report.tested import MODEL, Row, test_rows
from mmsr_pt.report.users import TOP_K, ShownUser, shown_users
from mmsr_pt.run_dir import TEST_RANKS, read_ranks, write_text
from mmsr_pt.training.ds_config import precision

REPORT = "report.html"
_PROTOCOLS: dict[Split, str] = {
    "test": "Leave-one-out: each user's test item",
    "any": "Cold items, wherever they stand",
}


@dataclass(frozen=True)
class Section:
    """What the page shows of one domain."""

    name: str
    about: str
    rows: dict[Split, list[Row]]
    slice_charts: list[Chart]
    vector_charts: list[Chart]
    users: list[ShownUser]
    num_hits: int | None
    """Test users whose item the model has among its first ten; None: not known."""


@dataclass(frozen=True)
class Setting:
    """One setting of the run."""

    name: str
    value: str
    default: str

    @property
    def is_default(self) -> bool:
        """Whether it is what one gets without a flag."""
        return self.value == self.default


@dataclass(frozen=True)
class Page:
    """All that the template shows."""

    title: str
    run_dir: str
    tiles: list[tuple[str, str, str]]
    """What, how much, and beside it."""
    settings: dict[str, list[Setting]]
    ds_config: str
    training: list[Chart]
    validation: list[Chart]
    sections: list[Section]
    throughput: list[Chart]
    rates: list[tuple[str, str, str]]
    """What, median, and from where to where."""
    is_tested: bool
    has_model: bool
    models: dict[str, str]
    protocols: dict[Split, str] = field(default_factory=lambda: dict(_PROTOCOLS))
    metrics: Sequence[str] = METRICS
    top_k: int = TOP_K
    cold_below: int = COLD_BELOW


def write_report(
    run_dir: Path,
    out: Path | None,
    data: Sequence[Path],
    source: Callable[[MMSRModel, Domain], ItemSource],
    batch_size: int,
) -> Path:
    """Writes the page of a run; returns where. Collective.

    Args:
        run_dir: of the run, finished or not.
        out: the file; None: report.html in the run directory.
        data: see `open_run`.
        source: where a model reads a domain's items from, unless the run kept a cache of them.
        batch_size: items encoded at once.
    """
    require_drawing()
    run = open_run(run_dir, data)
    file = out or run_dir / REPORT
    html = render("report.html", describe(run, source, batch_size))
    if processes().is_main_process:
        write_text(file, html)
    return file


def describe(run: OpenedRun, source: Callable[[MMSRModel, Domain], ItemSource], batch_size: int) -> Page:
    """What the page of a run shows. Collective."""
    names = {MODEL: kind(run.model_config), POPULARITY: "popularity", TRANSITIONS: "item transitions"}
    sections = [
        _section(run, domain, names, of_domain, batch_size)
        for domain, of_domain in zip(run.domains, _sources(run, source))
    ]
    training, validation = training_charts(run)
    return Page(
        title=f"{names[MODEL]} on {', '.join(domain.name for domain in run.domains)}",
        run_dir=str(run.run_dir),
        tiles=_tiles(run, sections, names),
        settings=_settings(run.config),
        ds_config=json.dumps(run.ds_config, indent=2),
        training=training,
        validation=validation,
        sections=sections,
        throughput=throughput_charts(run),
        rates=rates(run),
        is_tested=any("test" in section.rows for section in sections),
        has_model=run.model is not None,
        models=names,
    )


def _sources(run: OpenedRun, source: Callable[[MMSRModel, Domain], ItemSource]) -> list[ItemSource | None]:
    """Where the items of each domain are read from: the run's cache if it had one. None: there is no model."""
    if run.model is None:
        return [None] * len(run.domains)
    recommender, preprocessor = run.model.recommender, run.model.preprocessor
    if not run.config["data"]["cache"]:
        run.model.to(processes().device)
        return [source(run.model, domain) for domain in run.domains]
    kept_in = run.config["data"].get("cache_dtype", "run")
    dtype = precision(run.ds_config) if kept_in == "run" else getattr(torch, kept_in)
    cache = open_cache(recommender, preprocessor, run.domains, dtype, processes().device)
    run.model.to(processes().device)
    return [cache.source(domain, number) for number, domain in enumerate(run.domains)]


def _section(
    run: OpenedRun, domain: Domain, names: dict[str, str], source: ItemSource | None, batch_size: int
) -> Section:
    rows = test_rows(run, domain)
    by_slice = rows.get("test", [])
    charts = [slices(by_slice, metric, names) for metric in SHOWN_METRICS if by_slice]
    pictures: list[Chart] = []
    users: list[ShownUser] = []
    hits = _hits(run, domain)
    if run.model is not None and source is not None:
        recommender = run.model.recommender
        catalogue = encode_catalogue(recommender, source, domain.num_items, batch_size)
        pictures = vectors(run.model, domain, catalogue)
        users = shown_users(domain, recommender, catalogue, hits)
    counts = f"{domain.num_users:,} users, {domain.num_items:,} items"
    trained = f", of whom {domain.max_users:,} train" if domain.max_users else ""
    about = f"{counts}{trained}; items have {' and '.join(domain.modalities)}"
    return Section(domain.name, about, rows, charts, pictures, users, None if hits is None else len(hits))


def _hits(run: OpenedRun, domain: Domain) -> pl.Series | None:
    if not (run.run_dir / TEST_RANKS).is_file():
        return None
    ranks = read_ranks(run.run_dir, domain.name)
    return ranks.filter(pl.col("rank") <= TOP_K)["user"] if len(ranks) else None


def _settings(config: dict[str, Any]) -> dict[str, list[Setting]]:
    """By group, with what each would be without a flag."""
    plain = FinetuneConfig() if "transfer" in config else PretrainConfig()
    defaults = json.loads(to_json(plain))
    return {
        group: [Setting(name, _said(value), _said(defaults[group].get(name))) for name, value in values.items()]
        for group, values in config.items()
    }


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(str(one) for one in value) or "none"
    return "none" if value is None else str(value)


def _tiles(run: OpenedRun, sections: Sequence[Section], names: dict[str, str]) -> list[tuple[str, str, str]]:
    tiles = []
    for section in sections:
        overall = {row.model: row for row in section.rows.get("test", []) if row.slice == "all"}
        if MODEL not in overall:
            continue
        of_domain = f" on {section.name}" if len(sections) > 1 else ""
        for metric in SHOWN_METRICS:
            figure = overall[MODEL].figures[metric]
            beside = [f"{names[model]} {100 * row.figures[metric].value:.2f}" for model, row in overall.items()]
            tiles.append((f"{metric}{of_domain}, test", f"{100 * figure.value:.2f} %", ", ".join(beside[1:])))
    trained, best = run.train_lines(), best_step(run)
    if trained:
        kept = "" if best is None else f"kept: the model of step {best:,}"
        tiles.append(("steps", f"{trained[-1]['step']:,}", f"{trained[-1]['epoch']:g} epochs; {kept}".rstrip("; ")))
        speed = statistics.median(line["users_per_s"] for line in trained)
        tiles.append(("training", f"{speed:,.0f} users/s", "median over the run"))
    return tiles

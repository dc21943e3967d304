"""`mmsr-pt recommend`: what a model ranks highest behind a history."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from mmsr_pt.cli.common import open_model, require, shown_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.evaluate import catalogue_scorer, encode_catalogue
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.evaluation.table import wide_console
from mmsr_pt.recommend import Recommendation, history_of_user, recommend, rows_of_items


def recommend_command(
    model: str, data: Path, user: str | None = None, history: str | None = None, top_k: int = 10, batch_size: int = 256
) -> None:
    """Show the items that the model ranks highest behind a history; seen items are left out.

    Args:
        model: A run directory, a bundle directory or a hub id.
        data: The domain directory whose items are recommended.
        user: A user id of the domain: all that is known of this user is the history, held-out items included.
        history: Item ids, oldest first, separated by commas.
        top_k: How many items to show.
        batch_size: Items encoded at once.
    """
    require((user is None) != (history is None), "give one of --user U and --history ID,ID,...")
    require(top_k >= 1, f"--top_k {top_k} must be at least 1")
    require(batch_size >= 1, f"--batch_size {batch_size} must be at least 1")
    state = processes()
    # the request is checked before the model is loaded: a mistyped id shows at once
    domain = Domain.load(data)
    if user is not None:
        rows = history_of_user(domain, user)
    else:
        item_ids = [item_id.strip() for item_id in (history or "").split(",") if item_id.strip()]
        require(bool(item_ids), "--history names no item: give item ids separated by commas")
        rows = rows_of_items(domain, item_ids)
    opened = open_model(model, domain).to(state.device)
    recommender, source = opened.recommender, shown_source(opened, domain)
    scorer = catalogue_scorer(recommender, encode_catalogue(recommender, source, domain.num_items, batch_size))
    found = recommend(scorer, domain, rows, top_k, recommender.config.max_history, recommender.score_scale)
    if state.is_main_process:
        behind = f"user {user}" if user is not None else f"{len(rows)} items"
        wide_console().print(_recommendations_table(found, f"{domain.name}, behind {behind}"))


def _recommendations_table(found: Sequence[Recommendation], title: str) -> Table:
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("rank", justify="right")
    table.add_column("item", no_wrap=True)
    table.add_column("title")
    table.add_column("score", justify="right")
    for item in found:
        # titles are people's text: brackets in them are no markup
        table.add_row(str(item.rank), escape(item.item_id), escape(item.title), f"{item.score:.3f}")
    return table

"""`mmsr-pt recommend`: what a model ranks highest behind a history."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from mmsr_pt.catalogue_index import CatalogueIndex
from mmsr_pt.cli.common import open_model, open_plain_model, require, require_file, shown_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.evaluation.table import wide_console
from mmsr_pt.pages.contact_sheet import contact_sheet
from mmsr_pt.recommend import Recommendation, history_of_user, rows_of_items
from mmsr_pt.run_dir import write_text

_LONG = 32


def recommend_command(
    model: str,
    data: Path | None = None,
    user: str | None = None,
    history: str | None = None,
    index: str | None = None,
    top_k: int = 10,
    out: Path | None = None,
    batch_size: int = 256,
) -> None:
    """Show the items that the model ranks highest behind a history; seen items are left out.

    Example: mmsr-pt recommend --model runs/mine --data data/mine --user USER_ID --out sheet.html

    Args:
        model: A run directory, a bundle directory or a hub id.
        data: The domain directory whose items are recommended; not needed with --index and --history.
        user: A user id of the domain: all that is known of this user is the history, held-out items included.
        history: Item ids, oldest first, separated by commas.
        index: What mmsr-pt encode made of the catalogue with this model, a directory or a dataset on the hub; none
            given: it is encoded now.
        top_k: How many items to show.
        out: An HTML file too: history and recommendations with their pictures, all in the one file.
        batch_size: Items encoded at once.
    """
    require((user is None) != (history is None), "give one of --user U and --history ID,ID,...")
    require(data is not None or index is not None, "give --data DOMAIN, or --index DIRECTORY with --history")
    require(data is not None or user is None, f"--user {user} is a user of a domain: give --data DOMAIN too")
    require(top_k >= 1, f"--top_k {top_k} must be at least 1")
    require(batch_size >= 1, f"--batch_size {batch_size} must be at least 1")
    require_file(out, "--out")
    # the request is checked before the model is loaded: a mistyped id shows at once
    domain = None if data is None else Domain.load(data)
    item_ids = [item_id.strip() for item_id in (history or "").split(",") if item_id.strip()]
    require(bool(item_ids) or history is None, "--history names no item: give item ids separated by commas")
    if domain is not None:
        rows = rows_of_items(domain, item_ids) if user is None else history_of_user(domain, user)
        item_ids = domain.items["item_id"][rows].to_list()
    opened = (open_plain_model(model) if domain is None else open_model(model, domain)).to(processes().device)
    if index is not None:
        catalogue = opened.load_index(index)
        _require_same(catalogue, domain, index)
    else:
        assert domain is not None
        catalogue = opened.index(domain, batch_size, source=shown_source(opened, domain))
    found = opened.recommend(item_ids, catalogue, top_k)
    if processes().is_main_process:
        behind = f"user {user}" if user is not None else f"{len(item_ids)} items"
        name = catalogue.domain["name"] if catalogue.domain else f"{len(catalogue):,} items"
        wide_console().print(_recommendations_table(found, f"{name}, behind {behind}"))
        if out is not None:
            most = opened.recommender.config.max_history
            page = contact_sheet(f"{name}: behind {_shorten(behind)}", model, most, catalogue, domain, item_ids, found)
            write_text(out, page)


def _shorten(text: str) -> str:
    """The text with its long words, as ids that are hashes, cut: a headline is no place for them."""
    return " ".join(word if len(word) <= _LONG else f"{word[: _LONG // 2]}…" for word in text.split())


def _require_same(catalogue: CatalogueIndex, domain: Domain | None, index: str) -> None:
    """Raises UserError where an index is that of another catalogue than the domain's."""
    require(
        domain is None or (catalogue.domain or {}).get("fingerprint") == domain.fingerprint,
        f"--index {index} is not of the domain that --data names: make it again with mmsr-pt encode --data, or leave "
        "--data out",
    )


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

"""`mmsr-pt explore`: a page on which to try models out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmsr_pt.cli.common import open_model, require, shown_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.explore.exhibit import Exhibit, Shown, gather, names_of
from mmsr_pt.hub.find import short_names
from mmsr_pt.log import UserError

if TYPE_CHECKING:
    from types import ModuleType

log = logging.getLogger(__name__)

BATCH_SIZE = 256


def explore_command(
    model: tuple[str, ...],
    data: Path,
    host: str = "127.0.0.1",
    port: int = 7860,
    users: int = 200,
    batch_size: int = BATCH_SIZE,
) -> None:
    """Open a page to try models out: recommendations side by side, similar items, where cold items land.

    Choose a user or click a history together from pictures. Popularity always stands beside the models. There is no
    authentication: put it behind what keeps strangers away.

    Example: mmsr-pt explore --model runs/mine runs/ids --data data/mine

    Args:
        model: Run directories, bundle directories or hub ids.
        data: The domain directory whose items are recommended.
        host: The address to listen at; 0.0.0.0: at all of the machine's.
        port: The port to listen at.
        users: How many users there are to choose from, drawn by chance; 0: none.
        batch_size: Items encoded at once.
    """
    require(0 < port < 2**16, f"--port {port} must be between 1 and 65535")
    check_exhibit_flags(model, users, batch_size)
    app = explorer_app()
    exhibit = open_exhibit(model, Domain.load(data), users, batch_size)
    log.info("%d items by %s at http://%s:%d", len(exhibit.items), ", ".join(exhibit.models), host, port)
    app.launch(exhibit, host, port)


def check_exhibit_flags(model: Sequence[str], users: int, batch_size: int = BATCH_SIZE) -> None:
    """Raises UserError where flags alone show that `open_exhibit` must fail."""
    require(bool(model), "--model names no model: give run directories, bundles or hub ids")
    require(users >= 0, f"--users {users} must not be negative")
    require(batch_size >= 1, f"--batch_size {batch_size} must be at least 1")
    short_names(model)


def explorer_app() -> ModuleType:
    """The module mmsr_pt.explore.app; UserError where gradio is not installed."""
    try:
        from mmsr_pt.explore import app
    except ImportError as error:
        raise UserError("exploring needs gradio: pip install 'mmsr_pt[explore]'") from error
    return app


def open_exhibit(
    model: Sequence[str], domain: Domain, users: int, batch_size: int = BATCH_SIZE, name_users: bool = True
) -> Exhibit:
    """Opens the models and encodes the domain's catalogue with each, where the device is; see `gather`."""
    opened = [open_model(reference, domain) for reference in model]
    shown = {}
    for name, one in zip(names_of(model, opened), opened):
        one.to(processes().device)
        shown[name] = Shown(one, one.index(domain, batch_size, "exact", shown_source(one, domain)))
    return gather(domain, shown, users, name_users)

"""`mmsr-pt serve`: recommendations over HTTP."""

from __future__ import annotations

import logging
from pathlib import Path

from mmsr_pt.cli.common import open_model, open_plain_model, require, shown_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.log import UserError

log = logging.getLogger(__name__)


def serve_command(
    model: str,
    data: Path | None = None,
    index: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_body_mb: float = 16.0,
    max_image_mpixels: float = 50.0,
    max_batch: int = 64,
    batch_size: int = 256,
) -> None:
    """Recommend over HTTP: /recommend, /similar, /healthz, and their description in /openapi.json.

    Items are named by their ids in the catalogue, or sent as title and picture (base64). There is no authentication:
    put it behind what keeps strangers away.

    Example: mmsr-pt serve --model runs/mine --index mine-index --port 8000

    Args:
        model: A run directory, a bundle directory or a hub id.
        data: The domain directory whose items are recommended.
        index: In place of --data what mmsr-pt encode made of a catalogue with this model: a directory or a dataset on
            the hub.
        host: The address to listen at; 0.0.0.0: at all of the machine's.
        port: The port to listen at.
        max_body_mb: Largest body of a request, in MB.
        max_image_mpixels: Largest picture, in millions of pixels.
        max_batch: Requests answered in one pass of the model.
        batch_size: Items of --data encoded at once.
    """
    require((data is None) != (index is None), "give one of --data DOMAIN and --index DIRECTORY")
    require(0 <= port < 2**16, f"--port {port} must be between 0 and 65535")
    for flag, value in (("--max_body_mb", max_body_mb), ("--max_image_mpixels", max_image_mpixels)):
        require(value > 0, f"{flag} {value:g} must be above 0")
    for flag, value in (("--max_batch", max_batch), ("--batch_size", batch_size)):
        require(value >= 1, f"{flag} {value} must be at least 1")
    try:
        import uvicorn

        from mmsr_pt.serve.app import Limits, create_app
    except ImportError as error:
        raise UserError("serving needs fastapi and uvicorn: pip install 'mmsr_pt[serve]'") from error
    device = processes().device
    if data is not None:
        domain = Domain.load(data)
        opened = open_model(model, domain).to(device)
        catalogue = opened.index(domain, batch_size, source=shown_source(opened, domain))
    else:
        assert index is not None
        opened = open_plain_model(model).to(device)
        catalogue = opened.load_index(index)
    limits = Limits(body_bytes=round(max_body_mb * 1e6), image_pixels=round(max_image_mpixels * 1e6), batch=max_batch)
    log.info("%d items by %s at http://%s:%d", len(catalogue), opened.origin, host, port)
    uvicorn.run(create_app(opened, catalogue, limits), host=host, port=port, log_level="warning")

"""What the commands share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from mmsr_pt.batch import ItemInputs
from mmsr_pt.data.catalogue import item_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.evaluate import ItemSource
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.hub.find import find_bundle
from mmsr_pt.log import UserError, redraw_seconds
from mmsr_pt.model import MMSRModel


def require(condition: bool, sentence: str) -> None:
    """Raises UserError with that sentence where the condition does not hold."""
    if not condition:
        raise UserError(sentence)


def require_file(path: Path | None, flag: str) -> None:
    """Raises UserError where `flag` names something that cannot become a file."""
    if path is not None:
        require(not path.is_dir(), f"{flag} {path} is a directory: name a file")
        require(path.parent.is_dir(), f"{flag} {path}: there is no directory {path.parent}; make it first")


def open_plain_model(reference: str) -> MMSRModel:
    """The model, on the CPU. Collective."""
    # one process downloads, the others find the files in the cache
    with processes().local_main_process_first():
        bundle = find_bundle(reference)
    return MMSRModel.from_pretrained(bundle)


def open_model(reference: str, domain: Domain) -> MMSRModel:
    """The model, on the CPU, checked to fit the domain. Collective."""
    model = open_plain_model(reference)
    model.require_readable(domain)
    return model


def shown_source(model: MMSRModel, domain: Domain) -> ItemSource:
    """Where the model reads the domain's items from, with a progress bar on the main process."""
    source = item_source(domain, model.preprocessor)

    def shown(rows: range, batch_size: int) -> Iterator[ItemInputs]:
        yield from tqdm(
            source(rows, batch_size),
            desc="encoding the catalogue",
            total=math.ceil(len(rows) / batch_size),
            unit="batch",
            disable=not processes().is_main_process,
            mininterval=redraw_seconds(),
        )

    return shown

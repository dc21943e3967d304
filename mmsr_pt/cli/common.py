"""What the commands share."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tqdm import tqdm

from mmsr_pt.batch import ItemInputs
from mmsr_pt.data.catalogue import item_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.evaluate import ItemSource
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.hub import find_bundle, load_model
from mmsr_pt.log import UserError, redraw_seconds
from mmsr_pt.models.recommender import Recommender


def require(condition: bool, sentence: str) -> None:
    """Raises UserError with that sentence where the condition does not hold."""
    if not condition:
        raise UserError(sentence)


def open_model(reference: str, domain: Domain) -> tuple[Recommender, ItemSource]:
    """The model on the CPU, and where it reads the domain's items from."""
    state = processes()
    # one process downloads, the others find the files in the cache
    with state.local_main_process_first():
        bundle = find_bundle(reference)
    model, preprocessor = load_model(bundle, domain)
    return model, _with_progress(item_source(domain, preprocessor))


def _with_progress(source: ItemSource) -> ItemSource:
    """The same source with a progress bar on the main process."""

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

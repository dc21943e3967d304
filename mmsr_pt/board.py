"""What TensorBoard gets of a run besides curves: gates, items in the projector, settings beside the figures on test.

    tensorboard --logdir runs

Written by rank 0 into the run's own log, so that the run stands there once. A resumed run writes its settings again,
which are the same, and its projector anew.

Shapes: N items of the catalogue, n items drawn, D width.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mmsr_pt.config import PretrainConfig
from mmsr_pt.data.domain import COLD_BELOW, IMAGE, Domain
from mmsr_pt.data.thumbnails import thumbnail
from mmsr_pt.evaluation.evaluate import ItemSource, without_gradients
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.models.fusion import Fusion
from mmsr_pt.models.recommender import Recommender

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

MOST_ITEMS = 2000
"""In the projector, of all domains together: what a browser still turns smoothly."""
_MOST_GATED, _ONE_IN = 64, 100
"""Items whose gates are looked at: at most so many, and at most one in so many, so that validation encodes a hundredth
more at most."""
_SPRITE = 48
"""Side of a picture in the projector, in pixels."""
_SHOWN_RUN = ("seed", "epochs", "steps", "patience", "preset")
_SHOWN_DATA = ("data", "weights", "max_users", "pool_size", "cache")


def gates(model: Recommender, source: ItemSource, num_items: int) -> dict[str, Tensor]:
    """The gates of the model's fusion on some items, spread over the catalogue. Collective: call on every rank.

    Every rank does all of it, as modules at ZeRO-3 are to be called equally often.

    Args:
        model: in training or not; it leaves as it came.
        source: where the items come from.
        num_items: N.

    Returns:
        By name [n, ...] float on the CPU; nothing where the model has no fusion with gates.
    """
    fusion = next((module for module in model.modules() if isinstance(module, Fusion)), None)
    if fusion is None or not fusion.has_gates:
        return {}
    count = max(1, min(_MOST_GATED, num_items // _ONE_IN))
    rows = range(0, num_items, num_items // count)[:count]
    read: list[tuple[Tensor, ...]] = []
    hook = fusion.register_forward_pre_hook(lambda module, inputs: read.append(inputs))
    was_training = model.training
    model.eval()
    try:
        with without_gradients(model):
            for batch in source(rows, count):
                model.encode_items(batch.to(processes().device))
            opened = [fusion.gates(*inputs) for inputs in read]
    finally:
        hook.remove()
        model.train(was_training)
    return {name: torch.cat([of_piece[name] for of_piece in opened]).float().cpu() for name in opened[0]}


def clear_projector(directory: Path) -> None:
    """Removes what the end of a run, which is to come again, wrote for the projector."""
    for file in directory.glob("*/*/tensors.tsv"):
        shutil.rmtree(file.parent)
    (directory / "projector_config.pbtxt").unlink(missing_ok=True)


def write_projector(board: SummaryWriter, domain: Domain, rows: np.ndarray, vectors: Tensor, step: int) -> None:
    """Shows items of a domain in the projector: their vectors with titles, occurrences and, if there are any, pictures.

    Args:
        board: the run's log.
        domain: whose items; its name is the embedding's.
        rows: [n] of the catalogue.
        vectors: [n, D].
        step: of the model.
    """
    counts = domain.train_count()[rows]
    titles = domain.titles()
    ids = domain.items["item_id"]
    about = [
        # a tab or a line break would end the cell
        [
            " ".join(titles[row].split()),
            " ".join(ids[int(row)].split()),
            int(count),
            "cold" if count < COLD_BELOW else "warm",
        ]
        for row, count in zip(rows.tolist(), counts)
    ]
    board.add_embedding(
        # as text: digits that nobody can see would be half of the file
        vectors.double().cpu().round(decimals=6),
        metadata=about,
        metadata_header=["title", "item_id", "train_count", "cold or warm"],
        label_img=_sprites(domain, rows) if IMAGE in domain.modalities else None,
        global_step=step,
        tag=domain.name,
    )


def _sprites(domain: Domain, rows: np.ndarray) -> Tensor:
    """[n, 3, side, side] float32 in [0, 1], padded with white; all white where a picture cannot be read."""
    pictures = np.full((len(rows), _SPRITE, _SPRITE, 3), 255, dtype=np.uint8)
    unread = 0
    for number, row in enumerate(rows.tolist()):
        small = thumbnail(domain, row, _SPRITE)
        if small is None:
            unread += 1
            continue
        pictures[number] = np.asarray(ImageOps.pad(small, (_SPRITE, _SPRITE), Image.Resampling.LANCZOS, color="white"))
    if unread:
        log.warning("%d pictures of %s cannot be read: the projector shows white ones", unread, domain.path)
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def settings_of(config: PretrainConfig, others: Mapping[str, str | int | float]) -> dict[str, str | int | float]:
    """What TensorBoard shows as hyper-parameters: of model and optimisation all, of data and run what decides figures.

    Args:
        config: of the run.
        others: what stands elsewhere, by name.
    """
    shown: dict[str, Any] = dict(others)
    for group, names in (("model", None), ("optim", None), ("data", _SHOWN_DATA), ("run", _SHOWN_RUN)):
        values = dataclasses.asdict(getattr(config, group))
        shown |= {f"{group}/{name}": values[name] for name in names or values}
    return {name: _plain(value) for name, value in shown.items() if value is not None}


def _plain(value: Any) -> str | int | float:
    if isinstance(value, tuple):
        return ", ".join(str(one) for one in value) or "none"
    return value if isinstance(value, int | float) else str(value)


def begin_session(board: SummaryWriter, settings: Mapping[str, str | int | float], metrics: Sequence[str]) -> None:
    """Writes the settings into the run's own log, where `add_hparams` would make a second run of them.

    Args:
        board: the run's log.
        settings: by name.
        metrics: tags of the curves that are to stand beside them.
    """
    from torch.utils.tensorboard.summary import hparams

    experiment, start, _ = hparams(dict(settings), dict.fromkeys(metrics, 0.0))
    writer: Any = board.file_writer
    writer.add_summary(experiment)
    writer.add_summary(start)


def end_session(board: SummaryWriter) -> None:
    """Marks the run as finished."""
    from torch.utils.tensorboard.summary import hparams

    *_, end = hparams({}, {})
    writer: Any = board.file_writer
    writer.add_summary(end)

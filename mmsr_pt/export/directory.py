"""Export for serving: a directory that any server with onnxruntime can recommend from, without torch and this package.

    mmsr-pt export --model runs/mine --out exported

It holds item_tower.onnx and user_tower.onnx, the tokenizer and preprocessor.json as in the bundle, and export.json,
which says what goes into the towers, what comes out, and what a score is. Nothing is left there unless onnxruntime
gives the vectors that torch gives. It needs `pip install 'mmsr_pt[export]'`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmsr_pt import __version__
from mmsr_pt.data.shards.output import complete_directory
from mmsr_pt.export.check import TOLERANCE, differences, draw_histories, draw_items
from mmsr_pt.export.graphs import OPSETS, ItemTower, Ports, UserTower, item_ports, user_ports, write_graph
from mmsr_pt.log import UserError, naming_a_full_disk
from mmsr_pt.model import MMSRModel
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.models.towers.vision_tower import VisionTower

ITEM_TOWER, USER_TOWER, EXPORT_FILE = "item_tower.onnx", "user_tower.onnx", "export.json"
FORMAT_VERSION = 1
DEFAULT_OPSET = 20
_TRACED = (3, 5)
"""Rows and tokens or positions at which towers are traced: not alike, and not 1, which would be taken for a size that
never changes."""


class ExportedTower(NamedTuple):
    """A graph that has been written and checked."""

    file: str
    num_bytes: int
    """With the weights beside it, where there are any."""
    difference: float
    """See `onnx_check.differences`."""


def require_exporter() -> None:
    """Raises UserError where what exports is not installed; to be called before a model is loaded or downloaded."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"export needs {name}, which is not installed: type pip install 'mmsr_pt[export]' (in a checkout "
                "pip install --editable '.[export]')"
            )


def check_request(out: Path, opset: int) -> None:
    """Raises UserError where the directory is taken or the opset is none that is written."""
    if opset not in OPSETS:
        raise UserError(f"--opset {opset} is not written: give one of {OPSETS[0]} to {OPSETS[-1]}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {out} is there already: name a new directory, or move it away")


def export(model: MMSRModel, out: Path, opset: int = DEFAULT_OPSET) -> list[ExportedTower]:
    """Writes the export directory of a model and checks it; nothing is left of one that fails.

    Args:
        model: on the CPU.
        out: a directory that is new or empty.
        opset: version of ONNX's operators, 18 to 23.

    Returns:
        The item tower and the user tower.

    Raises:
        UserError: a missing library, a directory that is taken, a model that cannot be exported, or vectors that are
            further from torch's than TOLERANCE.
    """
    require_exporter()
    check_request(out, opset)
    _require_exportable(model.recommender, model.origin)
    with naming_a_full_disk(out, "free some space, or choose another --out"), complete_directory(out, False) as new:
        model.preprocessor.save(new)
        of_items, of_users = item_ports(model), user_ports(model)
        generator = torch.Generator().manual_seed(0)
        rows, columns = _TRACED
        items = draw_items(model, rows, min(columns, model.preprocessor.title_tokens), generator)
        item_tower = ItemTower(model.recommender, [port.name for port in of_items.inputs])
        write_graph(item_tower, of_items, items, new / ITEM_TOWER, opset)
        longest = min(columns, model.recommender.config.max_history)
        vectors = torch.randn((rows, *of_items.output.shape[1:]), generator=generator)  # type: ignore[arg-type]
        histories = draw_histories(vectors, torch.full((rows,), longest), longest, generator)
        write_graph(UserTower(model.recommender), of_users, histories, new / USER_TOWER, opset)
        found = dict(zip((ITEM_TOWER, USER_TOWER), differences(model, new / ITEM_TOWER, new / USER_TOWER)))
        for file, difference in found.items():
            # written so that what is no number is refused as well
            if not difference <= TOLERANCE:
                raise UserError(
                    f"{file} of {model.origin} gives other vectors than torch: an entry differs by {difference:.1e} of "
                    f"the largest one, {TOLERANCE:.0e} is allowed; try another --opset"
                )
        (new / EXPORT_FILE).write_text(json.dumps(_described(model, opset, found), indent=2) + "\n", encoding="utf-8")
        sizes = {file: sum(path.stat().st_size for path in new.glob(f"{file}*")) for file in found}
    return [ExportedTower(file, sizes[file], difference) for file, difference in found.items()]


def _require_exportable(recommender: Recommender, origin: str) -> None:
    """Refuses what has no item or user vector, or none that a graph could compute."""
    if not recommender.scores_by_product:
        raise UserError(
            f"{origin} cannot be exported: with --sequence {recommender.config.sequence} each candidate attends to the "
            "history, so a score is no product of an item's and a user's vector"
        )
    from mmsr_pt.models.towers.region import RegionVision

    for module in recommender.modules():
        if isinstance(module, RegionVision):
            raise UserError(
                f"{origin} cannot be exported: the detector of --vision region looks at one picture at a time, at as "
                "many boxes as it finds there"
            )
        if isinstance(module, VisionTower) and module.mask_ratio and module.hides_in_evaluation:
            raise UserError(
                f"{origin} cannot be exported: by --patch_mask_eval it hides patches at random, so an item's vector is "
                "another one each time"
            )


def _described(model: MMSRModel, opset: int, found: dict[str, float]) -> dict[str, Any]:
    """What export.json holds."""
    recommender = model.recommender
    libraries = ("torch", "onnx", "onnxscript", "onnxruntime")
    return {
        "format_version": FORMAT_VERSION,
        "item_tower": {"file": ITEM_TOWER, **_ports(item_ports(model))},
        "user_tower": {"file": USER_TOWER, **_ports(user_ports(model))},
        "score_scale": recommender.score_scale,
        "score": "score_scale * inner product of a row of users and a row of the item tower's vectors; the higher, the "
        "better; leave out the items of the history",
        "max_history": recommender.config.max_history,
        "title_tokens": model.preprocessor.title_tokens,
        "checked": {
            "by": "onnxruntime on the CPU against torch, the largest difference of an entry over the largest entry",
            "tolerance": TOLERANCE,
            "differences": found,
        },
        "opset": opset,
        "versions": {"mmsr_pt": __version__, **{name: importlib.metadata.version(name) for name in libraries}},
        "trained_on": recommender.trained_on,
        "fingerprint": model.fingerprint,
        "model": dataclasses.asdict(recommender.config),
    }


def _ports(ports: Ports) -> dict[str, Any]:
    letters = {size for port in ports.inputs for size in port.shape if isinstance(size, str)}
    return {
        "inputs": [port._asdict() for port in ports.inputs],
        "outputs": [ports.output._asdict()],
        "largest": {letter: largest for letter, largest in ports.largest.items() if letter in letters},
    }

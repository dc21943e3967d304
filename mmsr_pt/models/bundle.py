"""The model's files in a bundle: config.json and model.safetensors, read strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmsr_pt.log import UserError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT_VERSION = 1


def write(directory: Path, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> None:
    """Writes both files; `config` must be JSON."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format_version": FORMAT_VERSION, **config}, indent=2)
    (directory / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    save_file(weights, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def read_config(directory: Path) -> dict[str, Any]:
    """What `write` was given.

    Raises:
        UserError: it is missing, unreadable or of another format.
    """
    file = directory / CONFIG_FILE
    if not file.is_file() or not (directory / WEIGHTS_FILE).is_file():
        raise UserError(f"{directory} is no model bundle: it lacks {CONFIG_FILE} or {WEIGHTS_FILE}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): copy or download the bundle again") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if version is None:
        raise UserError(f"{file} has no format_version: {directory} is the checkpoint of another program")
    if version != FORMAT_VERSION:
        raise UserError(f"{file} has format {version}, this version reads {FORMAT_VERSION}: use the matching release")
    return config


def read_weights(directory: Path) -> dict[str, Tensor]:
    """The bundle's weights by name, on the CPU; raises UserError where the file is damaged."""
    file = directory / WEIGHTS_FILE
    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged ({error}): copy or download the bundle again") from error


def load_weights(directory: Path, model: nn.Module) -> None:
    """Copies the bundle's weights into `model`, in the model's dtype.

    Raises:
        UserError: the file is damaged, or its tensors are not exactly the model's: a checkpoint of another model.
    """
    file, weights = directory / WEIGHTS_FILE, read_weights(directory)
    wanted = model.state_dict()
    problems = [
        *(f"{name} is missing" for name in wanted if name not in weights),
        *(f"{name} is unexpected" for name in weights if name not in wanted),
        *(
            f"{name} has shape {list(tensor.shape)} instead of {list(wanted[name].shape)}"
            for name, tensor in weights.items()
            if name in wanted and tensor.shape != wanted[name].shape
        ),
    ]
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise UserError(f"{file} is a checkpoint of another model: {len(problems)} tensors do not fit ({shown})")
    model.load_state_dict(weights)

"""The model's files in a bundle: config.json and model.safetensors, read strictly.

Weights above `MAX_SHARD_SIZE` stand in several files (model-00001-of-00002.safetensors, ...) and an index of which
tensor is where (model.safetensors.index.json), as other libraries of the Hugging Face hub write and read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmsr_pt.log import UserError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_FILES = "model-*-of-*.safetensors"
FORMAT_VERSION = 1
MAX_SHARD_SIZE = 5 * 10**9
"""Bytes."""


def write(
    directory: Path, config: Mapping[str, Any], state_dict: Mapping[str, Tensor], max_shard_size: int = MAX_SHARD_SIZE
) -> None:
    """Writes configuration and weights, in place of those that are there.

    Args:
        directory: made if it is not there.
        config: must be JSON.
        state_dict: the weights.
        max_shard_size: bytes of weights that one file may hold.
    """
    write_config(directory, config)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    split = split_torch_state_dict_into_shards(weights, max_shard_size=max_shard_size)
    for old in (directory / WEIGHTS_FILE, directory / INDEX_FILE, *directory.glob(SHARD_FILES)):
        old.unlink(missing_ok=True)
    for file, names in split.filename_to_tensors.items():
        save_file({name: weights[name] for name in names}, directory / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": {"total_size": split.metadata["total_size"]}, "weight_map": split.tensor_to_filename}
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Writes the configuration alone; `config` must be JSON."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format_version": FORMAT_VERSION, **config}, indent=2)
    (directory / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def is_bundle(directory: Path) -> bool:
    """Whether configuration and weights, or an index of them, are there."""
    has_weights = (directory / WEIGHTS_FILE).is_file() or (directory / INDEX_FILE).is_file()
    return has_weights and (directory / CONFIG_FILE).is_file()


def read_config(directory: Path) -> dict[str, Any]:
    """What `write` was given, in this version or an earlier one.

    Raises:
        UserError: it is missing, unreadable or of a later format.
    """
    file = directory / CONFIG_FILE
    if not is_bundle(directory):
        raise UserError(f"{directory} is no model bundle: it lacks {CONFIG_FILE} or {WEIGHTS_FILE}")
    config = _read_json(file)
    version = config.get("format_version")
    if version is None:
        raise UserError(f"{file} has no format_version: {directory} is the checkpoint of another program")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise UserError(
            f"{file} has format {version}, this version reads formats up to {FORMAT_VERSION}: use the matching release"
        )
    return config


def read_weights(directory: Path) -> dict[str, Tensor]:
    """The bundle's weights by name, on the CPU; raises UserError where a file is damaged, missing or not as indexed."""
    weights: dict[str, Tensor] = {}
    for file, names in _names_by_file(directory).items():
        try:
            found = load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged ({error}): copy or download the bundle again") from error
        if names is not None and found.keys() != names:
            raise UserError(
                f"{file} does not hold the tensors that {INDEX_FILE} says it holds: copy or download the bundle again"
            )
        weights.update(found)
    return weights


def load_weights(directory: Path, model: nn.Module) -> None:
    """Copies the bundle's weights into `model`, in the model's dtype.

    Raises:
        UserError: a file is damaged, or the tensors are not exactly the model's: a checkpoint of another model.
    """
    weights = read_weights(directory)
    file = directory / (INDEX_FILE if (directory / INDEX_FILE).is_file() else WEIGHTS_FILE)
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


def _names_by_file(directory: Path) -> dict[Path, set[str] | None]:
    """The files of weights with the names that the index says each holds; None: there is no index."""
    index = directory / INDEX_FILE
    if not index.is_file():
        return {directory / WEIGHTS_FILE: None}
    if (directory / WEIGHTS_FILE).is_file():
        raise UserError(f"{directory} has weights in {WEIGHTS_FILE} and in the files of {INDEX_FILE}: remove the old")
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} is damaged (it has no weight_map): copy or download the bundle again")
    names: dict[Path, set[str] | None] = {}
    for name, file in weight_map.items():
        # a name with a slash would lead out of the bundle
        if not isinstance(file, str) or not Path(file).match(SHARD_FILES) or Path(file).name != file:
            raise UserError(f"{index} names {file!r}, which is no file of weights: copy or download the bundle again")
        held = names.setdefault(directory / file, set())
        assert held is not None
        held.add(name)
    missing = [path.name for path in names if not path.is_file()]
    if missing:
        raise UserError(f"{directory} lacks {', '.join(sorted(missing))} of its weights: copy or download it again")
    return names


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}): copy or download the bundle again") from error
    return value if isinstance(value, dict) else {}

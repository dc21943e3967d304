"""Reads a DeepSpeed configuration and refuses, before anything starts, what would fail or be ignored later."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmsr_pt.config import DataConfig, ModelConfig, OptimConfig, RunConfig
from mmsr_pt.log import UserError

_REFUSED = {
    "optimizer": "the optimizer belongs to the flags --lr, --text_lr, --vision_lr, --weight_decay and "
    "--encoder_weight_decay: remove the block",
    "scheduler": "the schedule belongs to the flags --decay_from and --final_lr: remove the block",
    "amp": 'mixed precision is {"bf16": {"enabled": true}} here: remove the block',
}


def read_ds_config(path: Path, world_size: int) -> dict[str, Any]:
    """The configuration with its batch sizes filled in: micro-batch, accumulation and their product over all ranks.

    Raises:
        UserError: no such file, no JSON, or a key that is missing, of a wrong value or owned by a flag.
    """
    config = _parse(path)
    _refuse_auto(config, str(path))
    _refuse_foreign_keys(config, path)
    zero = config.get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, Mapping) else None
    if type(stage) is not int or not 0 <= stage <= 3:
        raise UserError(
            f'{path}: "zero_optimization" is {json.dumps(zero)}: its "stage" must be 0, 1, 2 or 3, '
            'as in {"zero_optimization": {"stage": 2}}'
        )
    return {**config, **_batch_sizes(config, path, world_size)}


def zero_stage(config: Mapping[str, Any]) -> int:
    """0 to 3: what is split over the ranks (0 nothing, 1 optimizer state, 2 gradients too, 3 weights too)."""
    return config.get("zero_optimization", {}).get("stage", 0)


def precision(config: Mapping[str, Any]) -> torch.dtype:
    """What the model computes in."""
    return torch.bfloat16 if _enabled(config, "bf16") else torch.float32


def offloads_optimizer(config: Mapping[str, Any]) -> bool:
    """Whether optimizer state and step live on the host."""
    offload = config.get("zero_optimization", {}).get("offload_optimizer") or {}
    return offload.get("device", "none") != "none"


def _parse(path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f'{path}: "{name}" stands there {names.count(name)} times: keep one')
        return dict(pairs)

    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except FileNotFoundError:
        beside = sorted(str(other) for other in Path("ds_configs").glob("*.json"))
        hint = f"there are {', '.join(beside)}" if beside else "name a DeepSpeed JSON file"
        raise UserError(f"--ds_config {path} does not exist: {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--ds_config {path} cannot be read ({error}): name a DeepSpeed JSON file") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"--ds_config {path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from error
    if not isinstance(config, dict):
        raise UserError(f"--ds_config {path} must hold a JSON object, as the files in ds_configs/ do")
    return config


def _refuse_auto(value: Any, where: str) -> None:
    if value == "auto":
        raise UserError(f'{where} is "auto", which only the Hugging Face Trainer fills in: write the number or word')
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        _refuse_auto(child, f"{where}: {name}")


def _refuse_foreign_keys(config: Mapping[str, Any], path: Path) -> None:
    for key, sentence in _REFUSED.items():
        if key in config:
            raise UserError(f'{path}: "{key}" does not belong here: {sentence}')
    if _enabled(config, "fp16"):
        raise UserError(f'{path}: "fp16" would need loss scaling, which is not supported: use "bf16" or float32')
    if config.get("managed_gradient_accumulation") is False:
        raise UserError(f'{path}: "managed_gradient_accumulation" must not be false: remove the line')
    for owner in (RunConfig, DataConfig, ModelConfig, OptimConfig):
        for field in dataclasses.fields(owner):
            # DeepSpeed would ignore it without a word
            if field.name in config:
                raise UserError(f'{path}: "{field.name}" is no DeepSpeed setting: give it as --{field.name}')


def _enabled(config: Mapping[str, Any], block: str) -> bool:
    return bool(isinstance(config.get(block), Mapping) and config[block].get("enabled", False))


def _batch_sizes(config: Mapping[str, Any], path: Path, world_size: int) -> dict[str, int]:
    if "train_micro_batch_size_per_gpu" not in config:
        raise UserError(
            f'{path} lacks "train_micro_batch_size_per_gpu" (users that a rank takes at once): add it, e.g. 64'
        )
    sizes = {
        "train_micro_batch_size_per_gpu": config["train_micro_batch_size_per_gpu"],
        "gradient_accumulation_steps": config.get("gradient_accumulation_steps", 1),
    }
    for key, size in sizes.items():
        if type(size) is not int or size < 1:
            raise UserError(f'{path}: "{key}" is {json.dumps(size)}: it must be a whole number of at least 1')
    micro_batch, accumulation = sizes.values()
    total = micro_batch * accumulation * world_size
    given = config.get("train_batch_size", total)
    if given != total:
        raise UserError(
            f'{path}: "train_batch_size" is {json.dumps(given)}, but a micro-batch of {micro_batch} x {accumulation} '
            f"accumulation steps x {world_size} ranks make {total}: leave it out, or change one of them"
        )
    return {**sizes, "train_batch_size": total}

"""What towers of the transformers library have in common, whatever they read."""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mmsr_pt.log import UserError, reason
from mmsr_pt.models.attention import attend
from mmsr_pt.models.towers.tower import BLOCK, Step

_ATTENTION = "mmsr_pt"
"""What the library knows `attend` as."""

_SIDES = {
    "siglip_text_model": "SiglipTextModel",
    "groupvit_text_model": "GroupViTTextModel",
    "groupvit_vision_model": "GroupViTVisionModel",
}
"""Sides of models of pictures and texts that the library makes by no automatic name."""

_SINGLE_STREAM = ("vilt", "visual_bert")
"""Models that cannot read a title or a picture alone."""

_NEEDS = {"text": "vocab_size", "vision": "num_channels"}
"""A setting that every model of a side has."""

_NOT_ARCHITECTURE = ("_name_or_path", "dtype", "transformers_version")


def use_own_attention(backbone: PreTrainedModel) -> None:
    """Makes the library's attention modules call `attend`, with the masks that they would give to torch's own."""
    transformers.AttentionInterface.register(_ATTENTION, _attention)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    backbone.set_attn_implementation(_ATTENTION)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """`attend` with the signature of transformers' AttentionInterface."""
    mixed = attend(query, key, value, attention_mask, dropout, scale=scaling)
    return mixed.transpose(1, 2).contiguous(), None


def architecture_of(backbone: PreTrainedModel) -> dict[str, Any]:
    """The configuration from which `AutoConfig.for_model` makes the same architecture."""
    config = backbone.config.to_dict()
    return {name: value for name, value in config.items() if name not in _NOT_ARCHITECTURE}


def from_architecture(config: dict[str, Any]) -> PreTrainedModel:
    """The model that `architecture_of` described, with random weights, in float32."""
    if config["model_type"] in _SIDES:
        side = getattr(transformers, _SIDES[config["model_type"]])
        return side(side.config_class.from_dict(config))
    return AutoModel.from_config(AutoConfig.for_model(**config), dtype=torch.float32)


def load_side(reference: str, side: Literal["text", "vision"]) -> PreTrainedModel:
    """A model with its weights, in float32 whatever the file holds; of one of pictures and texts that side of it.

    Args:
        reference: hub name or directory.
        side: which.

    Raises:
        UserError: it cannot be had, is none of that side, or lacks weights, which the library would fill up at random.
    """
    # one bar for each rank and each load of a second or two
    transformers.utils.logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(reference)
        config = getattr(config, f"{side}_config", config)
        if config.model_type in _SINGLE_STREAM:
            raise ValueError(f"{config.model_type} reads title and picture in one stream and has no sides")
        if not hasattr(config, _NEEDS[side]):
            raise ValueError(f"{config.model_type} is no {side} model")
        kind = getattr(transformers, _SIDES.get(config.model_type, "AutoModel"))
        backbone, loading = kind.from_pretrained(
            reference, config=config, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # files and downloads fail in many ways
        raise UserError(
            f"--{side} hf:{reference} could not be loaded ({reason(error)}): give a hub name that can be downloaded, "
            "or a directory with config.json and model.safetensors"
        ) from error
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UserError(
            f"--{side} hf:{reference} lacks {len(missing)} weights of {type(backbone).__name__} ({missing[0]}, ...): "
            "it is a checkpoint of another model"
        )
    return backbone


def block_steps(backbone: PreTrainedModel, blocks: str, top: tuple[str, ...]) -> list[Step]:
    """The steps of blocks, which take the tower's context as their mask, and of what follows the last of them.

    Args:
        backbone: of the tower.
        blocks: dotted name of their list.
        top: names of norms, which belong to the last block.
    """
    modules = backbone.get_submodule(blocks)
    assert isinstance(modules, nn.ModuleList)
    steps = [
        Step(f"{BLOCK}{i}", (f"backbone.{blocks}.{i}",), functools.partial(_run_block, block))
        for i, block in enumerate(modules)
    ]
    for name in top:
        norm = backbone.get_submodule(name)
        steps.append(Step(steps[-1].group, (f"backbone.{name}",), functools.partial(_run_norm, norm)))
    return steps


def _run_block(block: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
    return block(hidden, mask)


def _run_norm(norm: nn.Module, hidden: Tensor, _: object) -> Tensor:
    return norm(hidden)

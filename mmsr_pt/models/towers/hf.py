"""What towers of the transformers library have in common, whatever they read."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mmsr_pt.log import UserError, reason
from mmsr_pt.models.attention import attend

_ATTENTION = "mmsr_pt"
"""What the library knows `attend` as."""

_SIDES = {
    "siglip_text_model": "SiglipTextModel",
    "groupvit_text_model": "GroupViTTextModel",
    "groupvit_vision_model": "GroupViTVisionModel",
    "flava_text_model": "FlavaTextModel",
    "flava_image_model": "FlavaImageModel",
}
"""Sides of models of pictures and texts that the library makes by no automatic name."""

DEEP = ("vilt", "visual_bert", "flava")
"""Models in which titles and pictures meet in many blocks; their sides make no tower by themselves."""

_NEEDS = {"text": "vocab_size", "vision": "num_channels"}
"""A setting that every model of a side has."""

_NOT_ARCHITECTURE = ("_name_or_path", "dtype", "transformers_version")


def use_own_attention(backbone: PreTrainedModel) -> None:
    """Makes the library's attention modules call `attend`, with the masks that they would give to torch's own.

    Those of models that know one attention only (ViLT, VisualBERT, FLAVA) then take boolean masks.
    """
    if not backbone._supports_sdpa:
        for module in backbone.modules():
            if all(hasattr(module, name) for name in ("query", "key", "value", "attention_head_size")):
                module.forward = types.MethodType(_self_attention, module)
        return
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


def _self_attention(
    module: Any, hidden: Tensor, attention_mask: Tensor | None = None, output_attentions: bool = False
) -> tuple[Tensor]:
    """`attend` in the place of a whole BERT-like self-attention: [N, S, d], [N, 1, 1, S] bool -> [N, S, d]."""
    shape = (*hidden.shape[:2], -1, module.attention_head_size)
    query, key, value = (part(hidden).view(shape).transpose(1, 2) for part in (module.query, module.key, module.value))
    mixed = attend(query, key, value, attention_mask, module.dropout.p if module.training else 0.0)
    return (mixed.transpose(1, 2).flatten(2),)


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

    def choose(config: PretrainedConfig) -> tuple[Any, PretrainedConfig]:
        if config.model_type in DEEP:
            raise ValueError(f"{config.model_type} is a model of titles and pictures in one: name it with --vlp")
        config = getattr(config, f"{side}_config", config)
        if not hasattr(config, _NEEDS[side]):
            raise ValueError(f"{config.model_type} is no {side} model")
        return getattr(transformers, _SIDES.get(config.model_type, "AutoModel")), config

    return _load(f"--{side}", reference, choose)


def load_whole(reference: str) -> PreTrainedModel:
    """A model of pictures and texts, or one of texts, with all its weights, as `load_side` does; see there."""
    return _load("--vlp", reference, lambda config: (AutoModel, config))


def model_type_of(reference: str) -> str:
    """What kind of model a checkpoint says it is; raises UserError where it cannot be had."""
    try:
        return AutoConfig.from_pretrained(reference).model_type
    except Exception as error:  # files and downloads fail in many ways
        raise _not_loaded("--vlp", reference, error) from error


def _load(
    flag: str, reference: str, choose: Callable[[PretrainedConfig], tuple[Any, PretrainedConfig]]
) -> PreTrainedModel:
    """The model of the class and configuration that are chosen from a checkpoint's own configuration."""
    # one bar for each rank and each load of a second or two, and a line for each weight that a part has no use for
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        kind, config = choose(AutoConfig.from_pretrained(reference))
        backbone, loading = kind.from_pretrained(
            reference, config=config, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        raise _not_loaded(flag, reference, error) from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    missing = sorted(key for key in loading["missing_keys"] if "pooler." not in key)
    if missing:
        raise UserError(
            f"{flag} hf:{reference} lacks {len(missing)} weights of {type(backbone).__name__} ({missing[0]}, ...): "
            "it is a checkpoint of another model"
        )
    return backbone


def _not_loaded(flag: str, reference: str, error: Exception) -> UserError:
    return UserError(
        f"{flag} hf:{reference} could not be loaded ({reason(error)}): give a hub name that can be downloaded, "
        "or a directory with config.json and model.safetensors"
    )


def keep_only(backbone: PreTrainedModel, parts: Sequence[str]) -> None:
    """Takes out every child but those that hold these dotted names.

    Nothing reads poolers and heads: they would be trained groups without a gradient.
    """
    used = {part.split(".")[0] for part in parts}
    for name, _ in list(backbone.named_children()):
        if name not in used:
            setattr(backbone, name, None)

"""Small VLPs with random weights, in directories as the hub has the public ones."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    FlavaConfig,
    FlavaModel,
    GroupViTConfig,
    GroupViTModel,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
    ViltConfig,
    ViltForMaskedLM,
    VisualBertConfig,
    VisualBertForPreTraining,
    ViTConfig,
    ViTModel,
)

from tests.models.towers.small import perturb

_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [
    f"{before}{letter}" for before in ("", "##") for letter in string.ascii_lowercase + string.digits
]
VOCAB = len(_PIECES)
_WIDTH = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32}
_SIZES = {"vocab_size": VOCAB, "num_hidden_layers": 6, **_WIDTH}
_IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_PICTURES = {"image_size": 32, "patch_size": 8, "num_hidden_layers": 6, **_WIDTH}


def _clip() -> PreTrainedModel:
    text = {**_SIZES, **_IDS, "max_position_embeddings": 77}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=_PICTURES, projection_dim=8))


def _siglip() -> PreTrainedModel:
    return SiglipModel(
        SiglipConfig(text_config={**_SIZES, **_IDS, "max_position_embeddings": 64}, vision_config=_PICTURES)
    )


def _groupvit() -> PreTrainedModel:
    vision = {
        **{name: value for name, value in _PICTURES.items() if name != "num_hidden_layers"},
        "depths": [2, 1, 1],
        "num_group_tokens": [4, 2, 0],
        "num_output_groups": [4, 2, 2],
    }
    text = {**_SIZES, **_IDS, "max_position_embeddings": 77}
    return GroupViTModel(
        GroupViTConfig(text_config=text, vision_config=vision, projection_dim=8, projection_intermediate_dim=8)
    )


def _vilt() -> PreTrainedModel:
    return ViltForMaskedLM(ViltConfig(**_SIZES, image_size=32, patch_size=8, hidden_dropout_prob=0.1))


def _visualbert() -> PreTrainedModel:
    return VisualBertForPreTraining(VisualBertConfig(**_SIZES, **_IDS, visual_embedding_dim=24))


def _bert() -> PreTrainedModel:
    return BertModel(BertConfig(**_SIZES))


def _flava() -> PreTrainedModel:
    return FlavaModel(
        FlavaConfig(
            text_config={**_SIZES, **_IDS},
            image_config={**_PICTURES, "mask_token": True},
            multimodal_config={**_WIDTH, "hidden_size": 16, "num_hidden_layers": 2},
            projection_dim=8,
        )
    )


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "clip": _clip,
    "siglip": _siglip,
    "groupvit": _groupvit,
    "vilt": _vilt,
    "visualbert": _visualbert,
    "bert": _bert,
    "flava": _flava,
}
DEEP = ("vilt", "visualbert", "bert", "flava")
SIGHTLESS = ("visualbert", "bert")
"""What needs a --vision beside it."""


def publish(kind: str, directory: Path, seed: int = 0) -> PreTrainedModel:
    """One in a directory, with a tokenizer that spells; its weights are not those of a fresh one."""
    torch.manual_seed(seed)
    model = MODELS[kind]().eval()
    perturb(model)
    model.save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(_PIECES), encoding="utf-8")
    BertTokenizer.from_pretrained(directory).save_pretrained(directory)
    return model


def publish_eyes(directory: Path, width: int = 24) -> PreTrainedModel:
    """A small ViT for a VisualBERT, of whose width (24) its vectors are or not."""
    torch.manual_seed(1)
    model = ViTModel(ViTConfig(**{**_PICTURES, "hidden_size": width, "num_hidden_layers": 2})).eval()
    perturb(model)
    model.save_pretrained(directory)
    return model


def flags_for(kind: str, directory: Path, eyes: Path) -> dict[str, Any]:
    """What of ModelConfig names it."""
    return {"vlp": f"hf:{directory}", **({"vision": f"hf:{eyes}"} if kind in SIGHTLESS else {})}


def write_old(directory: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """A checkpoint in the form that the hub's of these years have: config.json and pytorch_model.bin."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.save(dict(weights), directory / "pytorch_model.bin")

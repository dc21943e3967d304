"""ViLT (Kim et al. 2021): titles and patches, embedded, go through one transformer together.

The library's own forward shuffles the patches and cannot be cut, so the embedding of pictures is written out here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from mmsr_pt.batch import ImageSpec
from mmsr_pt.models.towers.hf import architecture_of
from mmsr_pt.models.towers.joint import DeepVLP, EmbeddedTitles, JointTower
from mmsr_pt.models.towers.tower import Step
from mmsr_pt.models.towers.vision_tower import VisionTower, grid_to_tokens

_TEXT, _PICTURE = 0, 1
"""Rows of the embedding of modalities."""


class _Words(nn.Module):
    """BERT's embeddings of a title, and what says that these are words."""

    def __init__(self, embeddings: nn.Module, modality: Tensor) -> None:
        super().__init__()
        self.embeddings, self.modality = embeddings, nn.Parameter(modality)

    def forward(self, title_ids: Tensor) -> Tensor:
        return self.embeddings(title_ids) + self.modality


class _Patches(nn.Module):
    """Patches behind a class token, their places, and what says that these are patches."""

    def __init__(self, embeddings: Any) -> None:
        super().__init__()
        self.patches = embeddings.patch_embeddings
        self.class_token, self.places = embeddings.cls_token, embeddings.position_embeddings
        self.modality = nn.Parameter(embeddings.token_type_embeddings.weight.data[_PICTURE].clone())
        self.dropout = nn.Dropout(embeddings.dropout.p)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = grid_to_tokens(self.patches(pixels))
        tokens = torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        return self.dropout(tokens + self.places) + self.modality


class ViltVision(VisionTower):
    """Embeddings of patches: [N, 1 + V, d]."""

    num_special_tokens = 1

    def __init__(self, described: dict[str, Any], patches: nn.Module, out_dim: int, image_spec: ImageSpec) -> None:
        super().__init__()
        self._described, self.patches = described, patches
        self.image_spec, self.out_dim = image_spec, out_dim

    def steps(self) -> list[Step]:
        """See Tower."""
        embed = Step("stem", ("patches",), lambda images, _: self.patches(self.pixels(images)))
        return [embed, *self.hiding("stem")]

    def config(self) -> dict[str, Any]:
        """See Tower."""
        return {**self._described, "image": dataclasses.asdict(self.image_spec)}


class _SideBySide(nn.Module):
    """Title tokens, then picture tokens, as they are."""

    def forward(self, text: Tensor, vision: Tensor) -> Tensor:
        return torch.cat([text, vision], dim=1)


class ViltJoint(JointTower):
    """The transformer."""

    default_policy = "top:4"
    is_single_stream = True

    def entry_groups(self) -> dict[str, tuple[str, ...]]:
        """See JointTower: nothing to learn there."""
        return {}


def split(model: Any, image_spec: ImageSpec) -> DeepVLP:
    """The parts of a ViltModel, which is used up."""
    described = {"kind": "vilt", "config": architecture_of(model)}
    embeddings, width = model.embeddings, model.config.hidden_size
    modality = embeddings.token_type_embeddings.weight.data[_TEXT].clone()
    text = EmbeddedTitles(described, _Words(embeddings.text_embeddings, modality), width)
    vision = ViltVision(described, _Patches(embeddings), width, image_spec)
    model.embeddings = model.pooler = None
    return DeepVLP(text, vision, ViltJoint(described, model, _SideBySide(), "encoder.layer", ("layernorm",)))

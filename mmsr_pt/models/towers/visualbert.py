"""VisualBERT (Li et al. 2019): BERT over the tokens of a title and the vectors of a picture, whoever made these.

It has no eyes of its own: the vectors come from any vision tower, by a projection that is the checkpoint's where its
width fits and a new one elsewhere.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, VisualBertConfig, VisualBertModel

from mmsr_pt.log import UserError
from mmsr_pt.models.attention import init_normal
from mmsr_pt.models.towers.hf import architecture_of
from mmsr_pt.models.towers.joint import DeepVLP, EmbeddedTitles, JointTower
from mmsr_pt.models.towers.vision_tower import VisionTower

log = logging.getLogger(__name__)

_FIRST_PLACE, _PICTURE = 0, 1
"""Rows of the embeddings of places and of segments that VisualBERT gives to all vectors of a picture."""


class _Words(nn.Module):
    """BERT's embeddings of a title, up to their norm."""

    def __init__(self, embeddings: Any) -> None:
        super().__init__()
        self.words, self.places = embeddings.word_embeddings, embeddings.position_embeddings
        self.segments = embeddings.token_type_embeddings

    def forward(self, title_ids: Tensor) -> Tensor:
        places = torch.arange(title_ids.shape[1], device=title_ids.device)
        # in BERT's own order, so that the sums are BERT's to the last digit
        return self.words(title_ids) + self.segments(torch.zeros_like(title_ids)) + self.places(places)


class _Entry(nn.Module):
    """Projects a picture's vectors, says that they are a picture's, and normalises them with the title's."""

    def __init__(self, embeddings: Any) -> None:
        super().__init__()
        self.projection = embeddings.visual_projection
        # every vector gets the same place and the same segment, so one vector does
        places, segments = embeddings.visual_position_embeddings, embeddings.visual_token_type_embeddings
        self.modality = nn.Parameter(places.weight.data[_FIRST_PLACE] + segments.weight.data[_PICTURE])
        self.norm, self.dropout = embeddings.LayerNorm, nn.Dropout(embeddings.dropout.p)

    def forward(self, text: Tensor, vision: Tensor) -> Tensor:
        both = torch.cat([text, self.projection(vision) + self.modality], dim=1)
        return self.dropout(self.norm(both))


class VisualBertJoint(JointTower):
    """The norm of the embeddings, and the transformer."""

    default_policy = "top:4"
    is_single_stream = True

    def entry_groups(self) -> dict[str, tuple[str, ...]]:
        """See JointTower."""
        return {"projection": ("entry.projection",), "embeddings": ("entry.modality", "entry.norm")}

    def is_pretrained(self, group: str) -> bool:
        """See Tower."""
        return super().is_pretrained(group) and not (group == "projection" and self.config()["has_new_projection"])


def split(model: Any, vision: VisionTower, has_new_projection: bool) -> DeepVLP:
    """The parts of a VisualBertModel, which is used up, and the tower that sees for it."""
    described = {"kind": "visual_bert", "config": architecture_of(model), "has_new_projection": has_new_projection}
    text = EmbeddedTitles(described, _Words(model.embeddings), model.config.hidden_size)
    entry = _Entry(model.embeddings)
    model.embeddings = model.pooler = None
    return DeepVLP(text, vision, VisualBertJoint(described, model, entry, "encoder.layer", ()))


def seeing(model: PreTrainedModel, vision: VisionTower) -> DeepVLP:
    """A VisualBertModel that reads what a tower makes of pictures.

    Args:
        model: a VisualBertModel, or a BertModel to start one from, as the first VisualBERT was.
        vision: any tower of pictures.

    Raises:
        UserError: the checkpoint is of the variant that does not send pictures through its blocks.
    """
    visual: Any = _from_bert(model, vision.out_dim) if model.config.model_type == "bert" else model
    config = visual.config
    if config.bypass_transformer:
        raise UserError("--vlp: this VisualBERT bypasses its transformer with the picture: take one that does not")
    has_new_projection = model is not visual or config.visual_embedding_dim != vision.out_dim
    if has_new_projection:
        log.info(
            "VisualBERT reads vectors of width %d through a new projection, which trains: its first blocks cannot be "
            "cached",
            vision.out_dim,
        )
        config.visual_embedding_dim = vision.out_dim
        visual.embeddings.visual_projection = nn.Linear(vision.out_dim, config.hidden_size)
        init_normal(visual.embeddings.visual_projection, std=config.initializer_range)
    return split(visual, vision, has_new_projection)


def _from_bert(bert: PreTrainedModel, visual_dim: int) -> VisualBertModel:
    """A VisualBERT with BERT's weights; pictures start with BERT's own first place and second segment."""
    settings = {
        name: value
        for name, value in architecture_of(bert).items()
        if name in VisualBertConfig().to_dict() and name not in ("model_type", "architectures")
    }
    model = VisualBertModel(VisualBertConfig(**settings, visual_embedding_dim=visual_dim))
    missing, unexpected = model.load_state_dict(bert.state_dict(), strict=False)
    assert not unexpected
    assert all(".visual_" in name or name.startswith("pooler.") for name in missing), missing
    embeddings = model.embeddings
    embeddings.visual_position_embeddings.weight.data.copy_(embeddings.position_embeddings.weight.data)
    embeddings.visual_token_type_embeddings.weight.data.copy_(embeddings.token_type_embeddings.weight.data)
    return model

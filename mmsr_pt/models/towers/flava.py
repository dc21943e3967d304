"""FLAVA (Singh et al. 2022): an encoder of titles, one of pictures, and a multimodal one over the tokens of both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmsr_pt.batch import ImageSpec
from mmsr_pt.models.towers.hf import architecture_of
from mmsr_pt.models.towers.hf_text import BertLikeText
from mmsr_pt.models.towers.hf_vision import ViTLikeVision
from mmsr_pt.models.towers.joint import DeepVLP, JointTower


class _Projections(nn.Module):
    """Both towers' tokens, projected, with a class token between them."""

    def __init__(self, text: nn.Module, vision: nn.Module, class_token: nn.Parameter | None) -> None:
        super().__init__()
        self.text, self.vision, self.class_token = text, vision, class_token

    def forward(self, text: Tensor, vision: Tensor) -> Tensor:
        tokens = [self.text(text), self.vision(vision)]
        if self.class_token is not None:
            tokens.insert(1, self.class_token.expand(text.shape[0], -1, -1))
        # FLAVA puts pictures first; there are no positions here, so the order means nothing to it
        return torch.cat(tokens, dim=1)


class FlavaJoint(JointTower):
    """The multimodal encoder, which trains as a whole (appendix E of the paper)."""

    default_policy = "full"
    is_single_stream = False

    def policy_under(self, tune: str | None) -> str:
        """See JointTower: `top:K` is about the towers."""
        return self.default_policy if tune is None or tune.startswith("top:") else tune


def split(model: Any, image_spec: ImageSpec) -> DeepVLP:
    """The parts of a FlavaModel, which is used up."""
    described = {"kind": "flava", "config": architecture_of(model)}
    encoder = model.multimodal_model
    class_token = getattr(encoder, "cls_token", None)
    entry = _Projections(model.text_to_mm_projection, model.image_to_mm_projection, class_token)
    encoder.cls_token = encoder.pooler = None
    joint = FlavaJoint(described, encoder, entry, "encoder.layer", ("layernorm",))
    return DeepVLP(BertLikeText(model.text_model), ViTLikeVision(model.image_model, image_spec), joint)

"""VLPs by name: models pretrained on pictures and texts together, `--vlp hf:NAME_OR_DIR`.

Two streams that meet nowhere (CLIP, SigLIP, GroupViT) are two towers and need a fusion; those in which both meet (ViLT,
VisualBERT, FLAVA) come as a text tower, a vision tower and a joint one.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from mmsr_pt.batch import ImageSpec
from mmsr_pt.log import UserError
from mmsr_pt.models.towers import flava, vilt, visualbert
from mmsr_pt.models.towers.hf import DEEP, from_architecture, load_whole, model_type_of
from mmsr_pt.models.towers.hf_text import check_fits
from mmsr_pt.models.towers.hf_vision import image_spec_of
from mmsr_pt.models.towers.joint import DeepVLP
from mmsr_pt.models.towers.vision import build_vision_tower, vision_tower_from_config


def build_deep_vlp(name: str, vision: str, vocab_size: int | None, title_tokens: int) -> DeepVLP | None:
    """The parts of a deep VLP with their pretrained weights; None where `name` is of two streams that do not meet.

    Args:
        name: hf:NAME_OR_DIR; a BERT there starts a VisualBERT.
        vision: what sees for VisualBERT, as for --vision; for all others `name` again.
        vocab_size: of the tokenizer.
        title_tokens: longest title it will read.

    Raises:
        UserError: it cannot be had, does not fit the tokenizer or the titles, or `vision` is one too many or missing.
    """
    reference = name.removeprefix("hf:")
    kind = model_type_of(reference)
    is_blind = kind in ("visual_bert", "bert")
    if is_blind and vision == name:
        raise UserError(
            f"--vlp {name}: VisualBERT has no eyes of its own: give --vision region, timm:NAME, hf:NAME or stem:hf:NAME"
        )
    if not is_blind and vision != name:
        raise UserError(f"--vlp {name} reads pictures itself: leave --vision {vision} out")
    if kind not in (*DEEP, "bert"):
        return None
    model = load_whole(reference)
    check_fits(f"--vlp {name}", getattr(model.config, "text_config", model.config), vocab_size, title_tokens)
    if is_blind:
        eyes = build_vision_tower(vision)
        if eyes is None:
            raise UserError(f"--vlp {name} with --vision none: VisualBERT reads a picture: name a vision tower")
        return visualbert.seeing(model, eyes)
    image_config: PretrainedConfig = getattr(model.config, "image_config", model.config)
    return _split(kind, model, image_spec_of(image_config, reference))


def deep_vlp_from_config(joint: dict[str, Any], vision: dict[str, Any]) -> DeepVLP:
    """The parts that their `Tower.config`s described, with weights yet to be loaded."""
    model = from_architecture(joint["config"])
    if joint["kind"] == "visual_bert":
        return visualbert.split(model, vision_tower_from_config(vision), joint["has_new_projection"])
    return _split(joint["kind"], model, ImageSpec.from_json(vision["image"]))


def _split(kind: str, model: Any, image_spec: ImageSpec) -> DeepVLP:
    return {"vilt": vilt, "flava": flava}[kind].split(model, image_spec)

"""Vision models of the transformers library: `hf:NAME_OR_DIR`, and their patch embeddings: `stem:hf:NAME_OR_DIR`.

ViT, DeiT, ViT-MAE, DINOv2 and the vision sides of CLIP, SigLIP and FLAVA are cut between their blocks. Any other model
that gives a last hidden state works too, with layer groups found by name; it runs as one step, so unless it is frozen
as a whole its prefix is the identity.

`stem:` keeps what a vision transformer makes of its patches before the first block: the paper's Patch-Emb is that of
CLIP, its vision side without the 12 blocks.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import ImageProcessingMixin, PretrainedConfig, PreTrainedModel

from mmsr_pt.batch import ImageSpec
from mmsr_pt.log import UserError
from mmsr_pt.models.towers.hf import (
    architecture_of,
    from_architecture,
    keep_only,
    load_side,
    use_own_attention,
)
from mmsr_pt.models.towers.tower import Step, block_steps
from mmsr_pt.models.towers.vision_tower import VisionTower
from mmsr_pt.models.towers.whole import WholeTower, drop_unused

log = logging.getLogger(__name__)


class _Family(NamedTuple):
    """Where a model type has its parts; its forward is stem, blocks, top."""

    blocks: str
    stem: tuple[str, ...] = ("embeddings",)
    top: tuple[str, ...] = ("layernorm",)
    num_special_tokens: int = 1
    """Tokens in front of those of the patches."""


_FAMILIES = {
    "vit": _Family("layers"),
    "deit": _Family("layers", num_special_tokens=2),
    "vit_mae": _Family("layers"),
    "dinov2": _Family("encoder.layer"),
    # its post_layernorm is for the pooled token only
    "clip_vision_model": _Family("encoder.layers", stem=("embeddings", "pre_layrnorm"), top=()),
    "siglip_vision_model": _Family("encoder.layers", top=("post_layernorm",), num_special_tokens=0),
    # its multimodal encoder reads what is before the last norm
    "flava_image_model": _Family("encoder.layer", top=()),
}
_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic")
"""By Pillow's numbers, which the library writes into its files."""


class ViTLikeVision(VisionTower):
    """An encoder whose forward is embeddings, blocks of tokens, a norm."""

    backbone: Any

    def __init__(self, backbone: Any, image_spec: ImageSpec) -> None:
        super().__init__()
        self.family = _FAMILIES[backbone.config.model_type]
        if backbone.config.num_hidden_layers == 0:
            self.family = self.family._replace(top=())  # norms of what the last block gives
        keep_only(backbone, [*self.family.stem, self.family.blocks, *self.family.top])
        # pre-training hides patches behind this token; it is no part of the forward
        if getattr(backbone.embeddings, "mask_token", None) is not None:
            backbone.embeddings.mask_token = None
        if backbone.config.model_type == "vit_mae":
            # of its own it leaves out patches in evaluation, too
            backbone.config.mask_ratio = 0.0
        use_own_attention(backbone)
        self.backbone = backbone
        self.image_spec = image_spec
        self.out_dim = backbone.config.hidden_size
        self.num_special_tokens = self.family.num_special_tokens

    def steps(self) -> list[Step]:
        """See Tower."""
        stem = tuple(f"backbone.{name}" for name in self.family.stem)
        embed = Step("stem", stem, self._embed)
        return [embed, *self.hiding("stem"), *block_steps(self.backbone, self.family.blocks, self.family.top)]

    def config(self) -> dict[str, Any]:
        """See Tower."""
        return _config_of(self.backbone, self.image_spec)

    def _embed(self, images: Tensor, _: object) -> Tensor:
        embed = self.backbone.embeddings
        if self.backbone.config.model_type == "vit_mae":
            # it shuffles patches before it leaves some out: in this order they stay where they are
            noise = torch.arange(embed.patch_embeddings.num_patches, device=images.device).expand(images.shape[0], -1)
            hidden = embed(self.pixels(images), noise=noise)[0]
        else:
            hidden = embed(self.pixels(images))
        for name in self.family.stem[1:]:
            hidden = self.backbone.get_submodule(name)(hidden)
        return hidden


class AnyHFVision(WholeTower, VisionTower):
    """Any other model that gives a last hidden state, of tokens or of a grid, from pixels."""

    bottom = "stem"

    def __init__(self, backbone: PreTrainedModel, image_spec: ImageSpec) -> None:
        super().__init__(backbone)
        self.image_spec = image_spec
        image = torch.zeros((1, 3, image_spec.height, image_spec.width), dtype=torch.uint8)
        self.out_dim = drop_unused(backbone, lambda: self.run_backbone(image, None))

    def config(self) -> dict[str, Any]:
        """See Tower."""
        return _config_of(self.backbone, self.image_spec)

    def run_backbone(self, inputs: Tensor, context: None) -> Tensor:
        """See WholeTower."""
        return self.as_tokens(self.backbone(self.pixels(inputs)).last_hidden_state)


def _config_of(backbone: PreTrainedModel, image_spec: ImageSpec) -> dict[str, Any]:
    return {"kind": "hf", "config": architecture_of(backbone), "image": dataclasses.asdict(image_spec)}


def from_config(config: dict[str, Any]) -> VisionTower:
    """The tower of a transformers configuration, with random weights."""
    return _wrap(from_architecture(config["config"]), ImageSpec.from_json(config["image"]))


def load_pretrained(reference: str, stem_only: bool = False) -> VisionTower:
    """The tower of a hub name or a directory, its weights in float32 whatever the file holds.

    A checkpoint of pictures and texts, such as CLIP's, gives its vision side.

    Args:
        reference: hub name or directory.
        stem_only: leave out the blocks and what follows them.

    Raises:
        UserError: it cannot be had, is no vision model, lacks weights, or is to give a stem and has none.
    """
    backbone = load_side(reference, "vision")
    if stem_only:
        _cut_blocks(backbone, reference)
    return _wrap(backbone, image_spec_of(backbone.config, reference))


def _cut_blocks(backbone: PreTrainedModel, reference: str) -> None:
    """Leaves no block, and a configuration that says so."""
    config = backbone.config
    if config.model_type not in _FAMILIES:
        raise UserError(
            f"--vision stem:hf:{reference}: {config.model_type} is not known to begin with a patch embedding; give a "
            f"model of {', '.join(sorted(_FAMILIES))}"
        )
    path, _, name = _FAMILIES[config.model_type].blocks.rpartition(".")
    setattr(backbone.get_submodule(path), name, nn.ModuleList())
    if hasattr(config, "stage_names"):
        # DINOv2's, which name the blocks
        config.stage_names = config.stage_names[:1]
        config.out_features = config.stage_names
    config.num_hidden_layers = 0


def _preprocessing(reference: str) -> dict[str, Any]:
    """What the checkpoint's own image processor was configured with; nothing where it has none."""
    try:
        return ImageProcessingMixin.get_image_processor_dict(reference)[0]
    except OSError:
        log.info("hf:%s says nothing of its pictures: scaled to [-1, 1], resized bilinearly", reference)
        return {}


def image_spec_of(config: PretrainedConfig, reference: str) -> ImageSpec:
    """Size from the model, whose positions are learned for it; filter and statistics from the image processor.

    Args:
        config: of the model.
        reference: hub name or directory of its checkpoint.
    """
    preprocessing = _preprocessing(reference)
    size = getattr(config, "image_size", None) or preprocessing.get("size") or 224
    if isinstance(size, dict):
        size = (size["height"], size["width"]) if "height" in size else size["shortest_edge"]
    height, width = (size, size) if isinstance(size, int) else size
    is_normalised = preprocessing.get("do_normalize", True)
    return ImageSpec(
        height=height,
        width=width,
        interpolation=_RESAMPLING[preprocessing.get("resample", 2)],
        mean=tuple(preprocessing.get("image_mean", (0.5,) * 3)) if is_normalised else (0.0,) * 3,
        std=tuple(preprocessing.get("image_std", (0.5,) * 3)) if is_normalised else (1.0,) * 3,
    )


def _wrap(backbone: PreTrainedModel, image_spec: ImageSpec) -> VisionTower:
    model_type = backbone.config.model_type
    if model_type in _FAMILIES:
        return ViTLikeVision(backbone, image_spec)
    log.info("%s runs as one piece: no part of it can be cached unless it is frozen", model_type)
    return AnyHFVision(backbone, image_spec)

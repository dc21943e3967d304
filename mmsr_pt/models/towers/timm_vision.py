"""Vision models of the timm library: `timm:NAME` and `timm:local-dir:DIR`.

VisionTransformer, Swin, EfficientNet, ResNet and ConvNeXt families are cut between their blocks. Any other model works
too, with timm's own layer groups; it runs as one step, so unless it is frozen as a whole its prefix is the identity.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import group_parameters, load_model_config_from_hf
from torch import Tensor, nn

from mmsr_pt.batch import ImageSpec
from mmsr_pt.log import UserError, reason
from mmsr_pt.models.towers.timm_families import cut_of, running_functions, to_tokens, vision_transformer
from mmsr_pt.models.towers.tower import Step
from mmsr_pt.models.towers.vision_tower import VisionTower
from mmsr_pt.models.towers.whole import WholeTower, drop_unused

log = logging.getLogger(__name__)


class SteppedTimm(VisionTower):
    """A timm model of a known family, cut between its blocks."""

    backbone: Any

    def __init__(self, backbone: Any, model_args: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = running_functions(backbone)
        self.model_args = model_args
        self.image_spec = _image_spec(backbone)
        self.out_dim = backbone.num_features
        if cut_of(backbone) is vision_transformer:
            self.num_special_tokens = backbone.num_prefix_tokens
        used = {part.split(".")[1] for step in self.steps() for part in step.parts}
        for name, child in list(backbone.named_children()):
            # a head that nothing reads would be a trained group without a gradient
            if name not in used and any(True for _ in child.parameters()):
                setattr(backbone, name, nn.Identity())

    def steps(self) -> list[Step]:
        """See Tower."""
        pieces = cut_of(self.backbone)
        assert pieces is not None
        steps = [
            Step(piece.group, tuple(f"backbone.{part}" for part in piece.parts), _ignoring_context(piece.run))
            for piece in pieces(self.backbone)
        ]
        first = Step(steps[0].group, (), lambda images, _: self.pixels(images))
        # a vision transformer's stem is one piece, after which pictures are tokens
        stem, blocks = steps[:1], steps[1:]
        last = Step(steps[-1].group, (), lambda hidden, _: self.as_tokens(hidden))
        return [first, *stem, *self.hiding("stem"), *blocks, last]

    def as_tokens(self, hidden: Tensor) -> Tensor:
        """See Tower."""
        return to_tokens(self.backbone, hidden)

    def config(self) -> dict[str, Any]:
        """See Tower."""
        return _config_of(self.backbone, self.model_args)


class AnyTimm(WholeTower, VisionTower):
    """Any other timm model, by its `forward_features`."""

    bottom = "stem"

    def __init__(self, backbone: Any, model_args: dict[str, Any]) -> None:
        super().__init__(running_functions(backbone))
        self.model_args = model_args
        self.image_spec = _image_spec(backbone)
        image = torch.zeros((1, 3, self.image_spec.height, self.image_spec.width), dtype=torch.uint8)
        self.out_dim = drop_unused(backbone, lambda: self.run_backbone(image, None))

    def config(self) -> dict[str, Any]:
        """See Tower."""
        return _config_of(self.backbone, self.model_args)

    def group_of_parameters(self) -> Iterator[tuple[str, int | None]]:
        """(name, block) as timm's own `group_matcher` groups them; its first group is the stem."""
        group_of = group_parameters(self.backbone, self.backbone.group_matcher(coarse=False), reverse=True)
        for name, group in group_of.items():
            yield f"backbone.{name}", group - 1 if group > 0 else None

    def run_backbone(self, inputs: Tensor, context: None) -> Tensor:
        """See WholeTower."""
        return to_tokens(self.backbone, self.backbone(self.backbone.forward_features, self.pixels(inputs)))


def _ignoring_context(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Any], Tensor]:
    return lambda hidden, _: run(hidden)


def _image_spec(backbone: nn.Module) -> ImageSpec:
    """Size and statistics from the weights' own configuration."""
    config = timm.data.resolve_model_data_config(backbone)
    _, height, width = config["input_size"]
    interpolation = config["interpolation"]
    return ImageSpec(
        height=height,
        width=width,
        # some weights were trained with a random choice of filters
        interpolation="bilinear" if interpolation == "random" else interpolation,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _config_of(backbone: Any, model_args: dict[str, Any]) -> dict[str, Any]:
    pretrained = json.loads(json.dumps(dict(backbone.pretrained_cfg), default=str))
    for of_this_machine in ("file", "source"):
        pretrained.pop(of_this_machine, None)
    return {
        "kind": "timm",
        "architecture": pretrained["architecture"],
        "model_args": model_args,
        "pretrained_cfg": pretrained,
    }


def from_config(config: dict[str, Any]) -> VisionTower:
    """The tower of a timm architecture, with random weights."""
    model_args = config["model_args"]
    backbone = timm.create_model(
        config["architecture"],
        pretrained=False,
        pretrained_cfg=config["pretrained_cfg"] or None,
        num_classes=0,
        **model_args,
    )
    return _wrap(backbone, model_args)


def load_pretrained(reference: str) -> VisionTower:
    """The tower of a timm name or `local-dir:DIR`, with its weights.

    Raises:
        UserError: unknown name, or weights that cannot be had.
    """
    source, separator, place = reference.partition(":")
    if not separator:
        _check_name(timm.models.split_model_name_tag(reference)[0])
    if source == "local-dir" and not (Path(place) / "config.json").is_file():
        raise UserError(f"--vision timm:{reference}: there is no {place}/config.json; give a directory of timm weights")
    model_args: dict[str, Any] = {}
    try:
        if source == "local-dir":
            model_args = json.loads((Path(place) / "config.json").read_text(encoding="utf-8")).get("model_args") or {}
        elif source == "hf-hub":
            model_args = load_model_config_from_hf(place)[2] or {}
        backbone = timm.create_model(reference, pretrained=True, num_classes=0)
    except Exception as error:  # files and downloads fail in many ways
        raise UserError(
            f"--vision timm:{reference} could not be loaded ({reason(error)}): give a model that can be downloaded, or "
            "timm:local-dir:DIR with a directory that holds config.json and model.safetensors"
        ) from error
    # the head is not built again
    return _wrap(backbone, {name: value for name, value in model_args.items() if name != "num_classes"})


def _check_name(architecture: str) -> None:
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.4)
        hint = f"did you mean timm:{', timm:'.join(near)}?" if near else "timm.list_models() lists all"
        raise UserError(f"timm has no model {architecture!r}: {hint}")


def _wrap(backbone: nn.Module, model_args: dict[str, Any]) -> VisionTower:
    if cut_of(backbone) is not None:
        return SteppedTimm(backbone, model_args)
    log.info("%s runs as one piece: no part of it can be cached unless it is frozen", type(backbone).__name__)
    return AnyTimm(backbone, model_args)

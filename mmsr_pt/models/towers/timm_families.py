"""Where timm's families are cut: each gives its forward up to the head as a list of pieces.

Shapes: N images, V tokens, d width.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from timm.models import ConvNeXt, EfficientNet, ResNet, SwinTransformer, VisionTransformer
from torch import Tensor, nn

from mmsr_pt.models.towers.depthwise import speed_up_depthwise
from mmsr_pt.models.towers.tower import BLOCK
from mmsr_pt.models.towers.vision_tower import grid_to_tokens


class Piece(NamedTuple):
    """A step of a backbone, named from the backbone."""

    group: str
    parts: tuple[str, ...]
    run: Callable[[Tensor], Tensor]


def running_functions(backbone: nn.Module) -> nn.Module:
    """Makes `backbone(function, x)` give `function(x)`, inside the backbone's own call.

    Parameters that hang on the backbone itself (a class token) are gathered by ZeRO-3 in its call and nowhere else.
    """
    backbone.forward = types.MethodType(lambda self, function, hidden: function(hidden), backbone)
    speed_up_depthwise(backbone)
    return backbone


def to_tokens(backbone: nn.Module, hidden: Tensor) -> Tensor:
    """[N, V, d] from tokens or from a grid in either layout."""
    if hidden.ndim == 3:
        return hidden
    return hidden.flatten(1, 2) if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else grid_to_tokens(hidden)


def vision_transformer(model: Any) -> Iterator[Piece]:
    """Of the ViT family: patches become tokens in the first piece."""

    def embed(images: Tensor) -> Tensor:
        return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))

    names = ("patch_embed", "cls_token", "reg_token", "dist_token", "pos_embed", "pos_drop", "patch_drop", "norm_pre")
    parts = tuple(name for name in names if getattr(model, name, None) is not None)
    yield Piece("stem", parts, lambda images: model(embed, images))
    for i, block in enumerate(model.blocks):
        yield Piece(f"{BLOCK}{i}", (f"blocks.{i}",), block)
    yield Piece(f"{BLOCK}{len(model.blocks) - 1}", ("norm",), model.norm)


def _swin(model: Any) -> Iterator[Piece]:
    return _staged(model, stem="patch_embed", stages="layers", norm="norm")


def _convnext(model: Any) -> Iterator[Piece]:
    return _staged(model, stem="stem", stages="stages", norm="norm_pre")


def _staged(model: Any, stem: str, stages: str, norm: str) -> Iterator[Piece]:
    """A stem, stages of blocks and a norm, by the names that a family has for them."""
    yield Piece("stem", (stem,), getattr(model, stem))
    last = "stem"
    for s, stage in enumerate(getattr(model, stages)):
        for piece in _stage(f"{stages}.{s}", stage, last):
            last = piece.group
            yield piece
    yield Piece(last, (norm,), getattr(model, norm))


def _stage(name: str, stage: Any, last: str) -> Iterator[Piece]:
    """Blocks of a stage, numbered on from group `last`; what halves the grid belongs to the first of them."""
    number = _next_block(last)
    yield Piece(f"{BLOCK}{number}", (f"{name}.downsample",), stage.downsample)
    for i, block in enumerate(stage.blocks):
        yield Piece(f"{BLOCK}{number + i}", (f"{name}.blocks.{i}",), block)


def _next_block(last: str) -> int:
    return int(last.removeprefix(BLOCK)) + 1 if last.startswith(BLOCK) else 0


def _efficientnet(model: Any) -> Iterator[Piece]:
    yield Piece("stem", ("conv_stem", "bn1"), lambda images: model.bn1(model.conv_stem(images)))
    flat = [(f"blocks.{s}.{i}", block) for s, stage in enumerate(model.blocks) for i, block in enumerate(stage)]
    for number, (name, block) in enumerate(flat):
        yield Piece(f"{BLOCK}{number}", (name,), block)
    head = ("conv_head", "bn2")
    yield Piece(f"{BLOCK}{len(flat) - 1}", head, lambda hidden: model.bn2(model.conv_head(hidden)))


def _resnet(model: Any) -> Iterator[Piece]:
    stem = ("conv1", "bn1", "act1", "maxpool")
    yield Piece("stem", stem, lambda images: model.maxpool(model.act1(model.bn1(model.conv1(images)))))
    layers = [(f"layer{s}", getattr(model, f"layer{s}")) for s in range(1, 5)]
    flat = [(f"{name}.{i}", block) for name, layer in layers for i, block in enumerate(layer)]
    for number, (name, block) in enumerate(flat):
        yield Piece(f"{BLOCK}{number}", (name,), block)


_FAMILIES: tuple[tuple[Any, Callable[[Any], Iterator[Piece]]], ...] = (
    (VisionTransformer, vision_transformer),
    (SwinTransformer, _swin),
    (EfficientNet, _efficientnet),
    (ResNet, _resnet),
    (ConvNeXt, _convnext),
)


def cut_of(backbone: nn.Module) -> Callable[[Any], Iterator[Piece]] | None:
    """The cut of a backbone that runs its family's own `forward_features`; None for any other."""
    for kind, pieces in _FAMILIES:
        if getattr(type(backbone), "forward_features", None) is kind.forward_features:
            return pieces
    return None

"""Vision towers by name; uint8 images in, tokens out.

`tiny`, `timm:NAME`, `timm:local-dir:DIR`, `hf:NAME_OR_DIR`, `stem:hf:NAME_OR_DIR`, `region`, `region:FILE`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmsr_pt.batch import ImageSpec
from mmsr_pt.log import UserError
from mmsr_pt.models.towers.side import SideVisionTower
from mmsr_pt.models.towers.text import check_hf_place
from mmsr_pt.models.towers.tower import BLOCK, SIDE, Step
from mmsr_pt.models.towers.vision_tower import VisionTower, grid_to_tokens
from mmsr_pt.registry import unknown_name


class TinyVision(VisionTower):
    """A small untrained convolutional net without BatchNorm: 64 px to a 4 x 4 grid, for tests, demos and drawings."""

    pretrained = False
    image_spec = ImageSpec(64, 64, "bilinear", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.out_dim = width
        # two small convolutions: one of 6 x 6 needs twice the steps to tell shapes apart
        self.stem = nn.Sequential(_Convolution(3, width // 8, stride=2), _Convolution(width // 8, width // 4, stride=2))
        self.blocks = nn.ModuleList([_TinyBlock(width // 4, width // 2), _TinyBlock(width // 2, width)])

    def steps(self) -> list[Step]:
        """See Tower."""
        steps = [Step("stem", ("stem",), self._stem)]
        for i, block in enumerate(self.blocks):
            steps.append(Step(f"{BLOCK}{i}", (f"blocks.{i}",), functools.partial(_run_block, block)))
        return [*steps, Step(steps[-1].group, (), grid_to_tokens)]

    def config(self) -> dict[str, Any]:
        """See Tower."""
        return {"kind": "tiny"}

    def _stem(self, images: Tensor, _: object) -> Tensor:
        return self.stem(self.pixels(images))


class _Convolution(nn.Module):
    """A convolution, normalised by groups of channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(8, out_channels)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.gelu(self.norm(self.convolution(hidden)))


class _TinyBlock(nn.Module):
    """Halves the grid, then adds what a convolution on the small grid sees."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.down = _Convolution(in_channels, out_channels, stride=2)
        self.look = _Convolution(out_channels, out_channels, stride=1)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.down(hidden)
        return hidden + self.look(hidden)


def _run_block(block: nn.Module, hidden: Tensor, _: object) -> Tensor:
    return block(hidden)


_NAMES = ("tiny", "timm:NAME", "timm:local-dir:/a/dir", "hf:NAME", "stem:hf:NAME", "region", "region:FILE", "none")


def build_vision_tower(name: str) -> VisionTower | None:
    """The vision tower called `name` with its pretrained weights; None for `none`.

    Args:
        name: tiny, timm:NAME, timm:local-dir:DIR, hf:NAME_OR_DIR, stem:hf:NAME_OR_DIR, region, region:FILE or none.

    Raises:
        UserError: unknown name, or weights that cannot be had.
    """
    if name == "none":
        return None
    if name == "tiny":
        return TinyVision()
    kind, _, reference = name.partition(":")
    if kind == "timm" and reference:
        from mmsr_pt.models.towers.timm_vision import load_pretrained

        return load_pretrained(reference)
    if kind in ("hf", "stem") and reference:
        if kind == "stem" and not reference.startswith("hf:"):
            raise UserError(f"--vision {name}: only transformers models give their stem, write stem:hf:NAME_OR_DIR")
        check_hf_place("--vision", reference.removeprefix("hf:"))
        from mmsr_pt.models.towers.hf_vision import load_pretrained as load_hf

        return load_hf(reference.removeprefix("hf:"), stem_only=kind == "stem")
    if name == "region" or (kind == "region" and reference):
        from mmsr_pt.models.towers.region import load_pretrained as load_region

        return load_region(reference or None)
    if kind == "local-dir" and reference:
        raise UserError(f"--vision {name} has no prefix: write timm:{name}")
    if kind != "timm" and ":" not in name:
        from timm.models import is_model, split_model_name_tag

        if is_model(split_model_name_tag(name)[0]):
            raise UserError(f"--vision {name} has no prefix: write timm:{name}")
        if "/" in name:
            raise UserError(f"--vision {name} has no prefix: write timm:local-dir:{name} for a directory")
    raise unknown_name("vision tower", name, _NAMES)


def vision_tower_from_config(config: dict[str, Any]) -> VisionTower:
    """The tower that `Tower.config` described, with weights yet to be loaded; needs no file and no network."""
    if config["kind"] == "tiny":
        return TinyVision()
    if config["kind"] == "timm":
        from mmsr_pt.models.towers.timm_vision import from_config

        return from_config(config)
    if config["kind"] == "hf":
        from mmsr_pt.models.towers.hf_vision import from_config as from_hf_config

        return from_hf_config(config)
    if config["kind"] == "region":
        from mmsr_pt.models.towers.region import from_config as from_region_config

        return from_region_config(config)
    if config["kind"] == SIDE:
        return SideVisionTower(vision_tower_from_config(config["tower"]), config["width"], config["depths"])
    raise unknown_name("kind of vision tower", config["kind"], ("tiny", "timm", "hf", "region", SIDE))

"""What every vision tower is: uint8 images in, tokens out.

Shapes: N images, V = H * W tokens of a grid, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmsr_pt.batch import ImageSpec
from mmsr_pt.log import UserError
from mmsr_pt.models.towers.tower import Activations, Step, Tower


class VisionTower(Tower):
    """A tower over images; it knows what they must look like and scales and normalises them itself."""

    image_spec: ImageSpec
    """Pictures are resized straight to this size, without a crop, as in the paper: nothing of an item is cut off."""

    num_special_tokens: int | None = None
    """Tokens in front of those of the patches, which hiding leaves alone; None: the tower has no patches to hide."""
    mask_ratio: float = 0.0
    """Share of each picture's patches that are left out at random; see `hide_patches`."""
    hides_in_evaluation: bool = False
    """Whether they are left out in evaluation, too."""

    def hide_patches(self, ratio: float, in_evaluation: bool) -> None:
        """From now on leaves out a random share of each picture's patches, as in MAE (He et al. 2022).

        A picture's tokens are then others at every step, so that the frozen part that can be kept ends below them.

        Args:
            ratio: in [0, 1); int(V * (1 - ratio)) of V patches stay.
            in_evaluation: as the released code of the paper does, whose item vectors are random for that.

        Raises:
            UserError: this tower has no patches.
        """
        if ratio and self.num_special_tokens is None:
            raise UserError(
                f"--patch_mask {ratio}: {type(self).__name__} has no patches to hide; it is for vision transformers, "
                "such as hf:facebook/vit-mae-base"
            )
        self.mask_ratio, self.hides_in_evaluation = ratio, in_evaluation

    def hiding(self, group: str) -> list[Step]:
        """The step that hides patches, if any are to be; it follows that of `group` which makes tokens of them."""
        return [Step(group, (), self._hide, is_random=True)] if self.mask_ratio else []

    def _hide(self, tokens: Tensor, _: object) -> Tensor:
        """[N, S + V, d] -> [N, S + V', d]."""
        if not (self.training or self.hides_in_evaluation):
            return tokens
        assert self.num_special_tokens is not None
        special, patches = tokens.split([self.num_special_tokens, tokens.shape[1] - self.num_special_tokens], dim=1)
        noise = torch.rand(patches.shape[:2], device=tokens.device)
        kept = noise.argsort(dim=1)[:, : int(patches.shape[1] * (1 - self.mask_ratio))]
        patches = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[2]))
        return torch.cat([special, patches], dim=1)

    def pixels(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] uint8 -> the same normalised, in the dtype of the weights, channels last in memory."""
        # made anew from Python floats: a non-persistent buffer would come back from a checkpoint as garbage
        mean, std = images.new_tensor((self.image_spec.mean, self.image_spec.std), dtype=self.dtype)
        scaled = images.to(self.dtype, memory_format=torch.channels_last)
        return scaled.mul_((1 / 255 / std)[:, None, None]).sub_((mean / std)[:, None, None])

    def as_tokens(self, hidden: Tensor) -> Tensor:
        """See Tower."""
        return hidden if hidden.ndim == 3 else grid_to_tokens(hidden)

    def _run(self, steps: Sequence[Step], inputs: Activations) -> Activations:
        # as in `attend`: on a CPU the fused kernel is slow where gradients are wanted
        is_fused = inputs.hidden.device.type != "cpu" or not torch.is_grad_enabled()
        # DeepSpeed's bf16 casts weights and leaves buffers: BatchNorm and Swin's masks want one dtype for both
        for module in self.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = is_fused  # type: ignore[assignment]
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point() and buffer.dtype != self.dtype:
                    setattr(module, name, buffer.to(self.dtype))
        return super()._run(steps, inputs)


def grid_to_tokens(hidden: Tensor, _: object = None) -> Tensor:
    """[N, C, H, W] -> [N, H * W, C]."""
    return hidden.flatten(2).transpose(1, 2)

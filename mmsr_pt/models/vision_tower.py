"""What every vision tower is: uint8 images in, tokens out.

Shapes: N images, V = H * W tokens of a grid, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmsr_pt.batch import ImageSpec
from mmsr_pt.models.tower import Activations, Step, Tower


class VisionTower(Tower):
    """A tower over images; it knows what they must look like and scales and normalises them itself."""

    image_spec: ImageSpec
    """Pictures are resized straight to this size, without a crop, as in the paper: nothing of an item is cut off."""

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

"""Depthwise convolutions whose weight gradient a CPU computes in bf16 at speed.

oneDNN has a fast kernel for weights of 3 x 3 and takes five to ten times as long for larger ones. A gradient of K x K
is put together from gradients of 3 x 3, each over the input shifted to where its part of the weights looked.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def speed_up_depthwise(backbone: nn.Module) -> None:
    """Makes the large depthwise convolutions in `backbone` take their gradient as described above; values stay."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward and _is_large_depthwise(module):
            module.forward = types.MethodType(_forward, module)  # type: ignore[method-assign]


def _is_large_depthwise(convolution: nn.Conv2d) -> bool:
    height, width = convolution.kernel_size
    same_padding = convolution.padding in ((height // 2, width // 2), "same")
    return (
        convolution.groups == convolution.in_channels == convolution.out_channels
        and height == width
        and height % 2 == 1
        and height > 3
        and same_padding
        and convolution.padding_mode == "zeros"
        and convolution.stride == convolution.dilation == (1, 1)
    )


def _forward(self: nn.Conv2d, hidden: Tensor) -> Tensor:
    # the weight is read here, in its owner's forward, where ZeRO-3 has gathered it
    is_slow = hidden.device.type == "cpu" and hidden.dtype == torch.bfloat16
    if is_slow and torch.is_grad_enabled() and self.weight.requires_grad:
        output = _Depthwise.apply(hidden, self.weight)
        return output if self.bias is None else output + self.bias[:, None, None]
    return self._conv_forward(hidden, self.weight, self.bias)


class _Depthwise(torch.autograd.Function):
    """[N, C, H, W], [C, 1, K, K] -> [N, C, H, W], zeros around."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return F.conv2d(hidden, weight, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        hidden, weight = ctx.saved_tensors
        back = None
        if ctx.needs_input_grad[0]:
            back = _gradients(gradient, hidden, weight, weight.shape[-1] // 2, of_input=True)[0]
        return back, _weight_gradient(gradient, hidden, weight)


def _weight_gradient(gradient: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """[C, 1, K, K]."""
    size = weight.shape[-1]
    padded = F.pad(hidden, (size // 2,) * 4)
    height, width = gradient.shape[-2:]
    small = weight[:, :, :3, :3]
    whole = torch.empty_like(weight)
    # parts of 3 that cover the weights; the last one may overlap the one before
    starts = [*range(0, size - 3, 3), size - 3]
    for top in starts:
        for left in starts:
            seen = padded[:, :, top : top + height + 2, left : left + width + 2]
            seen = seen.contiguous(memory_format=torch.channels_last)
            part = _gradients(gradient, seen, small, 0, of_input=False)[1]
            whole[:, :, top : top + 3, left : left + 3] = part
    return whole


def _gradients(gradient: Tensor, hidden: Tensor, weight: Tensor, padding: int, of_input: bool) -> tuple[Tensor, ...]:
    wanted = [of_input, not of_input, False]
    sizes: tuple[Any, ...] = (None, [1, 1], [padding, padding], [1, 1], False, [0, 0], len(weight))
    return torch.ops.aten.convolution_backward(gradient, hidden, weight, *sizes, wanted)

"""Floating-point operations of a stretch of work, by kind and dtype, and the time they need at a machine's rates."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.convolution, _aten._convolution, _aten.convolution_backward)


class FlopCounter(TorchDispatchMode):
    """Counts the operations of matrix products and convolutions while it is entered, backward passes included.

    torch's own FlopCounterMode does not know the attention kernel of CPUs, and takes the backward pass of a depthwise
    convolution for that of a dense one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        """By kind and dtype: "matmul float32", "conv bfloat16" ..."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry and packet not in _OWN:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if packet in _OWN:
            count = _OWN[packet](args)
        elif packet in flop_registry:
            count = flop_registry[packet](*args, **kwargs, out_val=result)
        else:
            return result
        kind = "conv" if packet in _CONVOLUTIONS else "matmul"
        dtype = next(arg.dtype for arg in args if isinstance(arg, Tensor))
        self.flops[f"{kind} {str(dtype).removeprefix('torch.')}"] += int(count)
        return result


def _convolution_backward(args: Sequence[Any]) -> int:
    gradient, image, weight = args[0], args[1], args[2]
    is_transposed, wanted = args[7], args[10]
    return sum(wanted[:2]) * conv_flop_count(image.shape, weight.shape, gradient.shape, transposed=is_transposed)


def _attention(args: Sequence[Any]) -> int:
    return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))


def _attention_backward(args: Sequence[Any]) -> int:
    return sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))


_OWN: dict[Any, Callable[[Sequence[Any]], int]] = {
    _aten.convolution_backward: _convolution_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Rates:
    """Contestant: what the machine does in a second with products and convolutions that suit it."""

    def __init__(self, size: int = 2048, seconds: float = 0.5) -> None:
        """Products of matrices of `size`, and 3 x 3 convolutions of about as many operations, for `seconds` each."""
        self._seconds = seconds
        self._runs: dict[str, tuple[Callable[[], Tensor], float]] = {}
        batch = max(1, size // 64)
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
            image = torch.randn(batch, 128, 28, 28).to(dtype).contiguous(memory_format=torch.channels_last)
            kernel = torch.randn(128, 128, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
            product = functools.partial(torch.matmul, left, right)
            convolution = functools.partial(F.conv2d, image, kernel, padding=1)
            self._runs[f"matmul {name}"] = product, 2.0 * size**3
            self._runs[f"conv {name}"] = convolution, 2.0 * batch * 28 * 28 * 128 * 128 * 9

    def run(self) -> dict[str, float]:
        """Operations a second, by kind and dtype as FlopCounter names them."""
        return {name: flops * self._rate(call) for name, (call, flops) in self._runs.items()}

    @torch.inference_mode()
    def _rate(self, call: Callable[[], Tensor]) -> float:
        """Calls a second; the best of them, as this is to be a limit."""
        call()
        fastest, end = float("inf"), time.perf_counter() + self._seconds
        while (start := time.perf_counter()) < end:
            call()
            fastest = min(fastest, time.perf_counter() - start)
        return 1 / fastest


def seconds_at(rates: Mapping[str, float], flops: Mapping[str, float]) -> float:
    """What this many operations, by kind and dtype, take at those rates."""
    return sum(count / rates[kind] for kind, count in flops.items())

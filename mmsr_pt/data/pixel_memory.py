"""Memory of decoded pictures that is used again."""

from __future__ import annotations

import weakref

import numpy as np
import torch
from torch import Tensor


class PixelMemory:
    """Lends tensors, and takes their memory back when the last view of them is gone.

    A batch of pictures is too large for an allocator to keep; fresh from the kernel, its pages cost up to a third of
    what decoding costs.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def lend(self, num_images: int, height: int, width: int) -> Tensor:
        """[N, H, W, 3] uint8, not cleared."""
        shape = (num_images, height, width, 3)
        size = num_images * height * width * 3
        memory = self._free.pop() if self._free else np.empty(0, dtype=np.uint8)
        if len(memory) < size:
            memory = np.empty(size + size // 8, dtype=np.uint8)  # batches differ a little in size
        lent = memory[:size].reshape(shape)
        # the tensor, and whoever shares its storage, holds this very array
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return torch.from_numpy(lent)

    def __reduce__(self) -> tuple[type[PixelMemory], tuple[()]]:
        return PixelMemory, ()  # another process has memory of its own

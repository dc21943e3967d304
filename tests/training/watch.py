"""Looks over torch's shoulder: which operations ran, and how large their results were."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.bincount", "aten._unique2"}
"""On an accelerator the host waits for these, as it must know a number or a size."""


class Watch(TorchDispatchMode):
    """Notes every operation, and the largest tensor that one has made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen.add(str(func.overloadpacket))
        if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_):
            # a mask as index is looked through for its true places
            self.seen |= {"aten.nonzero" for index in args[1] if index is not None and index.dtype == torch.bool}
        if isinstance(out, Tensor):
            self.largest = max(self.largest, out.numel())
        return out

    @property
    def waited(self) -> set[str]:
        """The operations at which the host would have waited."""
        return self.seen & WAITING

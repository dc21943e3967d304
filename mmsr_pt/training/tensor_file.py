"""safetensors files written one tensor at a time, and what shows later that no byte of a file has changed.

safetensors' own writer wants all tensors at once, which at ZeRO 3 may be more than one process can hold. The format is
small: the header's length in 8 bytes, the header as JSON with each tensor's type, shape and place, then the bytes of
the tensors in that order (https://github.com/huggingface/safetensors, "Format"). It is read by the library.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and shape of each tensor of a file by name, in the order of the file."""

_TYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8
_PIECE = 2**22


class Seal(TypedDict):
    """What a file was when it was written."""

    bytes: int
    sha256: str


def write_tensors(path: Path, layout: Layout, tensors: Iterable[tuple[str, Tensor]]) -> Seal:
    """Writes a safetensors file, with one tensor in memory at a time.

    Args:
        path: of the file.
        layout: of all tensors, known before the first of them is there.
        tensors: exactly those of the layout, in its order, on any device.

    Returns:
        The seal of what was to be written, not of what can be read back.
    """
    digest, written = hashlib.sha256(), 0
    with path.open("wb") as file:
        header = _header(layout)
        file.write(header)
        digest.update(header)
        written += len(header)
        for (name, tensor), (expected, (dtype, shape)) in zip(tensors, layout.items(), strict=True):
            assert name == expected, f"{name} in the place of {expected}"
            assert (tensor.dtype, tuple(tensor.shape)) == (dtype, shape), f"{name}: {tensor.dtype} {tensor.shape}"
            values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            file.write(values)
            digest.update(values)
            written += len(values)
    return {"bytes": written, "sha256": digest.hexdigest()}


def seal_of(path: Path) -> Seal:
    """The seal of a file as it is on the disk."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return {"bytes": size, "sha256": digest.hexdigest()}


def broken_seal(path: Path, seal: Seal) -> str | None:
    """What is wrong with a file that had this seal when it was written, in words; None: nothing."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != seal["bytes"]:
        return f"has {size:,} bytes, {seal['bytes']:,} were written"
    if seal_of(path) != seal:
        return "does not hold the bytes that were written (its sha256 is another)"
    return None


def _header(layout: Layout) -> bytes:
    entries, start = {}, 0
    for name, (dtype, shape) in layout.items():
        stop = start + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text

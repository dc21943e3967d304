"""What the frozen bottoms of the towers make of a catalogue, kept on disk: computed once, read at every step.

    <domain>/cache/<key>/
      layout.json       items, dtype, shapes
      text.bin          activations of all titles, one after the other, without padding
      lengths.bin       tokens of each title
      vision.bin        activations of all pictures

A directory appears under its key when it is complete; who makes the key sees to it that another model, other
preprocessing or another build of the domain has another one.

Shapes: N items, n items asked for, T text tokens, d a tower's width.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmsr_pt.batch import ItemInputs

LAYOUT_FILE = "layout.json"


@dataclass(frozen=True)
class Layout:
    """Shape of a store; a modality that is not kept is None."""

    num_items: int
    dtype: str
    """float32 or bfloat16."""
    text_width: int | None = None
    num_tokens: int = 0
    """Of all titles together."""
    vision_shape: tuple[int, ...] | None = None
    """Of one picture's activations."""

    @property
    def num_bytes(self) -> int:
        """What the store takes on disk."""
        vision = self.num_items * torch.Size(self.vision_shape).numel() if self.vision_shape else 0
        text = self.num_tokens * (self.text_width or 0)
        return (text + vision) * getattr(torch, self.dtype).itemsize + 8 * self.num_items


class ActivationStore:
    """The activations of a catalogue in memory-mapped files, by row."""

    def __init__(self, directory: Path) -> None:
        """Opens a directory that `create` made; several processes may write different rows of it."""
        stored = json.loads((directory / LAYOUT_FILE).read_text(encoding="utf-8"))
        shape = stored.pop("vision_shape")
        self.layout = Layout(**stored, vision_shape=None if shape is None else tuple(shape))
        self._text = self._offsets = self._vision = None
        if self.layout.text_width is not None:
            lengths = _map(directory / "lengths.bin", (self.layout.num_items,), torch.int64)
            self._offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
            self._text = self._map(directory / "text.bin", (self.layout.num_tokens, self.layout.text_width))
        if self.layout.vision_shape is not None:
            self._vision = self._map(directory / "vision.bin", (self.layout.num_items, *self.layout.vision_shape))

    @classmethod
    def create(cls, directory: Path, layout: Layout, title_lengths: Tensor | None) -> ActivationStore:
        """A store of zeros in an empty directory; `title_lengths` [N] int64 where titles are kept."""
        described = dataclasses.asdict(layout)
        (directory / LAYOUT_FILE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        if title_lengths is not None:
            _map(directory / "lengths.bin", (layout.num_items,), torch.int64).copy_(title_lengths)
        return cls(directory)

    def _map(self, file: Path, shape: tuple[int, ...]) -> Tensor:
        return _map(file, shape, getattr(torch, self.layout.dtype))

    def write(self, rows: Tensor, text: Tensor | None, mask: Tensor | None, vision: Tensor | None) -> None:
        """Keeps the activations of catalogue rows: [n, T, d] with the real tokens left and [n, T] bool, [n, ...]."""
        if self._text is not None:
            assert text is not None
            assert mask is not None
            self._text[self._places(rows)[0]] = text[mask].to(self._text.dtype)
        if self._vision is not None:
            assert vision is not None
            self._vision[rows] = vision.to(self._vision.dtype)

    def read(self, rows: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns: [n, T, d], its mask [n, T] bool, and [n, ...], as `write` got them; None where nothing is kept."""
        text = mask = None
        if self._text is not None:
            places, mask = self._places(rows)
            text = self._text.new_zeros((*mask.shape, self._text.shape[1]))
            text[mask] = self._text[places]
        return text, mask, None if self._vision is None else self._vision[rows]

    def _places(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Where the tokens of titles lie, title by title, and the mask [n, T] of the padded titles."""
        assert self._offsets is not None
        start, stop = self._offsets[rows], self._offsets[rows + 1]
        position = torch.arange(int((stop - start).max()) if len(rows) else 0)
        mask = position < (stop - start)[:, None]
        return (start[:, None] + position)[mask], mask


def _map(file: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor whose memory is the file's, which is made if it is not there."""
    size = torch.Size(shape).numel()
    if size == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.from_file(str(file), shared=True, size=size, dtype=dtype).view(*shape)


def with_activations(items: ItemInputs, stores: Sequence[ActivationStore], bases: Sequence[int]) -> ItemInputs:
    """The same items with what the stores keep of them.

    Args:
        items: of one or several domains, by item number.
        stores: one for each domain.
        bases: number of the first item of each domain, ascending.
    """
    domain = torch.searchsorted(torch.tensor(bases), items.ids, right=True) - 1
    found: dict[str, Tensor] = {}
    for number, (store, base) in enumerate(zip(stores, bases)):
        here = (domain == number).nonzero()[:, 0]
        text, mask, vision = store.read(items.ids[here] - base)
        parts = {"title_activations": text, "title_mask": mask, "image_activations": vision}
        for name, part in parts.items():
            if part is not None:
                found[name] = part if len(here) == len(items) else _placed(found.get(name), part, here, len(items))
    return dataclasses.replace(items, **found)


def _placed(whole: Tensor | None, part: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """`part` at `rows` of [num_rows, ...]; titles grow to the longest of both."""
    if whole is None:
        whole = part.new_zeros((num_rows, *part.shape[1:]))
    if part.ndim in (2, 3) and part.shape[1] > whole.shape[1]:
        grown = whole.new_zeros((num_rows, *part.shape[1:]))
        grown[:, : whole.shape[1]] = whole
        whole = grown
    if part.ndim in (2, 3):
        whole[rows, : part.shape[1]] = part
    else:
        whole[rows] = part
    return whole

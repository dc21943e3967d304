"""What the frozen bottoms of the towers make of a catalogue, kept on disk: computed once, read at every step.

    <domain>/cache/<key>/
      layout.json       items, dtype, shapes
      text.bin          activations of all titles, one after the other, without padding
      lengths.bin       tokens of each title
      vision.bin        activations of all pictures
      *_scale.bin       int8 only: what the numbers of a token or channel are multiplied by
      *_sum.bin         of each token or picture: the sum of its bytes as integers, which finds a damaged one
      done.bin          while it is built: which items are on the disk
      error.json        int8 only: what rounding did, measured while it was built

A directory appears under its key when it is complete; who makes the key sees to it that another model, other
preprocessing or another build of the domain has another one.

Shapes: N items, n items asked for, T text tokens, d a tower's width.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmsr_pt.batch import ItemInputs
from mmsr_pt.log import UserError, reason

LAYOUT_FILE = "layout.json"
ERROR_FILE = "error.json"
_DONE_FILE = "done.bin"
_DTYPES = ("float32", "bfloat16", "int8")
_CHECKED_AT_ONCE = 4096
"""Arrays read together by a check of all."""


@dataclass(frozen=True)
class Layout:
    """Shape of a store; a modality that is not kept is None."""

    num_items: int
    dtype: str
    """float32, bfloat16 or int8."""
    text_width: int | None = None
    num_tokens: int = 0
    """Of all titles together."""
    vision_shape: tuple[int, ...] | None = None
    """Of one picture's activations."""
    has_sums: bool = False
    """Whether it can tell what is damaged; stores of earlier versions cannot."""

    @property
    def num_bytes(self) -> int:
        """What the store takes on disk."""
        text = 0 if self.text_width is None else self.num_tokens * self._bytes_of((self.text_width,))
        vision = 0 if self.vision_shape is None else self.num_items * self._bytes_of(self.vision_shape)
        return text + vision + 8 * self.num_items

    def _bytes_of(self, shape: tuple[int, ...]) -> int:
        scales = 4 * _num_scales(shape) if self.dtype == "int8" else 0
        return torch.Size(shape).numel() * getattr(torch, self.dtype).itemsize + scales + 8 * self.has_sums


@dataclass
class RoundingError:
    """Squares summed over what was written, and over what was lost by it."""

    lost: float = 0.0
    total: float = 0.0

    @property
    def relative(self) -> float:
        """Root mean square of the error over that of the values."""
        return (self.lost / self.total) ** 0.5 if self.total else 0.0


class ActivationStore:
    """The activations of a catalogue in memory-mapped files, by row."""

    def __init__(self, directory: Path) -> None:
        """Opens a directory that `create` made; several processes may write different rows of it.

        Raises:
            UserError: what says how it is laid out is damaged; `read` and `write` raise it for the rest.
        """
        self.directory = directory
        self.layout = _read_layout(directory)
        self.errors: dict[str, RoundingError] = {}
        """By modality, of what this process has written."""
        count = self.layout.num_items
        self._text = self._offsets = self._vision = None
        if self.layout.text_width is not None:
            lengths = _map(directory / "lengths.bin", (count,), torch.int64)
            if int(lengths.sum()) != self.layout.num_tokens or (count and int(lengths.min()) < 0):
                raise damaged(directory, "lengths.bin")
            self._offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
            self._text = _Vectors(directory, "text", self.layout.num_tokens, (self.layout.text_width,), self.layout)
            self.errors["text"] = self._text.error
        if self.layout.vision_shape is not None:
            self._vision = _Vectors(directory, "vision", count, self.layout.vision_shape, self.layout)
            self.errors["vision"] = self._vision.error

    @classmethod
    def create(cls, directory: Path, layout: Layout, title_lengths: Tensor | None) -> ActivationStore:
        """A store of zeros in an empty directory; `title_lengths` [N] int64 where titles are kept."""
        if title_lengths is not None:
            _map(directory / "lengths.bin", (layout.num_items,), torch.int64).copy_(title_lengths)
        described = dataclasses.asdict(layout)
        # last, so that a store that can be opened is a whole one
        (directory / LAYOUT_FILE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        return cls(directory)

    def write(self, rows: Tensor, text: Tensor | None, mask: Tensor | None, vision: Tensor | None) -> None:
        """Keeps the activations of catalogue rows: [n, T, d] with the real tokens left and [n, T] bool, [n, ...]."""
        if self._text is not None:
            assert text is not None
            assert mask is not None
            self._text.write(self._places(rows)[0], text[mask])
        if self._vision is not None:
            assert vision is not None
            self._vision.write(rows, vision)

    def read(self, rows: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns: [n, T, d], its mask [n, T] bool, and [n, ...], as `write` got them; None where nothing is kept.

        Raises:
            UserError: they are not what was written.
        """
        text = mask = None
        if self._text is not None:
            places, mask = self._places(rows)
            tokens = self._text.read(places)
            text = tokens.new_zeros((*mask.shape, tokens.shape[1]))
            text[mask] = tokens
        return text, mask, None if self._vision is None else self._vision.read(rows)

    def _places(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Where the tokens of titles lie, title by title, and the mask [n, T] of the padded titles."""
        assert self._offsets is not None
        start, stop = self._offsets[rows], self._offsets[rows + 1]
        position = torch.arange(int((stop - start).max()) if len(rows) else 0)
        mask = position < (stop - start)[:, None]
        return (start[:, None] + position)[mask], mask

    @property
    def done(self) -> Tensor:
        """[N] uint8: 1 where an item is known to be on the disk; of a store that is being built."""
        return _map(self.directory / _DONE_FILE, (self.layout.num_items,), torch.uint8)

    def mark_done(self, rows: Tensor) -> None:
        """Brings all that was written to the disk, and only then says so of these rows."""
        for file in self.directory.glob("*.bin"):
            _flush(file)
        self.done[rows] = 1
        _flush(self.directory / _DONE_FILE)

    def damages(self) -> Iterator[str]:
        """Names what is not as it was written, all of it."""
        for vectors in (self._text, self._vision):
            if vectors is not None:
                yield from (f"{vectors.file.name} at {place}" for place in vectors.wrong())

    def finish(self) -> None:
        """Ends the building: what only that needed is removed."""
        (self.directory / _DONE_FILE).unlink(missing_ok=True)


class _Vectors:
    """Arrays of one shape in a memory-mapped file: as they are, or as int8 with a scale for each token or channel."""

    def __init__(self, directory: Path, name: str, count: int, shape: tuple[int, ...], layout: Layout) -> None:
        dtype = getattr(torch, layout.dtype)
        self.file = directory / f"{name}.bin"
        self._shape = shape
        self._values = _map(self.file, (count, *shape), dtype)
        self._scales = self._sums = None
        self.error = RoundingError()
        if dtype == torch.int8:
            self._scales = _map(directory / f"{name}_scale.bin", (count, _num_scales(shape)), torch.float32)
        if layout.has_sums:
            self._sums = _map(directory / f"{name}_sum.bin", (count,), torch.int64)

    def write(self, places: Tensor, values: Tensor) -> None:
        codes, scales = values.to(self._values.dtype), None
        if self._scales is not None:
            grouped = values.float().view(len(values), self._scales.shape[1], -1)
            # the largest value becomes 127; a group of zeros keeps the scale 0
            scales = grouped.abs().amax(dim=2) / 127
            rounded = (grouped / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, :, None]).round()
            self.error.lost += float((rounded * scales[:, :, None] - grouped).double().square().sum())
            self.error.total += float(grouped.double().square().sum())
            codes = rounded.to(torch.int8).view(len(values), *self._shape)
            self._scales[places] = scales
        self._values[places] = codes
        if self._sums is not None:
            self._sums[places] = _sums(codes, scales)

    def read(self, places: Tensor) -> Tensor:
        values, scales = self._values[places], None if self._scales is None else self._scales[places]
        if self._sums is not None:
            wrong = (_sums(values, scales) != self._sums[places]).nonzero()[:, 0]
            if len(wrong):
                raise damaged(self.file.parent, f"{self.file.name} at {int(places[wrong[0]])}")
        if scales is None:
            return values
        grouped = values.view(len(values), scales.shape[1], -1).float()
        return grouped.mul_(scales[:, :, None]).view(len(values), *self._shape)

    def wrong(self) -> Iterator[int]:
        """The places whose content is not what was written; none where the store cannot tell."""
        for places in torch.arange(len(self._values) if self._sums is not None else 0).split(_CHECKED_AT_ONCE):
            assert self._sums is not None
            scales = None if self._scales is None else self._scales[places]
            found = _sums(self._values[places], scales) != self._sums[places]
            yield from places[found].tolist()


def damaged(directory: Path, what: str) -> UserError:
    """What a store with other bytes than were written ends its reader with."""
    return UserError(f"the cache {directory} is damaged ({what}): remove that directory, and it is computed again")


def has_layout(directory: Path, layout: Layout) -> bool:
    """Whether a store of that layout is there, finished or not."""
    try:
        return (directory / LAYOUT_FILE).is_file() and _read_layout(directory) == layout
    except UserError:
        return False


def _read_layout(directory: Path) -> Layout:
    try:
        stored = json.loads((directory / LAYOUT_FILE).read_text(encoding="utf-8"))
        shape = stored.pop("vision_shape")
        layout = Layout(**stored, vision_shape=None if shape is None else tuple(shape))
        if layout.dtype not in _DTYPES:
            raise ValueError(f"no dtype {layout.dtype}")
        return layout
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(directory, f"{LAYOUT_FILE}: {reason(error)}") from error


def _sums(codes: Tensor, scales: Tensor | None) -> Tensor:
    """[n] int64: the bytes of each array, added up as integers as wide as they divide into, modulo 2^64.

    One changed byte always changes it, and so does a block of zeros or of other data, as good as always; it takes a
    fifth of the time of a crc.
    """
    total = _added_up(codes)
    return total if scales is None else total + _added_up(scales)


def _added_up(values: Tensor) -> Tensor:
    if not values.numel():
        return torch.zeros(len(values), dtype=torch.int64)
    size = values[0].numel() * values.element_size()
    width = next(width for width in (torch.int64, torch.int32, torch.int16, torch.int8) if size % width.itemsize == 0)
    return values.contiguous().view(len(values), -1).view(width).sum(dim=1, dtype=torch.int64)


def _num_scales(shape: tuple[int, ...]) -> int:
    """Scales of one array: one for each channel of a grid or token of a sequence, one for a lone vector."""
    return shape[0] if len(shape) > 1 else 1


def _map(file: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor whose memory is the file's, which is made if it is not there."""
    size = torch.Size(shape).numel()
    if size == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.from_file(str(file), shared=True, size=size, dtype=dtype).view(*shape)


def _flush(file: Path) -> None:
    handle = os.open(file, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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

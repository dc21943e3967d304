"""What data hands to models: every tensor of a batch, named once, with its dtype and shape.

Shapes: B users, L positions of history, M positions with a target, N distinct items, T text tokens, H = W image side,
P negatives in the pool.
`data` and `models` never import each other; they meet here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

BatchT = TypeVar("BatchT", bound="_Tensors")


class _Tensors:
    """Moves every tensor of a dataclass at once; nested batches move along."""

    def _map(self: BatchT, function: str, *args: object, **kwargs: object) -> BatchT:
        moved = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, (Tensor, _Tensors)):
                moved[field.name] = getattr(value, function)(*args, **kwargs)
        return replace(self, **moved)  # type: ignore[type-var]

    def to(self: BatchT, device: torch.device | str, non_blocking: bool = False) -> BatchT:
        """The same batch on `device`."""
        return self._map("to", device, non_blocking=non_blocking)

    def pin_memory(self: BatchT) -> BatchT:
        """The same batch in page-locked memory, for asynchronous copies to an accelerator."""
        return self._map("pin_memory")

    def select(self: BatchT, rows: Tensor) -> BatchT:
        """The same batch with these of its rows only, [n] int64."""
        return self._map("index_select", 0, rows)


@dataclass(frozen=True)
class ImageSpec:
    """What a vision tower wants to see: pictures are resized straight to this size, as in the paper."""

    height: int
    width: int
    interpolation: str
    """nearest, bilinear, bicubic or lanczos."""
    mean: tuple[float, ...]
    """Per channel, of values in [0, 1]; the tower applies it."""
    std: tuple[float, ...]
    """Per channel, of values in [0, 1]; the tower applies it."""

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> ImageSpec:
        """What `dataclasses.asdict` of one came back as from a JSON file."""
        return cls(**{**saved, "mean": tuple(saved["mean"]), "std": tuple(saved["std"])})


@dataclass
class ItemInputs(_Tensors):
    """The content of N distinct items: what an item encoder reads. Parts a model does not use are None."""

    as_one: ClassVar[bool] = False
    """True: to be encoded at once and as padded, neither in pieces nor with titles cut (`--naive`, for comparison)."""

    ids: Tensor
    """[N] int64: item number = first number of its domain in this run + row in that domain's catalogue."""
    title_ids: Tensor | None = None
    """[N, T] int64: token ids, padded on the right to the longest title here."""
    title_mask: Tensor | None = None
    """[N, T] bool: True where a token is real."""
    images: Tensor | None = None
    """[N, 3, H, W] uint8, channels last in memory: RGB, resized; a vision tower scales and normalises them on its own
    device."""
    title_activations: Tensor | None = None
    """[N, T, d] float: what the frozen bottom of the text tower made of the titles, in place of `title_ids`."""
    image_activations: Tensor | None = None
    """[N, ...] float: what the frozen bottom of the vision tower made of the pictures, in place of `images`."""

    def __len__(self) -> int:
        return self.ids.shape[0]

    def select(self, rows: Tensor) -> ItemInputs:
        """The items at `rows` [n] int64, in that order."""
        return self._map("index_select", 0, rows)


@dataclass
class SharedItems(_Tensors):
    """The C distinct items of all ranks' micro-batches, where each is encoded by one rank (`softmax` only)."""

    ids: Tensor
    """[C] int64: item numbers, ascending."""
    place: Tensor
    """[C] int64: where the item's vector stands once all ranks' vectors lie end to end, `longest` of each rank."""
    longest: int
    """Items of the rank that encodes the most."""


@dataclass
class BankItems(_Tensors):
    """Further candidates whose vectors are known (`training/bank.py`); none of them stands in the batch of any rank."""

    vectors: Tensor
    """[P, D] float, without gradient; on the model's device from the start."""
    domain: Tensor
    """[P] int64."""
    occurrence_rate: Tensor
    """[P] float32."""
    pool_rate: Tensor
    """[P] float32."""


@dataclass(frozen=True)
class BadSample:
    """A user or an item of a domain that was found unreadable, and was left out."""

    number: int
    """Number of the item in this run, or, below 0, -1 - the number of the user."""
    shard: str
    """Path of the tar."""
    key: str
    """Of its members there."""
    why: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.key} ({self.why})"


@dataclass
class UserBatch(_Tensors):
    """A micro-batch of user sequences over its distinct items. Real positions stand left, padding right."""

    items: ItemInputs
    """Every item that `sequence` or `negatives` points to and, without `negatives`, the pool, once each and ascending;
    with `shared`, those that this rank encodes."""
    sequence: Tensor
    """[B, L + 1] int64: index into `items`; inputs are [:, :-1], targets [:, 1:]. Padding holds 0."""
    mask: Tensor
    """[B, L + 1] bool: True where the position is real."""
    users: Tensor
    """[B] int64: number of the user over all domains of the run; -1 where a slot is empty at the end of an epoch."""
    negatives: Tensor | None = None
    """[B, L] int64: index into `items`, one uniform negative for each target (`bce` only)."""
    occurrence_rate: Tensor | None = None
    """[N] float32: the item's share of its domain's training interactions (`softmax` only)."""
    pool_rate: Tensor | None = None
    """[N] float32: chance that the item's domain drew it, into the pool or from the bank (`softmax` only)."""
    domain: Tensor | None = None
    """[N] int64: which of the run's domains the item is of (`softmax` only)."""
    shared: SharedItems | None = None
    """Where ranks share out the encoding: what `sequence`, rates and `domain` go by instead of `items`, N being C."""
    bank: BankItems | None = None
    """Cached negatives, where the run has a bank (`softmax` only)."""
    hidden: Tensor | None = None
    """[B, L] bool: the targets that the sequence encoder does not see and is asked for, where it reads a history from
    both sides; None: each target is asked for by what stands before it."""
    positions: Tensor | None = None
    """[M] int64: where `targets`, laid out in one row, holds; found here while the batch is on the host, since looking
    for it on an accelerator makes the host wait."""

    bad: tuple[BadSample, ...] = ()
    """What could not be read while this was made, and is not in it; a sample may stand here more than once."""

    def __post_init__(self) -> None:
        if self.positions is None:
            self.positions = self.targets.flatten().nonzero()[:, 0]

    @property
    def targets(self) -> Tensor:
        """[B, L] bool: which of the sequence's items after the first the model is asked for."""
        return self.mask[:, 1:] if self.hidden is None else self.hidden

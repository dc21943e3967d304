"""Which parameters train, in named groups: what optimizer groups, freezing and the table at the start are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

Kind = Literal["text", "vision", "joint", "rest"]


@dataclass(frozen=True)
class LayerGroup:
    """Parameters that are frozen or trained together."""

    name: str
    """text.block.3, vision.stem, fusion, sequence encoder, ..."""
    kind: Kind
    """Whose learning rate and decay apply: a pretrained text, vision or joint tower's, or those of the rest."""
    parameters: tuple[str, ...]
    """Names as in the model's `named_parameters`."""
    trained: bool


def is_split(module: nn.Module) -> bool:
    """Whether ZeRO-3 has split the weights over the ranks, which it gathers at every call of a module.

    Sizes do not tell: what it fetches ahead or keeps is whole at this moment, and not on every rank alike.
    """
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())

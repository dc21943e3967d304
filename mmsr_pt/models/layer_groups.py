"""Which parameters train, in named groups: what optimizer groups, freezing and the table at the start are made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.table import Table
from torch import nn

Kind = Literal["text", "vision", "rest"]


@dataclass(frozen=True)
class LayerGroup:
    """Parameters that are frozen or trained together."""

    name: str
    """text.block.3, vision.stem, fusion, sequence encoder, ..."""
    kind: Kind
    """Whose learning rate and decay apply: a pretrained text or vision tower's, or those of the rest."""
    parameters: tuple[str, ...]
    """Names as in the model's `named_parameters`."""
    trained: bool


def is_split(module: nn.Module) -> bool:
    """Whether ZeRO-3 has split the weights over the ranks, which it gathers at every call of a module.

    Sizes do not tell: what it fetches ahead or keeps is whole at this moment, and not on every rank alike.
    """
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def group_table(groups: Iterable[LayerGroup], model: nn.Module) -> Table:
    """Tensors and parameters of each group and whether it trains; call it before ZeRO-3 takes the weights apart."""
    table = Table(title="layer groups", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("group", "tensors", "parameters", ""):
        table.add_column(column, justify="right" if column in ("tensors", "parameters") else "left")
    total = {True: 0, False: 0}
    for group in groups:
        count = sum(model.get_parameter(name).numel() for name in group.parameters)
        total[group.trained] += count
        table.add_row(group.name, f"{len(group.parameters)}", f"{count:,}", "trained" if group.trained else "frozen")
    table.add_section()
    table.add_row("all", "", f"{total[True] + total[False]:,}", f"{total[True]:,} trained")
    return table

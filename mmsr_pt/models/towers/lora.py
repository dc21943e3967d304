"""Tuning policy `lora:R`: low-rank updates of every linear map in a frozen tower's blocks (Hu et al. 2021), by peft."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from mmsr_pt.log import UserError
from mmsr_pt.models.towers.tower import BLOCK, LORA, Tower


def rank_of(policy: str) -> int:
    """R of `lora:R`; raises UserError where that is no number above 0."""
    found = re.fullmatch(rf"{LORA}:(\d+)", policy)
    if found is None or int(found[1]) == 0:
        raise UserError(f"unknown tuning policy {policy!r}: give lora:R, the rank R of the updates at least 1")
    return int(found[1])


def add_lora(tower: Tower, rank: int) -> None:
    """Puts W x + 2 B A x in the place of every W x in the tower's blocks: A [R, in] random, B [out, R] zero.

    The convention of alpha = 2 R is peft's users'. Which parameters train is left to `Tower.tune`.

    Raises:
        UserError: the blocks have no linear maps, as in a convolutional net.
    """
    from peft import LoraConfig, inject_adapter_in_model

    blocks = {group: names for group, names in tower.layer_groups().items() if group.startswith(BLOCK)}
    owners = {name.rpartition(".")[0] for names in blocks.values() for name in names}
    # subclasses, such as the one inside torch's own attention, are not always called
    linear = sorted(owner for owner in owners if type(tower.get_submodule(owner)) is nn.Linear)
    if not linear:
        raise UserError(
            f"lora:{rank}: {type(tower).__name__} has no linear maps in its blocks; tune it with top:K, side or full"
        )
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear), tower)


def without_lora(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the plain tower that computes what one with `add_lora`'s updates does: W + 2 B A for each W."""
    plain = {}
    for name, value in weights.items():
        linear, mark, kind = name.rpartition(".base_layer.")
        if mark and kind == "weight":
            down, up = (weights[f"{linear}.lora_{side}.default.weight"] for side in "AB")
            plain[f"{linear}.weight"] = value + 2 * up @ down
        elif mark:
            plain[f"{linear}.{kind}"] = value
        elif ".lora_" not in name:
            plain[name] = value
    return plain

"""Torch's random numbers in a checkpoint: each rank has its own, so they go on only where the ranks are as many."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mmsr_pt.training.distributed import gathered, rank, world_size


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Torch's random states by name, [ranks, bytes] uint8 on the CPU. Collective: call on every rank."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state()
    own = {name: state.to(device)[None] for name, state in states.items()}
    return {name: (gathered(row) if world_size() > 1 else row).cpu().contiguous() for name, row in own.items()}


def set_random_state(saved: Mapping[str, Tensor], step: int) -> None:
    """Takes up the random numbers of this rank, or on another number of ranks draws others than at the run's start."""
    if len(saved["cpu"]) != world_size():
        # the seed is another on every rank (pretrain/run.py)
        words = np.random.SeedSequence((torch.initial_seed(), step)).generate_state(2)
        torch.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
        return
    # copies: torch crashes on a state that is part of a larger tensor
    torch.set_rng_state(saved["cpu"][rank()].clone())
    if "cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved["cuda"][rank()].clone())

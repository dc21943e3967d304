"""Contestants made of benchmarks/ranking.py and benchmarks/pipeline.py, which can also be run by themselves."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmsr_pt.data.domain import Domain


class Ranking:
    """A way to rank, of benchmarks/ranking.py, over all cores."""

    def __init__(self, contestant: str, num_users: int = 1024) -> None:
        """Draws vectors; `contestant`: the name of a function there."""
        ranking = importlib.import_module("benchmarks.ranking")
        inputs = ranking.Inputs.drawn(num_users)
        rank: Callable[..., Any] = getattr(ranking, contestant)
        # made once for a catalogue, as in an evaluation
        made = (ranking.ProductRanker(inputs.items),) if contestant == "ours" else ()
        self._rank: Callable[[], Any] = lambda: rank(inputs, *made)

    def run(self) -> dict[str, float]:
        """Returns: users_per_s."""
        return {"users_per_s": self._rank().wall}


class Pipeline:
    """A way to pictures, of benchmarks/pipeline.py, on one core."""

    def __init__(self, contestant: str, domain: str, num_batches: int = 6) -> None:
        """Opens the domain; `contestant`: a name there."""
        torch.set_num_threads(1)
        pipeline = importlib.import_module("benchmarks.pipeline")
        settings = pipeline.Settings(data=Path(domain), num_batches=num_batches)
        self._load: Callable[[], float] = pipeline.contestants(Domain.load(domain), settings)[contestant]

    def run(self) -> dict[str, float]:
        """Returns: images_per_s, of a second time."""
        self._load()
        return {"images_per_s": self._load()}

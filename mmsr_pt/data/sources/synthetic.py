"""Drawn domains in which both modalities are needed.

Every item has a style, which only its picture shows, and a kind, which only its title names. Users walk over (style,
kind): the next style follows from the last one and the next kind from the last one, with some wandering. Who reads both
knows where a user goes next, to within a dozen items; who reads one of them knows a row or a column of such cells.
Source and target share the styles, the kinds and the walk, but no item, no colour and half of the words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from mmsr_pt.data.sources.base import SOURCES, RawDomain
from mmsr_pt.data.sources.look import KINDS, LOOKS, NUM_KINDS, NUM_STYLES, draw_picture, write_title
from mmsr_pt.data.sources.table import Table
from mmsr_pt.log import UserError

STYLE_STEP, KIND_STEP = 3, 7
"""The next style is the last one + STYLE_STEP, the next kind the last one + KIND_STEP, both around the circle."""
WANDERING = 0.2
"""Chance of a style, and of a kind, that follows from nothing."""
_SESSION_SECONDS = 86_400


@dataclass(frozen=True)
class World:
    """The items and walks of a drawn domain, before anything is drawn."""

    style: np.ndarray
    """[N] of each item."""
    kind: np.ndarray
    """[N] of each item."""
    appeal: np.ndarray
    """[N] how much more often an item is chosen than others of its style and kind."""
    walks: list[np.ndarray]
    """Items of each user, in order."""


@SOURCES.register("synthetic")
@dataclass(frozen=True)
class Synthetic:
    """Small drawn domains: the picture shows a style, the title names a kind, users follow both."""

    variant: Literal["source", "target"] = "source"
    """source: to pre-train on; target: another look, other items, the same walks."""
    num_users: int = 1200
    items_per_cell: int = 12
    """Items of each style and kind."""
    draw_seed: int = 0
    """Seed of items, pictures, titles and walks."""
    root: Path | None = None
    """An empty directory that keeps the drawn tables and pictures; none given: they are gone after the build."""

    def __post_init__(self) -> None:
        for name in ("num_users", "items_per_cell"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)} must be at least 1")

    def read(self, scratch: Path, with_images: bool) -> RawDomain:
        """Draws the domain as tables and pictures, which then go the way of any other; see Source."""
        root = self.root or scratch
        if root.exists() and any(root.iterdir()):
            raise UserError(f"{root} is not empty: give --root an empty or new directory, or leave it out")
        rng = self.generator()
        world = self.world(rng)
        self._write(root, world, rng, with_images)
        raw = Table(root, licence="drawn by a program; no rights reserved").read(scratch, with_images)
        # not in items.csv, where `table` would take them for a part of the titles
        kinds = pl.LazyFrame({"item_id": self._ids(world), "categories": [[KINDS[kind][0]] for kind in world.kind]})
        items = raw.items.drop("categories").join(kinds, on="item_id", how="left", maintain_order="left")
        return replace(raw, source="synthetic", items=items)

    def generator(self) -> np.random.Generator:
        """What draws everything: first the world, then titles and pictures."""
        return np.random.default_rng([self.draw_seed, sorted(LOOKS).index(self.variant)])

    def world(self, rng: np.random.Generator) -> World:
        """The items and the walks of the users over them."""
        cells = np.arange(NUM_STYLES * NUM_KINDS).repeat(self.items_per_cell)
        cells = rng.permutation(cells)
        appeal = 1.0 / rng.uniform(0.3, 2.0, len(cells))
        style, kind = np.divmod(cells, NUM_KINDS)
        members = [np.flatnonzero(cells == cell) for cell in range(NUM_STYLES * NUM_KINDS)]
        walks = [_walk(members, appeal, int(length), rng) for length in rng.integers(12, 21, self.num_users)]
        return World(style, kind, appeal, walks)

    def _ids(self, world: World) -> list[str]:
        return [f"{self.variant}-{number:05d}" for number in range(len(world.style))]

    def _write(self, root: Path, world: World, rng: np.random.Generator, with_images: bool) -> None:
        look = LOOKS[self.variant]
        images = root / "images"
        images.mkdir(parents=True)
        ids = self._ids(world)
        titles = [write_title(int(kind), look, rng) for kind in world.kind]
        if with_images:
            for item_id, style in zip(ids, world.style):
                draw_picture(int(style), look, rng).save(images / f"{item_id}{look.suffix}")
        pl.DataFrame({"item_id": ids, "title": titles}).write_csv(root / "items.csv")
        items = np.concatenate(world.walks)
        lengths = [len(walk) for walk in world.walks]
        pl.DataFrame(
            {
                "user_id": np.repeat([f"user-{number:05d}" for number in range(len(lengths))], lengths),
                "item_id": np.array(ids)[items],
                "timestamp": 1_600_000_000 + np.cumsum(rng.integers(60, _SESSION_SECONDS, len(items))),
            }
        ).write_csv(root / "interactions.csv")


def _walk(members: list[np.ndarray], appeal: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """One user's items: no item twice."""
    style, kind = rng.integers(NUM_STYLES), rng.integers(NUM_KINDS)
    walk: list[int] = []
    while len(walk) < length:
        free = np.setdiff1d(members[style * NUM_KINDS + kind], walk)
        if len(free):
            walk.append(int(rng.choice(free, p=appeal[free] / appeal[free].sum())))
        style = rng.integers(NUM_STYLES) if rng.random() < WANDERING else (style + STYLE_STEP) % NUM_STYLES
        kind = rng.integers(NUM_KINDS) if rng.random() < WANDERING else (kind + KIND_STEP) % NUM_KINDS
    return np.array(walk)

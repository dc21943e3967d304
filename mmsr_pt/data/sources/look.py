"""How the items of the drawn domains look and what they are called: the picture shows the style, the title the kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

Pattern = Callable[[np.ndarray, np.ndarray], np.ndarray]

# u and v are the picture's coordinates in radians, 0 in its middle; a pattern says where there is paint
PATTERNS: tuple[Pattern, ...] = (
    lambda u, v: np.sin(v) > 0,  # lying stripes
    lambda u, v: np.sin(u) > 0,  # standing stripes
    lambda u, v: np.sin(0.8 * (u + v)) > 0,  # rising stripes
    lambda u, v: np.sin(0.7 * u) * np.sin(0.7 * v) > 0,  # chequers
    lambda u, v: np.cos(u) + np.cos(v) > 0.8,  # dots
    lambda u, v: np.sin(np.hypot(u, v)) > 0,  # rings
    lambda u, v: np.maximum(np.cos(u), np.cos(v)) > 0.85,  # a grid of lines
    lambda u, v: np.sin(6 * np.arctan2(v, u)) > 0,  # rays
    lambda u, v: np.sin(v + 2.5 * np.abs((u / np.pi) % 2 - 1)) > 0,  # zigzag
    lambda u, v: np.hypot(u, v) < 6,  # one disc
)
NUM_STYLES = len(PATTERNS)

KINDS: tuple[tuple[str, ...], ...] = (
    ("lamp", "lantern", "torch", "candle"),
    ("cup", "mug", "beaker", "tumbler"),
    ("chair", "stool", "bench", "sofa"),
    ("bag", "satchel", "pouch", "backpack"),
    ("hat", "cap", "beret", "bonnet"),
    ("coat", "jacket", "parka", "cloak"),
    ("boots", "shoes", "sandals", "slippers"),
    ("blanket", "quilt", "rug", "carpet"),
    ("bowl", "dish", "plate", "platter"),
    ("book", "diary", "notebook", "journal"),
)
NUM_KINDS = len(KINDS)


@dataclass(frozen=True)
class Look:
    """The appearance of one domain: nothing in it depends on an item's style or kind."""

    size: tuple[int, int]
    """Width and height in pixels."""
    period: float
    """Pixels from stripe to stripe."""
    grounds: tuple[str, ...]
    paints: tuple[str, ...]
    grain: float
    """Standard deviation of the noise on every pixel, of 255."""
    frame: int
    """Pixels of paint around the picture."""
    suffix: str
    words: slice
    """Which of the words for a kind this domain uses."""
    titles: tuple[str, ...]
    """Templates of titles."""
    fillers: tuple[str, ...]
    """Words that mean nothing here."""


LOOKS: dict[str, Look] = {
    "source": Look(
        size=(64, 64),
        period=14.0,
        grounds=("#fdf6e3", "#ffffff", "#eef5db", "#fbe9e7", "#e8eaf6", "#f3e5f5"),
        paints=("#b71c1c", "#1a237e", "#1b5e20", "#4a148c", "#bf360c", "#263238", "#006064"),
        grain=6.0,
        frame=0,
        suffix=".png",
        words=slice(0, 3),
        titles=("{0} {1} {kind}", "{kind}, {0} and {1}", "{0} {kind} for {2}", "the {1} {kind} by {3}"),
        fillers=(
            "soft",
            "light",
            "sturdy",
            "small",
            "plain",
            "warm",
            "home",
            "travel",
            "Alda",
            "Norr",
            "Viken",
            "garden",
        ),
    ),
    "target": Look(
        size=(72, 96),
        period=18.0,
        grounds=("#102027", "#1c1b29", "#2b1d0e", "#0b2b26", "#301934"),
        paints=("#ffd54f", "#80deea", "#ffab91", "#c5e1a5", "#f48fb1", "#ffffff"),
        grain=16.0,
        frame=4,
        suffix=".jpg",
        words=slice(1, 4),
        titles=("{kind} no. {2} | {0}", "new: {0} {1} {kind}", "{1} {kind} ({3})", "{kind} {0} {2}"),
        fillers=(
            "sleek",
            "bold",
            "rustic",
            "urban",
            "limited",
            "premium",
            "12",
            "40",
            "Casa",
            "Orbis",
            "outdoor",
            "studio",
        ),
    ),
}


def draw_picture(style: int, look: Look, rng: np.random.Generator) -> Image.Image:
    """A picture that shows the style; colours, place, turn and scale are left to chance."""
    width, height = look.size
    scale = 2 * np.pi / (look.period * rng.uniform(0.85, 1.15))
    turn = rng.uniform(-0.12, 0.12)
    x = np.arange(width)[None, :] - width / 2 + rng.uniform(-6, 6)
    y = np.arange(height)[:, None] - height / 2 + rng.uniform(-6, 6)
    u = (x * np.cos(turn) - y * np.sin(turn)) * scale
    v = (x * np.sin(turn) + y * np.cos(turn)) * scale
    painted = PATTERNS[style](u, v)
    if look.frame:
        edge = np.ones_like(painted)
        edge[look.frame : -look.frame, look.frame : -look.frame] = False
        painted = painted | edge
    ground, paint = rng.choice(look.grounds), rng.choice(look.paints)
    pixels = np.where(painted[..., None], _rgb(paint), _rgb(ground)) + rng.normal(0, look.grain, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def write_title(kind: int, look: Look, rng: np.random.Generator) -> str:
    """A title that names the kind among words that mean nothing."""
    template = look.titles[rng.integers(len(look.titles))]
    word = rng.choice(KINDS[kind][look.words])
    return template.format(*rng.choice(look.fillers, 4, replace=False), kind=word)

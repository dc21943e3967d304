"""Images a second from JPEG to a merged batch, against bare loops of a decoder and a resize that keep nothing.

    python -m benchmarks.pipeline --data data/hm

Every contestant uses one core: two bare loops, the training stream read in this process, and the same read by one
loader process. Five repetitions, interleaved, so that a busy machine is busy for all of them.
"""

from __future__ import annotations

import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from mmsr_pt.batch import ImageSpec
from mmsr_pt.data.domain import TEXT, Domain
from mmsr_pt.data.item_table import ItemTable
from mmsr_pt.data.order import StreamOrder, choose_lanes
from mmsr_pt.data.preprocess import Preprocessor, tokenizer_for
from mmsr_pt.data.shards.build import ensure_drawn_domain
from mmsr_pt.data.stream import Share, TrainLoader, UserStream

_WARM_UP = 3  # batches that are not timed: a loader process starts and fills its queue, memory is taken up

Contestant = Callable[[], float]
"""Runs once; returns images/s."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how long."""

    data: Path | None = None
    """Domain directory; none given: the drawn domain, built under data/ first."""
    side: int = 224
    """Height and width of the pictures that come out."""
    batch: int = 64
    """Users of a batch."""
    num_batches: int = 6
    """Batches of a repetition."""
    repetitions: int = 5
    """How often each contestant runs."""


def bare_pillow(pictures: list[bytes], side: int) -> float:
    """Pillow decodes and resizes."""
    start = time.perf_counter()
    for encoded in pictures:
        _decoded(encoded, side).resize((side, side), Image.Resampling.BICUBIC)
    return len(pictures) / (time.perf_counter() - start)


def bare_same(pictures: list[bytes], side: int) -> float:
    """Pillow decodes and torch resizes: the decoder and the resize that the stream uses."""
    start = time.perf_counter()
    for encoded in pictures:
        pixels = torch.from_numpy(np.array(_decoded(encoded, side)))[None].permute(0, 3, 1, 2)
        F.interpolate(pixels, (side, side), mode="bicubic", antialias=True)
    return len(pictures) / (time.perf_counter() - start)


def _decoded(encoded: bytes, side: int) -> Image.Image:
    with Image.open(io.BytesIO(encoded)) as picture:
        picture.draft("RGB", (side, side))
        return picture.convert("RGB")


def stream(domain: Domain, settings: Settings, num_workers: int) -> float:
    """The real stream of both modalities, up to the merged batch."""
    tar_users = (tuple(tar.num_users for tar in domain.train_tars),)
    lanes = choose_lanes(tar_users, settings.batch, 1, num_workers)
    image = ImageSpec(settings.side, settings.side, "bicubic", (0.5,) * 3, (0.5,) * 3)
    tokenizer = tokenizer_for("tiny", domain.path) if TEXT in domain.modalities else None
    users = UserStream(
        order=StreamOrder(tar_users, (1.0,), settings.batch, lanes, shuffle_buffer=256, seed=0),
        tables=[ItemTable.of(domain, 0, pool_size=128)],
        tars=[domain.train_tars],
        user_bases=[0],
        preprocessor=Preprocessor(tokenizer, image),
        share=Share(0, 1, accumulation=1, replicate_pool=False),
        max_sequence=21,
        with_negatives=False,
    )
    batches = iter(TrainLoader(users, num_workers, pin_memory=False))
    for _ in itertools.islice(batches, _WARM_UP):
        pass
    start = time.perf_counter()
    images = sum(len(batch.items) for batch in itertools.islice(batches, settings.num_batches))
    return images / (time.perf_counter() - start)


def contestants(domain: Domain, settings: Settings) -> dict[str, Contestant]:
    """All of them, by name; the bare loops get as many pictures as a few batches of the stream hold."""
    rows = np.random.default_rng(0).permutation(domain.num_items)[: 150 * settings.num_batches]
    pictures = [domain.read_image(int(row)) for row in rows]
    return {
        "bare loop, Pillow": lambda: bare_pillow(pictures, settings.side),
        "bare loop, same decoder and resize": lambda: bare_same(pictures, settings.side),
        "stream, one process": lambda: stream(domain, settings, 0),
        "stream, one loader process": lambda: stream(domain, settings, 1),
    }


def measure(runs: dict[str, Contestant], repetitions: int) -> dict[str, list[float]]:
    """Images/s of each repetition, the contestants taking turns."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            found[name].append(run())
    return found


def print_table(found: dict[str, list[float]], title: str) -> None:
    """Median, spread and the median of the ratios of each repetition to both bare loops."""
    names = list(found)
    table = Table(title=title, title_justify="left")
    for heading in ("", "images/s", "lowest", "highest", "/ Pillow", "/ same"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, rates in found.items():
        ratios = (statistics.median(map(_ratio, rates, found[bare])) for bare in names[:2])
        numbers: Iterable[str] = (f"{value:,.0f}" for value in (statistics.median(rates), min(rates), max(rates)))
        table.add_row(name, *numbers, *(f"{ratio:.2f}" for ratio in ratios))
    Console().print(table)


def _ratio(one: float, other: float) -> float:
    return one / other


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Measures and prints; returns the images/s of each contestant."""
    settings = tyro.cli(Settings, args=argv, use_underscores=True)
    torch.set_num_threads(1)
    domain = Domain.load(settings.data or ensure_drawn_domain())
    found = measure(contestants(domain, settings), settings.repetitions)
    print_table(found, f"{domain.name}: JPEG to a batch of {settings.side} px, one core")
    return found


if __name__ == "__main__":
    main()

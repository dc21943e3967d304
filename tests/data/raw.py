"""Small raw datasets for tests, written to disk."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from mmsr_pt.data.domain import Domain
from mmsr_pt.data.shards.build import BuildOptions, build_domain
from mmsr_pt.data.sources.table import Table

Interaction = tuple[str, str, object]


def write_picture(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_table(
    root: Path, interactions: Iterable[Interaction], titles: dict[str, str], pictures: Iterable[str] | None = None
) -> Path:
    """The `table` layout; `pictures`: which items have one, all when None."""
    root.mkdir(parents=True, exist_ok=True)
    lines = ["user_id,item_id,timestamp", *(f"{user},{item},{time}" for user, item, time in interactions)]
    (root / "interactions.csv").write_text("\n".join(lines) + "\n")
    rows = ["item_id,title", *(f'{item},"{title}"' for item, title in titles.items())]
    (root / "items.csv").write_text("\n".join(rows) + "\n")
    (root / "images").mkdir(exist_ok=True)
    for seed, item in enumerate(titles if pictures is None else pictures):
        write_picture(root / "images" / f"{item}.jpg", seed)
    return root


def write_plain_table(root: Path, num_users: int = 40, num_items: int = 20) -> Path:
    """Users with 9 interactions each, without any fault."""
    rows: list[Interaction] = [(f"u{u}", f"{(u + i) % num_items}", i) for u in range(num_users) for i in range(9)]
    return write_table(root, rows, {f"{i}": f"title {i}" for i in range(num_items)})


def random_interactions(num_users: int, num_items: int, longest: int, seed: int = 0) -> list[Interaction]:
    """Interactions in random order, many of them at the same time."""
    rng = np.random.default_rng(seed)
    rows: list[Interaction] = []
    for user in range(num_users):
        for _ in range(rng.integers(1, longest + 1)):
            rows.append((f"u{user}", f"{rng.integers(num_items):03d}", int(rng.integers(0, 6))))
    return [rows[i] for i in rng.permutation(len(rows))]


def build_table(root: Path, out: Path, options: BuildOptions | None = None) -> Domain:
    options = options or BuildOptions(num_workers=1)
    return build_domain(Table(root).read(root, "image" in options.modalities), out, options)

"""Where the commands of a page run: a directory that looks like the repository, with what the page presupposes."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from mmsr_pt.data.sources.synthetic import Synthetic
from tests.data.raw import write_picture
from tests.data.raw_amazon import write_amazon
from tests.data.test_layouts import write, write_microlens, write_ninerec, write_pictures, write_pixelrec
from tests.docs.pages import ROOT

NEEDS: Mapping[str, Sequence[str]] = {
    "README.md": (
        "raw/mine", "data/shop_a", "data/shop_b", "data/target", "data/other", "data/hm", "weights",
    ),
    "shards/README.md": (
        "raw/hm", "raw/mine", "raw/amazon", "raw/ninerec", "raw/pixelrec", "raw/microlens", "raw/ml-25m",
    ),
    "docs/own-data.md": ("raw/mine",),
    "docs/backbones.md": ("data/mine",),
    "docs/transfer.md": ("raw/hm", "raw/amazon"),
    "docs/multi-node.md": ("data/hm", "hostfile"),
    "docs/memory.md": ("data/hm",),
    "docs/publishing.md": ("data/mine", "data/other", "runs/mine"),
    "docs/using.md": ("data/mine", "runs/mine", "runs/ids", "new_items", "pictures"),
    "docs/evaluation.md": ("data/mine", "data/other", "runs/mine", "runs/ids"),
    "docs/results.md": ("raw/hm", "raw/movies_modern", "raw/movies_classic", "weights"),
    "docs/studies.md": ("data/hm", "data/mine"),
}  # fmt: skip
"""By page: what is there before its first command, as a reader of it would have it."""
VARIABLES = {"RAW": "raw", "WEIGHTS": "weights"}
"""What the pages say that a reader has set."""
SHARED = ("pretrain", "finetune", "shards", "ds_configs", "benchmarks", "mmsr_pt", "pyproject.toml", "Makefile")
REAL = (
    "basename", "bash", "cat", "cp", "curl", "dirname", "env", "head", "ls", "mkdir", "mv", "rm", "sh", "sleep", "tail",
    "touch",
)  # fmt: skip
"""Programs of the machine that blocks may use."""


def write_hm(root: Path) -> None:
    """40 customers with 8 purchases each of 30 articles, half of them of baby clothes, in Kaggle's layout."""
    names = "article_id,prod_name,product_type_name,colour_group_name,index_group_name,index_name,detail_desc"
    articles = [
        f"01{item:08d},Top {item},Vest top,Black,{group},{group},Soft."
        for item in range(30)
        for group in [("Baby/Children", "Ladieswear")[item % 2]]
    ]
    write(root / "articles.csv", [names, *articles])
    bought = [
        f"2020-0{1 + step}-{1 + user % 28:02d},c{user:02d},01{(2 * step + user) % 30:08d},0.1,1"
        for user in range(40)
        for step in range(8)
    ]
    write(root / "transactions_train.csv", ["t_dat,customer_id,article_id,price,sales_channel_id", *bought])
    for item in range(30):
        write_picture(root / "images" / "010" / f"01{item:08d}.jpg", item)


def _write_movielens(root: Path) -> None:
    rated = [f"{user},{(user + step) % 20},5.0,{1_000_000_000 + step}" for user in range(30) for step in range(8)]
    write(root / "ratings.csv", ["userId,movieId,rating,timestamp", *rated])
    write(root / "movies.csv", ["movieId,title,genres", *(f"{item},Film {item} (1999),Drama" for item in range(20))])
    write_pictures(root / "images", map(str, range(20)))


def _write_new_items(root: Path) -> None:
    write(root / "items.csv", ["item_id,title", *(f"new-{item},green lamp {item}" for item in range(5))])
    write_pictures(root / "images", (f"new-{item}" for item in range(5)))


def _write_scarf_hat_gloves(root: Path) -> None:
    for name, colour in (("scarf", "red"), ("hat", "blue"), ("gloves", "green")):
        Image.new("RGB", (40, 40), colour).save(root / f"{name}.jpg")


def prepare(page: str, directory: Path, built: Path) -> None:
    """Fills `directory` for a page.

    Args:
        page: one of `pages.page_names()`.
        directory: empty.
        built: what takes time to make: data/ and runs/ by name.
    """
    for name in SHARED:
        (directory / name).symlink_to(ROOT / name)
    write(directory / ".venv" / "bin" / "activate", [])
    for need in NEEDS.get(page, ()):
        place = directory / need
        kind, _, name = need.partition("/")
        if kind in ("data", "runs"):
            shutil.copytree(built / need, place)
        elif need == "raw/hm":
            write_hm(place)
        elif need in ("raw/mine", "raw/movies_modern", "raw/movies_classic"):
            # as the built data/mine, whose ids the test knows
            place.parent.mkdir(exist_ok=True)
            Synthetic(num_users=40, items_per_cell=1, draw_seed=len(name) - len("mine"), root=place).read(place, True)
        elif need == "raw/amazon":
            write_amazon(place, "2023")
        elif need == "raw/ninerec":
            write_ninerec(place / "QB", "QB")
        elif need == "raw/pixelrec":
            write_pixelrec(place)
        elif need == "raw/microlens":
            write_microlens(place)
        elif need == "raw/ml-25m":
            _write_movielens(place)
        elif need == "new_items":
            _write_new_items(place)
        elif need == "pictures":
            _write_scarf_hat_gloves(directory)
        elif need == "hostfile":
            write(place, ["localhost slots=2"])
        else:
            assert need == "weights", f"nobody makes {need}"
            place.mkdir()


def write_programs(directory: Path, scripts: Mapping[str, str], real: Iterable[str] = REAL) -> Path:
    """A directory for PATH: shell scripts by name, and links to programs of the machine that are there."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in real:
        found = shutil.which(name)
        if found is not None:
            (directory / name).symlink_to(found)
    for name, script in scripts.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return directory


def run_block(
    text: str, cwd: Path, programs: Path, variables: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Runs a block in bash, which ends at the first command that fails."""
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}  # where compiled code is kept
    environment = {**kept, "PATH": str(programs), **variables}
    return subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", text],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )

"""Transactions in H&M's size and Kaggle's layout, drawn and made into a domain, with the time and memory it takes.

    python -m benchmarks.conversion --directory /a/large/disk

Draws articles.csv (Kaggle's 25 columns) and transactions_train.csv (by day but for a few late rows), 3.5 GB, the same
bytes each time, and builds a domain of titles from them as a user would. Popularity falls as a power. Half of the
customers buy at most 9 times, some a thousand times, a few articles a basket. Rows repeat, and a few name an article
that is not listed. Memory is that of all processes together, as in benchmarks/large.py.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.large import Usage, watched
from mmsr_pt.data.domain import Domain
from mmsr_pt.log import UserError

_MEDIAN_LENGTH = 9.0  # of H&M's customers; the mean being given, this is the spread of a log-normal law
_LONGEST = 2_000
_FIRST_DAY, _DAYS = np.datetime64("2018-09-20"), 734
_NEW_BASKET = 0.3  # chance that a purchase begins a basket, on another day
_AGAIN = 0.05  # chance that a purchase is the one before it once more: two pieces, two rows
_POPULARITY = 0.7  # exponent: the article of rank r sells r ** -0.7 times as often as the first
_UNKNOWN = 1_000_003  # one row in so many names an article that is not listed
_LATE = 100_003  # one row in so many stands at the end of the file
_SLICE = 1_000_000  # rows written at once
_COLOURS = 9  # articles of a product

_KINDS = (
    ("product_type_no", "product_type_name", 131),
    (None, "product_group_name", 19),
    ("graphical_appearance_no", "graphical_appearance_name", 30),
    ("colour_group_code", "colour_group_name", 50),
    ("perceived_colour_value_id", "perceived_colour_value_name", 8),
    ("perceived_colour_master_id", "perceived_colour_master_name", 20),
    ("department_no", "department_name", 250),
    ("index_code", "index_name", 10),
    ("index_group_no", "index_group_name", 5),
    ("section_no", "section_name", 56),
    ("garment_group_no", "garment_group_name", 21),
)
"""Columns of articles.csv with a number and a name, and how many of these there are."""


@dataclass(frozen=True)
class Settings:
    """How large, and where."""

    directory: Path | None = None
    """Where tables and domain go; the tables stay and are used again. None given: a temporary directory."""
    transactions: int = 31_788_324
    customers: int = 1_362_281
    articles: int = 105_542
    """All three as in Kaggle's files."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.customers <= self.transactions:
            raise UserError(f"--customers {self.customers} must lie in 1 ... --transactions {self.transactions}")
        if not 0 < self.articles < 10**6:
            raise UserError(f"--articles {self.articles} must lie in 1 ... 999,999")


def draw(root: Path, settings: Settings) -> None:
    """Writes articles.csv and transactions_train.csv; the second one has its name when both are complete."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(settings.seed)
    articles = draw_articles(settings.articles, rng)
    articles.write_csv(root / "articles.csv")
    unfinished = root / "transactions_train.csv.unfinished"
    with unfinished.open("wb") as file:
        _write_transactions(file, articles["article_id"], settings, rng)
    unfinished.rename(root / "transactions_train.csv")


def draw_articles(count: int, rng: np.random.Generator) -> pl.DataFrame:
    """Kaggle's articles.csv, all columns as text."""
    product = np.arange(count) // _COLOURS
    code = 100_000 + 7 * product
    columns = {
        "article_id": pl.Series(code * 1000 + np.arange(count) % _COLOURS + 1).cast(pl.String).str.zfill(10),
        "product_code": pl.Series(code).cast(pl.String).str.zfill(7),
        "prod_name": _sentences(rng.integers(1, 4, product[-1] + 1), rng)[product],
    }
    for number, name, kinds in _KINDS:
        kind = rng.integers(0, kinds, count)
        if number:
            columns[number] = pl.Series(kind).cast(pl.String)
        columns[name] = _sentences(rng.integers(1, 4, kinds), rng)[kind]
    columns["detail_desc"] = _sentences(rng.integers(5, 50, count), rng)
    return pl.DataFrame(columns)


def _sentences(lengths: np.ndarray, rng: np.random.Generator) -> pl.Series:
    """Texts of so many words."""
    words = pl.Series([f"{a}{b}{c}" for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "ou") for c in "dklmnrst"])
    drawn = words[rng.integers(0, len(words), lengths.sum())]
    table = pl.DataFrame({"text": np.repeat(np.arange(len(lengths)), lengths), "word": drawn})
    return table.group_by("text", maintain_order=True).agg(pl.col("word").str.join(" "))["word"]


def draw_lengths(settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """[customers] how often each one buys: at least once, a log-normal law, `transactions` in all."""
    mean = settings.transactions / settings.customers
    spread = np.sqrt(2 * np.log(max(mean / _MEDIAN_LENGTH, 1.0)))
    wanted = np.clip(rng.lognormal(np.log(_MEDIAN_LENGTH), spread, settings.customers), 1, _LONGEST)
    lengths = np.maximum(1, np.floor(wanted * settings.transactions / wanted.sum())).astype(np.int64)
    while missing := settings.transactions - int(lengths.sum()):
        # rounding: a purchase more, or one less of those who have several
        changed = rng.permutation(settings.customers if missing > 0 else np.flatnonzero(lengths > 1))[: abs(missing)]
        lengths[changed] += np.sign(missing)
    return lengths


def _write_transactions(file: IO[bytes], article_ids: pl.Series, settings: Settings, rng: np.random.Generator) -> None:
    """transactions_train.csv: by day and customer, the late rows behind all others."""
    total = settings.transactions
    customer_ids = pl.Series(sorted(rng.bytes(32).hex() for _ in range(settings.customers)))
    lengths = draw_lengths(settings, rng)
    begins = rng.random(total, dtype=np.float32) < _NEW_BASKET
    begins[np.cumsum(lengths) - lengths] = True
    day = rng.integers(0, _DAYS, total, dtype=np.uint16)[np.cumsum(begins) - 1]
    article = _draw_purchases(total, len(article_ids), rng)
    again = (rng.random(total, dtype=np.float32) < _AGAIN) & ~begins
    article[again] = article[np.flatnonzero(again) - 1]
    article[_UNKNOWN // 2 :: _UNKNOWN] = len(article_ids)
    customer = np.repeat(np.arange(settings.customers, dtype=np.uint32), lengths)
    order = np.argsort(day, kind="stable")
    late = np.zeros(total, dtype=bool)
    late[_LATE // 2 :: _LATE] = True
    order = np.concatenate([order[~late], order[late]])
    ids = pl.concat([article_ids, pl.Series(["0999999001"])])
    days = pl.Series(_FIRST_DAY + np.arange(_DAYS)).cast(pl.String)
    # prices are shares of the dearest article's
    prices = pl.Series(np.round(rng.uniform(0.0001, 0.2, len(ids)), 16)).cast(pl.String)
    for start in range(0, total, _SLICE):
        own = order[start : start + _SLICE]
        part = {"t_dat": days[day[own]], "customer_id": customer_ids[customer[own]], "article_id": ids[article[own]]}
        part |= {"price": prices[article[own]], "sales_channel_id": pl.Series(1 + (customer[own] + day[own]) % 2)}
        pl.DataFrame(part).write_csv(file, include_header=start == 0)


def _draw_purchases(count: int, num_articles: int, rng: np.random.Generator) -> np.ndarray:
    """[count] articles by popularity; which are popular has nothing to do with their numbers."""
    share = np.cumsum(np.arange(1, num_articles + 1) ** -_POPULARITY)
    by_rank = rng.permutation(num_articles).astype(np.uint32)
    drawn = np.empty(count, dtype=np.uint32)
    for start in range(0, count, _SLICE):
        own = drawn[start : start + _SLICE]
        rank = np.searchsorted(share, rng.random(len(own)) * share[-1])
        own[:] = by_rank[np.minimum(rank, num_articles - 1)]
    return drawn


def measure(directory: Path, settings: Settings) -> tuple[Usage, Domain]:
    """Draws the tables where they are not yet, and builds the domain."""
    raw, out = directory / "raw", directory / "domain"
    if not (raw / "transactions_train.csv").is_file():
        draw(raw, settings)
    command = [sys.executable, "shards/build.py", "hm", "--root", str(raw), "--out", str(out), "--modalities", "text"]
    return watched([*command, "--overwrite"]), Domain.load(out)


def print_table(usage: Usage, domain: Domain) -> None:
    """What was built, and what it took."""
    table = Table(title="Kaggle's layout, titles only", title_justify="left", show_header=False)
    for name in ("interactions_read", "users_read", "users", "items", "interactions", "train_bytes"):
        table.add_row(name.replace("_", " "), f"{domain.meta['counts'][name]:,}")
    table.add_row("wall time", f"{usage.seconds:,.0f} s")
    table.add_row("processor time", f"{usage.processor_seconds:,.0f} s")
    table.add_row("peak memory", f"{usage.peak_bytes / 1e9:.2f} GB")
    Console(width=120).print(table)


def main(argv: list[str] | None = None) -> tuple[Usage, Domain]:
    """Measures and prints; returns what the build took, and the domain."""
    settings = tyro.cli(Settings, args=argv, use_underscores=True)
    with tempfile.TemporaryDirectory() as scratch:
        directory = settings.directory or Path(scratch)
        usage, domain = measure(directory.resolve(), settings)
        print_table(usage, domain)
    return usage, domain


if __name__ == "__main__":
    main()

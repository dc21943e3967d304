"""Builds a domain directory from a raw dataset: clean, re-encode, split, write, and only then give it its name."""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from mmsr_pt.data.domain import (
    EVAL_FILE,
    FORMAT_VERSION,
    IMAGE,
    ITEMS_FILE,
    MANIFEST_FILE,
    TEXT,
    TOKENIZER_FILE,
    Domain,
    file_sha256,
)
from mmsr_pt.data.shards.choice import Choice, drawn_users
from mmsr_pt.data.shards.interactions import (
    Interactions,
    SplitRule,
    cold_cases,
    count_occurrences,
    met_items,
    read_interactions,
    split_users,
    with_rows,
    without_items,
)
from mmsr_pt.data.shards.items import WrittenItems, keep_items, read_items, write_items
from mmsr_pt.data.shards.manifest import (
    counts_of,
    counts_read,
    fingerprint,
    items_table,
    tar_entries,
    with_picture_checksums,
    with_user_checksums,
    write_parquet,
)
from mmsr_pt.data.shards.output import check_space, complete_directory, write_file
from mmsr_pt.data.shards.problems import Problems
from mmsr_pt.data.shards.sizes import domain_bytes, estimate_item_bytes, users_by_tar
from mmsr_pt.data.shards.tars import TarSummary, TrainTarPlan, write_train_tar
from mmsr_pt.data.shards.vocabulary import train_vocabulary
from mmsr_pt.data.shards.workers import Workers, available_cores, progress
from mmsr_pt.data.sources import RawDomain
from mmsr_pt.data.sources.synthetic import Synthetic
from mmsr_pt.log import UserError

log = logging.getLogger(__name__)

_MAX_SHARDS = 100_000


@dataclass(frozen=True)
class BuildOptions:
    """How a domain is built, whatever it is built from."""

    split: SplitRule = field(default_factory=SplitRule)
    choice: Choice = field(default_factory=Choice)
    modalities: tuple[Literal["text", "image"], ...] = ("text", "image")
    """What items must have; items without are dropped."""
    num_shards: int = 0
    """Train tars; 0: as few as keep each below 256 MB, so that many users share the bytes of an item."""
    num_workers: int = -1
    """Writer processes; -1: one a core. Their number does not change the output."""
    seed: int = 0
    """Seed of the order of users in the train tars, and of the lots of --max_users."""
    strict: bool = False
    """Stop at the first fault of the raw dataset instead of counting it."""
    overwrite: bool = False
    """Replace a domain that is already there."""

    def __post_init__(self) -> None:
        if not self.modalities:
            raise UserError("--modalities needs text, image or both")
        if not 0 <= self.num_shards <= _MAX_SHARDS:
            raise UserError(f"--num_shards {self.num_shards} must lie in 0 (choose) ... {_MAX_SHARDS}")
        if self.num_workers != -1 and self.num_workers < 1:
            raise UserError(f"--num_workers {self.num_workers} must be -1 (one a core) or at least 1")


def build_domain(raw: RawDomain, out: Path, options: BuildOptions) -> Domain:
    """Writes the domain directory `out`; it appears complete or not at all.

    Raises:
        UserError: `out` is taken, nothing usable is left, the disk is too small, or a fault was met and the build is
            strict.
    """
    problems = Problems(options.strict)
    num_workers = available_cores() if options.num_workers == -1 else options.num_workers
    with complete_directory(out, options.overwrite) as root, Workers(num_workers) as workers:
        items = read_items(raw, options.modalities, problems, options.choice.categories)
        log.info("%s: %d items, %d of them usable", raw.source, items.height, items["usable"].sum())
        interactions = read_interactions(raw, items, options.choice, problems)
        log.info("%d interactions of %d users", interactions.num_read, len(interactions.user_ids))
        written, users, num_qualified = _write_catalogue(items, interactions, root, options, workers, problems)
        titles = items.filter(pl.Series(written.row_of_item >= 0))["title"].to_list()
        vocabulary = workers.start(train_vocabulary, titles, options.seed) if TEXT in options.modalities else None
        tars = users_by_tar(users["history"], written.blocks.sizes, options.num_shards, options.seed)
        train_paths, train = _write_train(tars, users, written, root / "train", workers)
        train_count = count_occurrences(users["history"], len(written.blocks.rows))
        catalogue = items_table(items, written, train_count, root)
        held_out = users.drop("times").with_columns(cold_cases(users, train_count), place=_places(tars))
        write_parquet(with_picture_checksums(catalogue, written), root / ITEMS_FILE)
        write_parquet(with_user_checksums(held_out, train), root / EVAL_FILE)
        if vocabulary:
            write_file(root / TOKENIZER_FILE, vocabulary())
        split = options.split.as_dict()
        meta = {
            "format_version": FORMAT_VERSION,
            "name": out.absolute().name,
            "source": raw.source,
            "licence": raw.licence,
            "modalities": list(options.modalities),
            "split": split,
            "choice": options.choice.as_dict(),
            "seed": options.seed,
            "fingerprint": fingerprint(split, [*written.summaries, *train], [catalogue, held_out]),
            "counts": {
                **counts_of(users, train_count, train),
                **counts_read(interactions, items),
                "users_not_drawn": num_qualified - users.height,
            },
            "problems": problems.as_dict(),
            "tars": tar_entries(written, train_paths, train, root),
            "files": {
                name: file_sha256(root / name)
                for name in (ITEMS_FILE, EVAL_FILE, TOKENIZER_FILE)
                if (root / name).is_file()
            },
        }
        write_file(root / MANIFEST_FILE, (json.dumps(meta, indent=2, ensure_ascii=False) + "\n").encode())
    return Domain.load(out)


def _write_catalogue(
    items: pl.DataFrame,
    interactions: Interactions,
    root: Path,
    options: BuildOptions,
    workers: Workers,
    problems: Problems,
) -> tuple[WrittenItems, pl.DataFrame, int]:
    """Writes the items tars; returns them, the users with rows of that catalogue, and how many users qualified."""
    expected_rows = np.where(items["usable"], np.cumsum(items["usable"]) - 1, -1)
    users, num_qualified = _sequences(interactions, expected_rows, options)
    if options.choice.max_users > num_qualified:
        log.warning("--max_users %d is more than the %d users: all", options.choice.max_users, num_qualified)
    if options.num_shards > users.height:
        log.warning("--num_shards %d is more than the %d users: one each", options.num_shards, users.height)
    only_met, with_images = options.choice.only_met_items, IMAGE in options.modalities
    expected_bytes = estimate_item_bytes(items.filter("usable"), with_images)
    tars = users_by_tar(users["history"], expected_bytes, options.num_shards, options.seed)
    check_space(root, domain_bytes(users["history"], tars, expected_bytes) + only_met * int(expected_bytes.sum()))
    directory = root / ("all_items" if only_met else "items")
    written = write_items(items, directory, with_images, workers, problems)
    if not np.array_equal(written.row_of_item, expected_rows):
        interactions = without_items(interactions, written.row_of_item, items["item_id"], problems)
        users, num_qualified = _sequences(interactions, written.row_of_item, options)
    if only_met:
        # not earlier: a picture that cannot be decoded brings older items into sequences, and other users
        met = met_items(users, len(written.blocks.rows))
        written = keep_items(items, written, met, root / "items")
        users = with_rows(users, np.where(met, np.cumsum(met) - 1, 0))
        shutil.rmtree(directory)
    return written, users, num_qualified


def _sequences(interactions: Interactions, row_of_item: np.ndarray, options: BuildOptions) -> tuple[pl.DataFrame, int]:
    """The users of the domain, and how many there were to draw them from."""
    users = split_users(interactions, row_of_item, options.split)
    return drawn_users(users, options.choice.max_users, options.seed), users.height


def _places(tars: list[np.ndarray]) -> pl.Series:
    """Returns: [U] u32, where each user stands once the train tars lie end to end."""
    order = np.concatenate(tars)
    places = np.empty(len(order), dtype=np.uint32)
    places[order] = np.arange(len(order), dtype=np.uint32)
    return pl.Series(places)


def _write_train(
    tars: list[np.ndarray], users: pl.DataFrame, written: WrittenItems, directory: Path, workers: Workers
) -> tuple[list[Path], list[TarSummary]]:
    """Writes the train tars, one a task."""
    directory.mkdir()
    paths = [directory / f"train-{number:05d}.tar" for number in range(len(tars))]
    plans = (_plan(users[own], written, path) for own, path in zip(tars, paths))
    summaries = []
    with progress("train tars", len(paths)) as bar:
        for summary in workers.map(write_train_tar, plans):
            summaries.append(summary)
            bar.update()
    return paths, summaries


def _plan(users: pl.DataFrame, written: WrittenItems, path: Path) -> TrainTarPlan:
    rows = users["history"].explode().to_numpy()
    return TrainTarPlan(
        path=path,
        item_tars=written.paths,
        blocks=written.blocks.take(np.unique(rows)),
        users=users["user"].to_numpy(),
        user_ids=users["user_id"].to_list(),
        starts=np.append(0, users["history"].list.len().cum_sum().to_numpy()).astype(np.int64),
        rows=rows,
        times=users["times"].explode().to_numpy(),
    )


def ensure_drawn_domain(directory: Path = Path("data"), variant: Literal["source", "target"] = "source") -> Path:
    """A drawn domain under `directory`, built there when it is not; safe to call from every rank at once."""
    out = directory / f"drawn_{variant}"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f".{out.name}.lock").open("w") as lock, tempfile.TemporaryDirectory() as scratch:
        # the first rank draws while the others of this machine wait here
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            log.info("no --data given: drawing the synthetic domain %s", out)
            # in this process: writer processes would import the calling script, and with it torch
            options = BuildOptions(num_workers=1)
            build_domain(Synthetic(variant).read(Path(scratch), with_images=True), out, options)
    Domain.load(out)
    return out

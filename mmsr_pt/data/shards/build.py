"""Builds a domain directory from a raw dataset: clean, re-encode, split, write, and only then give it its name."""

from __future__ import annotations

import fcntl
import json
import logging
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
)
from mmsr_pt.data.shards.images import encode_images
from mmsr_pt.data.shards.interactions import (
    Interactions,
    SplitRule,
    cold_cases,
    count_occurrences,
    read_interactions,
    split_users,
    without_items,
)
from mmsr_pt.data.shards.items import WrittenItems, read_items, write_items
from mmsr_pt.data.shards.manifest import fingerprint, items_table, tar_entries, write_parquet
from mmsr_pt.data.shards.output import check_space, complete_directory, write_file
from mmsr_pt.data.shards.problems import Problems
from mmsr_pt.data.shards.tars import TarSummary, TrainTarPlan, write_train_tar
from mmsr_pt.data.shards.vocabulary import train_vocabulary
from mmsr_pt.data.shards.workers import Workers, available_cores, progress
from mmsr_pt.data.sources import RawDomain
from mmsr_pt.data.sources.synthetic import Synthetic
from mmsr_pt.log import UserError

log = logging.getLogger(__name__)

_USERS_PER_TAR = 1024
_MIN_TARS = 8
_SAMPLED_IMAGES = 16
_BYTES_PER_INTERACTION = 40  # of a user's JSON and of eval.parquet
_BYTES_PER_MEMBER = 1024  # a tar header, and on average half a block of padding, twice for json + jpg
_MAX_SHARDS = 100_000


@dataclass(frozen=True)
class BuildOptions:
    """How a domain is built, whatever it is built from."""

    split: SplitRule = field(default_factory=SplitRule)
    modalities: tuple[Literal["text", "image"], ...] = ("text", "image")
    """What items must have; items without are dropped."""
    num_shards: int = 0
    """Train tars; 0: one for each 1024 users, at least 8."""
    num_workers: int = -1
    """Writer processes; -1: one a core. Their number does not change the output."""
    seed: int = 0
    """Seed of the order of users in the train tars."""
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
        items = read_items(raw, options.modalities, problems)
        log.info("%s: %d items, %d of them usable", raw.source, items.height, items["usable"].sum())
        interactions = read_interactions(raw, items["item_id"], items["usable"], problems)
        log.info("%d interactions of %d users", interactions.num_read, len(interactions.user_ids))
        expected_rows = np.where(items["usable"], np.cumsum(items["usable"]) - 1, -1)
        users = split_users(interactions, expected_rows, options.split)
        if options.num_shards > users.height:
            log.warning("--num_shards %d is more than the %d users: one each", options.num_shards, users.height)
        check_space(root, _estimate(items, users, options))
        written = write_items(items, root / "items", IMAGE in options.modalities, workers, problems)
        if not np.array_equal(written.row_of_item, expected_rows):
            interactions = without_items(interactions, written.row_of_item, items["item_id"], problems)
            users = split_users(interactions, written.row_of_item, options.split)
        train_paths, train = _write_train(users, written, root / "train", options, workers)
        train_count = count_occurrences(users["history"], len(written.blocks.rows))
        catalogue = items_table(items, written, train_count, root)
        held_out = users.drop("times").with_columns(cold_cases(users, train_count))
        write_parquet(catalogue, root / ITEMS_FILE)
        write_parquet(held_out, root / EVAL_FILE)
        if TEXT in options.modalities:
            write_file(root / TOKENIZER_FILE, train_vocabulary(catalogue["title"].to_list(), options.seed))
        split = options.split.as_dict()
        meta = {
            "format_version": FORMAT_VERSION,
            "name": out.absolute().name,
            "source": raw.source,
            "licence": raw.licence,
            "modalities": list(options.modalities),
            "split": split,
            "seed": options.seed,
            "fingerprint": fingerprint(split, [*written.summaries, *train], [catalogue, held_out]),
            "counts": _counts(interactions, items, users, train_count),
            "problems": problems.as_dict(),
            "tars": tar_entries(written, train_paths, train, root),
        }
        write_file(root / MANIFEST_FILE, (json.dumps(meta, indent=2, ensure_ascii=False) + "\n").encode())
    return Domain.load(out)


def _num_shards(num_users: int, options: BuildOptions) -> int:
    """Train tars: what was asked for or follows from the users, and no tar without a user."""
    return min(options.num_shards or max(_MIN_TARS, -(-num_users // _USERS_PER_TAR)), num_users)


def _tar_of_user(num_users: int, options: BuildOptions) -> list[np.ndarray]:
    """The users of each train tar in their order there: a shuffle, cut into parts that differ by one user at most."""
    order = np.random.default_rng(options.seed).permutation(num_users)
    return np.array_split(order, _num_shards(num_users, options))


def _estimate(items: pl.DataFrame, users: pl.DataFrame, options: BuildOptions) -> int:
    """Bytes that the domain will take."""
    image_bytes = 0.0
    usable = items.filter("usable")
    if IMAGE in options.modalities:
        sample = usable["image"].gather_every(-(-usable.height // _SAMPLED_IMAGES)).to_list()
        sizes = [len(image) for image in encode_images(sample) if isinstance(image, bytes)]
        image_bytes = float(np.mean(sizes)) if sizes else 0.0
    item_bytes = image_bytes + _BYTES_PER_MEMBER + float(usable["title"].str.len_bytes().mean())  # type: ignore[arg-type]
    tar_of = np.empty(users.height, dtype=np.uint64)
    for number, members in enumerate(_tar_of_user(users.height, options)):
        tar_of[members] = number
    occurrences = users.select(tar=pl.Series(tar_of), row="history").explode("row")
    copies = occurrences.select(pl.col("tar") * usable.height + pl.col("row")).to_series().n_unique()
    return int(
        (usable.height + copies) * item_bytes
        + users.height * _BYTES_PER_MEMBER
        + occurrences.height * _BYTES_PER_INTERACTION
    )


def _write_train(
    users: pl.DataFrame, written: WrittenItems, directory: Path, options: BuildOptions, workers: Workers
) -> tuple[list[Path], list[TarSummary]]:
    """Writes the train tars, one a task."""
    directory.mkdir()
    members = _tar_of_user(users.height, options)
    paths = [directory / f"train-{number:05d}.tar" for number in range(len(members))]
    plans = (_plan(users[own], written, path) for own, path in zip(members, paths))
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


def _counts(
    interactions: Interactions, items: pl.DataFrame, users: pl.DataFrame, train_count: np.ndarray
) -> dict[str, int]:
    train = int(train_count.sum())
    return {
        "users": users.height,
        "items": len(train_count),
        "interactions": train + 2 * users.height,
        "train_interactions": train,
        "items_in_training": int((train_count > 0).sum()),
        "users_read": len(interactions.user_ids),
        "items_read": items.height,
        "interactions_read": interactions.num_read,
    }


def ensure_drawn_domain(directory: Path = Path("data")) -> Path:
    """The drawn source domain under `directory`, built there when it is not; safe to call from every rank at once."""
    out = directory / "drawn_source"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".drawn_source.lock").open("w") as lock, tempfile.TemporaryDirectory() as scratch:
        # the first rank draws while the others of this machine wait here
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            log.info("no --data given: drawing the synthetic domain %s", out)
            # in this process: writer processes would import the calling script, and with it torch
            options = BuildOptions(num_workers=1)
            build_domain(Synthetic().read(Path(scratch), with_images=True), out, options)
    Domain.load(out)
    return out

"""What a finished domain says of itself: items.parquet, eval.parquet, domain.json and the closing table."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from mmsr_pt.data.domain import CHECKSUM, Domain
from mmsr_pt.data.shards.interactions import Interactions
from mmsr_pt.data.shards.items import WrittenItems
from mmsr_pt.data.shards.output import write_file
from mmsr_pt.data.shards.problems import KINDS
from mmsr_pt.data.shards.tars import TarSummary

_SLICE = 100_000


def items_table(items: pl.DataFrame, written: WrittenItems, train_count: np.ndarray, root: Path) -> pl.DataFrame:
    """The content of items.parquet."""
    kept = items.filter(pl.Series(written.row_of_item >= 0))
    names = pl.Series([path.relative_to(root).as_posix() for path in written.paths])
    place = pl.Series(written.image_offsets), pl.Series(written.image_sizes)
    offset, size = (numbers.set(numbers < 0, None) for numbers in place)
    return kept.select(
        "item_id",
        pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"),
        "title",
        train_count=pl.Series(train_count),
        tar=names[written.blocks.tars],
        offset=offset,
        size=size,
    )


def with_picture_checksums(catalogue: pl.DataFrame, written: WrittenItems) -> pl.DataFrame:
    """The content of items.parquet with what tells a picture from a damaged one."""
    checksums = pl.Series(written.image_checksums.astype(np.uint32)).set(pl.Series(written.image_sizes < 0), None)
    return catalogue.with_columns(checksums.alias(CHECKSUM))


def with_user_checksums(held_out: pl.DataFrame, train: Sequence[TarSummary]) -> pl.DataFrame:
    """The content of eval.parquet with what tells a user's JSON in the train tars from a damaged one."""
    checksums = np.concatenate([np.asarray(tar.checksums, dtype=np.uint32) for tar in train])
    return held_out.with_columns(pl.Series(CHECKSUM, checksums[held_out["place"].to_numpy()]))


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Writes a table; a full disk is an OSError here, which polars' own writer does not promise."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    write_file(path, buffer.getvalue())


def fingerprint(split: dict[str, Any], tars: Sequence[TarSummary], tables: Sequence[pl.DataFrame]) -> str:
    """sha256 over the split rule, the tars and the content (not the file bytes) of the tables."""
    total = hashlib.sha256(json.dumps(split, sort_keys=True).encode())
    for tar in tars:
        total.update(tar.sha256.encode())
    for table in tables:
        for column in table.iter_columns():
            total.update(f"{column.name} {column.dtype}".encode())
            for start in range(0, len(column), _SLICE):
                _hash_column(column.slice(start, _SLICE), total)
    return total.hexdigest()


def _hash_column(column: pl.Series, total: Any) -> None:
    if isinstance(column.dtype, pl.List):
        total.update(column.list.len().to_numpy().tobytes())
        column = column.explode().drop_nulls()
    if column.dtype == pl.String:
        column = column.fill_null("")
        total.update(column.str.len_bytes().to_numpy().tobytes())
        total.update("".join(column.to_list()).encode())
    else:
        total.update(column.fill_null(-1).to_numpy().tobytes() if column.null_count() else column.to_numpy().tobytes())


def tar_entries(
    written: WrittenItems, train_paths: Sequence[Path], train: Sequence[TarSummary], root: Path
) -> list[dict[str, Any]]:
    """The manifest's line for every tar."""
    paths = [(path, "items") for path in written.paths] + [(path, "train") for path in train_paths]
    return [
        {
            "path": path.relative_to(root).as_posix(),
            "kind": kind,
            "samples": tar.samples,
            "items": tar.items,
            "bytes": tar.num_bytes,
            "sha256": tar.sha256,
        }
        for (path, kind), tar in zip(paths, [*written.summaries, *train])
    ]


def counts_of(users: pl.DataFrame, train_count: np.ndarray, train: list[TarSummary]) -> dict[str, int]:
    """What is in the domain."""
    occurrences = int(train_count.sum())
    train_bytes = sum(tar.num_bytes for tar in train)
    return {
        "users": users.height,
        "items": len(train_count),
        "interactions": occurrences + 2 * users.height,
        "train_interactions": occurrences,
        "items_in_training": int((train_count > 0).sum()),
        "train_bytes": train_bytes,
        "train_bytes_if_repeated": train_bytes + sum(tar.repeated_bytes for tar in train),
    }


def counts_read(interactions: Interactions, items: pl.DataFrame) -> dict[str, int]:
    """What was in the raw dataset, and how much of it was not asked for."""
    return {
        "users_read": len(interactions.user_ids),
        "items_read": items.height,
        "interactions_read": interactions.num_read,
        "items_not_chosen": items.height - int(items["chosen"].sum()),
        "interactions_not_chosen": interactions.num_not_chosen,
    }


def print_summary(domain: Domain) -> None:
    """The closing table: what is in the domain, and what was wrong with the raw dataset."""
    table = Table(title=f"{domain.path}", title_justify="left", show_header=False)
    for name, value in domain.meta["counts"].items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    smaller = domain.meta["counts"]["train_bytes_if_repeated"] / domain.meta["counts"]["train_bytes"]
    table.add_row("train tars, smaller by", f"{smaller:.2f} x")
    # ids and paths stand in these tables as they are: "[/b]" in one is no markup
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(table)
    problems = domain.meta["problems"]
    if not problems:
        console.print("No faults in the raw dataset.")
        return
    faults = Table(title="Faults of the raw dataset", title_justify="left")
    for heading in ("kind", "count", "what was done", "for example"):
        faults.add_column(heading, justify="right" if heading == "count" else "left", overflow="fold")
    for kind, found in problems.items():
        faults.add_row(kind, f"{found['count']:,}", KINDS[kind], found["examples"][0])
    console.print(faults)

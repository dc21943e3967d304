"""From a log of interactions to user sequences, in polars from end to end: nothing here is a Python object per row."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from mmsr_pt.data.domain import COLD_BELOW
from mmsr_pt.data.shards.choice import Choice
from mmsr_pt.data.shards.problems import MAX_EXAMPLES, Problems
from mmsr_pt.data.sources.base import RawDomain
from mmsr_pt.log import UserError, reason

NUM_HELD_OUT = 2


@dataclass(frozen=True)
class SplitRule:
    """Which interactions count, and which are held out: the last two, for validation and test."""

    min_interactions: int = 5
    """Users with fewer are dropped."""
    keep_last: int = 23
    """Newest interactions kept of each user; the last two are held out."""

    def __post_init__(self) -> None:
        for name in ("min_interactions", "keep_last"):
            if not NUM_HELD_OUT < getattr(self, name) <= 255:
                raise UserError(
                    f"--{name} {getattr(self, name)} must lie in 3 ... 255: two are held out, one must be left"
                )

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {"rule": "leave-one-out", "order": "time, then order in the source", **asdict(self)}


@dataclass(frozen=True)
class Interactions:
    """The usable interactions of a raw dataset, ids replaced by numbers."""

    table: pl.DataFrame
    """user u32, item u32 (place in the items table), time; sorted by user and time."""
    user_ids: pl.Series
    """By user number."""
    num_read: int
    num_not_chosen: int
    """Sound ones with items or at times that were not asked for."""


def read_interactions(raw: RawDomain, items: pl.DataFrame, choice: Choice, problems: Problems) -> Interactions:
    """Reads, checks, chooses and sorts all interactions.

    Args:
        raw: the dataset.
        items: what `read_items` returned.
        choice: which part is taken.
        problems: where faults are counted.
    """
    rows = raw.interactions.with_row_index("order")
    try:
        user_ids = rows.select("user_id").unique().collect(engine="streaming").to_series().drop_nulls().sort()
        users = pl.LazyFrame({"user_id": user_ids}).with_row_index("user")
        places = items.lazy().select("item_id", "chosen", "usable").with_row_index("item")
        coded = (
            rows.join(users, on="user_id", how="left")
            .join(places, on="item_id", how="left")
            .select("user", "item", "chosen", "usable", "time", "order", no_item=pl.col("item_id").is_null())
            .collect(engine="streaming")
        )
    except pl.exceptions.PolarsError as error:
        raise UserError(f"the interactions in {raw.root} cannot be read: {reason(error)}") from error
    num_read = coded.height
    in_time = choice.in_time(raw, coded["time"])
    if in_time is not None:
        coded = coded.with_columns(chosen=pl.col("chosen") & in_time)
    faults = {
        "missing_id": pl.col("user").is_null() | pl.col("no_item"),
        "unparsable_time": pl.col("time").is_null(),
        "unknown_item": pl.col("item").is_null(),
        "item_dropped": pl.col("chosen") & ~pl.col("usable"),
    }
    for kind, fault in faults.items():
        found = coded.filter(fault)["order"]
        if len(found):
            problems.add(kind, len(found), _examples(rows, found))
            coded = coded.filter(~fault)
    num_sound = coded.height
    coded = coded.filter("chosen").drop("chosen", "usable", "no_item")
    num_not_chosen = num_sound - coded.height
    coded = coded.sort("user", "item", "time", "order")
    same = pl.all_horizontal(pl.col(name) == pl.col(name).shift(1) for name in ("user", "item", "time")).fill_null(
        False
    )
    repeated = coded.filter(same)["order"]
    if len(repeated):
        problems.add("duplicate_interaction", len(repeated), _examples(rows, repeated))
        coded = coded.filter(~same)
    return Interactions(coded.sort("user", "time", "order").drop("order"), user_ids, num_read, num_not_chosen)


def _examples(rows: pl.LazyFrame, order: pl.Series) -> list[str]:
    """The first few of the rows numbered `order`, in words."""
    first = order.sort().head(MAX_EXAMPLES)
    found = (
        rows.head(first[-1] + 1)
        .filter(pl.col("order").is_in(first.implode()))
        .sort("order")
        .collect(engine="streaming")
    )
    return [
        f"row {order + 1}: user {user}, item {item}, time {time}"
        for order, user, item, time in found.select("order", "user_id", "item_id", "time").iter_rows()
    ]


def without_items(
    interactions: Interactions, row_of_item: np.ndarray, item_ids: pl.Series, problems: Problems
) -> Interactions:
    """Drops the interactions with items that turned out to have no row."""
    table = interactions.table
    lost = pl.Series(row_of_item < 0)[table["item"]]
    if not lost.any():
        return interactions
    examples = [
        f"user {interactions.user_ids[user]}, item {item_ids[item]}, time {time}"
        for user, item, time in table.filter(lost).head(MAX_EXAMPLES).iter_rows()
    ]
    problems.add("item_dropped", int(lost.sum()), examples)
    return replace(interactions, table=table.filter(~lost))


def split_users(interactions: Interactions, row_of_item: np.ndarray, rule: SplitRule) -> pl.DataFrame:
    """Sequences with their held-out items.

    Args:
        interactions: all usable ones.
        row_of_item: by place in the items table, the catalogue row, -1 for an item that has none.
        rule: who is kept and what is held out.

    Returns: user_id, user (0-based), history, times (both of the training part), valid, test: rows of the catalogue.

    Raises:
        UserError: no user is left.
    """
    table = interactions.table.with_columns(row=pl.Series(row_of_item)[interactions.table["item"]])
    kept = (
        table.lazy()
        .filter(pl.col("row") >= 0)
        .group_by("user", maintain_order=True)
        .agg(pl.col("row").cast(pl.UInt32).tail(rule.keep_last), pl.col("time").tail(rule.keep_last), num=pl.len())
        .filter(pl.col("num") >= rule.min_interactions)
        .collect()
    )
    if not kept.height:
        raise UserError(
            f"no user has {rule.min_interactions} or more of the {table.height:,} usable interactions: check that the "
            "item ids of both tables agree, or lower --min_interactions"
            + (" or ask for more with --categories, --since and --until" if interactions.num_not_chosen else "")
        )
    trained = pl.col("row").list.len() - NUM_HELD_OUT
    return kept.select(
        user_id=interactions.user_ids[kept["user"]],
        user=pl.int_range(pl.len(), dtype=pl.UInt32),
        history=pl.col("row").list.head(trained),
        times=pl.col("time").list.eval(pl.element().floor().cast(pl.Int64)).list.head(trained),
        valid=pl.col("row").list.get(-2),
        test=pl.col("row").list.get(-1),
    )


def met_items(users: pl.DataFrame, num_items: int) -> np.ndarray:
    """Returns: [N] bool, whether each row occurs in a kept sequence, its two held-out items included."""
    met = count_occurrences(users["history"], num_items) > 0
    met[users["valid"]] = True
    met[users["test"]] = True
    return met


def with_rows(users: pl.DataFrame, new_row: np.ndarray) -> pl.DataFrame:
    """The same sequences where row i of the catalogue is called new_row[i], which is anything where none has it."""
    rows = pl.Series(new_row, dtype=pl.UInt32)
    flat = users.select("user", "history").explode("history")
    flat = flat.with_columns(history=rows[flat["history"]])
    history = flat.group_by("user", maintain_order=True).agg("history")["history"]
    return users.with_columns(history, valid=rows[users["valid"]], test=rows[users["test"]])


def count_occurrences(history: pl.Series, num_items: int) -> np.ndarray:
    """Returns: [N] uint32, how often each row occurs in training sequences."""
    rows = history.explode().drop_nulls().to_numpy()
    return np.bincount(rows, minlength=num_items).astype(np.uint32)


def cold_cases(users: pl.DataFrame, train_count: np.ndarray) -> pl.Series:
    """Returns: [U] lists of u8, the positions p >= 1 in history + [valid, test] whose item is cold."""
    cold = pl.Series(train_count < COLD_BELOW)
    positions = (
        users.lazy()
        .select("user", row=pl.concat_list("history", "valid", "test"))
        .with_columns(position=pl.int_ranges(pl.col("row").list.len(), dtype=pl.UInt8))
        .explode("row", "position")
        .filter(pl.col("position") >= 1)
        .collect()
    )
    found = positions.filter(cold[positions["row"]]).group_by("user", maintain_order=True).agg("position")
    return (
        users.join(found, on="user", how="left", maintain_order="left")["position"].fill_null([]).rename("cold_cases")
    )

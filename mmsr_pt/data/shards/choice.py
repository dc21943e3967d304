"""Which part of a raw dataset a domain is made of: items by category, interactions by date, users by lot."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import numpy as np
import polars as pl

from mmsr_pt.data.sources.base import RawDomain
from mmsr_pt.log import UserError

_DAY = 86_400
_COMMON = 10  # names of categories that an error lists
_NEAR = 3
_YEAR = 31_556_952
_FIRST_YEAR, _LAST_YEAR = 1971, 2199  # of the latest time; numbers that are days or milliseconds lie far outside


@dataclass(frozen=True)
class Choice:
    """What is taken of a raw dataset; everything unless asked otherwise."""

    max_users: int = 0
    """So many of the users with enough interactions, by lot; 0: all. With one --seed, fewer are among more."""
    categories: tuple[str, ...] = ()
    """Only items that have one of these categories, in capitals or not; none given: all items."""
    since: str | None = None
    """Only interactions on this day (YYYY-MM-DD, UTC) or later."""
    until: str | None = None
    """Only interactions before this day (YYYY-MM-DD, UTC)."""
    only_met_items: bool = False
    """Leave out of the catalogue what occurs in no kept sequence, held-out items included, as the paper's code does."""

    def __post_init__(self) -> None:
        if self.max_users < 0:
            raise UserError(f"--max_users {self.max_users} must be 0 (all) or more")
        days = [_parsed("since", self.since), _parsed("until", self.until)]
        if None not in days and days[0] >= days[1]:  # type: ignore[operator]
            raise UserError(f"--since {self.since} must lie before --until {self.until}, which is left out itself")

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {**asdict(self), "categories": list(self.categories)}

    def in_time(self, raw: RawDomain, times: pl.Series) -> pl.Series | None:
        """[rows] whether each of `times` lies between the dates; None where no date is given.

        Raises:
            UserError: the times of the dataset are no dates.
        """
        if self.since is None and self.until is None:
            return None
        if raw.seconds_per_unit is None:
            raise UserError(f"--since and --until want dates, and the times in {raw.root} are none: leave both out")
        latest: Any = times.max()
        year = 1970 + int((latest or 0) * raw.seconds_per_unit) // _YEAR
        if latest is not None and not _FIRST_YEAR <= year <= _LAST_YEAR:
            raise UserError(
                f"--since and --until want dates, and the latest time in {raw.root} would lie in the year {year}: give "
                "times as dates or as seconds since 1970, or leave both out"
            )
        chosen = times.is_not_null()
        since, until = _parsed("since", self.since), _parsed("until", self.until)
        if since is not None:
            chosen &= times >= since * _DAY / raw.seconds_per_unit
        if until is not None:
            chosen &= times < until * _DAY / raw.seconds_per_unit
        return chosen


def _parsed(flag: str, day: str | None) -> int | None:
    """Days since 1970."""
    if day is None:
        return None
    try:
        return (date.fromisoformat(day) - date(1970, 1, 1)).days
    except ValueError:
        raise UserError(f"--{flag} {day} is no date: write it as 2020-08-23") from None


def in_categories(items: pl.DataFrame, asked: Sequence[str], raw: RawDomain) -> pl.Series:
    """[items] whether each has one of the categories.

    Raises:
        UserError: a name that no item has; it lists the nearest and the most common ones.
    """
    counts = items["categories"].explode().drop_nulls().value_counts(sort=True)
    names = counts.sort("count", "categories", descending=[True, False])["categories"].to_list()
    if not names:
        raise UserError(f"--categories {' '.join(asked)}: the items in {raw.root} have no categories: leave it out")
    wanted: list[str] = []
    for name in asked:
        found = [known for known in names if known.casefold() == name.strip().casefold()]
        if not found:
            raise _unknown_category(name, names)
        wanted += found
    return items["categories"].list.eval(pl.element().is_in(wanted)).list.any().fill_null(False)


def _unknown_category(name: str, names: list[str]) -> UserError:
    """`names` are those there are, the most common ones first."""
    folded = {known.casefold(): known for known in reversed(names)}
    near = [folded[close] for close in difflib.get_close_matches(name.casefold(), folded, _NEAR, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    rest = f" and {len(names) - _COMMON} more" if len(names) > _COMMON else ""
    return UserError(f"unknown category {name!r}; known: {', '.join(map(repr, names[:_COMMON]))}{rest}.{hint}")


def drawn_users(users: pl.DataFrame, max_users: int, seed: int) -> pl.DataFrame:
    """`max_users` of the users by lot, numbered anew in the same order; all when it is 0.

    The lot of a user is a hash of seed and id, so it depends on no other user: a smaller number takes a part of those
    whom a larger one takes, and when data grow, a user leaves only for one who is new.
    """
    if not max_users:
        return users
    key = str(seed).encode()
    lots = np.array([_lot(user_id, key) for user_id in users["user_id"]], dtype=np.uint64)
    kept = np.sort(np.argsort(lots, kind="stable")[:max_users])
    return users[kept].with_columns(user=pl.int_range(pl.len(), dtype=pl.UInt32))


def _lot(user_id: str, key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(user_id.encode(), digest_size=8, key=key).digest(), "big")

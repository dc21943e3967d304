"""How many train tars, which users in which, and what all of it takes on disk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from mmsr_pt.data.shards.images import encode_images

_TAR_BYTES = 256 * 2**20  # large, so that many users share an item's bytes; lanes start inside a tar at no cost
_SAMPLED_IMAGES = 16
_BYTES_PER_INTERACTION = 40  # of a user's JSON and of eval.parquet
_BYTES_PER_MEMBER = 1024  # a tar header, and on average half a block of padding, twice for json + jpg


def estimate_item_bytes(usable: pl.DataFrame, with_images: bool) -> np.ndarray:
    """[N] float: what each usable item will take in a tar, going by a sample of the pictures."""
    image_bytes = 0.0
    if with_images:
        sample = usable["image"].gather_every(-(-usable.height // _SAMPLED_IMAGES)).to_list()
        sizes = [len(image) for image in encode_images(sample) if isinstance(image, bytes)]
        image_bytes = float(np.mean(sizes)) if sizes else 0.0
    return usable["title"].str.len_bytes().to_numpy() + (_BYTES_PER_MEMBER + image_bytes)


def users_by_tar(history: pl.Series, item_bytes: np.ndarray, num_shards: int, seed: int) -> list[np.ndarray]:
    """The users of each train tar in their order there: a shuffle, cut into parts that differ by one user at most.

    Args:
        history: [U] lists of catalogue rows.
        item_bytes: [N] what each row takes in a tar.
        num_shards: tars wanted, of which none stays empty; 0: as few (1, 2, 4, ...) as keep them below 256 MB.
        seed: of the shuffle.
    """
    num_users = len(history)
    order = np.random.default_rng(seed).permutation(num_users)
    if num_shards:
        return np.array_split(order, min(num_shards, num_users))
    num_tars = 1
    # the users being shuffled, the first tar is as large as any
    while num_tars < num_users and tar_bytes(history, np.array_split(order, num_tars)[0], item_bytes) > _TAR_BYTES:
        num_tars *= 2
    return np.array_split(order, min(num_tars, num_users))


def tar_bytes(history: pl.Series, users: np.ndarray, item_bytes: np.ndarray) -> float:
    """What a tar with these users takes, each of their items once."""
    rows = (history if len(users) == len(history) else history[users]).explode().to_numpy()
    met = np.zeros(len(item_bytes), dtype=bool)
    met[rows] = True
    return float(item_bytes[met].sum()) + _BYTES_PER_MEMBER * len(users) + _BYTES_PER_INTERACTION * len(rows)


def domain_bytes(history: pl.Series, tars: Sequence[np.ndarray], item_bytes: np.ndarray) -> int:
    """What a domain with these train tars takes."""
    return int(item_bytes.sum() + len(tars) * tar_bytes(history, tars[0], item_bytes))

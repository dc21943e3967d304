"""How sure a mean over test users and seeds is: 95 % intervals, of one model's figure or of two models' difference.

A figure x[s, u] (say NDCG@10 of user u under the model of seed s) varies for two reasons that cross each other: other
users might have been in the test, and other seeds (weights, order, training users drawn) might have been drawn. What we
want to know is the mean over all such users and seeds.

- Users are many: they are resampled (bootstrap). Every seed and every model gets the same resample, since they were
  asked the same users: what makes a user hard for all of them cancels in differences, and does not average out over
  seeds. A bootstrap that draws users anew within each seed takes it for noise that does, and is too sure.
- Seeds are few: resampled as well, three of them give an interval that holds the truth at most 75 times in 100 where
  seeds decide (it cannot reach beyond the lowest and the highest). In place of that each resample is moved by a draw of
  Student's t with S - 1 degrees of freedom, times the deviation of the seeds' means over sqrt(S): by that much the mean
  of S normal values is off. Two seeds hardly say how much seeds vary, and intervals are as wide as that.
- Chance of single pairs (s, u) is in what seeds' means vary by, and again in what users' means vary by. It is taken out
  of the latter, by the mean square that is left when both means are taken away (two-way analysis of variance).
- With one seed the interval is over users only: how another seed would have done is not in it.

Shapes: S seeds, U users, R rows of figures, B resamples.
"""

from __future__ import annotations

import math

import numpy as np

NUM_RESAMPLES = 2000
_DRAWN_AT_ONCE = 2**24
"""Users of all resamples in memory together."""
_TAILS = (2.5, 97.5)


def resampled_means(values: np.ndarray, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> np.ndarray:
    """The means over users drawn with replacement, the same users for every row: [R, U] -> [B, R] float64."""
    num_users = values.shape[1]
    draw = np.random.default_rng(seed)
    columns = np.ascontiguousarray(values.T, dtype=np.float32)
    means = []
    at_once = max(1, _DRAWN_AT_ONCE // num_users)
    for first in range(0, num_resamples, at_once):
        size = min(at_once, num_resamples - first)
        users = draw.integers(0, num_users, (size, num_users), dtype=np.int32 if num_users < 2**24 else np.int64)
        starts = np.arange(size, dtype=np.int64)[:, None] * num_users
        times = np.bincount((users + starts).ravel(), minlength=size * num_users).reshape(size, num_users)
        means.append(times.astype(np.float32) @ columns / np.float64(num_users))
    return np.concatenate(means)


def interval(values: np.ndarray, resampled: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean over seeds and users (see above).

    Args:
        values: [S, U] figures, or differences of the same seeds' and users' figures.
        resampled: [B, S] what `resampled_means` makes of them; of differences the difference of theirs.
        seed: draws what is drawn for the seeds.
    """
    seed_means = values.mean(axis=1, dtype=np.float64)
    num_seeds = len(seed_means)
    mean = seed_means.mean()
    by_users = resampled.mean(axis=1) - mean
    if num_seeds == 1:
        draws = mean + by_users
    else:
        by_seeds = seed_means.std(ddof=1) / math.sqrt(num_seeds)
        t = np.random.default_rng(seed).standard_t(num_seeds - 1, len(resampled))
        draws = mean + math.sqrt(_share_of_users(values)) * by_users + by_seeds * t
    low, high = np.percentile(draws, _TAILS)
    return float(low), float(high)


def _share_of_users(values: np.ndarray) -> float:
    """Which share of the variance of users' means is not chance of single pairs; [S, U], S > 1."""
    num_seeds, num_users = values.shape
    user_means, seed_means = values.mean(axis=0, dtype=np.float64), values.mean(axis=1, dtype=np.float64)
    variance = user_means.var(ddof=1) if num_users > 1 else 0.0
    if not variance:
        return 0.0
    # sum of squares of what both means leave, without the matrix of it
    left = np.square(values, dtype=np.float64).sum() - num_users * np.square(seed_means).sum()
    left -= num_seeds * np.square(user_means).sum() - values.size * seed_means.mean() ** 2
    of_pairs = left / ((num_seeds - 1) * (num_users - 1))
    # rounding may take either beyond what it can be
    return float(np.clip(1 - of_pairs / num_seeds / variance, 0, 1))

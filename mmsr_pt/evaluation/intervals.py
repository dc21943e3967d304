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
  of S normal values is off. Where seeds differ, two of them hardly say by how much, and intervals are as wide as that.
- Chance of single pairs (s, u) is in the resampled means already and makes seeds' means differ even where seeds do not:
  the part of their variance that it explains is taken out of the latter (two-way analysis of variance). So intervals
  hold the truth 95 times in 100 where users, pairs or seeds decide; less often where seeds do differ, but not plainly
  more than pairs would make them (simulated: 93 times with five seeds, 88 with two or three).
- With one seed the interval is over users only: how another seed would have done is not in it.

Shapes: S seeds, U users, C cases, R rows of figures, B resamples.
"""

from __future__ import annotations

import functools
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
    draws = resampled.mean(axis=1)
    if len(seed_means) > 1:
        t = np.random.default_rng(seed).permutation(_students_t(len(seed_means) - 1, len(draws)))
        draws = draws + math.sqrt(_variance_between_seeds(values) / len(seed_means)) * t
    low, high = np.percentile(draws, _TAILS)
    return float(low), float(high)


@functools.cache
def _students_t(degrees: int, number: int) -> np.ndarray:
    """That many values which lie as Student's t does: its quantiles in even steps, from many draws."""
    drawn = np.abs(np.random.default_rng(0).standard_t(degrees, 400_000))
    half = np.quantile(drawn, (np.arange(number // 2) + 0.5) / (number // 2))
    return np.concatenate([-half, half, np.zeros(number % 2)])


def _variance_between_seeds(values: np.ndarray) -> float:
    """Of seeds' means, without what single pairs add to it: [S, U], S > 1."""
    num_seeds, num_users = values.shape
    user_means, seed_means = values.mean(axis=0, dtype=np.float64), values.mean(axis=1, dtype=np.float64)
    of_pairs = 0.0
    if num_users > 1:
        # sum of squares of what both means leave, without the matrix of it
        left = np.square(values, dtype=np.float64).sum() - num_users * np.square(seed_means).sum()
        left -= num_seeds * np.square(user_means).sum() - values.size * seed_means.mean() ** 2
        of_pairs = left / ((num_seeds - 1) * (num_users - 1))
    return max(0.0, float(seed_means.var(ddof=1) - of_pairs / num_users))


def case_intervals(values: np.ndarray, whose: np.ndarray, seed: int = 0) -> np.ndarray:
    """The 95 % intervals of means over cases, of which a user may have several: a user is drawn with all of them.

    Args:
        values: [R, C] figures, of one seed.
        whose: [C] int64, the user of each case.
        seed: of the resamples.

    Returns:
        [R, 2] float64: lower and upper ends.
    """
    users, place = np.unique(whose, return_inverse=True)
    num_cases = np.bincount(place)
    sums = np.stack([*(np.bincount(place, row, len(users)) for row in values), num_cases])
    resampled = resampled_means(sums, seed=seed)
    return np.percentile(resampled[:, :-1] / resampled[:, -1:], _TAILS, axis=0).T

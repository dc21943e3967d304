"""Intervals hold what they say: by arithmetic where it is exact, by simulation where it is chance."""

import math

import numpy as np
import pytest

from mmsr_pt.evaluation.intervals import case_intervals, interval, resampled_means


def simulated(seed: int, of_seeds: float, of_users: float, of_pairs: float, seeds: int, users: int = 150) -> np.ndarray:
    """[S, U] figures whose true mean is 0, and the standard deviations of its parts."""
    draw = np.random.default_rng(seed)
    parts = draw.normal(0, of_seeds, (seeds, 1)), draw.normal(0, of_users, (1, users))
    return parts[0] + parts[1] + draw.normal(0, of_pairs, (seeds, users))


def intervals(seed: int, num_seeds: int, **of: float) -> tuple[float, float]:
    values = simulated(seed, seeds=num_seeds, **of)
    return interval(values, resampled_means(values, 400, seed + 1), seed + 2)


PARTS = {
    "users": {"of_seeds": 0.0, "of_users": 1.0, "of_pairs": 0.1},
    "pairs": {"of_seeds": 0.0, "of_users": 0.1, "of_pairs": 1.0},
    "seeds": {"of_seeds": 1.0, "of_users": 0.1, "of_pairs": 0.1},
    "all": {"of_seeds": 0.08, "of_users": 1.0, "of_pairs": 1.0},
}


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize("part", PARTS)
def test_95_of_100_intervals_hold_the_truth_whatever_it_varies_by(part: str, num_seeds: int) -> None:
    trials = 400
    held = sum(low <= 0 <= high for low, high in (intervals(n, num_seeds, **PARTS[part]) for n in range(trials)))
    # four standard deviations of a share of 400
    assert held / trials == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / trials))


@pytest.mark.parametrize("num_seeds", [2, 5])
def test_seeds_that_differ_as_little_as_pairs_would_make_them_cost_some_of_it(num_seeds: int) -> None:
    trials = 400
    like_pairs = {"of_seeds": 1.5 / math.sqrt(150), "of_users": 0.1, "of_pairs": 1.0}
    held = sum(low <= 0 <= high for low, high in (intervals(n, num_seeds, **like_pairs) for n in range(trials)))
    assert 0.8 < held / trials < 0.98


def test_one_seed_is_over_users_alone() -> None:
    held = [low <= 0 <= high for low, high in (intervals(n, 1, **PARTS["users"]) for n in range(300))]
    assert sum(held) / 300 == pytest.approx(0.95, abs=0.05)
    blind = [low <= 0 <= high for low, high in (intervals(n, 1, **PARTS["seeds"]) for n in range(100))]
    assert sum(blind) / 100 < 0.2


def test_the_width_is_that_of_a_mean_over_users_or_of_students_t_over_seeds() -> None:
    values = simulated(0, of_seeds=0.0, of_users=1.0, of_pairs=0.0, seeds=1, users=2000)
    low, high = interval(values, resampled_means(values, 4000))
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / math.sqrt(2000), rel=0.06)
    # users all alike: the mean of the seeds' means, off by s / sqrt(5) times t with 4 degrees of freedom (2.776)
    means = np.array([0.1, 0.12, 0.09, 0.14, 0.11])
    values = np.repeat(means[:, None], 50, axis=1)
    low, high = interval(values, resampled_means(values, 20_000))
    assert (low + high) / 2 == pytest.approx(means.mean(), abs=0.001)
    assert (high - low) / 2 == pytest.approx(2.776 * means.std(ddof=1) / math.sqrt(5), rel=0.05)


def test_models_are_resampled_together() -> None:
    draw = np.random.default_rng(0)
    ours = draw.random((3, 400))
    theirs = ours - 0.01  # every user a little worse: nothing is left to chance
    both = resampled_means(np.concatenate([ours, theirs]).astype(np.float32), 100)
    low, high = interval(ours - theirs, both[:, :3] - both[:, 3:])
    assert low == pytest.approx(0.01, abs=1e-5)
    assert high == pytest.approx(0.01, abs=1e-5)
    nothing = np.zeros((3, 400))
    assert interval(nothing, np.zeros((100, 3))) == (0.0, 0.0)


def test_resamples_are_means_of_as_many_users_drawn_with_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.eye(5, dtype=np.float32)  # row u: how often user u was drawn, over 5
    times = 5 * resampled_means(values, 1000, seed=3)
    assert np.allclose(times, times.round(), atol=1e-5)
    assert np.allclose(times.sum(axis=1), 5, atol=1e-5)
    assert times.mean() == pytest.approx(1.0, abs=1e-5)
    # Poisson-like: none of 5 draws is user u in (4/5)^5 of the resamples
    assert (times.round() == 0).mean() == pytest.approx(0.8**5, abs=0.03)
    assert (resampled_means(values, 1000, seed=3) == resampled_means(values, 1000, seed=3)).all()
    monkeypatch.setattr("mmsr_pt.evaluation.intervals._DRAWN_AT_ONCE", 70)
    assert np.allclose(5 * resampled_means(values, 1000, seed=3), times), "memory changes no draw"


def test_with_one_case_a_user_cases_are_users() -> None:
    values = np.random.default_rng(0).normal(size=(2, 40))
    low, high = np.percentile(resampled_means(values), (2.5, 97.5), axis=0)
    found = case_intervals(values, np.arange(40))
    # the same resamples, in float32
    np.testing.assert_allclose(found, np.stack([low, high], axis=1), atol=1e-6)
    shuffled = np.random.default_rng(1).permutation(40)
    np.testing.assert_allclose(case_intervals(values[:, shuffled], shuffled), found, atol=1e-6)


def test_cases_of_one_user_come_and_go_together() -> None:
    """Asked five times the same, a user tells no more than asked once."""
    values = np.random.default_rng(0).normal(size=(1, 30))
    five_times = case_intervals(np.repeat(values, 5, axis=1), np.repeat(np.arange(30), 5))
    np.testing.assert_allclose(five_times, case_intervals(values, np.arange(30)), atol=1e-6)
    # a lone user is drawn every time, and the mean over the own cases with it
    np.testing.assert_allclose(case_intervals(np.array([[1.0, 0.0, 0.5]]), np.zeros(3, dtype=int)), [[0.5, 0.5]])

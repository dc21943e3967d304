"""Two minutes of the soak, which takes an hour (`make soak`), and what would make it fail."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mmsr_pt.data.domain import Domain
from tests.soak.soak import Attempt, Broken, Layout, Soak, soak


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_minutes_of_random_faults_lose_nothing(tmp_path: Path) -> None:
    """All that it promises raises where it does not hold; that something was done to it is looked at here."""
    found = soak(tmp_path, minutes=2, seed=0, steps=60)
    assert found["rounds"] >= 1
    assert sum(found["faults"].values()) >= 2


@pytest.fixture
def known(tmp_path: Path, small_domain: Domain) -> Soak:
    """Beside an undisturbed run of two steps."""
    found = Soak(tmp_path, small_domain, seed=0, steps=2)
    found.losses = [5.0, 4.0]
    found.users = {1: Counter([1, 2, 3, 4]), 2: Counter([5, 6])}
    return found


def noted(*lines: tuple[int, list[int], float]) -> Attempt:
    """An attempt of two ranks, of (step, a rank's users, loss)."""
    steps: dict[int, list[dict[str, Any]]] = {}
    for step, users, loss in lines:
        steps.setdefault(step, []).append({"users": users, "loss": loss})
    return Attempt(Layout(2, 1, 0), "none", first=0, last=max(steps), steps=steps)


FIRST = [(1, [1, 3], 5.0), (1, [4, 2], 5.0)]


def test_other_ranks_may_share_the_users_out_and_round_as_they_do(known: Soak) -> None:
    known.check_steps(noted(*FIRST, (2, [6], 4.00001), (2, [5], 4.00001)))
    assert known.largest_difference == pytest.approx(2.5e-6)


@pytest.mark.parametrize(
    "second",
    [
        [(2, [6], 4.0), (2, [], 4.0)],
        [(2, [6], 4.0), (2, [6], 4.0)],
        [(2, [6], 4.001), (2, [5], 4.001)],
        [(3, [6], 4.0), (3, [5], 4.0)],
    ],
    ids=["a user is missing", "a user comes twice", "another loss", "a step is left out"],
)
def test_what_is_lost_is_found(known: Soak, second: list[tuple[int, list[int], float]]) -> None:
    with pytest.raises(Broken):
        known.check_steps(noted(*FIRST, *second))


def test_an_epoch_without_a_user_or_with_one_twice_is_found(known: Soak) -> None:
    count, epoch = known.domain.num_users, range(known.steps_per_epoch)
    users = {step + 1: Counter(range(step, count, known.steps_per_epoch)) for step in epoch}
    known.require_each_user_once(users)
    for change in (Counter([0]), Counter({1: -1})):
        wrong = {step: one.copy() for step, one in users.items()}
        wrong[1].update(change)
        wrong[2].update(change)
        with pytest.raises(Broken):
            known.require_each_user_once(wrong)


def test_what_grows_is_found(known: Soak) -> None:
    mib = 2**20
    known.flat([*range(100 * mib, 400 * mib, mib), *[400 * mib] * 700], "memory")
    known.flat([5, 9, *[7] * 4], "files")
    with pytest.raises(Broken, match="memory grew from"):
        known.flat(list(range(100 * mib, 1000 * mib, mib)), "memory")
    with pytest.raises(Broken, match="threads grew from 7 to 8"):
        known.flat([7] * 8 + [8], "threads")

"""Two minutes of the soak, which takes an hour: `make soak`."""

from pathlib import Path

import pytest

from tests.soak.soak import soak


@pytest.mark.timeout(900)
def test_two_minutes_of_random_faults_lose_nothing(tmp_path: Path) -> None:
    """All that it promises raises where it does not hold; that something was done to it is looked at here."""
    found = soak(tmp_path, minutes=2, seed=0, steps=60)
    assert found["rounds"] >= 1
    assert sum(found["faults"].values()) >= 2

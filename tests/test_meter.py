"""What is counted between two log lines; whole runs are in tests/pretrain."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from mmsr_pt.batch import UserBatch
from mmsr_pt.meter import Meter


def batch(*users: int) -> UserBatch:
    return cast(UserBatch, SimpleNamespace(users=torch.tensor(users)))


def metered(monkeypatch: pytest.MonkeyPatch) -> Meter:
    """Two steps in 4 seconds: 3 + 2 and 1 real users, losses 5 and 2."""
    meter = Meter(start=100.0)
    meter.add(0.5, [batch(7, 8, 9, -1), batch(1, 2)], 5.0, {"items_encoded": 10.0, "slots": 50.0, "other": 1.0})
    meter.add(1.5, [batch(3, -1)], 2.0, {"items_encoded": 20.0, "slots": 70.0, "other": 1.0})
    monkeypatch.setattr("mmsr_pt.meter.time.perf_counter", lambda: 104.0)
    return meter


def test_rates_are_counts_over_the_time_since_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    line = metered(monkeypatch).line(torch.device("cpu"))
    assert line == {
        "loss": (5.0 + 2.0) / 2,
        "users_per_s": (3 + 2 + 1) / 4,  # empty slots are nobody
        "items_encoded_per_s": (10 + 20) / 4,
        "data_wait": (0.5 + 1.5) / 4,
        "encoder_calls_saved": 1 - (10 + 20) / (50 + 70),
    }


def test_over_ranks_counts_add_up_and_waits_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second rank with the same counts: twice the users in the same time, the same share of waiting."""
    monkeypatch.setattr("mmsr_pt.meter.sum_over_ranks", lambda values, device: [2 * value for value in values])
    monkeypatch.setattr("mmsr_pt.meter.world_size", lambda: 2)
    line = metered(monkeypatch).line(torch.device("cpu"))
    assert (line["users_per_s"], line["items_encoded_per_s"]) == (2 * 6 / 4, 2 * 30 / 4)
    assert line["data_wait"] == (0.5 + 1.5) / 4
    assert line["encoder_calls_saved"] == 1 - 30 / 120
    assert line["loss"] == 3.5, "the engine's loss is over all ranks already"


def test_pauses_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation of 2 seconds moves the start."""
    meter = metered(monkeypatch)
    meter.start += 2.0
    assert meter.line(torch.device("cpu"))["users_per_s"] == 6 / 2

"""Bad samples over an epoch: each counted once, named once, and too many of them end the run."""

import logging

import pytest
import torch

from mmsr_pt.batch import BadSample, ItemInputs, UserBatch
from mmsr_pt.log import UserError
from mmsr_pt.training.bad_samples import BadSamples


def batch(*numbers: int) -> UserBatch:
    bad = tuple(BadSample(number, "train/train-00001.tar", f"k{number}", "it is missing") for number in numbers)
    none = torch.zeros(0, 3, dtype=torch.int64)
    return UserBatch(ItemInputs(torch.zeros(0)), none, none.bool(), none[:, 0], bad=bad)


def test_a_sample_counts_once_an_epoch_and_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    found = BadSamples(num_users=100, num_items=200, max_bad=0.02)
    counts = []
    with caplog.at_level(logging.WARNING):
        for epoch, batches in enumerate([[batch(5), batch(5, -1)], [batch(5)], [batch(), batch(5, 6)]]):
            for one in batches:
                found.take([one], epoch)
                found.tell()
                counts.append(found.count)
                found.require_few()
    assert counts == [1, 2, 1, 0, 2]
    told = [record.message for record in caplog.records]
    assert told == [f"left out train/train-00001.tar: k{number} (it is missing)" for number in (5, -1, 6)]


@pytest.mark.parametrize(
    ("numbers", "sentence"), [([-1, -2, -3], "3 of 100 users"), ([1, 2, 3, 4, 5], "5 of 200 items")]
)
def test_more_than_may_be_ends_the_run(numbers: list[int], sentence: str) -> None:
    found = BadSamples(num_users=100, num_items=200, max_bad=0.02)
    for number in numbers[:-1]:
        found.take([batch(number)], 0)
        found.tell()
        found.require_few()
    found.take([batch(numbers[-1])], 0)
    found.tell()
    with pytest.raises(UserError, match=sentence + r" could not be read in epoch 1 .*--max_bad 0\.02 allows 2\.000%"):
        found.require_few()


def test_a_resumed_run_counts_on() -> None:
    before = BadSamples(10, 10, 0.1)
    before.take([batch(3, -2)], 4)
    before.tell()
    after = BadSamples(10, 10, 0.1)
    after.resume(before.state())
    after.take([batch(3, 4)], 4)
    after.tell()
    assert after.count == 3
    with pytest.raises(UserError, match="2 of 10 items"):
        after.require_few()
    after.take([batch()], 5)
    assert after.count == 0


def test_many_are_named_no_further(caplog: pytest.LogCaptureFixture) -> None:
    found = BadSamples(10_000, 10_000, 1.0)
    found.take([batch(*range(1000))], 0)
    found.tell()
    assert found.count == 1000
    assert len(caplog.records) == 21
    assert "only counted" in caplog.text

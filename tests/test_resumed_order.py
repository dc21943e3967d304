"""In which order a run goes on: the one it had, or from the next epoch's first user with another batch."""

import dataclasses
from typing import Any

import pytest

from mmsr_pt.data.order import StreamOrder, choose_lanes
from mmsr_pt.log import UserError
from mmsr_pt.resumed_order import Shares, order_state, resumed_order

TARS = ((30, 30, 30, 10),)


def order(batch: int, **others: Any) -> StreamOrder:
    return StreamOrder(TARS, (1.0,), batch, choose_lanes(TARS, batch, 1, 1), 16, 0, **others)


def resumed(saved: StreamOrder, now: StreamOrder, step: int, shares: Shares, allowed: bool = False) -> StreamOrder:
    return resumed_order(now, order_state(now, [], 0), order_state(saved, [], 0), step, shares, allowed, "runs/a")


def users_of_step(found: StreamOrder, step: int) -> list[tuple[int, int]]:
    """(tar, position) of the users of the run's step after `step` others."""
    epoch, within = found.place(step)
    users = []
    for lane in range(found.num_lanes):
        emitted = []
        for segments, permutation in found.blocks(epoch, lane, within * found.users_per_lane):
            row = [(piece.tar, i) for piece in segments for i in range(piece.start, piece.stop)]
            emitted += [row[i] for i in permutation]
        users += emitted[: found.users_per_lane]
    return users


@pytest.mark.parametrize("step", [0, 5, 12, 13, 30])
def test_with_the_same_batch_nothing_changes(step: int) -> None:
    assert resumed(order(8), order(8), step, Shares(2, 2, 2)) == order(8)
    later = order(8, first_epoch=3, first_step=10)
    assert resumed(later, order(8), 10 + step, Shares(8, 1, 1), allowed=True) == later


@pytest.mark.parametrize(
    ("step", "epoch", "left"),
    # 100 users by 8 are 13 steps an epoch, the last of which takes the 4 that are left
    [(5, 1, 100 - 5 * 8), (12, 1, 4), (13, 1, 0), (14, 2, 100 - 8)],
)
def test_another_batch_begins_the_next_epoch_which_has_every_user_once(
    caplog: pytest.LogCaptureFixture, step: int, epoch: int, left: int
) -> None:
    caplog.set_level("INFO")
    found = resumed(order(8), order(4), step, Shares(4, 1, 1), allowed=True)
    assert found.place(step) == (epoch, 0)
    assert f"epoch {epoch + 1} begins here with its first user, {left} users of the epoch before are left out" in (
        caplog.text
    )
    steps = range(step, step + found.steps_per_epoch)
    users = [user for at in steps for user in users_of_step(found, at)]
    assert len(users) == len(set(users)) == 100
    assert found.place(step + found.steps_per_epoch) == (epoch + 1, 0)
    # and from a checkpoint of that run the order is found again
    assert resumed(found, order(4), step + 3, Shares(4, 1, 1)) == found


@pytest.mark.parametrize(
    ("shares", "keeps"),
    [
        (Shares(8, 1, 4), "set train_micro_batch_size_per_gpu to 4 in the ds_config"),
        (Shares(4, 4, 8), "set train_micro_batch_size_per_gpu to 2 and gradient_accumulation_steps to 1"),
        (Shares(8, 1, 3), "take a number of ranks that divides 16"),
    ],
)
def test_another_batch_is_refused_with_what_keeps_it(shares: Shares, keeps: str) -> None:
    now = order(shares.micro_batch * shares.accumulation * shares.ranks)
    with pytest.raises(UserError) as error:
        resumed(order(16), now, 5, shares)
    micro, accumulation, ranks = dataclasses.astuple(shares)
    numbers = f"micro-batch of {micro} x {accumulation} accumulation steps x {ranks} ranks make {now.global_batch}"
    assert f"runs/a was trained with a global batch of 16 users, now a {numbers}: {keeps}" in str(error.value)
    assert "--allow_new_batch" in str(error.value)


def test_lanes_that_others_cannot_share_are_refused() -> None:
    saved = dataclasses.replace(order(12), num_lanes=6)
    with pytest.raises(
        UserError, match=r"num_lanes 6, now it is 4: .* numbers of ranks and of --num_workers that share"
    ):
        resumed(saved, order(12), 5, Shares(6, 1, 2))

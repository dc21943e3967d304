"""The order of users: every user once, the same on any number of ranks, resumable at any step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr_pt.data.order import Segment, StreamOrder, choose_lanes, cut
from mmsr_pt.log import UserError


def users_of(order: StreamOrder, epoch: int, lane: int, first: int = 0) -> list[tuple[int, int, int]]:
    """(domain, tar, position) of a lane's users in the order emitted."""
    emitted = []
    for segments, permutation in order.blocks(epoch, lane, first):
        row = [(s.domain, s.tar, i) for s in segments for i in range(s.start, s.stop)]
        emitted += [row[i] for i in permutation]
    return emitted


orders = st.builds(
    lambda tars, batch, buffer, seed: StreamOrder(
        tar_users=tuple(tuple(t) for t in tars),
        weights=(1.0,) * len(tars),
        global_batch=batch,
        num_lanes=choose_lanes(tars, batch, 1, 1),
        shuffle_buffer=buffer,
        seed=seed,
    ),
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=3),
    st.sampled_from([1, 2, 6, 8, 12, 64]),
    st.integers(1, 40),
    st.integers(0, 3),
)


@settings(deadline=None, max_examples=60)
@given(orders)
def test_every_user_once_an_epoch_and_a_step_takes_at_most_the_global_batch(order: StreamOrder) -> None:
    lanes = [users_of(order, epoch=1, lane=lane) for lane in range(order.num_lanes)]
    everyone = {(d, t, i) for d, tars in enumerate(order.tar_users) for t, size in enumerate(tars) for i in range(size)}
    emitted = [user for lane in lanes for user in lane]
    assert len(emitted) == order.num_users == len(everyone)
    assert set(emitted) == everyone
    capacity = order.steps_per_epoch * order.users_per_lane
    assert all(capacity - order.users_per_lane <= len(lane) <= capacity for lane in lanes)


@settings(deadline=None, max_examples=60)
@given(orders, st.data())
def test_a_lane_resumed_anywhere_goes_on_where_it_was(order: StreamOrder, data: st.DataObject) -> None:
    lane = data.draw(st.integers(0, order.num_lanes - 1))
    whole = users_of(order, 0, lane)
    first = data.draw(st.integers(0, len(whole)))
    assert users_of(order, 0, lane, first) == whole[first:]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int) -> StreamOrder:
        return StreamOrder(((20, 20, 20),), (1.0,), 4, 2, 16, seed)

    assert users_of(order(0), 0, 0) == users_of(order(0), 0, 0)
    assert users_of(order(0), 0, 0) != users_of(order(0), 1, 0)
    assert users_of(order(0), 0, 0) != users_of(order(1), 0, 0)


@pytest.mark.parametrize(("weight", "expected"), [(2.0, 40), (0.5, 10), (1.25, 25)])
def test_weight_is_how_often_an_epoch_passes_over_a_domain(weight: float, expected: int) -> None:
    order = StreamOrder(((7, 7, 6), (9, 1)), (weight, 1.0), 5, 1, 8, 0)
    counts = np.zeros(2, dtype=int)
    for segment in order.segments(3):
        counts[segment.domain] += segment.stop - segment.start
    assert counts.tolist() == [expected, 10]


def test_cut_takes_the_pieces_inside() -> None:
    pieces = [Segment(0, 4, 0, 10), Segment(0, 1, 0, 5), Segment(1, 0, 2, 8)]
    assert cut(pieces, 8, 17) == [Segment(0, 4, 8, 10), Segment(0, 1, 0, 5), Segment(1, 0, 2, 4)]


@pytest.mark.parametrize("readers", [(1, 0), (1, 4), (2, 2), (4, 1), (8, 1)])
def test_number_of_lanes_is_the_same_on_any_power_of_two_of_readers(readers: tuple[int, int]) -> None:
    for tars in ([(100,) * 9], [(4,), (1, 1)], [(8192,)]):  # 9 tars; few users; 8 pieces of one tar
        assert choose_lanes(tars, global_batch=64, world_size=readers[0], num_workers=readers[1]) == 8


def test_three_gpus_share_lanes_evenly() -> None:
    assert choose_lanes([(50,) * 8], global_batch=192, world_size=3, num_workers=1) == 6


def test_lanes_grow_with_tars_and_with_their_pieces_of_1024_users() -> None:
    assert choose_lanes([(10,) * 40], 64, 1, 0) == 32
    assert choose_lanes([(10,) * 20, (10,) * 12], 64, 1, 0) == 32
    assert choose_lanes([(15 * 1024 + 1,)], 64, 1, 0) == 16
    assert choose_lanes([(15 * 1024 + 1,)], 8, 1, 0) == 8


def test_too_few_shards_says_what_to_type() -> None:
    with pytest.raises(
        UserError,
        match=r"too few shards: 2 rank\(s\) x 8 .* = 16 readers, the train tars .* serve 8: .*--num_shards 16",
    ):
        choose_lanes([(40,) * 4], global_batch=64, world_size=2, num_workers=8)
    with pytest.raises(UserError, match="cannot share a global batch of 6"):
        choose_lanes([(10,) * 40], global_batch=6, world_size=2, num_workers=4)


def test_a_large_tar_is_shuffled_in_pieces_that_stay_together() -> None:
    order = StreamOrder(((3000,), (10, 5000)), (1.0, 1.0), 8, 8, 64, seed=3)
    orders = []
    for epoch in range(6):
        segments = order.segments(epoch)
        assert sum(s.stop - s.start for s in segments) == 8010
        assert max(s.stop - s.start for s in segments) <= 1024
        tars = [(s.domain, s.tar) for s in segments]
        assert [tar for tar, before in zip(tars, [None, *tars]) if tar != before] == list(dict.fromkeys(tars))
        for tar, users in (((0, 0), 3000), ((1, 0), 10), ((1, 1), 5000)):
            covered = sorted((s.start, s.stop) for s in segments if (s.domain, s.tar) == tar)
            assert [start for start, _ in covered] == [0, *(stop for _, stop in covered[:-1])]
            assert covered[-1][1] == users
        orders.append([s.start for s in segments if (s.domain, s.tar) == (1, 1)])
    assert len(set(map(tuple, orders))) > 1


def released_segments(tar_users: tuple[tuple[int, ...], ...], seed: int, epoch: int) -> list[tuple[int, int, int]]:
    """(domain, tar, users) as the first release, which knew no pieces, laid out an epoch."""
    rng = np.random.default_rng(np.random.SeedSequence((0, seed, epoch)))
    row = [(d, int(t), tars[t]) for d, tars in enumerate(tar_users) for t in rng.permutation(len(tars))]
    return [row[i] for i in rng.permutation(len(row))]


def test_domains_of_tars_of_up_to_1024_users_keep_the_order_they_always_had() -> None:
    tar_users = ((1024, 1023, 7), (80,) * 8)
    order = StreamOrder(tar_users, (1.0, 1.0), 16, choose_lanes(tar_users, 16, 1, 0), 64, seed=11)
    assert order.num_lanes == 8
    for epoch in range(4):
        found = [(s.domain, s.tar, s.stop - s.start) for s in order.segments(epoch)]
        assert found == released_segments(tar_users, 11, epoch)

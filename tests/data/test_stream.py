"""The stream on real tars: distinct items, the same users on any ranks and workers, negatives of the user's own."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mmsr_pt.batch import ImageSpec, UserBatch
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.item_table import ItemTable
from mmsr_pt.data.order import StreamOrder, choose_lanes
from mmsr_pt.data.preprocess import Preprocessor, tokenizer_for
from mmsr_pt.data.stream import Share, TrainLoader, UserStream
from tests.conftest import build_drawn
from tests.data.tars import members

BATCH = 32


def make_order(domains: list[Domain], world_size: int = 1, workers: int = 0) -> StreamOrder:
    tar_users = tuple(tuple(tar.num_users for tar in domain.train_tars) for domain in domains)
    lanes = choose_lanes(tar_users, BATCH, world_size, workers)
    return StreamOrder(tar_users, (1.0,) * len(domains), BATCH, lanes, shuffle_buffer=40, seed=5)


def batches(
    domains: list[Domain],
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    accumulation: int = 1,
    first_step: int = 0,
    with_negatives: bool = False,
    cloze_rate: float = 0.0,
    image_size: int | None = 16,
) -> Iterator[UserBatch]:
    image = None if image_size is None else ImageSpec(image_size, image_size, "bilinear", (0.5,) * 3, (0.5,) * 3)
    preprocessor = Preprocessor(tokenizer_for("tiny", domains[0].path), image)
    bases = np.cumsum([0] + [d.num_items for d in domains]).tolist()
    user_bases = np.cumsum([0] + [d.num_users for d in domains]).tolist()
    stream = UserStream(
        order=make_order(domains, world_size, workers),
        tables=[ItemTable.of(d, base, pool_size=16) for d, base in zip(domains, bases)],
        tars=[d.train_tars for d in domains],
        user_bases=user_bases[:-1],
        preprocessor=preprocessor,
        share=Share(rank, world_size, accumulation, replicate_pool=with_negatives),
        max_sequence=21,
        with_negatives=with_negatives,
        cloze_rate=cloze_rate,
        first_step=first_step,
    )
    return iter(TrainLoader(stream, workers, pin_memory=False))


def by_user(batch: UserBatch) -> dict[int, tuple[list[int], list[int], list[int]]]:
    """By user: (item numbers of the sequence, item numbers of the negatives, positions in the sequence asked for)."""
    found = {}
    for row, user in enumerate(batch.users.tolist()):
        if user < 0:
            assert not batch.mask[row].any()
            continue
        sequence = batch.items.ids[batch.sequence[row][batch.mask[row]]].tolist()
        negatives = []
        if batch.negatives is not None:
            negatives = batch.items.ids[batch.negatives[row][batch.mask[row, 1:]]].tolist()
        assert not batch.targets[row][~batch.mask[row, 1:]].any()
        found[user] = (sequence, negatives, (1 + batch.targets[row].nonzero()[:, 0]).tolist())
    return found


def steps(domains: list[Domain], world_size: int, workers: int, accumulation: int, count: int, **more: object) -> list:
    ranks = [
        batches(domains, rank, world_size, workers, accumulation, **more)  # type: ignore[arg-type]
        for rank in range(world_size)
    ]
    merged = []
    for _ in range(count):
        step: dict = {}
        for rank in ranks:
            for _ in range(accumulation):
                step.update(by_user(next(rank)))
        merged.append(step)
    return merged


def test_an_epoch_shows_every_training_sequence_once(small_domain: Domain) -> None:
    order = make_order([small_domain])
    seen: dict[int, list[int]] = {}
    for step in steps([small_domain], 1, 0, 1, order.steps_per_epoch):
        for user, (sequence, _, asked) in step.items():
            assert asked == list(range(1, len(sequence)))
            assert user not in seen
            seen[user] = sequence
    expected = dict(zip(small_domain.eval["user"].to_list(), small_domain.eval["history"].to_list()))
    assert seen == expected


@pytest.mark.parametrize(("world_size", "workers", "accumulation"), [(2, 0, 1), (1, 2, 1), (2, 2, 2), (1, 0, 4)])
def test_a_step_is_the_same_users_negatives_and_hidden_items_however_it_is_shared_out(
    small_domain: Domain, world_size: int, workers: int, accumulation: int
) -> None:
    count = make_order([small_domain]).steps_per_epoch + 2
    drawn = {"with_negatives": True, "cloze_rate": 0.4}
    alone = steps([small_domain], 1, 0, 1, count, **drawn)
    assert steps([small_domain], world_size, workers, accumulation, count, **drawn) == alone


def test_resumed_in_the_middle_of_an_epoch_the_stream_goes_on_where_it_was(small_domain: Domain) -> None:
    count = make_order([small_domain]).steps_per_epoch + 3
    drawn = {"with_negatives": True, "cloze_rate": 0.4}
    whole = steps([small_domain], 1, 0, 1, count, **drawn)
    assert steps([small_domain], 1, 0, 1, count - 2, first_step=2, **drawn) == whole[2:]


def test_hidden_items_are_drawn_anew_in_every_epoch_and_at_least_one_a_user(small_domain: Domain) -> None:
    per_epoch = make_order([small_domain]).steps_per_epoch
    found = steps([small_domain], 1, 0, 1, 2 * per_epoch, cloze_rate=0.4)
    first, second = (
        {user: seen for step in epoch for user, seen in step.items()}
        for epoch in (found[:per_epoch], found[per_epoch:])
    )
    assert first.keys() == second.keys()
    assert sum(first[user] != second[user] for user in first) > 0.9 * len(first)
    asked = [(len(sequence) - 1, hidden) for sequence, _, hidden in [*first.values(), *second.values()]]
    assert all(hidden for _, hidden in asked)
    # a tenth of the time the newest alone, else 0.4 of the targets or, by chance none, the newest
    expected = sum(0.1 + 0.9 * (0.4 * targets + 0.6**targets) for targets, _ in asked)
    assert sum(len(hidden) for _, hidden in asked) == pytest.approx(expected, rel=0.05)
    newest_only = [hidden == [targets] for targets, hidden in asked]
    chance = [0.1 + 0.9 * (0.4 * 0.6 ** (targets - 1) + 0.6**targets) for targets, _ in asked]
    assert sum(newest_only) == pytest.approx(sum(chance), rel=0.3)


@pytest.mark.parametrize("workers", [0, 2])
def test_of_the_pool_only_what_is_somebodys_negative_is_there_to_be_encoded(small_domain: Domain, workers: int) -> None:
    for batch in itertools.islice(batches([small_domain], workers=workers, with_negatives=True), 4):
        wanted = torch.cat([batch.sequence[batch.mask], batch.negatives[batch.targets]]).unique()
        assert set(range(len(batch.items))) - set(wanted.tolist()) <= {0}, "all but, at most, the first"
    with_pool = next(batches([small_domain], workers=workers))
    assert len(with_pool.items) > len(with_pool.sequence[with_pool.mask].unique()), "softmax takes all of the pool"


@pytest.mark.parametrize(("workers", "with_negatives"), [(2, False), (0, True), (2, True)])
def test_items_of_a_batch_are_distinct_and_hold_their_own_content(
    small_domain: Domain, workers: int, with_negatives: bool
) -> None:
    batch = next(batches([small_domain], workers=workers, with_negatives=with_negatives))
    ids = batch.items.ids
    assert len(ids.unique()) == len(ids)
    preprocessor = Preprocessor(
        tokenizer_for("tiny", small_domain.path), ImageSpec(16, 16, "bilinear", (0.5,) * 3, (0.5,) * 3)
    )
    rows = ids.tolist()
    titles = small_domain.titles()
    direct = preprocessor.item_inputs(
        ids.numpy(), [titles[row] for row in rows], [small_domain.read_image(row) for row in rows]
    )
    assert batch.items.images is not None
    torch.testing.assert_close(batch.items.images, direct.images)
    torch.testing.assert_close(batch.items.title_ids, direct.title_ids)
    torch.testing.assert_close(batch.items.title_mask, direct.title_mask)


def test_negatives_are_never_the_users_own_and_come_from_the_pool(small_domain: Domain) -> None:
    for step in steps([small_domain], 1, 0, 1, 3, with_negatives=True):
        everyone = {item for _, negatives, _ in step.values() for item in negatives}
        assert len(everyone) <= 16
        for sequence, negatives, _ in step.values():
            assert len(negatives) == len(sequence) - 1
            assert not set(negatives) & set(sequence)


def test_several_domains_keep_their_numbers_and_negatives_apart(small_domain: Domain) -> None:
    two = [small_domain, small_domain]
    split = small_domain.num_items
    domains_met = set()
    for step in steps(two, 1, 0, 1, 6, with_negatives=True):
        for user, (sequence, negatives, _) in step.items():
            of_second = user >= small_domain.num_users
            domains_met.add(of_second)
            assert all((item >= split) == of_second for item in sequence + negatives)
    assert domains_met == {False, True}


def test_rates_are_the_items_share_of_training_interactions_and_of_the_pool(small_domain: Domain) -> None:
    batch = next(batches([small_domain]))
    counts = small_domain.items["train_count"].to_numpy()
    assert batch.occurrence_rate is not None
    assert batch.pool_rate is not None
    np.testing.assert_allclose(batch.occurrence_rate.numpy(), counts[batch.items.ids.numpy()] / counts.sum(), rtol=1e-6)
    np.testing.assert_allclose(batch.pool_rate.numpy(), 16 / small_domain.num_items, rtol=1e-6)


def test_eight_lanes_of_one_tar_show_what_one_user_after_the_other_holds(tmp_path: Path) -> None:
    domain = build_drawn(tmp_path / "one_tar", "source", num_users=70, items_per_cell=1, num_shards=1)
    (tar,) = domain.train_tars
    content = dict(members(tar.path))
    users = [json.loads(data) for name, data in content.items() if name.startswith("u")]
    order = make_order([domain])
    assert order.num_lanes == 8
    seen = {}
    for batch in itertools.islice(batches([domain], workers=1), order.steps_per_epoch):
        seen.update({user: sequence for user, (sequence, _, _) in by_user(batch).items()})
        assert batch.items.images is not None
        preprocessor = Preprocessor(None, ImageSpec(16, 16, "bilinear", (0.5,) * 3, (0.5,) * 3))
        for row, pixels in zip(batch.items.ids.tolist(), batch.items.images):
            if f"i{row:08d}.jpg" in content:  # else of the pool alone
                direct = preprocessor.decode_image(content[f"i{row:08d}.jpg"])
                assert torch.equal(pixels.permute(1, 2, 0), direct)
    assert seen == {user["user"]: user["items"] for user in users}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_pictures_lie_in_memory_as_convolutions_read_them(small_domain: Domain, workers: int) -> None:
    images = next(batches([small_domain], workers=workers)).items.images
    assert images is not None
    assert images.shape[1:] == (3, 16, 16)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_content_a_model_does_not_read_is_not_decoded(small_domain: Domain) -> None:
    assert next(batches([small_domain], image_size=None)).items.images is None


@pytest.mark.parametrize("max_users", [3, 40])
def test_an_epoch_meets_those_users_who_train(small_domain: Domain, max_users: int) -> None:
    some = Domain.load(small_domain.path, max_users, seed=2)
    steps = -(-max_users // BATCH)
    met = torch.cat([batch.users for batch in itertools.islice(batches([some]), steps)])
    assert sorted(met[met >= 0].tolist()) == some.training_users["user"].to_list()

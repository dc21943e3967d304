"""Figures 8 and 9: which vectors they show, numbers that can be worked out by hand, and what stands in the pictures."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mmsr_pt.assembly import build_model
from mmsr_pt.config import ModelConfig
from mmsr_pt.data.catalogue import iter_item_batches
from mmsr_pt.data.domain import COLD_BELOW, Domain
from mmsr_pt.figures.canvas import save
from mmsr_pt.figures.vectors import (
    Cloud,
    draw_items,
    draw_users,
    item_cloud,
    places,
    popularity_numbers,
    user_cloud,
    user_numbers,
)

SMALL = ModelConfig(width=16, max_history=6)


def model_of(domain: Domain, config: ModelConfig = SMALL):
    torch.manual_seed(0)
    model, preprocessor = build_model(config, [domain])
    return model.eval(), preprocessor


def cloud(vectors: list[list[float]] | np.ndarray, marks: list[int] | np.ndarray, title: str = "hm: MMSR") -> Cloud:
    return Cloud(title, np.asarray(vectors, dtype=np.float32), np.asarray(marks, dtype=np.int64))


def test_items_are_drawn_once_for_all_models(small_domain: Domain) -> None:
    first = item_cloud("a", *model_of(small_domain), small_domain, num_items=50)
    ids = model_of(small_domain, ModelConfig(item="id", width=16))
    second = item_cloud("b", *ids, small_domain, num_items=50)
    assert first.vectors.shape == second.vectors.shape == (50, 16)
    assert (first.marks == second.marks).all()
    assert (first.marks != item_cloud("c", *ids, small_domain, num_items=50, seed=1).marks).any()
    # more than there are: all
    everything = item_cloud("d", *ids, small_domain, num_items=10**6)
    assert (everything.marks == small_domain.train_count()).all()
    batch = next(iter_item_batches(small_domain, ids[1], range(small_domain.num_items), small_domain.num_items))
    np.testing.assert_allclose(everything.vectors, ids[0].encode_items(batch).detach().numpy(), rtol=1e-6)


def test_users_are_the_outputs_at_their_newest_positions(small_domain: Domain) -> None:
    model, preprocessor = model_of(small_domain)
    found = user_cloud("a", model, preprocessor, small_domain, num_users=4)
    rows = np.sort(np.random.default_rng(0).choice(len(small_domain.eval), 4, replace=False))
    expected = []
    for user in small_domain.eval[rows].to_dicts():
        newest = [*user["history"], user["valid"], user["test"]][-SMALL.max_history :]
        with torch.no_grad():  # one user at a time, without padding
            items = model.encode_items(next(iter_item_batches(small_domain, preprocessor, newest, len(newest))))
            expected.append(model.encode_users(items[None], torch.ones(1, len(newest), dtype=torch.bool))[0])
    assert found.marks.tolist() == [number for number, one in enumerate(expected) for _ in one]
    np.testing.assert_allclose(found.vectors, torch.cat(expected).numpy(), rtol=1e-4, atol=1e-5)


def test_two_users_side_by_side() -> None:
    found = user_numbers(cloud([[0, 0], [0, 2], [10, 0], [10, 2]], [0, 0, 1, 1]))
    between = (10 + math.sqrt(104)) / 2
    assert found["within"] == pytest.approx(2 / between)
    assert found["silhouette"] == pytest.approx((between - 2) / between)


def test_two_users_in_one_place() -> None:
    found = user_numbers(cloud([[0, 0], [1, 0], [0, 0], [1, 0]], [0, 0, 1, 1]))
    # 1 within a user; between: 0, 1, 1, 0
    assert found["within"] == pytest.approx(1 / 0.5)
    assert found["silhouette"] == pytest.approx((0.5 - 1) / 1)


def test_popularity_that_decides_and_popularity_that_plays_no_part() -> None:
    draw = np.random.default_rng(0)
    counts = np.arange(1, 401)
    line = np.stack([counts, np.zeros(400)], axis=1)
    assert popularity_numbers(cloud(line, counts))["neighbours"] > 0.99
    assert abs(popularity_numbers(cloud(draw.normal(size=(400, 8)), counts))["neighbours"]) < 0.2


def test_the_popular_tenth() -> None:
    # 20 items on a line, the two most popular at 3 and 7; the mean of |i - j| over pairs of 20 is 21 / 3
    line = [[float(place), 0] for place in range(20)]
    counts = [1] * 20
    counts[3] = counts[7] = 9
    assert popularity_numbers(cloud(line, counts))["popular"] == pytest.approx(4 / 7)


def test_numbers_do_not_depend_on_where_the_cloud_stands() -> None:
    draw = np.random.default_rng(0)
    vectors, marks = draw.normal(size=(60, 5)), draw.integers(0, 6, 60)
    turn, _ = np.linalg.qr(draw.normal(size=(5, 5)))
    order = draw.permutation(60)
    moved = cloud((vectors @ turn * 3 + 7)[order], marks[order])
    assert user_numbers(moved) == pytest.approx(user_numbers(cloud(vectors, marks)), rel=1e-4)
    distinct = draw.permutation(60)
    moved = cloud((vectors @ turn * 3 + 7)[order], distinct[order])
    assert popularity_numbers(moved) == pytest.approx(popularity_numbers(cloud(vectors, distinct)), rel=1e-4)


def test_the_same_seed_gives_the_same_places() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    assert (places(vectors) == places(vectors)).all()
    assert places(vectors).shape == (40, 2)
    # what stands together stays together
    pairs = np.concatenate([vectors[:20], vectors[:20] + 1e-3])
    at = places(pairs)
    apart = np.linalg.norm(at[:, None] - at[None], axis=-1) + np.diag(np.full(40, np.inf))
    assert np.mean(apart.argmin(axis=1) == (np.arange(40) + 20) % 40) > 0.9


def test_the_picture_of_items(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    counts = np.array([0, 3, COLD_BELOW - 1, *[COLD_BELOW + 5] * 27])
    panels = [[cloud(draw.normal(size=(30, 8)), counts, "hm: IDSR"), cloud(draw.normal(size=(30, 8)), counts)]]
    figure = draw_items(panels, "Items")
    left, right, bar = figure.axes
    assert [axes.get_title("left") for axes in (left, right)] == ["hm: IDSR, 30 items", "hm: MMSR, 30 items"]
    cold, warm = left.collections
    assert len(cold.get_offsets()) == 3
    assert sorted(cold.get_array().tolist()) == [1, 3, 9]
    assert len(warm.get_offsets()) == 27
    assert bar.get_ylabel() == "occurrences in training"
    number = popularity_numbers(panels[0][0])
    assert f"rank correlation {number['neighbours']:.2f}" in left.get_xlabel()
    assert f"{number['popular']:.2f} of the mean distance" in left.get_xlabel()
    save(figure, tmp_path / "a.png")
    save(draw_items(panels, "Items"), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_picture_of_users(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    users = np.repeat(np.arange(10), 5)
    one = cloud(draw.normal(size=(50, 8)), users)
    figure = draw_users([[one, one]], "Users")
    left, _ = figure.axes
    assert [len(marks.get_offsets()) for marks in left.collections] == [5] * 10
    # told apart by colour, and without colour
    assert len({tuple(marks.get_facecolor()[0]) for marks in left.collections}) == 10
    assert len({marks.get_paths()[0].vertices.tobytes() for marks in left.collections}) == 10
    assert f"silhouette by user: {user_numbers(one)['silhouette']:.2f}" in left.get_xlabel()
    save(figure, tmp_path / "a.png")
    save(draw_users([[one, one]], "Users"), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

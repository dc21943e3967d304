"""What is shown: gathered from a domain, saved, and the same again when it is loaded."""

import io
import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from PIL import Image
from polars.testing import assert_frame_equal

from mmsr_pt.config import ModelConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.explore.exhibit import THUMBNAIL, Exhibit, Shown, gather, names_of
from mmsr_pt.explore.questions import recommended, scores_of, similar
from mmsr_pt.log import UserError
from tests.explore.conftest import KINDS, built


def test_users_have_all_but_their_last_item_behind_them(exhibit: Exhibit, small_domain: Domain) -> None:
    assert len(exhibit.users) == 12
    for user in exhibit.users.iter_rows(named=True):
        known = small_domain.eval.filter(pl.col("user_id") == user["user_id"]).row(0, named=True)
        assert user["history"] == [*known["history"], known["valid"]]
        assert user["test"] == known["test"]


def test_the_same_users_are_drawn_again_and_none_where_none_is_asked_for(
    exhibit: Exhibit, small_domain: Domain
) -> None:
    assert_frame_equal(gather(small_domain, exhibit.models, 12).users, exhibit.users)
    assert len(gather(small_domain, exhibit.models, 0).users) == 0
    assert len(gather(small_domain, exhibit.models, 10**6).users) == small_domain.num_users
    unnamed = gather(small_domain, exhibit.models, 12, name_users=False).users
    assert unnamed["user_id"].to_list() == [f"user {number}" for number in range(1, 13)]
    assert_frame_equal(unnamed.drop("user_id"), exhibit.users.drop("user_id"))


def test_cold_is_fewer_than_ten_and_thumbnails_are_small(exhibit: Exhibit, small_domain: Domain) -> None:
    assert exhibit.is_cold.tolist() == [count < 10 for count in small_domain.items["train_count"]]
    picture = Image.open(io.BytesIO(exhibit.picture(7) or b""))
    whole = Image.open(io.BytesIO(small_domain.read_image(7)))
    assert max(picture.size) == min(THUMBNAIL, max(whole.size))


def test_what_is_saved_answers_the_same_without_the_domain(exhibit: Exhibit, tmp_path: Path) -> None:
    exhibit.save(tmp_path / "exhibit")
    shutil.move(tmp_path / "exhibit", tmp_path / "elsewhere")
    again = Exhibit.load(tmp_path / "elsewhere")
    assert again.domain == exhibit.domain
    assert list(again.models) == list(KINDS)
    assert_frame_equal(again.items, exhibit.items)
    assert_frame_equal(again.users, exhibit.users)
    assert [again.picture(row) for row in range(20)] == [exhibit.picture(row) for row in range(20)]
    history = exhibit.users["history"][0].to_list()
    before, after = [scores_of(one, history) for one in (exhibit, again)]
    assert all(torch.equal(before[name], after[name]) for name in (*KINDS, "Popularity"))
    assert recommended(again, after, history, 10) == recommended(exhibit, before, history, 10)
    assert similar(again, 5, 10) == similar(exhibit, 5, 10)


def test_items_without_pictures_and_titles_are_shown_too(small_domain: Domain, tmp_path: Path) -> None:
    model = built(small_domain, KINDS["IDSR"])
    items = small_domain.items.select("item_id", "train_count", title=pl.lit(None, dtype=pl.String))
    exhibit = Exhibit(
        {"name": "bare", "source": "table", "licence": "none"},
        items.select("item_id", "title", "train_count"),
        gather(small_domain, {}, 0).users,
        {"IDSR": Shown(model, model.index(small_domain))},
        lambda row: None,
    )
    exhibit.save(tmp_path)
    again = Exhibit.load(tmp_path)
    assert again.titles == items["item_id"].to_list()
    assert again.picture(3) is None


def test_local_paths_in_settings_do_not_go_along(small_domain: Domain, tmp_path: Path) -> None:
    model = built(small_domain, KINDS["MMSR-T"])
    model.recommender.config = ModelConfig(width=16, max_history=4, vision="none", tokenizer="hf:/home/ada/bert")
    exhibit = gather(small_domain, {"MMSR-T": Shown(model, model.index(small_domain))}, 0)
    exhibit.save(tmp_path)
    assert json.loads((tmp_path / "models/0/config.json").read_text())["model"]["tokenizer"] == "hf:bert"
    again = Exhibit.load(tmp_path)
    assert torch.equal(scores_of(again, [1, 2])["MMSR-T"], scores_of(exhibit, [1, 2])["MMSR-T"])


def test_what_is_no_exhibit_is_refused(exhibit: Exhibit, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it has no exhibit\.json"):
        Exhibit.load(tmp_path)
    (tmp_path / "exhibit.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(UserError, match="has format 99, this version reads 1"):
        Exhibit.load(tmp_path)


def test_models_are_called_what_they_are_and_two_of_a_kind_by_their_paths_too(exhibit: Exhibit) -> None:
    opened = [shown.model for shown in exhibit.models.values()]
    assert names_of(["runs/a", "runs/b", "ada/ids"], opened) == ["MMSR", "MMSR-T", "IDSR"]
    twice = [opened[0], opened[2], opened[0]]
    assert names_of(["runs/a/seed-0", "ada/ids", "runs/b/seed-0"], twice) == [
        "MMSR (a/seed-0)",
        "IDSR",
        "MMSR (b/seed-0)",
    ]
    with pytest.raises(UserError, match="twice"):
        names_of(["runs/a", "runs/a"], opened[:2])

"""Bundles of format 1, kept as they were written (of the drawn domain), load in this version and in later ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmsr_pt.batch import ItemInputs
from mmsr_pt.config import ModelConfig, from_dict
from mmsr_pt.log import UserError
from mmsr_pt.model import MMSRModel
from mmsr_pt.models import bundle
from mmsr_pt.models.items import items_from_config
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.models.sequence import sequence_encoders

KEPT = Path(__file__).with_name("format_1")


@pytest.mark.parametrize("version", [bundle.FORMAT_VERSION, bundle.FORMAT_VERSION + 1])
def test_a_bundle_loads_when_the_format_has_moved_on(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "FORMAT_VERSION", version)
    model = MMSRModel.from_pretrained(KEPT / "ids").recommender
    weights = load_file(KEPT / "ids" / "model.safetensors")
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert (model.step, [entry["name"] for entry in model.trained_on]) == (3, ["drawn"])
    items = ItemInputs(torch.arange(4), None, None, None)
    with torch.inference_mode():
        vectors = model.encode_items(items)
        # scores of ids are cosines: the learned vectors at length 1
        learned = weights["item_encoder.items.weight"][:4]
        torch.testing.assert_close(vectors, learned / learned.norm(dim=1, keepdim=True))
        users = model.encode_last(vectors[None], torch.ones(1, 4, dtype=torch.bool))
    assert model.score(users, vectors).isfinite().all()


def test_a_bundle_of_a_later_format_is_refused(tmp_path: Path) -> None:
    shutil.copytree(KEPT / "ids", tmp_path / "ids")
    config = json.loads((tmp_path / "ids" / "config.json").read_text())
    config["format_version"] = bundle.FORMAT_VERSION + 1
    (tmp_path / "ids" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"reads formats up to {bundle.FORMAT_VERSION}: use the matching release"):
        Recommender.load(tmp_path / "ids")


def test_weights_of_a_content_model_still_have_their_places() -> None:
    """Its config.json, and names and shapes of its weights, which would be too large to keep."""
    saved = json.loads((KEPT / "content" / "config.json").read_text())
    config = from_dict(ModelConfig, saved["model"], "config.json")
    encoder = items_from_config(config, saved["item_encoder"])
    model = Recommender(config, encoder, sequence_encoders[config.sequence].from_config(config))
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert shapes == json.loads((KEPT / "content" / "shapes.json").read_text())


def shards(directory: Path) -> Path:
    Recommender.load(KEPT / "ids").save(directory, max_shard_size=10_000)
    assert len(list(directory.glob(bundle.SHARD_FILES))) > 1
    return directory


def change_index(directory: Path, **changes: object) -> None:
    index = json.loads((directory / bundle.INDEX_FILE).read_text())
    (directory / bundle.INDEX_FILE).write_text(json.dumps({**index, **changes}))


def test_shards_are_read_as_strictly_as_one_file(tmp_path: Path) -> None:
    directory = shards(tmp_path / "whole")
    own = Recommender.load(directory).state_dict()
    assert all(torch.equal(own[name], value) for name, value in load_file(KEPT / "ids/model.safetensors").items())
    weight_map = json.loads((directory / bundle.INDEX_FILE).read_text())["weight_map"]
    for problem, weights, says in (
        ("missing", {"a": "model-00009-of-00009.safetensors"}, "lacks model-00009-of-00009.safetensors"),
        ("outside", {"a": "../model-00001-of-00002.safetensors"}, "which is no file of weights"),
        ("other", dict.fromkeys(weight_map, sorted(weight_map.values())[0]), "does not hold the tensors that"),
        ("empty", {}, "it has no weight_map"),
    ):
        change_index(shards(tmp_path / problem), weight_map=weights)
        with pytest.raises(UserError, match=says):
            Recommender.load(tmp_path / problem)
    shutil.copy(KEPT / "ids" / "model.safetensors", directory)
    with pytest.raises(UserError, match="remove the old"):
        Recommender.load(directory)
    (directory / "model.safetensors").unlink()
    max(directory.glob(bundle.SHARD_FILES)).write_bytes(b"cut")
    with pytest.raises(UserError, match="is damaged"):
        Recommender.load(directory)

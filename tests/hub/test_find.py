"""Where `--model` leads."""

import pytest

from mmsr_pt.hub.find import find_bundle, short_names
from mmsr_pt.log import UserError


def complete(directory):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"")
    return directory


def test_a_run_directory_leads_to_its_bundle(tmp_path):
    bundle = complete(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text("{}")
    assert find_bundle(str(tmp_path / "run")) == bundle


def test_a_bundle_directory_is_taken_as_it_is(tmp_path):
    bundle = complete(tmp_path / "bundle")
    assert find_bundle(str(bundle)) == bundle


def test_a_run_without_a_bundle_says_how_to_go_on(tmp_path):
    (tmp_path / "ds_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"no bundle model/ yet.*deepspeed pretrain/run.py .* --resume"):
        find_bundle(str(tmp_path))


def test_a_directory_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither a run directory .* nor a bundle"):
        find_bundle(str(tmp_path))


def test_a_file_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(UserError, match="is a file"):
        find_bundle(str(file))


@pytest.mark.parametrize("reference", ["nowhere", "/no/such/dir", "./user/name", "a/b/c"])
def test_what_cannot_be_a_hub_id_is_a_missing_directory(reference):
    with pytest.raises(UserError, match="there is no directory"):
        find_bundle(reference)


def test_a_path_below_a_directory_that_exists_is_no_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="there is no directory runs/first"):
        find_bundle("runs/first")


def test_an_unreachable_hub_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nobody/nothing is neither a directory here nor a model") as caught:
        find_bundle("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_model_of_another_toolkit_on_the_hub_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda hub_id, **kwargs: str(tmp_path))
    with pytest.raises(UserError, match=r"has no model.safetensors"):
        find_bundle("someone/something")


@pytest.mark.parametrize(
    ("references", "names"),
    [
        (["runs/first"], ["mmsr"]),
        (["runs/first", "runs/second/"], ["first", "second"]),
        (["runs/first/model", "runs/second"], ["first", "second"]),
        (["a/ids/seed-0", "a/mmsr/seed-0"], ["ids/seed-0", "mmsr/seed-0"]),
        (["a/ids/seed-0", "b/ids/seed-0", "b/last"], ["a/ids/seed-0", "b/ids/seed-0", "last"]),
        (["runs/popularity", "runs/first"], ["runs/popularity", "first"]),
        (["someone/good-model", "runs/first"], ["good-model", "first"]),
        (["someone/first", "runs/first"], ["someone/first", "runs/first"]),
    ],
)
def test_models_have_the_shortest_names_that_set_them_apart(tmp_path, monkeypatch, references, names):
    monkeypatch.chdir(tmp_path)
    for reference in references:
        if not reference.startswith("someone/"):
            (tmp_path / reference).mkdir(parents=True)
    assert short_names(references) == names


@pytest.mark.parametrize("again", ["runs/first", "runs/first/model", "runs/../runs/first"])
def test_a_model_that_is_named_twice_is_refused(tmp_path, monkeypatch, again):
    monkeypatch.chdir(tmp_path)
    complete(tmp_path / "runs" / "first" / "model")
    with pytest.raises(UserError, match=f"--model names {again} twice"):
        short_names(["runs/first", again])

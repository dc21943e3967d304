"""A model loaded by its hub id: the published one, without a hub from the cache, and an error where it is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from mmsr_pt.data.domain import Domain
from mmsr_pt.hub.publish import find_origin, lay_out
from mmsr_pt.hub.upload import Target, upload
from mmsr_pt.log import UserError
from mmsr_pt.model import MMSRModel
from mmsr_pt.transfer import Source
from tests.hub.repos import TOKEN, File
from tests.hub.server import StandIn

REPO = "ada/shop"


@pytest.fixture
def published(hub: StandIn, run: Path, tmp_path: Path) -> Path:
    """What was published of the run."""
    out = tmp_path / "laid"
    out.mkdir()
    lay_out(find_origin(run), out, REPO)
    upload(out, Target(REPO), "Upload a test")
    hub.state.requests.clear()
    return out


def blobs() -> Path:
    return Path(constants.HF_HUB_CACHE) / "models--ada--shop" / "blobs"


def same_weights(model: MMSRModel, bundle: Path) -> bool:
    own, other = model.recommender.state_dict(), MMSRModel.from_pretrained(bundle).recommender.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[name], value) for name, value in other.items())


def test_it_is_the_model_that_was_published(published: Path, run: Path) -> None:
    model = MMSRModel.from_pretrained(REPO)
    assert same_weights(model, run / "model")
    assert model.recommender.step == 40
    source = Source.open(REPO)
    assert source.config == model.recommender.config
    assert source.read_weights().keys() == model.recommender.state_dict().keys()


def test_only_what_a_bundle_has_is_fetched_and_nothing_that_could_run(hub: StandIn, published: Path) -> None:
    repo = hub.state.repos[REPO]
    extra = {
        name: File(b"import os", False) for name in ("modeling.py", "pytorch_model.bin", "weights.pkl", "a/b.json")
    }
    repo.commit("main", {**repo.tree(), **extra}, "by somebody else")
    MMSRModel.from_pretrained(REPO)
    fetched = {path.rpartition("/")[2] for method, path in hub.state.requests if "/resolve/" in path}
    assert fetched == {"config.json", "preprocessor.json", "model.safetensors", "tokenizer.model"}


def test_a_branch_is_asked_for_by_name(hub: StandIn, published: Path) -> None:
    with pytest.raises(UserError, match="could be had from the hub"):
        MMSRModel.from_pretrained(REPO, revision="v1")
    upload(published, Target(REPO, revision="v1"), "Upload a test")
    MMSRModel.from_pretrained(REPO, revision="v1")


def test_without_a_hub_the_cache_will_do(
    hub: StandIn, published: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="could be had from the hub"):
        MMSRModel.from_pretrained(REPO, local_files_only=True)
    MMSRModel.from_pretrained(REPO)
    hub.state.requests.clear()
    assert same_weights(MMSRModel.from_pretrained(REPO, local_files_only=True), run / "model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same_weights(MMSRModel.from_pretrained(REPO), run / "model")
    assert hub.state.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.fails("GET", "/", 503)
    assert same_weights(MMSRModel.from_pretrained(REPO), run / "model")


def test_a_connection_that_is_cut_goes_on_where_it_was(
    hub: StandIn, published: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what is kept when a connection ends
    hub.fails("GET", "/store/", "cut", times=1)
    assert same_weights(MMSRModel.from_pretrained(REPO), run / "model")
    assert len(hub.state.ranges) == 1
    start = int(hub.state.ranges[0].removeprefix("bytes=").rstrip("-"))
    assert 0 < start < (published / "model.safetensors").stat().st_size


@pytest.mark.parametrize(("words", "does"), [("/store/", "wrong"), ("/store/", "short"), ("/resolve/", "wrong")])
def test_a_wrong_or_truncated_download_is_an_error(hub: StandIn, published: Path, words: str, does: str) -> None:
    hub.fails("GET", words, does)
    with pytest.raises(UserError, match="damaged|could be had from the hub") as caught:
        MMSRModel.from_pretrained(REPO)
    assert "\n" not in str(caught.value)


def test_what_was_changed_in_the_cache_is_found(published: Path) -> None:
    MMSRModel.from_pretrained(REPO)
    sha = next(path for path in blobs().iterdir() if len(path.name) == 64 and path.stat().st_size > 300_000)
    whole = sha.read_bytes()
    sha.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="came from the hub damaged, or was changed in the cache") as caught:
        MMSRModel.from_pretrained(REPO, local_files_only=True)
    assert str(sha) in str(caught.value)
    sha.unlink()
    MMSRModel.from_pretrained(REPO)
    sha.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        MMSRModel.from_pretrained(REPO, local_files_only=True)


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_a_hub_that_refuses_is_one_sentence(hub: StandIn, published: Path, status: int) -> None:
    hub.fails("GET", "/api/models/", status)
    with pytest.raises(UserError, match="could be had from the hub") as caught:
        MMSRModel.from_pretrained(REPO)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_private_model_needs_the_login(hub: StandIn, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.state.repos[REPO].private = True
    with pytest.raises(UserError, match="could be had from the hub"):
        MMSRModel.from_pretrained(REPO, token=False)
    MMSRModel.from_pretrained(REPO)
    assert hub.state.leaked == []


@pytest.mark.slow
def test_commands_take_a_hub_id_and_then_the_cache(
    hub: StandIn, run: Path, small_domain: Domain, tmp_path: Path
) -> None:
    """As a user types them, each in a process of its own."""
    root = Path(__file__).resolve().parents[2]
    told = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    environment = {**os.environ, **told, "PYTHONPATH": str(root)}

    def command(*words: str, **variables: str) -> str:
        line = [sys.executable, *words]
        done = subprocess.run(line, cwd=root, env={**environment, **variables}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return done.stdout

    command("-m", "mmsr_pt.cli", "publish", "--model", str(run), "--repo_id", REPO)
    assert "training/config.json" in hub.names(REPO)
    evaluate = ("-m", "mmsr_pt.cli", "evaluate", "--data", str(small_domain.path), "--out")
    command(*evaluate, str(tmp_path / "local.json"), "--model", str(run))
    command(*evaluate, str(tmp_path / "hub.json"), "--model", REPO)
    command(*evaluate, str(tmp_path / "cache.json"), "--model", REPO, HF_HUB_OFFLINE="1")
    figures = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in json.loads(path.read_text())["lines"]]
        for path in (tmp_path / "local.json", tmp_path / "hub.json", tmp_path / "cache.json")
    ]
    assert figures[0] == figures[1] == figures[2]
    item = small_domain.items["item_id"][0]
    words = ("-m", "mmsr_pt.cli", "recommend", "--model", REPO, "--data", str(small_domain.path), "--history", item)
    assert "rank" in command(*words, HF_HUB_OFFLINE="1")
    ds_config = tmp_path / "ds.json"
    ds_config.write_text('{"train_micro_batch_size_per_gpu": 8}')
    tuned = tmp_path / "tuned"
    fixed = ("--ds_config", str(ds_config), "--data", str(small_domain.path), "--steps", "1", "--num_workers", "0")
    command("finetune/run.py", *fixed, "--init", REPO, "--run_dir", str(tuned), HF_HUB_OFFLINE="1")
    assert (tuned / "model" / "model.safetensors").is_file()

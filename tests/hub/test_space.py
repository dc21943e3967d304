"""A Space of the explorer over real HTTP to a stand-in hub, and then started from what was uploaded."""

from __future__ import annotations

import importlib.metadata
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import SpaceCard

import mmsr_pt
from mmsr_pt.cli import main
from mmsr_pt.data.domain import Domain
from mmsr_pt.explore.exhibit import Exhibit
from mmsr_pt.explore.questions import recommended, scores_of
from mmsr_pt.explore.space import requirements
from tests.explore.conftest import KINDS, built
from tests.hub.server import StandIn

pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'mmsr_pt[explore]'")

REPO = "ada/shop"
SPACE = f"spaces/{REPO}"
PACKAGE = Path(mmsr_pt.__file__).parent
START = """
import runpy, sys
for name in ("deepspeed", "ninja", "tensorboard", "torch.utils.tensorboard"):
    sys.modules[name] = None  # an import of it fails
import mmsr_pt
print(mmsr_pt.__file__, flush=True)
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.fixture
def models(small_domain: Domain, tmp_path: Path) -> list[str]:
    for name in ("MMSR", "MMSR-T"):
        built(small_domain, KINDS[name]).save_pretrained(tmp_path / "at home" / name)
    return [str(tmp_path / "at home" / name) for name in ("MMSR", "MMSR-T")]


def publish(models: list[str], domain: Domain, *flags: str) -> None:
    words = ["publish", "--space", "--model", *models, "--data", str(domain.path), "--repo_id", REPO, *flags]
    main([*words, "--users", "5"])


def written(hub: StandIn, directory: Path) -> Path:
    for name, file in hub.state.repos[SPACE].tree().items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(file.content)
    return directory


def test_a_space_holds_all_it_needs_and_says_whose_it_is(
    hub: StandIn,
    models: list[str],
    small_domain: Domain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    publish(models, small_domain, "--private", "--license", "apache-2.0")
    assert set(hub.state.repos) == {SPACE}
    assert hub.state.repos[SPACE].private
    licence = small_domain.meta["licence"]
    told = capsys.readouterr().err
    assert f"300 titles with thumbnails and 5 users' histories of {small_domain.name}" in told
    assert licence in told
    space = written(hub, tmp_path / "space")
    card = SpaceCard.load(space / "README.md")
    assert (card.data.sdk, card.data.app_file, card.data.license) == ("gradio", "app.py", "apache-2.0")
    assert card.data.to_dict()["sdk_version"] == importlib.metadata.version("gradio")
    assert licence in card.text
    assert "MMSR-T, trained on" in card.text
    # all of the package's source and nothing else
    source = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {path.relative_to(space / "mmsr_pt") for path in (space / "mmsr_pt").rglob("*") if path.is_file()} == source
    exhibit = Exhibit.load(space / "exhibit")
    assert exhibit.users["user_id"].to_list() == [f"user {number}" for number in range(1, 6)]
    ids = set(small_domain.eval["user_id"])
    for path in space.rglob("*"):
        assert not path.is_file() or b"at home" not in path.read_bytes(), f"{path} tells where the models were"
    assert ids.isdisjoint(exhibit.users["user_id"])
    # the same again is no commit, fewer models leave nothing of the others
    commits = len(hub.state.repos[SPACE].commits)
    publish(models, small_domain, "--license", "apache-2.0")
    assert len(hub.state.repos[SPACE].commits) == commits
    publish(models[:1], small_domain, "--license", "apache-2.0")
    assert not [name for name in hub.names(SPACE) if name.startswith("exhibit/models/1/")]


@pytest.mark.slow
def test_a_space_starts_from_what_was_uploaded(
    hub: StandIn, models: list[str], small_domain: Domain, tmp_path: Path
) -> None:
    publish(models, small_domain)
    space = written(hub, tmp_path / "space")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_TOKEN")}
    environment = {**kept, "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    with (tmp_path / "said").open("w") as said:
        started = subprocess.Popen(
            [sys.executable, "-c", START], cwd=space, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            _until_it_answers(started, f"http://127.0.0.1:{port}/", tmp_path / "said")
            from gradio_client import Client

            shown = Client(f"http://127.0.0.1:{port}/", verbose=False).predict("user 2", api_name="/of_user")
        finally:
            started.terminate()
            started.wait(60)
    assert Path((tmp_path / "said").read_text().splitlines()[0]) == space / "mmsr_pt" / "__init__.py"
    exhibit = Exhibit.load(space / "exhibit")
    history = exhibit.users["history"][1].to_list()
    found = recommended(exhibit, scores_of(exhibit, history), history, 10)
    wanted = [item.row for name in ("MMSR", "MMSR-T", "Popularity") for item in found[name]]
    pages = [[int(row) for row in re.findall(r'<li[^>]*data-row="(\d+)"', str(part))] for part in shown]
    assert wanted in pages


def _until_it_answers(started: subprocess.Popen, address: str, said: Path) -> None:
    for _ in range(600):
        assert started.poll() is None, said.read_text()
        try:
            if httpx2.get(address).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError(said.read_text())


def test_a_dry_run_sends_nothing(
    models: list[str],
    small_domain: Domain,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    publish(models, small_domain, "--dry_run")
    shown = capsys.readouterr().out
    for name in (
        "app.py",
        "requirements.txt",
        "exhibit/models/1/index/vectors.safetensors",
        "mmsr_pt/explore/page.css",
    ):
        assert name in shown


def test_what_only_trains_is_not_installed() -> None:
    names = {re.match(r"[\w.-]+", line)[0] for line in requirements()}  # type: ignore[index]
    assert {"torch", "transformers", "polars", "huggingface_hub"} <= names
    assert names.isdisjoint({"deepspeed", "ninja", "tensorboard", "gradio", "pytest", "matplotlib"})


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "a", "b"], "--model names 2 models: name one, or publish a --space of several"),
        (["--model", "a", "--data", "d"], "--data and --users say what a Space shows: add --space"),
        (["--model", "a", "--users", "0"], "--data and --users say what a Space shows: add --space"),
        (["--model", "a", "--space"], "--space shows the items of a domain: give --data DOMAIN too"),
        (["--model", "a", "a", "--space", "--data", "d"], "--model names a twice"),
        (["--model", "a", "--space", "--data", "d", "--users", "-1"], "--users -1 must not be negative"),
        (["--model", "a", "--space", "--data", "d"], "there is no domain directory d"),
    ],
)
def test_flags_that_do_not_go_together_are_told(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["publish", "--repo_id", REPO, *flags])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err

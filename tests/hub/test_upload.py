"""Publishing over real HTTP, by the real client, to a stand-in hub: one commit, or the repository as it was."""

import logging
import shutil
from pathlib import Path

import httpx2
import pytest
import torch
from huggingface_hub import hf_hub_download

from mmsr_pt.cli import main
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.hub.publish import find_origin, lay_out
from mmsr_pt.hub.upload import RepoType, Target, Uploaded, check_licence, files_of, upload
from mmsr_pt.log import UserError
from mmsr_pt.model import MMSRModel
from mmsr_pt.models.recommender import Recommender
from tests.hub.repos import LARGE, READ_TOKEN, TOKEN
from tests.hub.server import StandIn
from tests.pretrain.launching import SMALL, ds_config, finish

REPO = "ada/shop"


@pytest.fixture
def laid(run: Path, tmp_path: Path) -> Path:
    out = tmp_path / "laid"
    out.mkdir()
    lay_out(find_origin(run), out, REPO)
    return out


def publish(laid: Path, target: Target | None = None) -> Uploaded:
    return upload(laid, target or Target(REPO), "Upload a test")


def content(hub: StandIn, revision: str = "main") -> dict[str, bytes]:
    tree = hub.state.repos[REPO].tree(revision)
    return {name: file.content for name, file in tree.items() if name != ".gitattributes"}


def test_a_run_becomes_one_commit_with_its_bytes(hub: StandIn, laid: Path) -> None:
    made = publish(laid)
    assert made.is_new
    assert content(hub) == {name: path.read_bytes() for name, path in files_of(laid).items()}
    repo = hub.state.repos[REPO]
    assert repo.messages == ["initial", "Upload a test"]
    assert made.url == f"{hub.url}/{REPO}/commit/{repo.refs['main']}"
    assert not repo.private
    assert repo.tree()["model.safetensors"].is_large
    assert not repo.tree()["config.json"].is_large
    assert hub.state.leaked == []


def test_the_same_bytes_make_no_commit_and_other_bytes_one(hub: StandIn, laid: Path) -> None:
    publish(laid)
    before = dict(hub.state.repos[REPO].refs)
    again = publish(laid)
    assert not again.is_new
    assert hub.state.repos[REPO].refs == before
    (laid / "README.md").write_text((laid / "README.md").read_text() + "\nMore.\n")
    assert publish(laid).is_new
    assert hub.state.repos[REPO].messages == ["initial", "Upload a test", "Upload a test"]
    assert hub.state.count("PUT", "/store/") == sum(f.is_large for f in hub.state.repos[REPO].tree().values())


def test_what_an_earlier_upload_left_goes_and_what_others_put_there_stays(
    hub: StandIn, laid: Path, run: Path, tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    model = Recommender.load(run / "model")
    model.save(parts, max_shard_size=(run / "model" / "model.safetensors").stat().st_size // 3)
    Preprocessor.load(run / "model").save(parts)
    (parts / "NOTES.md").write_text("by hand")
    (parts / "README.md").write_text((laid / "README.md").read_text())
    publish(parts)
    assert "model.safetensors.index.json" in content(hub)
    again = MMSRModel.from_pretrained(REPO).recommender.state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    publish(laid)
    assert set(content(hub)) == {*files_of(laid), "NOTES.md"}
    assert len(hub.state.repos[REPO].messages) == 3


def test_large_files_may_be_asked_for_in_parts(hub: StandIn, laid: Path) -> None:
    hub.state.part_size = 100_000
    publish(laid)
    assert hub.state.count("PUT", "/store/") > 3
    assert content(hub)["model.safetensors"] == (laid / "model.safetensors").read_bytes()


def test_a_private_repository_and_a_branch_are_made(hub: StandIn, laid: Path) -> None:
    publish(laid, Target(REPO, revision="v1", private=True))
    assert hub.state.repos[REPO].private
    assert hub.names(REPO) == set()
    assert hub.names(REPO, "v1") == set(files_of(laid))
    assert not publish(laid, Target(REPO, revision="v1", private=True)).is_new


def test_private_is_no_word_for_what_is_public_already(hub: StandIn, laid: Path) -> None:
    publish(laid)
    (laid / "README.md").write_text((laid / "README.md").read_text() + "secret")
    with pytest.raises(UserError, match="is there and public"):
        publish(laid, Target(REPO, private=True))
    assert b"secret" not in content(hub)["README.md"]


def test_a_pull_request_leaves_main_alone(hub: StandIn, laid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(laid)
    before = content(hub)
    (laid / "README.md").write_text((laid / "README.md").read_text() + "better")
    # who may only read may propose
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    made = publish(laid, Target(REPO, create_pr=True))
    assert made.url == f"{hub.url}/{REPO}/discussions/1"
    assert content(hub) == before
    assert b"better" in content(hub, "refs/pr/1")["README.md"]


STEPS = [
    ("GET", f"/api/models/{REPO}"),
    ("GET", "/tree/"),
    ("POST", "/api/validate-yaml"),
    ("POST", "/preupload/"),
    ("POST", "/objects/batch"),
    ("PUT", "/store/"),
    ("POST", "/objects/verify"),
    ("POST", "/commit/"),
]


@pytest.mark.parametrize("does", [401, 403, 404, 409, 429, 500, 503, "cut"])
@pytest.mark.parametrize(("method", "words"), STEPS, ids=lambda value: value)
def test_what_fails_leaves_the_repository_as_it_was(
    hub: StandIn, laid: Path, method: str, words: str, does: int | str
) -> None:
    if does == "cut" and method == "GET":
        pytest.skip("a question without a body is cut in its answer, see below")
    publish(laid)
    weights = laid / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"new")
    before, refs = content(hub), dict(hub.state.repos[REPO].refs)
    hub.fails(method, words, does)
    with pytest.raises(UserError, match=rf"^{REPO}: .* failed, .*No file of the repository has changed") as caught:
        publish(laid)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert content(hub) == before
    assert hub.state.repos[REPO].refs == refs
    hub.heals()
    sent = hub.state.count("PUT", "/store/")
    assert publish(laid).is_new
    assert content(hub)["model.safetensors"] == weights.read_bytes()
    if words == "/commit/":
        assert hub.state.count("PUT", "/store/") == sent, "it was there already"


@pytest.mark.parametrize("words", ["/preupload/", "/objects/batch", "/store/"])
@pytest.mark.parametrize("does", [429, 503, "cut"])
def test_what_fails_for_a_moment_is_tried_again(hub: StandIn, laid: Path, words: str, does: int | str) -> None:
    hub.fails("PUT" if words == "/store/" else "POST", words, does, times=2)
    assert publish(laid).is_new
    assert set(content(hub)) == set(files_of(laid))


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "type hf auth login, or set HF_TOKEN"),
        (403, "use a token with write permission, or propose it with --create_pr"),
        (409, "somebody else changed it meanwhile"),
        (429, "wait some minutes and give the same command again"),
        (500, "give the same command again later"),
    ],
)
def test_a_failure_says_how_to_go_on(hub: StandIn, laid: Path, status: int, says: str) -> None:
    hub.fails("POST", "/commit/", status)
    with pytest.raises(UserError, match=says):
        publish(laid)


def test_a_change_by_somebody_else_meanwhile_is_not_overwritten(
    hub: StandIn, laid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(laid)
    repo = hub.state.repos[REPO]
    (laid / "README.md").write_text((laid / "README.md").read_text() + "more")
    from huggingface_hub import HfApi

    listing = HfApi.list_repo_files

    def listing_then_somebody_else(self: HfApi, *args: object, **kwargs: object) -> list[str]:
        names = listing(self, *args, **kwargs)
        repo.commit("main", {**repo.tree(), "config.json": repo.tree()["README.md"]}, "by somebody else")
        return names

    monkeypatch.setattr(HfApi, "list_repo_files", listing_then_somebody_else)
    with pytest.raises(UserError, match="somebody else changed it meanwhile"):
        publish(laid)
    assert repo.messages[-1] == "by somebody else"


def test_a_hub_that_is_not_there_is_one_sentence(hub: StandIn, laid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the hub or the way to it fails"):
        publish(laid)


@pytest.mark.parametrize("token", ["hf_wrong", READ_TOKEN, None])
def test_who_may_not_write_is_told(
    hub: StandIn, laid: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match="hf auth login|write permission") as caught:
        publish(laid)
    assert hub.state.repos == {}
    assert token is None or token not in str(caught.value)


def test_a_card_that_the_hub_refuses_stops_before_anything_is_sent(hub: StandIn, laid: Path) -> None:
    (laid / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(UserError, match="the hub would refuse it"):
        publish(laid)
    assert hub.state.count("PUT", "") == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--repo_id", "shop"], "is no name on the hub: give user/name"),
        (["--repo_id", "ada/shop", "--create_pr", "--revision", "v1"], "leave one of both out"),
        (["--repo_id", "ada/shop", "--license", "My Own!"], "is not how the hub spells licences"),
    ],
)
def test_wrong_flags_are_refused_before_anything(
    words: list[str], says: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["publish", "--model", str(run), *words])
    assert says in capsys.readouterr().err
    check_licence("apache-2.0")


def test_the_token_stands_nowhere(
    hub: StandIn, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        main(["publish", "--model", str(run), "--repo_id", REPO])
        # a hub that sends back what it was told
        hub.fails("POST", "/commit/", 403, **{"X-Error-Message": f"{TOKEN} may not"})
        (run / "metrics.jsonl").write_text("")
        with pytest.raises(SystemExit):
            main(["publish", "--model", str(run), "--repo_id", REPO])
    out, err = capfd.readouterr()
    assert "may not" in err
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("mmsr_pt")]
    assert TOKEN not in out + err + "".join(ours)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    assert all(TOKEN.encode() not in held for held in content(hub).values())
    assert TOKEN not in "".join(hub.state.repos[REPO].messages)
    assert hub.state.leaked == []


def test_the_stand_in_refuses_what_the_hub_would(hub: StandIn, laid: Path) -> None:
    """A test of the test: without a login, to others' names, with bytes that were not announced, nothing is taken."""
    assert httpx2.post(f"{hub.url}/api/repos/create", json={"name": "shop"}).status_code == 401
    mine = {"Authorization": f"Bearer {TOKEN}"}
    others = {"name": "shop", "organization": "bob"}
    assert httpx2.post(f"{hub.url}/api/repos/create", json=others, headers=mine).status_code == 403
    publish(laid)
    lost = '{"key": "lfsFile", "value": {"path": "x", "algo": "sha256", "oid": "%s", "size": 1}}' % ("0" * 64)
    url = f"{hub.url}/api/models/{REPO}/commit/main"
    assert httpx2.post(url, content=lost, headers=mine).status_code == 400
    assert "x" not in content(hub)


def test_a_model_in_hand_is_pushed_by_the_same_way(hub: StandIn, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "model", tmp_path / "bundle")
    model = MMSRModel.from_pretrained(tmp_path / "bundle")
    url = model.push_to_hub(REPO, license="mit", private=True)
    repo = hub.state.repos[REPO]
    assert url == f"{hub.url}/{REPO}/commit/{repo.refs['main']}"
    assert repo.private
    assert set(content(hub)) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor.json",
        "tokenizer.model",
    }
    assert b"license: mit" in content(hub)["README.md"]
    again = MMSRModel.from_pretrained(REPO)
    for name, value in model.recommender.state_dict().items():
        assert torch.equal(again.recommender.state_dict()[name], value)
    assert model.push_to_hub(REPO, license="mit") == url


@pytest.mark.parametrize(("kind", "prefix"), [("dataset", "datasets/"), ("space", "spaces/")])
def test_datasets_and_spaces_are_repositories_of_their_own(
    hub: StandIn, tmp_path: Path, kind: RepoType, prefix: str
) -> None:
    directory = tmp_path / "laid"
    (directory / "training").mkdir(parents=True)
    (directory / "README.md").write_text("---\nsdk: gradio\n---\nA text.\n")
    (directory / "training" / "old").write_bytes(bytes(LARGE + 1))
    target = Target(REPO, "v1", private=True, repo_type=kind)
    made = upload(directory, target, "Upload a test")
    assert made.is_new
    assert set(hub.state.repos) == {prefix + REPO}
    repo = hub.state.repos[prefix + REPO]
    assert repo.private
    assert repo.tree("v1")["training/old"].is_large
    assert hub.names(prefix + REPO, "v1") == {"README.md", "training/old"}
    assert not upload(directory, target, "Upload a test").is_new
    # training/ is ours in a model's repository only
    (directory / "training" / "old").unlink()
    (directory / "README.md").write_text("---\nsdk: gradio\n---\nAnother text.\n")
    assert upload(directory, target, "Upload a test").is_new
    assert hub.names(prefix + REPO, "v1") == {"README.md", "training/old"}
    name = hf_hub_download(REPO, "README.md", repo_type=kind, revision="v1")
    assert Path(name).read_bytes() == (directory / "README.md").read_bytes()


@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_at_stage_three_is_published_by_one_process(
    hub: StandIn, small_domain: Domain, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", ds_config(tmp_path / "ds_config.json", stage=3)
    when = ("--steps", 4, "--eval_every", 4, "--checkpoint_every", 4)
    finish("--ds_config", config, "--data", small_domain.path, "--run_dir", run, *SMALL, *when, num_ranks=2)
    checkpoint = run / "checkpoints" / "step_00000004"
    main(["publish", "--model", str(checkpoint), "--repo_id", REPO])
    published, best = MMSRModel.from_pretrained(REPO), MMSRModel.from_pretrained(run)
    # the only validation, and so the bundle, was of the same step
    assert published.fingerprint == best.fingerprint
    assert "training/ds_config.json" in hub.names(REPO)

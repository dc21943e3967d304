"""What is laid out for publishing: complete, true to the run, and silent about the machine."""

import hashlib
import json
import socket
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from mmsr_pt.cli import main
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.hub.places import short_place, without_places
from mmsr_pt.hub.publish import Origin, find_origin, lay_out
from mmsr_pt.hub.upload import files_of
from mmsr_pt.log import UserError
from mmsr_pt.models.recommender import Recommender
from tests.hub.conftest import METRICS, STEP

BUNDLE = {"README.md", "config.json", "model.safetensors", "preprocessor.json", "tokenizer.model"}


def hashes(directory: Path) -> dict[str, str]:
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files_of(directory).items()}


def laid_out(reference: Path, out: Path, licence: str | None = None) -> Path:
    out.mkdir()
    lay_out(find_origin(reference), out, "ada/shop", licence)
    return out


def test_a_run_is_laid_out_whole_and_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    before = hashes(run)
    out = laid_out(run, tmp_path / "out")
    curves = [name for name in files_of(out) if name.startswith("training/tensorboard/events.out.tfevents.")]
    assert len(curves) == 1
    training = {f"training/{name}" for name in ("config.json", "ds_config.json", "metrics.jsonl")}
    assert set(files_of(out)) == {*BUNDLE, *training, *curves}
    assert hashes(run) == before
    for name in BUNDLE - {"README.md"}:
        assert (out / name).read_bytes() == (run / "model" / name).read_bytes()
    assert (out / "training/metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    # again: the same bytes
    assert hashes(laid_out(run / "model", tmp_path / "again")) == hashes(out)


def test_nothing_published_tells_where_it_was_made(run: Path, tmp_path: Path, small_domain: Domain) -> None:
    config = json.loads((run / "model" / "config.json").read_text())
    config["model"]["text"] = "hf:/home/ada/secret place/minilm"
    (run / "model" / "config.json").write_text(json.dumps(config))
    out = laid_out(run, tmp_path / "out")
    for name, path in files_of(out).items():
        content = path.read_bytes()
        for secret in (str(tmp_path), "secret place", str(small_domain.path.parent), "/local/nvme", "/home/ada"):
            assert secret.encode() not in content, f"{secret} in {name}"
        assert socket.gethostname() not in name
    assert json.loads((out / "config.json").read_text())["model"]["text"] == "hf:minilm"
    training = json.loads((out / "training/config.json").read_text())
    assert training["data"]["data"] == [small_domain.path.name]
    assert training["run"]["run_dir"] == "first"
    assert json.loads((out / "training/ds_config.json").read_text())["zero_optimization"]["nvme_path"] == "nvme"
    assert Recommender.load(out).config.text == "hf:minilm"


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("hf:/a/b/minilm", "hf:minilm"),
        ("timm:local-dir:/a/lite0/", "timm:local-dir:lite0"),
        ("region:~/detector.pth", "region:detector.pth"),
        ("hf:./here/bert", "hf:bert"),
        ("hf:user/name", "hf:user/name"),
        ("tiny", "tiny"),
        ("a sentence: with / in it", "a sentence: with / in it"),
        ("x/" * 3000, "x/" * 3000),
    ],
)
def test_of_local_paths_the_last_name_is_left(text: str, short: str) -> None:
    assert short_place(text) == short
    assert without_places({"model": [{"text": text}, 1, None]}) == {"model": [{"text": short}, 1, None]}


def test_settings_that_are_paths_lose_relative_ones_too() -> None:
    settings = {"data": {"data": ["data/hm", "hm2"]}, "run": {"run_dir": "runs/first", "ds_config": "c/zero2.json"}}
    short = {"data": {"data": ["hm", "hm2"]}, "run": {"run_dir": "first", "ds_config": "zero2.json"}}
    assert without_places(settings) == short


def test_the_card_holds_the_figures_of_the_published_weights(run: Path, tmp_path: Path, small_domain: Domain) -> None:
    card = ModelCard((laid_out(run, tmp_path / "out") / "README.md").read_text())
    assert f"Weights of step {STEP}: validation NDCG@10 {0.2 + 0.03:.4f}" in card.text
    assert small_domain.fingerprint[:16] in card.text
    assert small_domain.meta["licence"] in card.text
    assert "2403.17372" in card.text
    assert "--init ada/shop" in card.text
    # HR@10, HR@50, NDCG@10, NDCG@50, MRR in percent, users and cases
    assert "| this model | cold | 35.00 | 37.00 | 38.00 | 40.00 | 41.00 | 44 | 44 |" in card.text
    assert "| popularity | all | 5.00 | 7.00 | 8.00 | 10.00 | 11.00 | 150 | 150 |" in card.text
    assert "| this model | held-out | 30.00 |" in card.text
    found = {(r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}
    for name in ("HR@10", "NDCG@10", "MRR"):
        assert found["test", name] == pytest.approx(0.25 + 0.01 * METRICS.index(name))
        assert found["cold items", name] == pytest.approx(0.3 + 0.01 * METRICS.index(name))
    args = {r.dataset_split: r.dataset_args for r in card.data.eval_results}
    assert args["cold items"] == {"protocol": "cold", "slice": "held-out", "users": 33, "cases": 33}


def test_no_licence_is_claimed_that_nobody_gave(run: Path, tmp_path: Path) -> None:
    silent = ModelCard((laid_out(run, tmp_path / "silent") / "README.md").read_text())
    assert (silent.data.license, silent.data.license_name) == ("other", "not-stated")
    assert "stated no licence" in silent.text
    given = ModelCard((laid_out(run, tmp_path / "given", "cc-by-nc-4.0") / "README.md").read_text())
    assert given.data.license == "cc-by-nc-4.0"
    assert "license_name" not in given.data.to_dict()


def test_a_bundle_of_an_earlier_version_has_a_card_too(run: Path, tmp_path: Path) -> None:
    """It knew name and fingerprint of its domains and no step."""
    file = run / "model" / "config.json"
    config = json.loads(file.read_text())
    del config["step"]
    config["trained_on"] = [{name: entry[name] for name in ("name", "fingerprint")} for entry in config["trained_on"]]
    file.write_text(json.dumps(config))
    assert f"Weights of step {STEP}:" in (laid_out(run, tmp_path / "out") / "README.md").read_text()
    alone = tmp_path / "alone"
    (run / "model").rename(alone)
    card = (laid_out(alone, tmp_path / "out of alone") / "README.md").read_text()
    assert "was not recorded" in card
    assert "## Figures" not in card
    assert "training/" not in card


def test_a_line_that_is_being_written_is_left_out(run: Path, tmp_path: Path) -> None:
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(whole + b'{"event": "tra')
    assert (laid_out(run, tmp_path / "out") / "training/metrics.jsonl").read_bytes() == whole


def test_what_cannot_be_published_is_told_apart(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no directory here"):
        find_origin(Path("user/name"))
    with pytest.raises(UserError, match="is neither a run directory"):
        find_origin(tmp_path)
    (run / "model").rename(tmp_path / "bundle")
    with pytest.raises(UserError, match="neither model/ nor a complete checkpoint yet"):
        find_origin(run)
    (tmp_path / "bundle" / "preprocessor.json").unlink()
    assert find_origin(tmp_path / "bundle") == Origin(tmp_path / "bundle", None, None)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"has no preprocessor.json"):
        lay_out(find_origin(tmp_path / "bundle"), tmp_path / "out", "ada/shop")


def test_a_dry_run_lists_files_and_sizes_and_needs_no_login(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    main(["publish", "--model", str(run), "--repo_id", "ada/shop", "--dry_run"])
    shown = capsys.readouterr().out
    size = (run / "model" / "model.safetensors").stat().st_size
    assert any(line.split() == ["model.safetensors", f"{size:,}"] for line in shown.splitlines())
    assert "training/metrics.jsonl" in shown


def test_a_sharded_bundle_is_the_same_model(run: Path, tmp_path: Path) -> None:
    model = Recommender.load(run / "model")
    limit = (run / "model" / "model.safetensors").stat().st_size // 3
    model.save(tmp_path / "parts", max_shard_size=limit)
    Preprocessor.load(run / "model").save(tmp_path / "parts")
    files = sorted(path.name for path in (tmp_path / "parts").glob("*.safetensors*"))
    assert files[-1] == "model.safetensors.index.json"
    assert len(files) >= 4
    again = Recommender.load(tmp_path / "parts").state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    assert set(files) <= set(files_of(laid_out(tmp_path / "parts", tmp_path / "out")))
    model.save(tmp_path / "parts")
    assert [path.name for path in (tmp_path / "parts").glob("*.safetensors*")] == ["model.safetensors"]

"""The paper's baselines through the real launcher: trained, saved and evaluated like any other model."""

import json
from pathlib import Path

import pytest
import torch

from mmsr_pt import cli
from mmsr_pt.assembly import build_model
from mmsr_pt.config import ModelConfig
from mmsr_pt.data.catalogue import item_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.log import UserError
from mmsr_pt.model import MMSRModel
from mmsr_pt.models.codes import CodeItemEncoder
from mmsr_pt.models.recommender import Recommender
from tests.conftest import build_drawn
from tests.data.raw import build_table, write_plain_table
from tests.pretrain.launching import ds_config, finish, losses, metrics, small_run
from tests.pretrain.test_cached_run import write_bert
from tests.pretrain.test_parts import same_on_one_and_two_ranks

BASELINES = {
    "fdsa": ["--item", "both", "--sequence", "fdsa"],
    "carca++": ["--item", "both", "--sequence", "carca"],
    "vqrec": ["--item", "codes", "--num_codes", 4, "--code_values", 16],
    "morec++": ["--fusion", "concat"],
}


def parts(name: str, tmp_path: Path, domain: Domain) -> list[object]:
    text = ["--text", f"hf:{write_bert(tmp_path / 'bert', domain)}"] if name == "vqrec" else []
    return [*BASELINES[name], *text, "--title_tokens", 12]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("name", BASELINES)
def test_two_ranks_learn_what_one_process_does(tmp_path: Path, small_domain: Domain, name: str, stage: int) -> None:
    same_on_one_and_two_ranks(tmp_path, small_domain, *parts(name, tmp_path, small_domain), stage=stage)


@pytest.mark.slow
@pytest.mark.parametrize("name", BASELINES)
def test_the_papers_loss_falls_in_bfloat16(tmp_path: Path, small_domain: Domain, name: str) -> None:
    config = ds_config(tmp_path / "bf16.json", stage=2, bf16=True)
    flags = [*small_run(tmp_path, small_domain), *parts(name, tmp_path, small_domain), "--loss", "bce", "--steps", 60]
    finish(*flags, "--ds_config", config, "--lr", 3e-3, "--dropout", 0)
    found = losses(tmp_path / "run")
    assert sum(found[-10:]) < sum(found[:10])


@pytest.mark.slow
def test_a_bank_and_a_cache_go_with_scores_by_attention(tmp_path: Path, small_domain: Domain) -> None:
    domain = build_drawn(tmp_path / "domain", "source", num_users=60, items_per_cell=1, num_shards=4)
    text = ["--text", f"hf:{write_bert(tmp_path / 'bert', domain)}", "--vision", "none", "--title_tokens", 12]
    flags = [
        *small_run(tmp_path, domain),
        *BASELINES["carca++"],
        *text,
        "--bank_size",
        24,
        "--steps",
        4,
        "--dropout",
        0,
    ]
    for name in ("plain", "cached"):
        finish(*flags, "--run_dir", tmp_path / name, *(["--cache"] if name == "cached" else []))
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_learned_vectors_stay_with_their_domain(tmp_path: Path, small_domain: Domain) -> None:
    config = ModelConfig(item="both", sequence="fdsa", vision="none", width=16, fusion_heads=2)
    model, preprocessor = build_model(config, [small_domain])
    trained_on = [{"name": small_domain.name, "fingerprint": small_domain.fingerprint}]
    model.save(tmp_path / "bundle", trained_on=trained_on)
    preprocessor.save(tmp_path / "bundle")
    loaded = MMSRModel.from_pretrained(tmp_path / "bundle")
    assert loaded.recommender.config == config
    loaded.require_readable(small_domain)
    other = build_table(write_plain_table(tmp_path / "raw"), tmp_path / "other")
    with pytest.raises(UserError, match="knows the items of .* only; .* is another domain"):
        loaded.require_readable(other)


def test_a_domain_is_evaluated_and_recommended_from_by_scores_of_attention(
    tmp_path: Path, small_domain: Domain, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ModelConfig(item="both", sequence="carca", width=16, fusion_heads=2, max_history=5)
    model, preprocessor = build_model(config, [small_domain])
    trained_on = [{"name": small_domain.name, "fingerprint": small_domain.fingerprint}]
    model.save(tmp_path / "bundle", trained_on=trained_on)
    preprocessor.save(tmp_path / "bundle")
    where = ["--model", str(tmp_path / "bundle"), "--data", str(small_domain.path)]
    cli.main(["evaluate", *where, "--no_baselines", "--out", str(tmp_path / "figures.json")])
    (line,) = [line for line in json.loads((tmp_path / "figures.json").read_text())["lines"] if line["slice"] == "all"]
    assert line["users"] == small_domain.num_users
    user = small_domain.eval.row(0, named=True)
    cli.main(["recommend", *where, "--user", user["user_id"], "--top_k", "3"])
    printed = capsys.readouterr().out
    known = [*user["history"], user["valid"], user["test"]]
    model.eval()
    with torch.no_grad():
        (items,) = item_source(small_domain, preprocessor)(range(small_domain.num_items), small_domain.num_items)
        vectors, read = model.encode_items(items), torch.tensor([known[-5:]])
        states = model.encode_users(vectors[read], torch.ones_like(read, dtype=torch.bool))
        scores = model.score(states, vectors)[0, -1]
    scores[known] = -torch.inf
    best = small_domain.items["item_id"][scores.argsort(descending=True)[:3].tolist()]
    places = [printed.index(f" {item_id} ") for item_id in best]
    assert places == sorted(places), "best first"


def test_a_codebook_is_fitted_on_the_titles_and_goes_by_the_seed(tmp_path: Path, small_domain: Domain) -> None:
    text = f"hf:{write_bert(tmp_path / 'bert', small_domain)}"
    config = ModelConfig(item="codes", text=text, num_codes=4, code_values=16, width=16, fusion_heads=2)
    states, following = [], []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model, preprocessor = build_model(config, [small_domain])
        following.append(torch.rand(()).item())
        states.append(model.item_encoder.state_dict())
        assert preprocessor.image is None
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["codebook.centroids"], states[2]["codebook.centroids"])
    assert following[0] == following[1]
    assert isinstance(model.item_encoder, CodeItemEncoder)
    assert model.item_encoder.codebook.centroids.flatten(1).std(dim=1).min() > 0
    with pytest.raises(UserError, match="--code_values 1000 is more than the 300 titles"):
        build_model(ModelConfig(item="codes", text=text, num_codes=4, code_values=1000), [small_domain])


@pytest.mark.slow
def test_codes_go_to_another_domain(tmp_path: Path, small_domain: Domain) -> None:
    run = [*small_run(tmp_path, small_domain), *parts("vqrec", tmp_path, small_domain), "--steps", 4]
    finish(*run)
    model = Recommender.load(tmp_path / "run" / "model")
    assert isinstance(model.item_encoder, CodeItemEncoder)
    other = build_drawn(tmp_path / "other", "target", num_users=40, items_per_cell=1, num_shards=1)
    where = ["--model", str(tmp_path / "run"), "--data", str(other.path)]
    cli.main(["evaluate", *where, "--no_baselines", "--out", str(tmp_path / "figures.json")])
    lines = json.loads((tmp_path / "figures.json").read_text())["lines"]
    assert next(line for line in lines if line["slice"] == "all")["users"] == other.num_users
    assert metrics(tmp_path / "run", "eval", model="mmsr", split="test", slice="all")

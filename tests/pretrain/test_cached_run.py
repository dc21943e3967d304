"""A run with --cache learns what the run without it learns, and decodes nothing that is in the cache."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from transformers import BertConfig, BertModel, BertTokenizerFast

from mmsr_pt.data.domain import Domain
from mmsr_pt.models.recommender import Recommender
from tests.data.raw import build_table, write_plain_table
from tests.pretrain.launching import ds_config, finish, launch, losses, metrics


@pytest.fixture
def domain(tmp_path: Path, small_domain: Domain) -> Domain:
    """A copy: caches are written into the domain directory."""
    return Domain.load(shutil.copytree(small_domain.path, tmp_path / "domain"))


def write_bert(directory: Path, domain: Domain) -> Path:
    """A small BERT, untrained, whose tokenizer knows the words of the domain's titles."""
    words = sorted({word.strip(",.") for title in domain.titles() for word in title.lower().split()})
    directory.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (directory / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(directory / "vocab.txt")).save_pretrained(directory)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(directory)
    return directory


@pytest.fixture
def towers(tmp_path: Path, domain: Domain) -> list[str]:
    """Flags that name a small BERT and a small EfficientNet, untrained, in local directories."""
    torch.manual_seed(0)
    vision, bert = tmp_path / "vision", write_bert(tmp_path / "bert", domain)
    model = timm.create_model("test_efficientnet", pretrained=False)
    timm.models.save_for_hf(model, str(vision), safe_serialization=True)
    save_file(model.state_dict(), vision / "model.safetensors")
    return ["--text", f"hf:{bert}", "--vision", f"timm:local-dir:{vision}"]


def flags(tmp_path: Path, domain: Domain, stage: int, micro_batch: int) -> list[object]:
    config = ds_config(tmp_path / f"stage{stage}_{micro_batch}.json", stage, micro_batch)
    sizes = ["--width", 16, "--fusion_heads", 2, "--max_history", 6, "--title_tokens", 8, "--pool_size", 8]
    return ["--ds_config", config, "--data", domain.path, *sizes, "--dropout", 0, "--steps", 4, "--log_every", 1]


@pytest.mark.slow
def test_learns_the_same_on_two_ranks_at_stage_3_as_without(tmp_path: Path, domain: Domain, towers: list[str]) -> None:
    plain = [*flags(tmp_path, domain, 0, 8), *towers, "--run_dir", tmp_path / "plain"]
    cached = [*flags(tmp_path, domain, 3, 4), *towers, "--run_dir", tmp_path / "cached", "--cache"]
    finish(*plain)
    ended = finish(*cached, num_ranks=2)
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    assert "caching the frozen part" in ended.err
    (without,), (with_cache,) = (
        metrics(tmp_path / name, "eval", model="mmsr", split="valid", slice="all") for name in ("plain", "cached")
    )
    assert with_cache["MRR"] == pytest.approx(without["MRR"], rel=1e-3)


@pytest.mark.slow
def test_the_test_at_the_end_reads_the_cache_where_it_is_told_to(
    tmp_path: Path, domain: Domain, towers: list[str]
) -> None:
    common = [*flags(tmp_path, domain, 2, 8), *towers, "--cache"]
    finish(*common, "--run_dir", tmp_path / "raw")
    for tar in (domain.path / "items").iterdir():
        tar.write_bytes(bytes(tar.stat().st_size))
    finish(*common, "--test_from_cache", "--run_dir", tmp_path / "cached")
    found, expected = (metrics(tmp_path / run, "eval", split="test", model="mmsr") for run in ("cached", "raw"))
    assert [line["HR@50"] for line in found] == [line["HR@50"] for line in expected]
    assert [line["MRR"] for line in found] == pytest.approx([line["MRR"] for line in expected], rel=1e-4)


@pytest.mark.slow
def test_side_networks_learn_the_same_at_stage_3_as_from_the_cache_at_stage_2(
    tmp_path: Path, domain: Domain, towers: list[str]
) -> None:
    finish(*flags(tmp_path, domain, 3, 8), *towers, "--tune", "side", "--run_dir", tmp_path / "plain")
    cached = [*flags(tmp_path, domain, 2, 8), *towers, "--tune", "side", "--cache"]
    ended = finish(*cached, "--run_dir", tmp_path / "cached")
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    assert "text.side" in ended.out
    plain, end = (Recommender.load(tmp_path / name / "model") for name in ("plain", "cached"))
    trained = [parameter for parameter, value in end.named_parameters() if value.requires_grad]
    assert {".".join(name.split(".")[:3]) for name in trained} >= {"item_encoder.text.side", "item_encoder.vision.side"}
    assert not any(".tower." in name for name in trained)
    for name in trained:
        assert torch.allclose(plain.get_parameter(name), end.get_parameter(name), atol=1e-5), name


def test_an_id_model_has_nothing_to_cache(tmp_path: Path, domain: Domain) -> None:
    run_dir = tmp_path / "run"
    ended = launch(*flags(tmp_path, domain, 2, 8), "--item", "id", "--cache", "--run_dir", run_dir)
    assert ended.code == 2
    assert len(ended.errors) == 1
    assert "leave --cache out" in ended.errors[0]
    assert not run_dir.exists()


@pytest.mark.slow
def test_regions_of_a_file_are_detected_once_and_trained_from(tmp_path: Path) -> None:
    """torchvision's detector in full size with random weights, on 20 items."""
    small = build_table(write_plain_table(tmp_path / "raw"), tmp_path / "domain")
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=7)
    torch.save(model.state_dict(), tmp_path / "detector.pth")
    regions = ["--text", "tiny", "--vision", f"region:{tmp_path / 'detector.pth'}", "--cache", "--steps", 2]
    ended = finish(*flags(tmp_path, small, 2, 4), *regions, "--run_dir", tmp_path / "run")
    assert "tuning top:2 leaves it frozen" in ended.err
    assert len(losses(tmp_path / "run")) == 2
    (directory,) = (small.path / "cache").iterdir()
    assert (directory / "vision.bin").stat().st_size == small.num_items * 49 * 1024 * 4
    again = Recommender.load(tmp_path / "run" / "model")
    assert again.item_encoder.vision.config()["num_classes"] == 7
    own = again.item_encoder.vision.detector.state_dict()
    assert all(torch.equal(own[name], value) for name, value in model.state_dict().items() if name in own)

"""Which parts of a trained model come along into another one, and that they compute there what they did before."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmsr_pt.assembly import build_model
from mmsr_pt.config import ModelConfig
from mmsr_pt.data.catalogue import iter_item_batches
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.log import UserError
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.transfer import Source, build_transferred, parse_finetune_flags
from tests.conftest import build_drawn
from tests.models.towers.small import perturb
from tests.models.towers.vlps import MODELS, flags_for, publish, publish_eyes
from tests.pretrain.test_cached_run import write_bert

SMALL = ModelConfig(width=32, max_history=8)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    return build_drawn(tmp_path_factory.mktemp("target") / "domain", "target", num_users=20, items_per_cell=1)


@pytest.fixture
def trained(tmp_path: Path, small_domain: Domain) -> Callable[..., Path]:
    """Writes the bundle of a model with these settings; its weights are random, which is trained enough here."""

    def write(**settings: object) -> Path:
        config = dataclasses.replace(SMALL, **settings)  # type: ignore[arg-type]
        torch.manual_seed(1)
        model, preprocessor = build_model(config, [small_domain])
        perturb(model)  # else the updates of lora:R are zero
        own = {"name": small_domain.name, "fingerprint": small_domain.fingerprint}
        model.save(tmp_path / "bundle", trained_on=[own])
        preprocessor.save(tmp_path / "bundle")
        return tmp_path / "bundle"

    return write


def transferred(bundle: Path, domain: Domain, *flags: str) -> tuple[Recommender, Preprocessor]:
    config, source = parse_finetune_flags(["--init", str(bundle), *flags])
    torch.manual_seed(2)
    return build_transferred(config.model, source, [domain])


def scores(model: Recommender, preprocessor: Preprocessor, domain: Domain) -> Tensor:
    """Of ten items behind a history of three others."""
    model.eval()
    with torch.no_grad():
        (items,) = iter_item_batches(domain, preprocessor, range(10), 10)
        vectors = model.encode_items(items)
        users = model.encode_last(vectors[None, :3], torch.ones(1, 3, dtype=torch.bool))
        return model.score(users, vectors)


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What the table says of each part: the state, and why."""
    shown = capsys.readouterr().out
    rows = re.findall(r"^ +(\w+) +\d+ +[\d,]+ +(loaded|starts anew) *(.*?) *$", shown, re.MULTILINE)
    return {part: f"{state} {why}".strip() for part, state, why in rows}


def test_all_of_a_model_comes_along(
    trained: Callable[..., Path], target: Domain, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = trained(fusion="gate", sequence="grurec")
    model, preprocessor = transferred(bundle, target)
    assert (model.config.fusion, model.config.sequence, model.config.width) == ("gate", "grurec", 32)
    parts = {"text", "vision", "text_projection", "vision_projection", "fusion", "sequence_encoder"}
    assert said(capsys) == dict.fromkeys(parts, "loaded")
    source = Recommender.load(bundle)
    # the source's own tokenizer, too: one learnt on the target's titles would name other words by the same numbers
    assert torch.equal(scores(model, preprocessor, target), scores(source, Preprocessor.load(bundle), target))
    assert model.trained_on == source.trained_on


@pytest.mark.parametrize(
    ("flags", "fresh", "why"),
    [
        (("--fusion", "gate"), {"fusion"}, "the source has fusion merge, not gate"),
        (("--fusion_heads", "8"), {"fusion"}, "the source has fusion_heads 4, not 8"),
        (("--sequence", "rotary"), {"sequence_encoder"}, "the source has sequence sasrec, not rotary"),
        (("--sequence_heads", "1"), {"sequence_encoder"}, "the source has sequence_heads 2, not 1"),
        (("--sequence_layers", "3"), {"sequence_encoder"}, "the source has 2 layers, not 3"),
        (("--max_history", "9"), {"sequence_encoder"}, "the source has max_history 8, not 9"),
        (
            ("--width", "64"),
            {"text_projection", "vision_projection", "fusion", "sequence_encoder"},
            "the source has width 32, not 64",
        ),
        (("--vision", "timm:test_vit"), {"vision", "vision_projection"}, ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_parts_that_mean_something_else_start_anew(
    trained: Callable[..., Path],
    target: Domain,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    fresh: set[str],
    why: str,
) -> None:
    if "timm:test_vit" in flags:
        # a small model whose public weights would have to be downloaded
        import timm

        build = timm.create_model
        monkeypatch.setattr(timm, "create_model", lambda *args, pretrained, **kwargs: build(*args, **kwargs))
    bundle = trained()
    model, _ = transferred(bundle, target, *flags)
    states = said(capsys)
    assert {part for part, state in states.items() if state.startswith("starts anew")} == fresh
    assert [states[part] for part in fresh if why not in states[part]] == []
    before, after = Recommender.load(bundle).state_dict(), model.state_dict()
    for name, value in before.items():
        part = name.removeprefix("item_encoder.").partition(".")[0]
        if part not in fresh:
            assert torch.equal(after[name], value), f"{name} was said to be loaded"
        elif name in after and after[name].shape == value.shape and value.std() > 0:
            assert not torch.equal(after[name], value), f"{name} was said to start anew"


def test_one_modality_of_two_comes_along(
    trained: Callable[..., Path], target: Domain, capsys: pytest.CaptureFixture[str]
) -> None:
    model, preprocessor = transferred(trained(), target, "--vision", "none")
    assert set(said(capsys)) == {"text", "text_projection", "sequence_encoder"}
    assert preprocessor.image is None
    assert model.item_encoder.vision is None


def test_another_modality_is_added(
    trained: Callable[..., Path], target: Domain, capsys: pytest.CaptureFixture[str]
) -> None:
    transferred(trained(vision="none"), target, "--vision", "tiny")
    states = said(capsys)
    assert states["text"] == states["text_projection"] == states["sequence_encoder"] == "loaded"
    for part in ("vision", "vision_projection", "fusion"):
        assert states[part] == "starts anew the source has none"


def test_learned_items_of_another_domain_never_come_along(
    trained: Callable[..., Path], target: Domain, small_domain: Domain, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = trained(item="id")
    model, _ = transferred(bundle, target)
    assert said(capsys) == {
        "items": "starts anew another domain's items mean nothing here",
        "sequence_encoder": "loaded",
    }
    assert model.trained_on == []
    assert model.item_encoder.config() == {"num_items": target.num_items}
    with pytest.raises(UserError, match=r"no part of it fits.*sequence sasrec, not grurec.*leave out the flags"):
        transferred(bundle, target, "--sequence", "grurec")


def test_scratch_has_the_settings_of_the_flags_alone(target: Domain) -> None:
    config, source = parse_finetune_flags(["--init", "none", "--width", "64"])
    assert source is None
    assert config.model == ModelConfig(width=64)
    torch.manual_seed(0)
    model, preprocessor = build_transferred(config.model, source, [target])
    torch.manual_seed(0)
    plain, _ = build_model(config.model, [target])
    assert torch.equal(scores(model, preprocessor, target), scores(plain, preprocessor, target))


def test_flags_beat_the_source_which_beats_the_preset(trained: Callable[..., Path]) -> None:
    bundle = trained(fusion="gate")
    config, _ = parse_finetune_flags(["--init", str(bundle), "--preset", "paper", "--dropout", "0.3"])
    assert (config.model.width, config.model.fusion, config.model.dropout) == (32, "gate", 0.3)
    assert (config.optim.loss, config.run.epochs) == ("bce", 150)


def test_what_init_must_say() -> None:
    with pytest.raises(UserError, match=r"--init is missing.*none to start from scratch"):
        parse_finetune_flags(["--epochs", "2"])
    with pytest.raises(UserError, match=r"--init .*pyproject.toml is a file"):
        Source.open("pyproject.toml")


@pytest.mark.parametrize("kind", MODELS)
def test_a_vlp_comes_along_without_its_files(
    tmp_path: Path, trained: Callable[..., Path], target: Domain, kind: str
) -> None:
    publish(kind, tmp_path / "vlp")
    publish_eyes(tmp_path / "eyes")
    bundle = trained(**flags_for(kind, tmp_path / "vlp", tmp_path / "eyes"), title_tokens=20)
    for directory in ("vlp", "eyes"):
        (tmp_path / directory).rename(tmp_path / f"{directory} elsewhere")
    model, preprocessor = transferred(bundle, target, "--tune", "full")
    before = scores(Recommender.load(bundle), Preprocessor.load(bundle), target)
    assert torch.equal(scores(model, preprocessor, target), before)
    trains = {group.name for group in model.layer_groups() if group.trained}
    assert any(name.startswith(("joint.block", "vision.block", "vision.all")) for name in trains), trains


@pytest.mark.parametrize("policy", ["lora:2", "top:1", "side"])
def test_a_tower_comes_along_under_another_policy(
    tmp_path: Path, trained: Callable[..., Path], target: Domain, policy: str
) -> None:
    publish("bert", tmp_path / "bert")
    bundle = trained(text=f"hf:{tmp_path / 'bert'}", vision="none", tune=policy)
    before = scores(Recommender.load(bundle), Preprocessor.load(bundle), target)
    if policy == "side":
        with pytest.raises(UserError, match="side"):
            transferred(bundle, target, "--tune", "full")
        model, preprocessor = transferred(bundle, target)
    else:
        # low-rank updates become part of the weights they were beside
        model, preprocessor = transferred(bundle, target, "--tune", "full")
        assert not any("lora" in name for name, _ in model.named_parameters())
    assert torch.allclose(scores(model, preprocessor, target), before, atol=1e-5)
    assert before.std() > 0.01


def test_learned_vectors_start_anew_and_all_beside_them_comes_along(
    trained: Callable[..., Path], target: Domain, capsys: pytest.CaptureFixture[str]
) -> None:
    for sequence in ("fdsa", "carca"):
        model, _ = transferred(trained(item="both", sequence=sequence), target)
        found = said(capsys)
        assert found.pop("items").startswith("starts anew another domain's items")
        assert set(found.values()) == {"loaded"}
        assert {"text", "vision", "fusion", "sequence_encoder"} <= found.keys()
        assert model.trained_on == [], "it knows the items of the new domain only"


def test_content_goes_in_and_out_from_beside_learned_vectors(
    trained: Callable[..., Path], target: Domain, capsys: pytest.CaptureFixture[str]
) -> None:
    transferred(trained(fusion="concat"), target, "--item", "both", "--sequence", "carca")
    found = said(capsys)
    assert found["text"] == found["vision_projection"] == found["fusion"] == "loaded"
    assert found["sequence_encoder"].startswith("starts anew the source has sequence sasrec, not carca")
    transferred(trained(item="both", sequence="fdsa", fusion="concat"), target, "--item", "content", *_SASREC)
    found = said(capsys)
    assert found["text"] == found["fusion"] == "loaded"


_SASREC = ("--sequence", "sasrec")


def test_codes_come_along_with_their_codebook(
    trained: Callable[..., Path], target: Domain, small_domain: Domain, tmp_path: Path
) -> None:
    text = f"hf:{write_bert(tmp_path / 'bert', small_domain)}"
    bundle = trained(item="codes", text=text, num_codes=4, code_values=8)
    expected = scores(Recommender.load(bundle), Preprocessor.load(bundle), target)
    assert torch.equal(scores(*transferred(bundle, target), target), expected)

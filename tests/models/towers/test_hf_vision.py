"""Vision towers of transformers against the library's own forward, from files as they are published; hidden patches."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, CLIPConfig, CLIPModel, ViTForImageClassification

from mmsr_pt.batch import ImageSpec
from mmsr_pt.config import ModelConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.towers.hf import from_architecture
from mmsr_pt.models.towers.tower import Activations
from mmsr_pt.models.towers.vision import build_vision_tower, vision_tower_from_config
from tests.models.towers.small import (
    HF_IMAGE,
    HF_VISION_STEPPED,
    HF_VISION_WHOLE,
    hf_vision_tower,
    make,
    perturb,
    pictures,
    relative_error,
    timm_tower,
)


@pytest.mark.parametrize("name", [*HF_VISION_STEPPED, *HF_VISION_WHOLE])
def test_equals_the_librarys_own_last_hidden_state(name):
    torch.manual_seed(0)
    tower = hf_vision_tower(name).eval()
    perturb(tower)
    own = from_architecture({**HF_VISION_STEPPED, **HF_VISION_WHOLE}[name].to_dict()).eval()
    weights = {key.removeprefix("backbone."): value for key, value in tower.state_dict().items()}
    _, unexpected = own.load_state_dict(weights, strict=False)
    assert not unexpected
    images = pictures(tower, 2).hidden
    mean, std = (torch.tensor(HF_IMAGE[key])[:, None, None] for key in ("mean", "std"))
    more = {}
    if name == "vit_mae":
        own.config.mask_ratio = 0.0
        more["noise"] = torch.arange(16.0).expand(2, -1)
    expected = own((images / 255 - mean) / std, **more).last_hidden_state
    if expected.ndim == 4:
        expected = expected.flatten(2).transpose(1, 2)
    found = tower(Activations(images)).hidden
    assert found.shape == expected.shape
    assert relative_error(found, expected) < 1e-4


@pytest.fixture
def small_vit(tmp_path):
    """A classifier in a directory as the hub has one."""
    torch.manual_seed(0)
    model = ViTForImageClassification(HF_VISION_STEPPED["vit"])
    model.save_pretrained(tmp_path)
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3, "size": 99}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path, model


def test_a_directory_gives_its_weights_and_what_its_pictures_look_like(small_vit):
    directory, model = small_vit
    tower = build_vision_tower(f"hf:{directory}")
    spec = ImageSpec(32, 32, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert tower.image_spec == spec, "the size is the model's: its positions are learned for it"
    key = "layers.1.layernorm_before.weight"
    assert torch.equal(tower.backbone.get_parameter(key), model.vit.get_parameter(key))
    assert tower.out_dim == 16


def test_without_an_image_processor_pictures_are_scaled_as_the_paper_does(small_vit):
    directory, _ = small_vit
    (directory / "preprocessor_config.json").unlink()
    spec = build_vision_tower(f"hf:{directory}").image_spec
    assert spec == ImageSpec(32, 32, "bilinear", (0.5,) * 3, (0.5,) * 3)


def test_of_a_model_of_pictures_and_texts_the_vision_side_is_taken(tmp_path):
    torch.manual_seed(0)
    vision = HF_VISION_STEPPED["clip_vision_model"].to_dict()
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config={**text, "vocab_size": 20}, projection_dim=8)).eval()
    model.save_pretrained(tmp_path)
    tower = build_vision_tower(f"hf:{tmp_path}").eval()
    images = pictures(tower, 2).hidden
    expected = model.vision_model(pixel_values=tower.pixels(images)).last_hidden_state
    assert relative_error(tower(Activations(images)).hidden, expected) < 1e-5


def test_a_checkpoint_that_lacks_weights_names_one(small_vit):
    directory, _ = small_vit
    weights = load_file(directory / "model.safetensors")
    kept = {key: value for key, value in weights.items() if ".2." not in key}
    assert len(kept) < len(weights)
    save_file(kept, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"--vision hf:.* lacks \d+ weights of ViTModel \(layers\.2\."):
        build_vision_tower(f"hf:{directory}")


def test_a_text_model_is_no_vision_model(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="bert is no vision model"):
        build_vision_tower(f"hf:{tmp_path}")


def test_a_directory_that_is_not_there_is_not_looked_for_on_the_hub():
    with pytest.raises(UserError, match="--vision hf:/not/there: there is no such directory"):
        build_vision_tower("hf:/not/there")


@pytest.mark.parametrize("name", HF_VISION_STEPPED)
def test_a_stem_is_what_the_first_block_of_the_whole_model_would_read(name, tmp_path):
    torch.manual_seed(0)
    own = from_architecture(HF_VISION_STEPPED[name].to_dict()).eval()
    perturb(own)
    own.save_pretrained(tmp_path)
    tower = build_vision_tower(f"stem:hf:{tmp_path}").eval()
    images = pictures(tower, 2).hidden
    more = {}
    if name == "vit_mae":
        own.config.mask_ratio = 0.0
        more["noise"] = torch.arange(16.0).expand(2, -1)
    expected = own(tower.pixels(images), output_hidden_states=True, **more).hidden_states[0]
    found = tower(Activations(images)).hidden
    assert found.shape == expected.shape == (2, tower.num_special_tokens + 16, 16)
    assert relative_error(found, expected) < 1e-6
    assert list(tower.layer_groups()) == ["stem"]
    weights = {key.removeprefix("backbone.") for key in tower.state_dict()}
    assert {key.split(".")[0] for key in weights} <= {"embeddings", "pre_layrnorm"}, "nothing of what follows is left"
    again = vision_tower_from_config(json.loads(json.dumps(tower.config())))
    again.load_state_dict(tower.state_dict(), strict=True)
    assert torch.equal(again.eval()(Activations(images)).hidden, found)
    assert again.image_spec == tower.image_spec


def test_a_stem_of_a_model_of_pictures_and_texts_is_that_of_its_vision_side(tmp_path):
    torch.manual_seed(0)
    vision = HF_VISION_STEPPED["clip_vision_model"].to_dict()
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config={**text, "vocab_size": 20}, projection_dim=8)).eval()
    model.save_pretrained(tmp_path)
    tower = build_vision_tower(f"stem:hf:{tmp_path}").eval()
    images = pictures(tower, 2).hidden
    seen = model.vision_model(pixel_values=tower.pixels(images), output_hidden_states=True).hidden_states[0]
    assert relative_error(tower(Activations(images)).hidden, seen) < 1e-6


def test_only_vision_transformers_of_transformers_give_their_stem(tmp_path):
    from_architecture(HF_VISION_WHOLE["hf-swin"].to_dict()).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"stem:hf:.*: swin is not known to begin .*; give a model of clip_vision_model,"
    ):
        build_vision_tower(f"stem:hf:{tmp_path}")
    with pytest.raises(UserError, match=r"--vision stem:timm:test_vit: only .* write stem:hf:NAME_OR_DIR"):
        build_vision_tower("stem:timm:test_vit")
    with pytest.raises(UserError, match="hf:/not/there: there is no such directory"):
        build_vision_tower("stem:hf:/not/there")
    with pytest.raises(UserError, match="unknown vision tower 'stem:'"):
        build_vision_tower("stem:")


PATCHES = {"vit_mae": 1, "deit": 2, "siglip_vision_model": 0, "stem-vit": 1, "test_vit": 1, "test_vit3": None}
"""Tower -> special tokens in front of its patches."""


def masked(name, ratio=0.75, in_evaluation=False):
    tower = make("vision", name)
    tower.hide_patches(ratio, in_evaluation)
    return tower


@pytest.mark.parametrize("name", PATCHES)
def test_training_sees_a_quarter_of_the_patches_and_evaluation_all(name):
    tower = masked(name).train()
    inputs = pictures(tower, 3)
    whole = make("vision", name).eval()(inputs).hidden
    special = tower.num_special_tokens
    assert PATCHES[name] in (special, None)
    num_patches = whole.shape[1] - special
    assert tower(inputs).hidden.shape[1] == special + num_patches // 4
    assert torch.equal(tower.eval()(inputs).hidden, whole)


def test_hidden_patches_are_drawn_anew_for_each_picture_and_step_and_the_rest_is_as_it_was():
    tower = masked("deit").train()
    tokens = torch.randn(4, 2 + 16, 3)
    first, second = tower._hide(tokens, None), tower._hide(tokens, None)
    assert first.shape == (4, 2 + 4, 3)
    assert torch.equal(first[:, :2], tokens[:, :2])
    kept = [[tokens[row].eq(token).all(dim=1).nonzero().item() for token in first[row]] for row in range(4)]
    assert all(len(set(places)) == 6 for places in kept)
    assert len({tuple(sorted(places)) for places in kept}) > 1
    assert not torch.equal(first, second)


def test_every_patch_stays_as_often_as_any_other():
    tower = masked("vit_mae", 0.5).train()
    tokens = torch.arange(17.0).expand(2000, 17)[..., None]
    counts = tower._hide(tokens, None)[:, 1:].flatten().long().bincount(minlength=17)[1:]
    assert counts.sum() == 2000 * 8
    assert (counts - 1000).abs().max() < 5 * 500**0.5, "binomial, five standard deviations"


def test_evaluation_hides_too_where_it_is_asked_to():
    tower = masked("vit_mae", in_evaluation=True).eval()
    inputs = pictures(tower, 2)
    assert tower(inputs).hidden.shape[1] == 1 + 4
    assert not torch.equal(tower(inputs).hidden, tower(inputs).hidden)


@pytest.mark.parametrize("policy", ["top:1", "frozen"])
@pytest.mark.parametrize("name", ["vit_mae", "test_vit"])
def test_what_can_be_kept_ends_below_the_hiding(name, policy):
    tower = masked(name)
    tower.tune(policy)
    tower.train()
    inputs = pictures(tower, 2)
    kept = tower.prefix(inputs)
    assert torch.equal(kept.hidden, tower.prefix(inputs).hidden)
    torch.manual_seed(3)
    cut = tower.suffix(kept).hidden
    torch.manual_seed(3)
    assert torch.equal(tower(inputs).hidden, cut)
    assert not torch.equal(tower.suffix(kept).hidden, cut), "other patches every time"
    trained = tower.trained_groups
    for group, names in tower.layer_groups().items():
        assert all(tower.get_parameter(name).requires_grad == (group in trained) for name in names)


def test_a_tower_without_patches_has_none_to_hide():
    with pytest.raises(UserError, match=r"--patch_mask 0.75: SteppedTimm has no patches to hide"):
        timm_tower("test_efficientnet").hide_patches(0.75, False)
    timm_tower("test_efficientnet").hide_patches(0.0, False)


def test_side_networks_and_hidden_patches_exclude_each_other():
    with pytest.raises(UserError, match="--patch_mask 0.5 does not go with side tuning"):
        ModelConfig(patch_mask=0.5, vision_tune="side")

"""The towers of the paper, by their public configurations and with random weights: how much they are and give."""

import pytest
import timm
import torch
from transformers import (
    BertConfig,
    CLIPVisionConfig,
    ElectraConfig,
    PretrainedConfig,
    RobertaConfig,
    ViTMAEConfig,
    XLMRobertaConfig,
)

from mmsr_pt.models.towers.text import text_tower_from_config
from mmsr_pt.models.towers.vision import vision_tower_from_config
from tests.models.towers.small import pictures, titles

HALF = {"height": 224, "width": 224, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
BLOCK = 4 * (768 * 768 + 768) + 2 * (768 * 3072) + 3072 + 768 + 2 * 2 * 768
"""Weights of a transformer block of width 768: four maps of attention, two of the perceptron, two norms."""


def timm_tower(architecture, **model_args):
    config = {"kind": "timm", "architecture": architecture, "model_args": model_args, "pretrained_cfg": None}
    return vision_tower_from_config(config).eval()


def hf_vision(config, **changes):
    return vision_tower_from_config({"kind": "hf", "config": {**config.to_dict(), **changes}, "image": HALF})


def count(tower, groups=None):
    chosen = tower.layer_groups() if groups is None else groups
    return sum(tower.get_parameter(name).numel() for group in chosen for name in tower.layer_groups()[group])


@torch.no_grad()
def test_resnet50_gives_its_grid_of_49():
    tower = timm_tower("resnet50")
    assert (tower.image_spec.height, tower.image_spec.width) == (224, 224)
    assert tower.out_dim == 2048
    assert list(tower.layer_groups()) == ["stem", *(f"block.{i}" for i in range(3 + 4 + 6 + 3))]
    assert count(tower) == 25_557_032 - (2048 * 1000 + 1000), "torchvision's number without the classifier"
    tokens = tower(pictures(tower, 1)).hidden
    assert tokens.shape == (1, 49, 2048)
    grid = timm.create_model("resnet50", num_classes=0).eval()
    grid.load_state_dict({name.removeprefix("backbone."): value for name, value in tower.state_dict().items()})
    expected = grid.forward_features(tower.pixels(pictures(tower, 1).hidden))
    assert torch.allclose(tokens[0, 7 * 2 + 5], expected[0, :, 2, 5], atol=1e-5)


@torch.no_grad()
def test_swin_base_gives_49_tokens():
    with torch.device("meta"):
        assert len(timm_tower("swin_base_patch4_window7_224").layer_groups()) == 1 + 2 + 2 + 18 + 2
    tower = timm_tower("swin_base_patch4_window7_224", depths=[1, 1, 1, 1])
    assert tower.image_spec.height == 224
    assert tower(pictures(tower, 1)).hidden.shape == (1, 49, 1024)
    assert tower.out_dim == 1024


def test_vit_mae_base_sees_50_tokens_in_training_and_197_in_evaluation():
    with torch.device("meta"):
        whole = hf_vision(ViTMAEConfig())
    patches, positions = 3 * 16 * 16 * 768 + 768, 197 * 768
    assert count(whole) == 768 + positions + patches + 12 * BLOCK + 2 * 768
    tower = hf_vision(ViTMAEConfig(), num_hidden_layers=1)
    tower.hide_patches(0.75, in_evaluation=False)
    inputs = pictures(tower, 2)
    assert tower.train()(inputs).hidden.shape == (2, 1 + 49, 768)
    assert tower.eval()(inputs).hidden.shape == (2, 1 + 196, 768)


def test_the_patch_embedding_of_clip_is_a_convolution_positions_and_a_norm():
    tower = hf_vision(CLIPVisionConfig(patch_size=16), num_hidden_layers=0).eval()
    assert count(tower) == 768 + 3 * 16 * 16 * 768 + 197 * 768 + 2 * 768
    assert tower(pictures(tower, 2)).hidden.shape == (2, 197, 768)


BASES: dict[str, tuple[PretrainedConfig, int]] = {
    "bert-base-uncased": (BertConfig(), 30_522 + 512 + 2),
    "roberta-base": (
        RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1),
        50_265 + 514 + 1,
    ),
    "xlm-roberta-base": (
        XLMRobertaConfig(vocab_size=250_002, max_position_embeddings=514, type_vocab_size=1),
        250_002 + 514 + 1,
    ),
    "electra-base-discriminator": (
        ElectraConfig(embedding_size=768, hidden_size=768, num_attention_heads=12, intermediate_size=3072),
        30_522 + 512 + 2,
    ),
}
"""Name -> its published configuration, and how many vectors it has embedded: tokens, positions, types."""


@pytest.mark.parametrize("name", BASES)
def test_text_towers_of_base_size(name):
    config, num_vectors = BASES[name]
    with torch.device("meta"):
        tower = text_tower_from_config({"kind": "hf", "config": config.to_dict()})
    assert tower.out_dim == 768
    assert list(tower.layer_groups()) == ["embeddings", *(f"block.{i}" for i in range(12))]
    assert count(tower) == (num_vectors + 2) * 768 + 12 * BLOCK
    tower.tune("top:2")
    assert count(tower, tower.trained_groups) == 2 * BLOCK
    assert sum(p.numel() for p in tower.parameters() if p.requires_grad) == 2 * BLOCK


@pytest.mark.parametrize("name", BASES)
def test_text_towers_of_base_width_run(name):
    config = {**BASES[name][0].to_dict(), "num_hidden_layers": 1, "vocab_size": 100}
    tower = text_tower_from_config({"kind": "hf", "config": config}).eval()
    inputs = titles([5, 3], padded_to=5, pad_id=config["pad_token_id"])
    assert tower(inputs).hidden.shape == (2, 5, 768)

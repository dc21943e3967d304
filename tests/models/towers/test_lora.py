"""Low-rank updates: nothing changes at the start, only they train, and a bundle holds them."""

import pytest
import torch
from torch import nn

from mmsr_pt.config import ModelConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.layer_groups import LayerGroup
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.models.towers.side import tuned
from tests.models.towers.small import HF_CONFIGS, NEVER_TRAINS, STEMS, TEXT, VISION, inputs_for, make

CONVOLUTIONAL = {"test_efficientnet", "tf_efficientnet_lite0", "test_resnet", "test_nfnet", "hf-resnet"}
WITH_LINEAR = [("text", name) for name in TEXT if name != "tiny"]
WITH_LINEAR += [("vision", name) for name in VISION if name not in {"tiny", *CONVOLUTIONAL, *NEVER_TRAINS, *STEMS}]
towers = pytest.mark.parametrize(("modality", "name"), WITH_LINEAR, ids=[f"{m}-{n}" for m, n in WITH_LINEAR])


@towers
def test_at_the_start_the_tower_is_what_it_was(modality, name):
    plain = make(modality, name).eval()
    updated = tuned(make(modality, name), "lora:2", 8).eval()
    inputs = inputs_for(plain)
    assert torch.allclose(updated(inputs).hidden, plain(inputs).hidden, atol=1e-6)


@towers
def test_exactly_the_updates_get_a_gradient(modality, name):
    tower = tuned(make(modality, name), "lora:2", 8).train()
    with torch.no_grad():
        for parameter_name, parameter in tower.named_parameters():
            if ".lora_B." in parameter_name:
                parameter.normal_(std=0.1)  # at zero, A gets none
    tower(inputs_for(tower)).hidden.square().sum().backward()
    groups = tower.layer_groups()
    assert sorted(n for names in groups.values() for n in names) == sorted(n for n, _ in tower.named_parameters())
    assert tower.trained_groups == {group for group in groups if group.endswith(".lora")} != set()
    for group, names in groups.items():
        assert names, group
        for parameter_name in names:
            parameter = tower.get_parameter(parameter_name)
            is_update = group in tower.trained_groups
            assert (".lora_" in parameter_name) == is_update == parameter.requires_grad
            assert (parameter.grad is not None) == is_update, parameter_name
        assert tower.is_pretrained(group) != group.endswith(".lora"), "updates start from nothing, so they learn faster"


@towers
def test_suffix_of_prefix_is_forward(modality, name):
    tower = tuned(make(modality, name), "lora:2", 8).eval()
    inputs = inputs_for(tower)
    assert torch.equal(tower.suffix(tower.prefix(inputs)).hidden, tower(inputs).hidden)


def test_every_linear_map_of_the_blocks_has_an_update_of_its_rank():
    tower = tuned(make("text", "bert"), "lora:3", 8)
    plain = make("text", "bert")
    linear = {n: m for n, m in plain.named_modules() if isinstance(m, nn.Linear) and ".layer." in n}
    assert len(linear) == 3 * 6
    for name, module in linear.items():
        updated = tower.get_submodule(name)
        assert updated.lora_A["default"].weight.shape == (3, module.in_features)
        assert updated.lora_B["default"].weight.shape == (module.out_features, 3)
    assert sum(".lora_" in name for name, _ in tower.named_parameters()) == 2 * len(linear)
    # the embeddings stay as they are and can be kept
    assert tower.num_prefix_steps() == 1


def test_an_update_is_twice_b_times_a():
    tower = tuned(make("text", "bert"), "lora:2", 8).eval()
    layer = tower.get_submodule("backbone.encoder.layer.0.attention.self.query")
    nn.init.normal_(layer.lora_B["default"].weight)
    inputs = torch.randn(5, 16)
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = layer.base_layer(inputs) + 2 * inputs @ update.T
    assert torch.allclose(layer(inputs), expected, atol=1e-5)


@pytest.mark.parametrize("name", sorted(CONVOLUTIONAL))
def test_a_convolutional_net_has_nothing_to_update(name):
    with pytest.raises(UserError, match=r"lora:2: .* has no linear maps in its blocks; tune it with"):
        tuned(make("vision", name), "lora:2", 8)


@pytest.mark.parametrize("policy", ["lora:0", "lora:", "lora:x", "lora:-1"])
def test_a_rank_is_a_number_above_0(policy):
    with pytest.raises(UserError, match=r"unknown tuning policy .*: give lora:R"):
        tuned(make("text", "bert"), policy, 8)


def test_a_bundle_holds_the_updates(tmp_path):
    directory = tmp_path / "bert"
    from transformers import AutoModel

    AutoModel.from_config(HF_CONFIGS["bert"]).save_pretrained(directory)
    config = ModelConfig(text=f"hf:{directory}", vision="none", tune="lora:2", width=8, fusion_heads=2, title_tokens=8)
    model = Recommender.build(config, vocab_size=60)
    groups: list[LayerGroup] = model.layer_groups()
    kinds = {group.name.rpartition(".")[2]: group.kind for group in groups if group.name.startswith("text.block.")}
    assert kinds == {"0": "text", "1": "text", "2": "text", "lora": "rest"}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    model.save(tmp_path / "bundle")
    again = Recommender.load(tmp_path / "bundle")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert any(".lora_A." in name for name in again.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name

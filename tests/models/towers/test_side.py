"""Side networks: the promises of towers, kept over every tower, and IISAN's formulas."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel

from mmsr_pt.config import OptimConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.towers.side import SideNetwork, SideTower, tuned, with_side
from mmsr_pt.models.towers.text import text_tower_from_config
from mmsr_pt.models.towers.tower import Activations
from mmsr_pt.models.towers.vision import vision_tower_from_config
from mmsr_pt.models.towers.vision_tower import VisionTower
from mmsr_pt.models.towers.whole import WholeTower
from mmsr_pt.training.optim import param_groups
from tests.models.test_recommender import with_towers
from tests.models.towers.small import (
    HF_CONFIGS,
    TEXT,
    VISION,
    hf_tower,
    inputs_for,
    make,
    perturb,
    relative_error,
    titles,
)

ALL = [("text", name) for name in TEXT if name != "tiny"] + [("vision", name) for name in VISION if name != "tiny"]
every_tower = pytest.mark.parametrize(("modality", "name"), ALL, ids=[f"{m}-{n}" for m, n in ALL])
WIDTH = 12


def make_side(modality, name):
    tower = tuned(make(modality, name), "side", WIDTH)
    perturb(tower.side)
    return tower


def only(inputs, rows):
    return Activations(*(None if part is None else part[rows] for part in inputs))


@every_tower
def test_gives_a_token_for_each_depth(modality, name):
    tower = make_side(modality, name)
    assert isinstance(tower, SideTower)
    assert isinstance(tower, VisionTower) == (modality == "vision")
    inputs = inputs_for(tower)
    tokens, mask = tower(inputs)
    assert tokens.shape == (3, len(tower.depths), WIDTH)
    assert tower.out_dim == WIDTH
    assert tokens.isfinite().all()
    assert (mask is None) == (modality == "vision")
    if mask is not None:
        assert mask.shape == tokens.shape[:2]
        assert mask.all()


@every_tower
def test_the_prefix_is_one_vector_an_item_of_the_promised_width(modality, name):
    tower = make_side(modality, name)
    hidden, mask = tower.prefix(inputs_for(tower))
    assert tower.is_pooled
    assert hidden.shape == (3, 1, sum(tower.depths.values()))
    assert mask is None if modality == "vision" else torch.equal(mask, torch.ones(3, 1, dtype=torch.bool))
    assert not hidden.requires_grad


@every_tower
def test_suffix_of_prefix_is_forward_and_nothing_drops_out(modality, name):
    tower = make_side(modality, name)
    inputs = inputs_for(tower)
    expected = tower.eval()(inputs).hidden
    for training in (False, True):
        tower.train(training)
        kept = tower.prefix(inputs)
        assert torch.equal(tower.suffix(kept).hidden, expected)
        assert torch.equal(tower(inputs).hidden, expected)
        # what a cache gives back, item by item
        assert torch.allclose(tower.suffix(only(kept, [2, 0])).hidden, expected[[2, 0]], atol=1e-6)


@every_tower
def test_exactly_the_side_network_gets_gradients(modality, name):
    tower = make_side(modality, name).train()
    assert tower.trained_groups == {"side"}
    tower(inputs_for(tower)).hidden.square().sum().backward()
    groups = tower.layer_groups()
    assert list(groups) == ["tower", "side"]
    assert sorted(groups["tower"] + groups["side"]) == sorted(parameter for parameter, _ in tower.named_parameters())
    for group, names in groups.items():
        for parameter in map(tower.get_parameter, names):
            assert parameter.ndim > 0
            assert parameter.requires_grad == (group == "side")
            assert (parameter.grad is not None) == (group == "side")
            assert parameter.grad is None or parameter.grad.isfinite().all()
    assert all(block.gate.grad.abs() > 0 for block in tower.side.blocks)


@every_tower
def test_the_state_of_the_prefix_is_all_but_the_side_network(modality, name):
    tower = make_side(modality, name)
    everything = {**dict(tower.named_parameters()), **dict(tower.named_buffers())}
    assert set(tower.prefix_state()) == {name for name in everything if name.startswith("tower.")}


@every_tower
def test_other_items_of_the_batch_change_nothing(modality, name):
    tower = make_side(modality, name)
    inputs = inputs_for(tower)
    tokens = tower(inputs).hidden
    for i in range(3):
        assert relative_error(tower(only(inputs, slice(i, i + 1))).hidden[0], tokens[i]) < 1e-4


@pytest.mark.parametrize("name", [name for name in TEXT if name != "tiny"])
def test_padding_of_a_title_changes_nothing(name):
    tower = make_side("text", name)
    pad_id = 1 if "roberta" in name else 0
    short, long = titles([4, 2], 4, pad_id), titles([4, 2], 9, pad_id)
    garbage = Activations(torch.where(long.mask, long.hidden, 7), long.mask)
    for padded in (long, garbage):
        assert torch.allclose(tower(padded).hidden, tower(short).hidden, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("cast_buffers", [True, False], ids=["all", "weights"])
@every_tower
def test_runs_and_trains_in_bfloat16(modality, name, cast_buffers):
    tower = make_side(modality, name).train()
    if cast_buffers:
        tower.bfloat16()
    for parameter in tower.parameters():
        parameter.data = parameter.data.bfloat16()
    tokens = tower(inputs_for(tower)).hidden
    assert tokens.dtype == torch.bfloat16
    tokens.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in tower.side.parameters())


@every_tower
def test_is_built_again_from_its_configuration(modality, name):
    tower = make_side(modality, name)
    build = {"text": text_tower_from_config, "vision": vision_tower_from_config}[modality]
    again = build(json.loads(json.dumps(tower.config())))
    again.load_state_dict(tower.state_dict(), strict=True)
    assert again.trained_groups == {"side"}
    inputs = inputs_for(tower)
    assert torch.equal(again.eval()(inputs).hidden, tower.eval()(inputs).hidden)
    assert again.config() == tower.config()


def test_states_are_the_means_of_the_librarys_hidden_states():
    tower = make_side("text", "bert")
    inputs = inputs_for(tower)
    reference = BertModel(HF_CONFIGS["bert"], add_pooling_layer=False).eval()
    reference.load_state_dict(tower.tower.backbone.state_dict())
    with torch.no_grad():
        hidden = reference(inputs.hidden, inputs.mask.long(), output_hidden_states=True).hidden_states
    # embeddings and three blocks: four groups, of which the first, the third and the last
    assert list(tower.depths) == ["embeddings", "block.1", "block.2"]
    expected = []
    for i in range(3):
        for state in (hidden[0], hidden[2], hidden[3]):
            expected.append(F.layer_norm(state[i][inputs.mask[i]].mean(dim=0), (16,)))
    assert torch.allclose(tower.prefix(inputs).hidden.view(9, 16), torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "test_efficientnet", "test_vit", "test_resnet"])
def test_states_are_the_means_over_a_grid_in_either_layout(name):
    tower = make_side("vision", name)
    backbone, seen = tower.tower.backbone, {}
    for step in tower.tower.steps():
        for part in step.parts:
            try:
                module = tower.tower.get_submodule(part)
            except AttributeError:  # a class token is a parameter
                continue
            module.register_forward_hook(lambda _, __, output, group=step.group: seen.update({group: output}))
    states = tower.prefix(inputs_for(tower)).hidden[:, 0].split(list(tower.depths.values()), dim=1)
    is_channels_last = isinstance(backbone, timm.models.SwinTransformer)
    for (group, width), state in list(zip(tower.depths.items(), states))[1:]:
        channels = seen[group] if seen[group].ndim == 3 or is_channels_last else seen[group].permute(0, 2, 3, 1)
        assert state.shape == (3, width)
        assert torch.allclose(state, F.layer_norm(channels.flatten(1, -2).mean(dim=1), (width,)), atol=1e-4)


def test_the_blocks_are_the_formulas_of_the_paper():
    torch.manual_seed(0)
    network = SideNetwork([3, 5], 4)
    perturb(network)
    states = torch.randn(2, 1, 8)
    expected, below = [], torch.zeros(2, 4)
    for block, state in zip(network.blocks, (states[:, 0, :3], states[:, 0, 3:])):
        gate = 1 / (1 + torch.exp(-block.gate / 0.1))
        mixed = gate * (state @ block.map.weight.T + block.map.bias) + (1 - gate) * below
        below = mixed + F.gelu(mixed @ block.down.weight.T + block.down.bias) @ block.up.weight.T + block.up.bias
        expected.append(below)
    assert torch.allclose(network(states), torch.stack(expected, dim=1), atol=1e-6)


def test_a_fresh_network_averages_the_depths():
    network = SideNetwork([4, 4, 4], 4)
    first, second, third = (block.map(torch.ones(1, 4)) for block in network.blocks)
    expected = torch.stack([first / 2, first / 4 + second / 2, first / 8 + second / 4 + third / 2], dim=1)
    assert torch.allclose(network(torch.ones(1, 1, 12)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("num_blocks", "after"),
    [(1, [0, 1]), (2, [0, 2]), (6, [0, 2, 4, 6]), (12, [0, 2, 4, 6, 8, 10, 12]), (24, [0, 4, 8, 12, 16, 20, 24])],
)
def test_depths_are_every_other_block_and_at_most_seven(num_blocks, after):
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}
    config = BertConfig(num_hidden_layers=num_blocks, **sizes)
    tower = with_side(text_tower_from_config({"kind": "hf", "config": config.to_dict()}), WIDTH)
    names = ["embeddings", *(f"block.{i}" for i in range(num_blocks))]
    assert list(tower.depths) == [names[i] for i in after]


@pytest.mark.parametrize(("modality", "name"), [("text", "t5"), ("vision", "test_mambaout")])
def test_a_tower_of_one_piece_has_one_depth_and_says_so(modality, name, caplog):
    with caplog.at_level("INFO"):
        tower = make_side(modality, name)
    assert isinstance(tower.tower, WholeTower)
    assert tower.depths == {"whole": tower.tower.out_dim}
    assert "last hidden state only" in caplog.text


@pytest.mark.parametrize("modality", ["text", "vision"])
def test_an_untrained_tower_trains_in_full_without_a_side_network(modality):
    tower = make(modality, "tiny")
    assert tuned(tower, "side", WIDTH) is tower
    assert tower.trained_groups == set(tower.layer_groups())
    assert all(parameter.requires_grad for parameter in tower.parameters())


def test_a_side_network_stays_and_takes_no_other_policy():
    tower = make_side("text", "bert")
    assert tuned(tower, "side", 99) is tower
    for policy in ("top:2", "frozen", "full", "sid"):
        with pytest.raises(UserError, match="give side"):
            tuned(tower, policy, WIDTH)


def test_its_weights_take_the_rate_and_the_decay_of_the_rest():
    model = with_towers(hf_tower("bert"), None, vision="none", tune="side")
    config = OptimConfig(lr=1.0, text_lr=2.0, weight_decay=3.0, encoder_weight_decay=4.0)
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in param_groups(model, config) for p in g["params"]}
    side = model.item_encoder.text.side.blocks[0]
    assert settings[id(side.map.weight)] == settings[id(side.up.weight)] == (1.0, 3.0)
    assert settings[id(side.gate)] == settings[id(side.map.bias)] == (1.0, 0.0)
    assert not any(id(p) in settings for p in model.item_encoder.text.tower.parameters())


def test_measuring_leaves_batch_statistics_alone():
    tower = make("vision", "test_efficientnet").train()
    before = {name: value.clone() for name, value in tower.named_buffers()}
    with_side(tower, WIDTH)
    assert all(torch.equal(value, before[name]) for name, value in tower.named_buffers())

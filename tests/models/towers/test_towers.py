"""Every tower keeps the same promises: groups, freezing, the cut, independence of batch and padding, reloading."""

import copy
import json

import pytest
import torch

from mmsr_pt.log import UserError
from mmsr_pt.models.towers.text import text_tower_from_config
from mmsr_pt.models.towers.tower import Activations
from mmsr_pt.models.towers.vision import vision_tower_from_config
from mmsr_pt.models.towers.whole import WholeTower
from tests.models.towers.small import NEVER_TRAINS, STEMS, TEXT, VISION, inputs_for, make, relative_error, titles

ALL = [("text", name) for name in TEXT] + [("vision", name) for name in VISION]
every_tower = pytest.mark.parametrize(("modality", "name"), ALL, ids=[f"{m}-{n}" for m, n in ALL])
PRETRAINED = [case for case in ALL if case[1] != "tiny"]
pretrained_towers = pytest.mark.parametrize(("modality", "name"), PRETRAINED, ids=[f"{m}-{n}" for m, n in PRETRAINED])


def rebuilt(modality, config):
    return {"text": text_tower_from_config, "vision": vision_tower_from_config}[modality](config)


@every_tower
def test_tokens_are_finite_and_of_the_promised_width(modality, name):
    tower = make(modality, name).eval()
    inputs = inputs_for(tower)
    tokens, mask = tower(inputs)
    assert tokens.ndim == 3
    assert tokens.shape[0] == 3
    assert tokens.shape[2] == tower.out_dim
    assert tokens.isfinite().all()
    if modality == "text":
        assert tokens.shape[:2] == mask.shape
        assert mask is inputs.mask
    else:
        assert mask is None


@every_tower
def test_layer_groups_are_an_ordered_complete_partition(modality, name):
    tower = make(modality, name)
    groups = tower.layer_groups()
    names = [parameter for group in groups.values() for parameter in group]
    assert sorted(names) == sorted(parameter for parameter, _ in tower.named_parameters())
    bottom, *blocks = groups
    assert bottom in ("embeddings", "stem")
    assert blocks == [f"block.{i}" for i in range(len(blocks))]
    assert all(groups.values()), "a group without parameters would be an optimizer group without a rate"


@every_tower
def test_no_parameter_is_zero_dimensional(modality, name):
    assert all(parameter.ndim > 0 for parameter in make(modality, name).parameters())


@pytest.mark.parametrize("policy", ["top:1", "top:2", "full", "frozen", "top:99"])
@every_tower
def test_exactly_the_trained_parameters_get_a_gradient(modality, name, policy):
    tower = make(modality, name)
    tower.tune(policy)
    tower.train()
    groups = tower.layer_groups()
    wanted = {"top:1": 1, "top:2": 2, "full": len(groups), "frozen": 0, "top:99": len(groups)}[policy]
    if name == "tiny":
        wanted = len(groups)  # random weights are of no use frozen
    elif name in NEVER_TRAINS:
        wanted = 0
    elif policy.startswith("top:"):
        num_blocks = len(groups) - 1
        wanted = wanted if wanted <= num_blocks else len(groups)
    assert tower.trained_groups == set(list(groups)[len(groups) - wanted :])
    tokens = tower(inputs_for(tower)).hidden
    if wanted:
        tokens.square().sum().backward()
    for group, names in groups.items():
        for parameter in names:
            gradient = tower.get_parameter(parameter).grad
            assert (gradient is not None) == (group in tower.trained_groups), parameter
            assert tower.get_parameter(parameter).requires_grad == (group in tower.trained_groups)
            assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("policy", ["top:1", "top:2", "full", "frozen"])
@every_tower
def test_suffix_of_prefix_is_forward(modality, name, policy):
    tower = make(modality, name)
    whole = tower.eval()(inputs_for(tower))
    tower.tune(policy)
    for training in (False, True):
        tower.train(training)
        inputs = inputs_for(tower)
        torch.manual_seed(7)
        cut = tower.suffix(tower.prefix(inputs))
        torch.manual_seed(7)
        assert torch.equal(cut.hidden, tower(inputs).hidden)
        if not training:
            # without gradients torch may choose another kernel
            assert torch.allclose(cut.hidden, whole.hidden, atol=1e-5), "freezing must not change what is computed"


@pretrained_towers
def test_the_prefix_is_the_frozen_part_and_does_not_drop_out(modality, name):
    tower = make(modality, name)
    tower.tune("top:1")
    tower.train()
    inputs = inputs_for(tower)
    first, second = tower.prefix(inputs), tower.prefix(inputs)
    assert torch.equal(first.hidden, second.hidden)
    assert not first.hidden.requires_grad
    assert tower.has_prefix == (not isinstance(tower, WholeTower) and name not in STEMS)
    if tower.has_prefix:
        assert first.hidden.shape[0] == 3
        assert first.hidden.is_floating_point(), "the frozen blocks have run"
        # what a cache gives back, item by item, goes on as if it had just been computed
        kept = Activations(first.hidden[[2, 0]], None if first.mask is None else first.mask[[2, 0]])
        tower.eval()
        assert torch.allclose(tower.suffix(kept).hidden, tower(inputs).hidden[[2, 0]], atol=1e-5)


@pretrained_towers
def test_a_frozen_tower_is_all_prefix(modality, name):
    tower = make(modality, name)
    tower.tune("frozen")
    tower.train()
    inputs = inputs_for(tower)
    prefix = tower.prefix(inputs)
    assert torch.equal(tower.suffix(prefix).hidden, prefix.hidden)
    assert torch.equal(prefix.hidden, tower.prefix(inputs).hidden)
    assert not tower(inputs).hidden.requires_grad


@every_tower
def test_other_items_of_the_batch_change_nothing(modality, name):
    tower = make(modality, name)
    tower.tune("top:2")
    tower.eval()
    inputs = inputs_for(tower)
    tokens = tower(inputs).hidden
    for i in range(3):
        alone = tower(Activations(*(None if part is None else part[i : i + 1] for part in inputs))).hidden
        valid = slice(None) if inputs.mask is None else inputs.mask[i]
        assert relative_error(alone[0][valid], tokens[i][valid]) < 1e-4


@pytest.mark.parametrize("name", TEXT)
def test_padding_of_a_title_changes_nothing(name):
    tower = make("text", name).eval()
    pad_id = 1 if "roberta" in name else 0
    short, long = titles([4, 2], 4, pad_id), titles([4, 2], 9, pad_id)
    garbage = Activations(torch.where(long.mask, long.hidden, 7), long.mask)
    tokens = tower(short).hidden
    for padded in (long, garbage):
        found = tower(padded).hidden[:, :4]
        assert torch.allclose(found[short.mask], tokens[short.mask], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_batch_norm_uses_stored_statistics_while_it_trains(name):
    tower = make("vision", name)
    tower.tune("full")
    tower.train()
    before = {key: value.clone() for key, value in tower.named_buffers()}
    inputs = inputs_for(tower)
    tokens = tower(inputs).hidden
    alone = tower(Activations(inputs.hidden[:1])).hidden
    assert torch.allclose(alone[0], tokens[0], atol=2e-5, rtol=1e-4)
    for key, value in tower.named_buffers():
        assert torch.equal(value, before[key]), f"{key} moved"


@pytest.mark.parametrize("cast_buffers", [True, False], ids=["all", "weights"])
@every_tower
def test_runs_and_trains_in_bfloat16(modality, name, cast_buffers):
    """`module.bfloat16()` casts buffers too, DeepSpeed casts weights only."""
    tower = make(modality, name)
    tower.tune("top:2")
    tower.train()
    if cast_buffers:
        tower.bfloat16()
    for parameter in tower.parameters():
        parameter.data = parameter.data.bfloat16()
    tokens = tower(inputs_for(tower)).hidden
    assert tokens.dtype == torch.bfloat16
    assert tokens.requires_grad == (name not in NEVER_TRAINS)
    if tokens.requires_grad:
        tokens.float().square().sum().backward()
    assert tokens.isfinite().all()
    assert all(p.grad.isfinite().all() for p in tower.parameters() if p.requires_grad)


@every_tower
def test_is_built_again_from_its_configuration(modality, name):
    tower = make(modality, name).eval()
    config = json.loads(json.dumps(tower.config()))
    again = rebuilt(modality, config)
    again.load_state_dict(tower.state_dict(), strict=True)
    inputs = inputs_for(tower)
    assert torch.equal(again.eval()(inputs).hidden, tower(inputs).hidden)
    assert again.config() == tower.config()
    if modality == "vision":
        assert again.image_spec == tower.image_spec


@every_tower
def test_a_copy_is_a_tower_of_its_own(modality, name):
    tower = make(modality, name).eval()
    other = copy.deepcopy(tower)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.zero_()
    inputs = inputs_for(tower)
    assert torch.equal(other(inputs).hidden, make(modality, name).eval()(inputs).hidden)


@pytest.mark.parametrize("policy", ["top2", "top:", "top:-1", "top:0", "half", "", "lora", "lora:8"])
def test_an_unknown_policy_says_what_is_allowed(policy):
    with pytest.raises(UserError, match=r"top:K .* full, frozen, side or lora:R"):
        make("text", "bert").tune(policy)


def test_more_blocks_than_there_are_train_everything_and_say_so(caplog):
    tower = make("text", "bert")
    with caplog.at_level("INFO"):
        tower.tune("top:4")
    assert tower.trained_groups == {"embeddings", "block.0", "block.1", "block.2"}
    assert "3 blocks: all of it trains" in caplog.text


def test_as_many_blocks_as_there_are_leave_the_embeddings_frozen():
    tower = make("text", "bert")
    tower.tune("top:3")
    assert tower.trained_groups == {"block.0", "block.1", "block.2"}


@pytest.mark.parametrize(("modality", "name"), [("text", "bert"), ("vision", "test_efficientnet")])
def test_a_prefix_in_pieces_is_the_prefix(modality, name, monkeypatch):
    tower = make(modality, name)
    tower.tune("top:1")
    inputs = inputs_for(tower)
    whole = tower.prefix(inputs).hidden
    monkeypatch.setattr("mmsr_pt.models.towers.tower._PIECE", 2)
    sizes = []
    run = tower._run
    monkeypatch.setattr(tower, "_run", lambda steps, piece: sizes.append(len(piece.hidden)) or run(steps, piece))
    assert torch.allclose(tower.prefix(inputs).hidden, whole, atol=1e-6)
    assert sizes == [2, 1]

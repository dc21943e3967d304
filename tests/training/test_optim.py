"""Parameter groups and the decay of learning rates."""

import dataclasses
import io
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from mmsr_pt.config import READ_BOTH, ModelConfig, OptimConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.models.sequence import sequence_encoders
from mmsr_pt.training.optim import check_gradients, group_table, learning_rate_factor, param_groups
from tests.models.test_recommender import CONFIGS, build, with_towers
from tests.models.towers.small import hf_tower
from tests.training.toy import OPTIM, ToyModel


def names_by_group(model: nn.Module, config: OptimConfig) -> dict[str, set[str]]:
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: {name_of[id(p)] for p in group["params"]} for group in param_groups(model, config)}


def test_every_trained_parameter_is_in_the_group_of_its_kind() -> None:
    assert names_by_group(ToyModel(seed=0), OPTIM) == {
        "text": {"text_top.weight", "text_top.bias"},
        "vision": {"vision_bottom.weight", "vision_bottom.bias", "vision_top.weight", "vision_top.bias"},
        "rest": {"head.weight"},
        "rest_no_decay": {"positions.weight", "norm.weight", "norm.bias", "head.bias"},
    }


def test_each_group_has_its_learning_rate_and_decay() -> None:
    config = OptimConfig(lr=1.0, text_lr=2.0, vision_lr=3.0, weight_decay=4.0, encoder_weight_decay=5.0)
    found = {group["name"]: (group["lr"], group["weight_decay"]) for group in param_groups(ToyModel(seed=0), config)}
    assert found == {"text": (2.0, 5.0), "vision": (3.0, 5.0), "rest": (1.0, 4.0), "rest_no_decay": (1.0, 0.0)}


def test_a_kind_without_trained_parameters_makes_no_group() -> None:
    model = ToyModel(seed=0)
    model.text_top.requires_grad_(False)
    assert list(names_by_group(model, OPTIM)) == ["vision", "rest", "rest_no_decay"]


def test_a_parameter_that_no_layer_group_names_is_our_mistake() -> None:
    model = ToyModel(seed=0)
    model.forgotten = nn.Linear(2, 2)
    with pytest.raises(AssertionError, match=r"leaves out forgotten\.weight"):
        param_groups(model, OPTIM)


def test_a_recommender_decays_its_weights_but_not_norms_biases_types_and_positions() -> None:
    groups = names_by_group(Recommender.build(ModelConfig(width=8), vocab_size=20), OptimConfig())
    assert list(groups) == ["rest", "rest_no_decay"]  # tiny towers learn like the rest
    for name in groups["rest_no_decay"]:
        assert name.endswith((".bias", "_bias")) or "norm" in name or "positions" in name or "types" in name, name
    assert "sequence_encoder.positions.weight" in groups["rest_no_decay"]
    assert "item_encoder.fusion.types" in groups["rest_no_decay"]
    assert any(name.endswith("weight") for name in groups["rest"])


def test_the_table_has_tensors_parameters_rate_and_decay_of_each_layer_group() -> None:
    model = with_towers(hf_tower("bert"), None, vision="none", text_tune="top:1")
    printed = io.StringIO()
    config = OptimConfig(lr=0.5, text_lr=0.25, weight_decay=0.1, encoder_weight_decay=0.05)
    Console(width=100, file=printed).print(group_table(model, config))
    embeddings = 60 * 16 + 30 * 16 + 2 * 16 + 2 * 16
    rows = {line.split()[0]: line.split()[1:] for line in printed.getvalue().splitlines() if line.split()}
    assert rows["text.embeddings"] == ["5", f"{embeddings:,}", "frozen"]
    assert rows["text.block.2"][2:] == ["trained", "0.25", "0.05"]
    assert rows["text_projection"] == ["2", str(16 * 16 + 16), "trained", "0.5", "0.1,", "0"], "weights, and biases"
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert rows["all"] == [f"{total:,}", f"{trained:,}", "trained"]


@pytest.mark.parametrize("sequence", [name for name in sequence_encoders if name not in READ_BOTH])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_to_train_gets_a_gradient(name: str, sequence: str) -> None:
    model = build(name, sequence=sequence)
    check_gradients(model)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("sequence", READ_BOTH)
def test_what_is_to_train_beside_learned_vectors_does_too(sequence: str) -> None:
    model = build(item="both", sequence=sequence)
    check_gradients(model)
    groups = {group.name: group for group in model.layer_groups()}
    assert groups["items"].parameters == ("item_encoder.items.weight",), "what a transfer leaves behind"


@pytest.mark.parametrize("policy", ["top:1", "frozen", "full", "side", "lora:2"])
def test_what_a_policy_trains_gets_a_gradient(policy: str) -> None:
    check_gradients(with_towers(hf_tower("bert"), None, vision="none", text_tune=policy))


def test_a_part_that_nothing_depends_on_is_named_before_the_first_step() -> None:
    model = build("mmsr")
    model.sequence_encoder.unused = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"sequence_encoder.unused.weight of group sequence_encoder trains, but"):
        check_gradients(model)


def test_a_frozen_part_that_trains_is_named_before_the_first_step() -> None:
    model = with_towers(hf_tower("bert"), None, vision="none", text_tune="top:1")
    model.item_encoder.text.backbone.encoder.layer[1].output.dense.weight.requires_grad_(True)
    with pytest.raises(
        UserError, match=r"layer.1.output.dense.weight of group text.block.1 is frozen, and would train"
    ):
        check_gradients(model)


def test_rates_are_full_for_four_fifths_of_the_run_and_end_at_a_tenth() -> None:
    factors = [learning_rate_factor(step, total_steps=1001) for step in range(1001)]
    assert factors[:801] == [1.0] * 801
    assert factors[801] < 1
    assert factors[900] == pytest.approx(1 - 0.9 * (900 - 800.8) / (1000 - 800.8))
    assert factors[-1] == pytest.approx(0.1)


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_rates_never_rise_and_stay_between_final_and_full(total: int, decay_from: float, final: float) -> None:
    factors = [learning_rate_factor(step, total, decay_from, final) for step in range(total + 2)]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(factors))
    assert factors[0] == 1.0
    assert all(final - 1e-12 <= factor <= 1 for factor in factors)


def test_groups_are_what_torch_optimizers_take() -> None:
    groups = param_groups(ToyModel(seed=0), dataclasses.replace(OPTIM))
    assert [g["name"] for g in torch.optim.AdamW(groups).param_groups] == [g["name"] for g in groups]

"""Signs that a training goes wrong, against made-up losses, weights and vectors."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmsr_pt.training.health import LossSpikes, Movement, mean_cosine


def begun(losses: list[float]) -> list[int]:
    spikes = LossSpikes()
    return [number for number, loss in enumerate(losses) if spikes.begins(loss) is not None]


def falling(steps: int) -> list[float]:
    """From 6 to 3 and noisy."""
    noise = torch.randn(steps, generator=torch.Generator().manual_seed(0)).tolist()
    return [3 + 3 * math.exp(-step / 50) + 0.1 * noise[step] for step in range(steps)]


def test_a_spike_is_told_once_where_it_begins() -> None:
    losses = falling(200)
    assert begun(losses) == []
    losses[100:104] = [20.0] * 4
    losses[150] = 9.0
    assert begun(losses) == [100, 150]


def test_nothing_is_a_spike_before_enough_is_known_and_a_new_level_is_none() -> None:
    assert begun([1.0] * 19 + [50.0]) == []
    assert begun([1.0] * 20 + [50.0]) == [20]
    assert begun([1.0] * 40 + [5.0] * 200) == [40]


def test_a_loss_without_noise_may_still_rise_by_a_quarter() -> None:
    assert begun([4.0] * 30 + [4.9]) == []
    assert begun([4.0] * 30 + [5.1]) == [30]


def test_a_group_that_only_decays_stands_still() -> None:
    movement = Movement()
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(300, 7, generator=generator) for name in ("dead", "decayed", "trained")}
    factors = {"dead": 1.0, "decayed": (1 - 1e-3 * 0.1) ** 10, "trained": (1 - 1e-3 * 0.1) ** 10}
    assert movement.still(weights.items(), factors) == []
    for _ in range(10):
        weights["decayed"] = weights["decayed"] * (1 - 1e-3 * 0.1)
        weights["trained"] = weights["trained"] * (1 - 1e-3 * 0.1) + 1e-4
    assert movement.still(weights.items(), factors) == ["dead", "decayed"]
    weights["dead"] = weights["dead"] + 1e-3
    assert "dead" not in movement.still(weights.items(), factors)


def test_in_bf16_a_group_stands_still_only_if_no_element_has_moved() -> None:
    movement = Movement()
    weight = torch.ones(100, dtype=torch.bfloat16)
    movement.still([("rest", weight)], {"rest": 1.0})
    assert movement.still([("rest", weight)], {"rest": 0.999}) == ["rest"]
    moved = weight.clone()
    moved[0] = 2
    assert movement.still([("rest", moved)], {"rest": 0.999}) == []


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    vectors = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    unit = F.normalize(vectors, dim=1)
    pairs = [float(unit[i] @ unit[j]) for i in range(40) for j in range(40) if i != j]
    assert mean_cosine(vectors) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert mean_cosine(torch.tensor([[1.0, 0], [-2, 0]])) == pytest.approx(-1)
    assert mean_cosine(torch.ones(1000, 3, dtype=torch.bfloat16)) == pytest.approx(1)

"""One attention for all devices: torch's own is the reference, in values and gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F

from mmsr_pt.models.attention import attend
from tests.models.towers.small import make, relative_error, titles

KEEP = torch.arange(6)[None, :] < torch.tensor([6, 4, 1])[:, None]


def inputs(dtype=torch.float64, length=6):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, length, 4, dtype=dtype, generator=generator).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize(
    "options",
    [{}, {"mask": KEEP[:, None, None]}, {"mask": KEEP[:, None, None] & KEEP[:, None, :, None]}, {"is_causal": True}],
    ids=["all", "keys", "pairs", "causal"],
)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_values_and_gradients_are_those_of_torch(options, scale):
    query, key, value = inputs()
    reference = {"attn_mask": options.get("mask"), "is_causal": options.get("is_causal", False), "scale": scale}
    weights = torch.linspace(-1, 1, query.numel(), dtype=torch.float64).view_as(query)
    if "mask" in options:  # what a query without a key gives has no meaning
        weights = weights * options["mask"].any(dim=-1, keepdim=True)
    expected = F.scaled_dot_product_attention(query, key, value, **reference) * weights
    found = attend(query, key, value, **options, scale=scale) * weights
    torch.testing.assert_close(found, expected.nan_to_num())
    gradients = [torch.autograd.grad(result.sum(), (query, key, value)) for result in (expected, found)]
    for of_torch, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, of_torch)


def test_without_gradients_long_sequences_give_the_same():
    query, key, value = inputs(torch.float32, length=80)
    with torch.no_grad():
        fused = attend(query, key, value)
    torch.testing.assert_close(fused, attend(query, key, value).detach())


def test_nothing_to_attend_to_gives_finite_values():
    query, key, value = inputs()
    mask = torch.zeros(3, 1, 1, 6, dtype=torch.bool)
    assert attend(query, key, value, mask).isfinite().all()


def test_dropout_keeps_the_mean_and_drops_probabilities():
    query = torch.zeros(1, 1, 4, 8)
    value = torch.ones(1, 1, 4, 8)
    torch.manual_seed(0)
    drawn = torch.stack([attend(query, query, value, dropout=0.5) for _ in range(400)])
    # four probabilities of a quarter, each dropped or doubled: multiples of a half with mean 1
    assert set(drawn.unique().tolist()) == {0.0, 0.5, 1.0, 1.5, 2.0}
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert"])
def test_a_pretrained_tower_computes_what_its_library_computes(name):
    tower = make("text", name).eval()
    assert tower.backbone.config._attn_implementation == "mmsr_pt"
    plain = copy.deepcopy(tower)
    plain.backbone.set_attn_implementation("sdpa")
    batch = titles([6, 3, 1], padded_to=6)
    found, expected = tower(batch).hidden, plain(batch).hidden
    assert relative_error(found[batch.mask], expected[batch.mask]) < 1e-5

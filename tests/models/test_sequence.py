"""Sequence encoders: causal, blind to padding, and SASRec against torch's own layers."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from mmsr_pt.config import ModelConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.sequence import sequence_encoders
from tests.models.test_fusion import torch_layer
from tests.models.towers import perturb

WIDTH, LENGTH = 12, 6
CONFIG = ModelConfig(width=WIDTH, max_history=LENGTH, sequence_layers=2, sequence_heads=3, fusion_heads=1, dropout=0.1)
LENGTHS = torch.tensor([6, 1, 3])
MASK = torch.arange(LENGTH) < LENGTHS[:, None]


def build(name, config=CONFIG):
    torch.manual_seed(0)
    encoder = sequence_encoders[name].from_config(config)
    perturb(encoder)
    return encoder


def vectors(seed=0):
    return torch.randn(3, LENGTH, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", sequence_encoders)
def test_every_encoder_gives_finite_outputs_and_trains_in_full(name):
    encoder = build(name).train()
    outputs = encoder(vectors(), MASK)
    assert outputs.shape == (3, LENGTH, WIDTH)
    assert outputs.isfinite().all(), "padding too: a NaN there would spread through any sum"
    outputs[MASK].square().sum().backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.ndim > 0
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", sequence_encoders)
def test_padding_changes_nothing(name):
    encoder = build(name).eval()
    outputs = encoder(vectors(), MASK)
    garbage = torch.where(MASK[..., None], vectors(), 1e3)
    assert torch.allclose(encoder(garbage, MASK)[MASK], outputs[MASK], atol=1e-5)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = encoder(vectors()[row : row + 1, :length], MASK[row : row + 1, :length])
        assert torch.allclose(alone[0], outputs[row, :length], atol=1e-5)


@pytest.mark.parametrize("name", sequence_encoders)
@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_last_position_alone_is_what_it_is_among_all(name, num_layers):
    encoder = build(name, dataclasses.replace(CONFIG, sequence_layers=num_layers)).eval()
    lengths = torch.arange(1, LENGTH + 1)
    mask = torch.arange(LENGTH) < lengths[:, None]
    inputs = torch.randn(LENGTH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(2))
    expected = encoder(inputs, mask)[torch.arange(LENGTH), lengths - 1]
    assert torch.allclose(encoder.last(inputs, mask), expected, atol=1e-6)
    garbage = torch.where(mask[..., None], inputs, 1e3)
    assert torch.allclose(encoder.last(garbage, mask), expected, atol=1e-5)


def test_the_last_position_alone_goes_through_the_last_block():
    encoder = build("sasrec").eval()
    shapes = []
    for block in encoder.blocks:
        block.inner.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(inputs[0].shape)))
    encoder.last(vectors(), MASK)
    assert shapes == [(3, LENGTH, WIDTH), (3, WIDTH)]


@pytest.mark.parametrize("name", sequence_encoders)
def test_later_items_change_nothing(name):
    """Positions count from the end, so histories of one length are compared: only what the items are may differ."""
    encoder = build(name).eval()
    full = torch.ones(3, LENGTH, dtype=torch.bool)
    outputs = encoder(vectors(0), full)
    for position in range(LENGTH - 1):
        mixed = torch.cat([vectors(0)[:, : position + 1], vectors(1)[:, position + 1 :]], dim=1)
        found = encoder(mixed, full)
        assert torch.allclose(found[:, : position + 1], outputs[:, : position + 1], atol=1e-5)
        assert not torch.allclose(found[:, position + 1], outputs[:, position + 1], atol=1e-2)


@pytest.mark.parametrize("name", sequence_encoders)
def test_gradients_reach_no_later_item_and_no_padding(name):
    encoder = build(name).eval()
    inputs = vectors().requires_grad_()
    encoder(inputs, MASK)[2, 1].sum().backward()
    reached = inputs.grad.abs().sum(dim=2) > 0
    assert reached.tolist() == [[False] * 6, [False] * 6, [True, True, False, False, False, False]]


@pytest.mark.parametrize("name", sequence_encoders)
def test_the_order_of_items_matters(name):
    encoder = build(name).eval()
    full = torch.ones(3, LENGTH, dtype=torch.bool)
    swapped = vectors()[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(encoder(swapped, full)[:, -1], encoder(vectors(), full)[:, -1], atol=1e-3)


@pytest.mark.parametrize("name", sequence_encoders)
def test_runs_in_bfloat16(name):
    encoder = build(name).bfloat16()
    assert encoder(vectors().bfloat16(), MASK).dtype == torch.bfloat16


def test_sasrec_equals_torchs_layers_on_left_padded_histories():
    """The released code pads on the left and masks keys; the same numbers must come out of padding on the right."""
    encoder = build("sasrec").eval()
    outputs = encoder(vectors(), MASK)
    left = torch.zeros(3, LENGTH, WIDTH)
    for row, length in enumerate(LENGTHS.tolist()):
        left[row, LENGTH - length :] = vectors()[row, :length]
    hidden = F.layer_norm(left + encoder.positions.weight, (WIDTH,), encoder.norm.weight, encoder.norm.bias, eps=1e-6)
    is_padding = torch.arange(LENGTH) < (LENGTH - LENGTHS)[:, None]
    # a padded query may look at itself, or its softmax would be over nothing
    allowed = torch.ones(LENGTH, LENGTH).tril().bool() & ~is_padding[:, None] | torch.eye(LENGTH).bool()
    for block in encoder.blocks:
        hidden = torch_layer(block, CONFIG.sequence_heads, F.relu)(hidden, ~allowed.repeat_interleave(3, dim=0))
    for row, length in enumerate(LENGTHS.tolist()):
        assert torch.allclose(outputs[row, :length], hidden[row, LENGTH - length :], atol=1e-5)


def test_sasrec_has_no_bias_in_attention_and_starts_with_xavier_normal():
    torch.manual_seed(0)
    encoder = sequence_encoders["sasrec"].from_config(ModelConfig(width=96, sequence_heads=2))
    block = encoder.blocks[0]
    assert block.attention.qkv.bias is None
    assert block.attention.out.bias is None
    square = (2 / (96 + 96)) ** 0.5
    for part in block.attention.qkv.weight.chunk(3):
        assert part.std().item() == pytest.approx(square, rel=0.1)
    assert block.inner.weight.shape == (4 * 96, 96)
    assert block.inner.weight.std().item() == pytest.approx((2 / (5 * 96)) ** 0.5, rel=0.1)
    assert encoder.positions.weight.std().item() == pytest.approx((2 / (20 + 96)) ** 0.5, rel=0.1)


def test_sasrec_gives_the_newest_item_the_same_position_whatever_the_length():
    encoder = build("sasrec").eval()
    one = torch.ones(1, 1, dtype=torch.bool)
    alone = encoder(vectors()[:1, :1], one)[0, 0]
    padded = encoder(F.pad(vectors()[:1, :1], (0, 0, 0, 3)), F.pad(one, (0, 3)))[0, 0]
    assert torch.allclose(alone, padded, atol=1e-6)


def test_an_unknown_encoder_lists_the_known():
    with pytest.raises(UserError, match="unknown sequence encoder 'sasrek'; known: sasrec"):
        sequence_encoders["sasrek"]

"""Sequence encoders: causal, blind to padding, and each against plain formulas or another library's layers."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaModel

from mmsr_pt.config import READ_BOTH, ModelConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.sequence import sequence_encoders
from tests.models.test_fusion import torch_layer
from tests.models.towers.small import perturb

WIDTH, LENGTH = 12, 6
CONFIG = ModelConfig(width=WIDTH, max_history=LENGTH, sequence_layers=2, sequence_heads=3, fusion_heads=1, dropout=0.1)
LENGTHS = torch.tensor([6, 1, 3])
MASK = torch.arange(LENGTH) < LENGTHS[:, None]


def build(name, config=CONFIG):
    torch.manual_seed(0)
    encoder = sequence_encoders[name].from_config(config)
    perturb(encoder)
    return encoder


def width(name="sasrec"):
    return 2 * WIDTH if name in READ_BOTH else WIDTH


def vectors(seed=0, name="sasrec"):
    return torch.randn(3, LENGTH, width(name), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", sequence_encoders)
def test_every_encoder_gives_finite_outputs_and_trains_in_full(name):
    encoder = build(name).train()
    outputs = encoder(vectors(name=name), MASK)
    assert outputs.shape == (3, LENGTH, width(name))
    assert outputs.isfinite().all(), "padding too: a NaN there would spread through any sum"
    if encoder.scores_by_product:
        outputs[MASK].square().sum().backward()
    else:
        encoder.score_pairs(outputs, encoder.as_candidates(vectors(name=name)))[MASK].sum().backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.ndim > 0
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", sequence_encoders)
def test_padding_changes_nothing(name):
    encoder = build(name).eval()
    outputs = encoder(vectors(name=name), MASK)
    garbage = torch.where(MASK[..., None], vectors(name=name), 1e3)
    assert torch.allclose(encoder(garbage, MASK)[MASK], outputs[MASK], atol=1e-5)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = encoder(vectors(name=name)[row : row + 1, :length], MASK[row : row + 1, :length])
        assert torch.allclose(alone[0], outputs[row, :length], atol=1e-5)


@pytest.mark.parametrize("name", sequence_encoders)
@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_last_position_alone_is_what_it_is_among_all(name, num_layers):
    encoder = build(name, dataclasses.replace(CONFIG, sequence_layers=num_layers)).eval()
    lengths = torch.arange(1, LENGTH + 1)
    mask = torch.arange(LENGTH) < lengths[:, None]
    inputs = torch.randn(LENGTH, LENGTH, width(name), generator=torch.Generator().manual_seed(2))
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
    outputs = encoder(vectors(0, name), full)
    for position in range(LENGTH - 1):
        mixed = torch.cat([vectors(0, name)[:, : position + 1], vectors(1, name)[:, position + 1 :]], dim=1)
        found = encoder(mixed, full)
        assert torch.allclose(found[:, : position + 1], outputs[:, : position + 1], atol=1e-5)
        assert not torch.allclose(found[:, position + 1], outputs[:, position + 1], atol=1e-2)


@pytest.mark.parametrize("name", sequence_encoders)
def test_gradients_reach_no_later_item_and_no_padding(name):
    encoder = build(name).eval()
    inputs = vectors(name=name).requires_grad_()
    encoder(inputs, MASK)[2, 1].sum().backward()
    reached = inputs.grad.abs().sum(dim=2) > 0
    assert reached.tolist() == [[False] * 6, [False] * 6, [True, True, False, False, False, False]]


@pytest.mark.parametrize("name", sequence_encoders)
def test_the_order_of_items_matters(name):
    encoder = build(name).eval()
    full = torch.ones(3, LENGTH, dtype=torch.bool)
    swapped = vectors(name=name)[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(encoder(swapped, full)[:, -1], encoder(vectors(name=name), full)[:, -1], atol=1e-4)


@pytest.mark.parametrize("name", sequence_encoders)
def test_runs_in_bfloat16(name):
    encoder = build(name).bfloat16()
    assert encoder(vectors(name=name).bfloat16(), MASK).dtype == torch.bfloat16


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


def test_fdsa_is_two_streams_and_a_linear_map_whose_features_score_nothing():
    encoder = build("fdsa").eval()
    both = vectors(name="fdsa")
    items, features = both[..., :WIDTH].contiguous(), both[..., WIDTH:].contiguous()
    weight = encoder.out.weight
    expected = encoder.item_stream(items, MASK) @ weight[:, :WIDTH].T + encoder.out.bias
    expected = expected + encoder.feature_stream(features, MASK) @ weight[:, WIDTH:].T
    found = encoder(both, MASK)
    assert torch.allclose(found[..., :WIDTH], expected, atol=1e-5)
    assert not found[..., WIDTH:].any()


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


def test_grurec_equals_the_gates_by_hand():
    encoder = build("grurec").eval()
    hidden = vectors()
    for layer in range(CONFIG.sequence_layers):
        from_input = getattr(encoder.gru, f"weight_ih_l{layer}").chunk(3)
        from_state = getattr(encoder.gru, f"weight_hh_l{layer}").chunk(3)
        state, states = torch.zeros(3, WIDTH), []
        for inputs in hidden.unbind(dim=1):
            reset, update, new = (inputs @ weight.T for weight in from_input)
            reset = (reset + state @ from_state[0].T).sigmoid()
            update = (update + state @ from_state[1].T).sigmoid()
            new = (new + reset * (state @ from_state[2].T)).tanh()
            state = (1 - update) * new + update * state
            states.append(state)
        hidden = torch.stack(states, dim=1)
    assert torch.allclose(encoder(vectors(), MASK), hidden, atol=1e-5)


def test_grurec_starts_with_xavier_uniform_in_every_layer_and_has_no_bias():
    torch.manual_seed(0)
    encoder = sequence_encoders["grurec"].from_config(ModelConfig(width=96))
    assert len(list(encoder.parameters())) == 2 * 4, "two matrices in each of four layers"
    for name, weight in encoder.named_parameters():
        limit = (6 / (96 + 96)) ** 0.5
        assert weight.abs().max().item() == pytest.approx(limit, rel=0.01), name
        assert weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.05), name


def test_nextitnet_equals_its_formula_by_hand():
    encoder = build("nextitnet").eval()
    hidden = vectors()
    for block, dilation in zip(encoder.blocks, (1, 4), strict=True):
        inner = hidden
        for convolution, norm, step in (
            (block.first.convolution, block.first_norm, dilation),
            (block.second.convolution, block.second_norm, 2 * dilation),
        ):
            summed = convolution.bias.expand(3, LENGTH, WIDTH).clone()
            for position in range(LENGTH):
                for tap in range(3):
                    seen = position - (2 - tap) * step
                    if seen >= 0:
                        summed[:, position] += inner[:, seen] @ convolution.weight[:, :, tap].T
            centred = summed - summed.mean(dim=2, keepdim=True)
            normed = centred / (centred.square().mean(dim=2, keepdim=True) + 1e-8).sqrt()
            inner = (normed * norm.weight + norm.bias).clamp(min=0)
        hidden = hidden + inner
    assert torch.allclose(encoder(vectors(), MASK), hidden, atol=1e-5)


@pytest.mark.parametrize(("num_layers", "reach"), [(1, 7), (2, 31), (4, 61)])
def test_the_receptive_field_of_nextitnet(num_layers, reach):
    """1 + 2 * (sum of the dilations); the kernels are all ones, as a ReLU may cut a path at random."""
    encoder = build("nextitnet", dataclasses.replace(CONFIG, sequence_layers=num_layers))
    for block in encoder.blocks:
        for convolution in (block.first.convolution, block.second.convolution):
            torch.nn.init.ones_(convolution.weight)
        # norms that let everything through, far from where ReLU cuts
        block.first_norm = block.second_norm = torch.nn.Softplus()
    inputs = torch.rand(1, 70, WIDTH).requires_grad_()
    encoder(inputs, torch.ones(1, 70, dtype=torch.bool))[0, -1].sum().backward()
    reached = inputs.grad[0].abs().sum(dim=1) > 0
    assert reached.nonzero()[0].item() == 70 - reach
    assert reached[70 - reach :].all()


def test_bert4rec_fills_in_what_torchs_layers_do():
    encoder = build("bert4rec").eval()
    hidden = torch.tensor([[False, True, False, True, False, False], [True] + [False] * 5, [False, True, False] * 2])
    hidden &= MASK
    filled = encoder.fill(vectors(), MASK, hidden)
    seen = torch.where(hidden[..., None], encoder.hidden_item.weight[0], vectors())
    for row, length in enumerate(LENGTHS.tolist()):
        states = seen[row, :length] + encoder.positions.weight[LENGTH + 1 - length :]
        states = F.layer_norm(states, (WIDTH,), encoder.norm.weight, encoder.norm.bias, eps=1e-12)[None]
        for block in encoder.blocks:
            states = torch_layer(block, CONFIG.sequence_heads, F.gelu)(states)
        dense, _, norm = encoder.head
        states = F.gelu(states @ dense.weight.T + dense.bias)
        expected = F.layer_norm(states, (WIDTH,), norm.weight, norm.bias, eps=1e-12)[0]
        assert torch.allclose(filled[row, :length], expected, atol=1e-5)


def test_bert4rec_sees_both_sides_but_never_what_is_hidden():
    encoder = build("bert4rec").eval()
    full, hidden = torch.ones(3, LENGTH, dtype=torch.bool), torch.zeros(3, LENGTH, dtype=torch.bool)
    hidden[:, 2] = True
    filled = encoder.fill(vectors(), full, hidden)[:, 2]
    for position in range(LENGTH):
        changed = vectors()
        changed[:, position] = vectors(1)[:, position]
        found = encoder.fill(changed, full, hidden)[:, 2]
        assert torch.allclose(found, filled, atol=1e-6) == (position == 2)


def test_bert4rec_asks_for_the_next_item_as_for_a_hidden_one_at_the_end():
    encoder = build("bert4rec").eval()
    mask = torch.tensor([[True, True, True]])
    hidden = torch.tensor([[False, False, True]])
    alone = encoder.last(vectors()[:1, :2], mask[:, :2])
    assert torch.allclose(encoder.fill(vectors()[:1, :3], mask, hidden)[:, 2], alone, atol=1e-6)


def test_rotary_equals_the_decoder_of_llama():
    encoder = build("rotary").eval()
    block = encoder.blocks[0]
    llama = LlamaModel(
        LlamaConfig(
            vocab_size=2,
            hidden_size=WIDTH,
            intermediate_size=block.inner.out_features,
            num_hidden_layers=CONFIG.sequence_layers,
            num_attention_heads=CONFIG.sequence_heads,
            rms_norm_eps=1e-6,
        )
    ).eval()
    with torch.no_grad():
        llama.norm.weight.copy_(encoder.norm.weight)
        for ours, theirs in zip(encoder.blocks, llama.layers, strict=True):
            query, key, value = ours.attention.qkv.weight.chunk(3)
            for target, weight in (
                (theirs.self_attn.q_proj, query),
                (theirs.self_attn.k_proj, key),
                (theirs.self_attn.v_proj, value),
                (theirs.self_attn.o_proj, ours.attention.out.weight),
                (theirs.mlp.gate_proj, ours.gate.weight),
                (theirs.mlp.up_proj, ours.inner.weight),
                (theirs.mlp.down_proj, ours.outer.weight),
                (theirs.input_layernorm, ours.attention_norm.weight),
                (theirs.post_attention_layernorm, ours.feed_forward_norm.weight),
            ):
                target.weight.copy_(weight)
        expected = llama(inputs_embeds=vectors(), attention_mask=MASK.long()).last_hidden_state
    assert torch.allclose(encoder(vectors(), MASK)[MASK], expected[MASK], atol=1e-5)


def test_rotary_reads_histories_longer_than_any_it_was_built_for():
    encoder = build("rotary").eval()
    longer = torch.randn(1, 4 * LENGTH, WIDTH)
    assert encoder(longer, torch.ones(1, 4 * LENGTH, dtype=torch.bool)).isfinite().all()


def test_rotary_needs_pairs():
    config = ModelConfig(width=6, sequence_heads=2, fusion_heads=1, sequence="rotary")
    with pytest.raises(UserError, match="--width 6 over --sequence_heads 2 must be even"):
        sequence_encoders["rotary"].from_config(config)


@pytest.mark.parametrize("name", sequence_encoders)
def test_the_number_of_layers_is_the_papers_unless_one_is_given(name):
    encoder = sequence_encoders[name]
    assert encoder.num_layers(ModelConfig()) == (4 if name == "grurec" else 2)
    assert encoder.num_layers(ModelConfig(sequence_layers=3)) == 3


def test_an_unknown_encoder_lists_the_known():
    with pytest.raises(UserError, match="unknown sequence encoder 'sasrek'; known: bert4rec, carca, .*sasrec"):
        sequence_encoders["sasrek"]

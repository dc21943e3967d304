"""Fusions against plain formulas and torch's own transformer layer; padding never matters."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmsr_pt.config import ModelConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.attention import PostNormBlock
from mmsr_pt.models.fusion import fusions, masked_mean
from tests.models.towers.small import perturb

WIDTH = 12
CONFIG = ModelConfig(width=WIDTH, fusion_layers=2, fusion_heads=3, sequence_heads=1, dropout=0.1)
MASK = torch.tensor([[True, True, True, True], [True, False, False, False], [True, True, False, False]])


def build(name):
    torch.manual_seed(0)
    fusion = fusions[name].from_config(CONFIG)
    perturb(fusion)
    return fusion


def tokens(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, WIDTH, generator=generator), torch.randn(3, 5, WIDTH, generator=generator)


def torch_layer(block: PostNormBlock, num_heads: int, activation) -> nn.TransformerEncoderLayer:
    """torch's own layer with the weights of ours."""
    has_bias = block.attention.qkv.bias is not None
    layer = nn.TransformerEncoderLayer(
        block.inner.in_features,
        num_heads,
        block.inner.out_features,
        dropout=0.0,
        activation=activation,
        layer_norm_eps=block.attention_norm.eps,
        batch_first=True,
    )
    zeros = torch.zeros(3 * block.inner.in_features)
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(block.attention.qkv.weight)
        layer.self_attn.in_proj_bias.copy_(block.attention.qkv.bias if has_bias else zeros)
        layer.self_attn.out_proj.weight.copy_(block.attention.out.weight)
        layer.self_attn.out_proj.bias.copy_(block.attention.out.bias if has_bias else zeros[: len(zeros) // 3])
        for ours, theirs in (
            (block.attention_norm, layer.norm1),
            (block.feed_forward_norm, layer.norm2),
            (block.inner, layer.linear1),
            (block.outer, layer.linear2),
        ):
            theirs.weight.copy_(ours.weight)
            theirs.bias.copy_(ours.bias)
    # in training mode, as its fast path for inference drops masked positions from the output
    return layer.train()


@pytest.mark.parametrize("name", fusions)
def test_a_fusion_says_whether_it_sees_more_than_means(name):
    fusion = build(name).eval()
    text, vision = tokens()
    means = masked_mean(text, MASK)[:, None], vision.mean(dim=1, keepdim=True)
    from_means = fusion(means[0], MASK[:, :1], means[1])
    assert torch.allclose(from_means, fusion(text, MASK, vision), atol=1e-6) == fusion.sees_means


@pytest.mark.parametrize("name", fusions)
def test_every_fusion_gives_one_finite_vector_and_trains_in_full(name):
    fusion = build(name).train()
    text, vision = tokens()
    vectors = fusion(text, MASK, vision)
    assert vectors.shape == (3, WIDTH)
    assert vectors.isfinite().all()
    vectors.square().sum().backward()
    for parameter_name, parameter in fusion.named_parameters():
        assert parameter.ndim > 0
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", fusions)
def test_padding_and_other_items_change_nothing(name):
    fusion = build(name).eval()
    text, vision = tokens()
    vectors = fusion(text, MASK, vision)
    garbage = torch.where(MASK[..., None], text, 1e3)
    assert torch.allclose(fusion(garbage, MASK, vision), vectors, atol=1e-5)
    longer = F.pad(text, (0, 0, 0, 3), value=-5.0)
    assert torch.allclose(fusion(longer, F.pad(MASK, (0, 3)), vision), vectors, atol=1e-5)
    alone = fusion(text[1:2, :1], MASK[1:2, :1], vision[1:2])
    assert torch.allclose(alone[0], vectors[1], atol=1e-5)


@pytest.mark.parametrize("name", fusions)
def test_both_modalities_matter(name):
    fusion = build(name).eval()
    (text, vision), (other_text, other_vision) = tokens(0), tokens(1)
    vectors = fusion(text, MASK, vision)
    assert not torch.allclose(fusion(other_text, MASK, vision), vectors, atol=1e-3)
    assert not torch.allclose(fusion(text, MASK, other_vision), vectors, atol=1e-3)


@pytest.mark.parametrize("name", fusions)
def test_runs_in_bfloat16(name):
    fusion = build(name).bfloat16()
    text, vision = tokens()
    assert fusion(text.bfloat16(), MASK, vision.bfloat16()).dtype == torch.bfloat16


def pooled(norm):
    """t and v of the formulas: pooled, then normalised by one shared LayerNorm of epsilon 1e-6."""
    text, vision = tokens()
    means = [text[0].mean(0), text[1, 0], (text[2, 0] + text[2, 1]) / 2]
    for pooled_tokens in (torch.stack(means), vision.mean(dim=1)):
        centred = pooled_tokens - pooled_tokens.mean(dim=1, keepdim=True)
        yield centred / (centred.square().mean(dim=1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias


def test_sum_is_two_linear_maps_added():
    fusion = build("sum").eval()
    text, vision = pooled(fusion.norm)
    expected = text @ fusion.text.weight.T + fusion.text.bias + vision @ fusion.vision.weight.T + fusion.vision.bias
    assert torch.allclose(fusion(tokens()[0], MASK, tokens()[1]), expected, atol=1e-5)


def test_concat_is_one_linear_map_of_both():
    fusion = build("concat").eval()
    text, vision = pooled(fusion.norm)
    weight = fusion.both.weight
    expected = text @ weight[:, :WIDTH].T + vision @ weight[:, WIDTH:].T + fusion.both.bias
    assert torch.allclose(fusion(tokens()[0], MASK, tokens()[1]), expected, atol=1e-5)


def test_vanilla_attention_weighs_the_mean_of_each_modality():
    fusion = build("vanilla").eval()
    text, vision = masked_mean(tokens()[0], MASK), tokens()[1].mean(dim=1)
    odds = torch.exp((text - vision) @ fusion.weigh.weight[0])[:, None]
    expected = (odds * text + vision) / (odds + 1)
    assert torch.allclose(fusion(tokens()[0], MASK, tokens()[1]), expected, atol=1e-5)


def test_gate_lets_the_text_decide_what_of_the_picture_passes():
    fusion = build("gate").eval()
    text, vision = pooled(fusion.norm)
    gates = 1 / (1 + torch.exp(-(text @ fusion.text.weight.T + fusion.text.bias)))
    passed = gates * (vision @ fusion.vision.weight.T + fusion.vision.bias)
    expected = passed @ fusion.out.weight.T + fusion.out.bias
    assert torch.allclose(fusion(tokens()[0], MASK, tokens()[1]), expected, atol=1e-5)


def test_film_scales_and_shifts_the_picture_by_the_text():
    fusion = build("film").eval()
    text, vision = pooled(fusion.norm)
    weight, bias = fusion.condition.weight, fusion.condition.bias
    gamma = text @ weight[:WIDTH].T + bias[:WIDTH]
    beta = text @ weight[WIDTH:].T + bias[WIDTH:]
    expected = (gamma * vision + beta) @ fusion.out.weight.T + fusion.out.bias
    assert torch.allclose(fusion(tokens()[0], MASK, tokens()[1]), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["sum", "concat", "gate", "film"])
def test_a_perceptron_of_three_layers_stands_behind_a_coarse_fusion(name):
    deep, plain = build(f"{name}+dnn").eval(), build(name).eval()
    plain.load_state_dict({key: value for key, value in deep.state_dict().items() if not key.startswith("dnn")})
    linears = [part for part in deep.dnn if isinstance(part, nn.Linear)]
    assert len(linears) == 3
    expected = plain(tokens()[0], MASK, tokens()[1])
    for linear in linears:
        expected = (expected @ linear.weight.T + linear.bias).clamp(min=0)
    assert torch.allclose(deep(tokens()[0], MASK, tokens()[1]), expected, atol=1e-5)


def test_a_perceptron_drops_what_goes_into_each_of_its_layers():
    fusion = build("sum+dnn")
    assert [type(part) for part in fusion.dnn] == 3 * [nn.Dropout, nn.Linear, nn.ReLU]
    assert all(part.p == CONFIG.dropout for part in fusion.dnn if isinstance(part, nn.Dropout))


def torch_attention(ours) -> nn.MultiheadAttention:
    """torch's own attention with the weights of ours."""
    theirs = nn.MultiheadAttention(WIDTH, ours.num_heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    return theirs


def test_co_attention_equals_torchs_attention_both_ways():
    fusion = build("co").eval()
    text, vision = tokens()
    text, vision = text + fusion.types[0], vision + fusion.types[1]
    assert len(fusion.blocks) == 2
    for block in fusion.blocks:
        cross = torch_attention(block.cross)
        from_vision = cross(text, vision, vision)[0]
        from_text = cross(vision, text, text, key_padding_mask=~MASK)[0]
        text = F.layer_norm(text + from_vision, (WIDTH,), block.cross_norm.weight, block.cross_norm.bias, 1e-12)
        vision = F.layer_norm(vision + from_text, (WIDTH,), block.cross_norm.weight, block.cross_norm.bias, 1e-12)
        text = torch_layer(block.text, CONFIG.fusion_heads, F.gelu)(text, src_key_padding_mask=~MASK)
        vision = torch_layer(block.vision, CONFIG.fusion_heads, F.gelu)(vision)
    means = torch.stack([text[i][MASK[i]].mean(dim=0) for i in range(3)]), vision.mean(dim=1)
    expected = torch.cat(means, dim=1) @ fusion.out.weight.T + fusion.out.bias
    assert torch.allclose(fusion(tokens()[0], MASK, tokens()[1]), expected, atol=1e-5)


def test_merge_attention_equals_torchs_transformer_layers():
    fusion = build("merge").eval()
    text, vision = tokens()
    hidden = torch.cat([text + fusion.types[0], vision + fusion.types[1]], dim=1)
    mask = torch.cat([MASK, torch.ones(3, 5, dtype=torch.bool)], dim=1)
    for block in fusion.blocks:
        hidden = torch_layer(block, CONFIG.fusion_heads, F.gelu)(hidden, src_key_padding_mask=~mask)
    expected = torch.stack([hidden[i][mask[i]].mean(dim=0) for i in range(3)])
    assert torch.allclose(fusion(text, MASK, vision), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "feed_forward"), [("merge", "blocks.0.inner"), ("co", "blocks.0.vision.inner")])
def test_attention_fusions_start_as_bert_does(name, feed_forward):
    torch.manual_seed(0)
    fusion = fusions[name].from_config(ModelConfig(width=96, fusion_layers=1, fusion_heads=4))
    for name, parameter in fusion.named_parameters():
        if "norm" not in name and parameter.ndim == 2 and parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
    assert fusion.get_submodule(feed_forward).out_features == 4 * 96


def test_coarse_fusions_start_with_xavier_normal():
    torch.manual_seed(0)
    fusion = fusions["concat"].from_config(ModelConfig(width=96))
    assert fusion.both.weight.std().item() == pytest.approx((2 / (96 + 192)) ** 0.5, rel=0.1)
    assert not fusion.both.bias.any()


def test_masked_mean_by_hand():
    values = torch.tensor([[[1.0, 10.0], [3.0, 30.0], [99.0, 99.0]], [[5.0, 5.0], [7.0, 7.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(values, mask).tolist() == [[2.0, 20.0], [0.0, 0.0]]


def test_an_unknown_fusion_lists_the_known():
    with pytest.raises(
        UserError, match=r"unknown fusion 'merg'; known: co, .*, sum\+dnn, vanilla. Did you mean 'merge'\?"
    ):
        fusions["merg"]


def test_gates_are_what_the_fusion_multiplies_with():
    text, vision = tokens()
    for name in ("gate", "film", "vanilla"):
        fusion = build(name).eval()
        weights = fusion.gates(text, MASK, vision)
        if name == "vanilla":
            share = weights["text"][:, None]
            expected = share * masked_mean(text, MASK) + (1 - share) * vision.mean(dim=1)
        else:
            picture = fusion.norm(vision.mean(dim=1))
            passed = weights["gate"] * fusion.vision(picture) if name == "gate" else weights["scale"] * picture
            expected = fusion.out(passed + weights.get("shift", 0))
        torch.testing.assert_close(fusion(text, MASK, vision), expected)
    assert not fusions["sum"].has_gates

"""Operations counted against arithmetic."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.work import FlopCounter, Rates, seconds_at


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_has_one_product_forward_and_two_backward(dtype: torch.dtype) -> None:
    layer = nn.Linear(32, 64).to(dtype)
    inputs = torch.randn(8, 16, 32, dtype=dtype, requires_grad=True)
    with FlopCounter() as counter:
        layer(inputs).sum().backward()
    assert counter.flops == {f"matmul {str(dtype)[6:]}": 3 * 2 * (8 * 16) * 32 * 64}


@pytest.mark.parametrize(("groups", "channels"), [(1, 16), (8, 8)])
def test_a_convolution_has_one_forward_and_two_backward_depthwise_ones_too(groups: int, channels: int) -> None:
    layer = nn.Conv2d(8, channels, 3, padding=1, groups=groups, bias=False)
    image = torch.randn(2, 8, 10, 10, requires_grad=True)
    forward = 2 * (2 * 10 * 10) * channels * (8 // groups) * 9
    with FlopCounter() as counter:
        layer(image).sum().backward()
    assert counter.flops == {"conv float32": 3 * forward}
    # no gradient goes to a picture
    with FlopCounter() as counter:
        layer(image.detach()).sum().backward()
    assert counter.flops == {"conv float32": 2 * forward}


@pytest.mark.parametrize("inference", [False, True])
def test_attention_has_two_products(inference: bool) -> None:
    query = torch.randn(2, 4, 16, 8)
    with torch.inference_mode(inference), FlopCounter() as counter:
        F.scaled_dot_product_attention(query, query, query, attn_mask=torch.ones(2, 1, 1, 16, dtype=torch.bool))
    assert counter.flops == {"matmul float32": 2 * 2 * (2 * 4) * 16 * 16 * 8}


def test_what_trains_nothing_counts_nothing_backward() -> None:
    layer = nn.Linear(4, 4).requires_grad_(False)
    with FlopCounter() as counter:
        layer(torch.ones(1, 4))
    assert counter.flops == {"matmul float32": 2 * 4 * 4}


def test_time_at_given_rates() -> None:
    assert (
        seconds_at({"matmul float32": 100.0, "conv bfloat16": 300.0}, {"matmul float32": 200.0, "conv bfloat16": 600.0})
        == 4
    )


def test_rates_have_the_names_that_are_counted() -> None:
    rates = Rates(size=64, seconds=0.001).run()
    assert rates.keys() == {f"{kind} {dtype}" for kind in ("matmul", "conv") for dtype in ("float32", "bfloat16")}
    assert all(rate > 0 for rate in rates.values())

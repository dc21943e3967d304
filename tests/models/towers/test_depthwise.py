"""The weight gradient of large depthwise convolutions, against torch's own in float64."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from mmsr_pt.models.towers.depthwise import speed_up_depthwise
from tests.models.towers.small import relative_error


def gradients(convolution: nn.Conv2d, hidden: torch.Tensor) -> list[torch.Tensor]:
    hidden = hidden.detach().requires_grad_()
    output = convolution(hidden)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    wanted = [hidden, *convolution.parameters()]
    return [output, *torch.autograd.grad((output * weights).sum(), wanted)]


@pytest.mark.parametrize("size", [5, 7, 9])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_torch(size, bias, layout):
    torch.manual_seed(0)
    # integers that bf16 and the sums of their products hold exactly enough for a tight bound
    convolution = nn.Conv2d(6, 6, size, padding=size // 2, groups=6, bias=bias)
    hidden = torch.randn(5, 6, 9, 8).bfloat16().contiguous(memory_format=layout)
    convolution.bfloat16()
    reference = nn.Conv2d(6, 6, size, padding=size // 2, groups=6, bias=bias).double()
    reference.load_state_dict({name: value.double() for name, value in convolution.state_dict().items()})
    expected = gradients(reference, hidden.double())
    module = nn.Sequential(convolution)
    speed_up_depthwise(module)
    assert convolution.forward.__func__ is not nn.Conv2d.forward
    for found, exact in zip(gradients(convolution, hidden), expected, strict=True):
        assert relative_error(found.double(), exact) < 0.02


def test_a_frozen_or_float32_convolution_runs_as_it_was():
    convolution = nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False)
    hidden = torch.randn(2, 4, 6, 6)
    expected = F.conv2d(hidden, convolution.weight, padding=2, groups=4)
    speed_up_depthwise(nn.Sequential(convolution))
    torch.testing.assert_close(convolution(hidden), expected, atol=0, rtol=0)


def test_only_large_depthwise_convolutions_with_full_padding_are_taken():
    others = [
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 5, padding=2),
        nn.Conv2d(4, 4, 5, padding=2, groups=4, stride=2),
        nn.Conv2d(4, 4, 5, groups=4),
        nn.Conv2d(4, 8, 5, padding=2, groups=4),
        nn.Conv2d(4, 4, 5, padding=4, dilation=2, groups=4),
    ]
    speed_up_depthwise(nn.Sequential(*others))
    assert all("forward" not in vars(module) for module in others)


def test_efficientnet_and_convnext_have_such_convolutions():
    for name in ("tf_efficientnet_lite0", "convnext_atto"):
        model = timm.create_model(name, pretrained=False)
        speed_up_depthwise(model)
        assert any("forward" in vars(module) for module in model.modules() if isinstance(module, nn.Conv2d))

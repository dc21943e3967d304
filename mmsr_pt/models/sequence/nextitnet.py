"""NextItNet: causal convolutions whose reach doubles from layer to layer.

Shapes: B users, L positions, D width.
"""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from mmsr_pt.config import ModelConfig
from mmsr_pt.models.sequence.base import SequenceEncoder, sequence_encoders

_KERNEL = 3
_DILATIONS = (1, 4)
"""Of the first convolution of each block, over and over; that of the second is twice as wide."""


class CausalConvolution(nn.Module):
    """Sees the position itself and _KERNEL - 1 before it, `dilation` apart; zeros stand before the first."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, _KERNEL, dilation=dilation)
        self.reach = (_KERNEL - 1) * dilation

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        return self.convolution(F.pad(hidden.transpose(1, 2), (self.reach, 0))).transpose(1, 2)


class ResidualBlock(nn.Module):
    """x + relu(norm(conv(relu(norm(conv(x)))))), the block of Yuan et al. 2019, figure 3b."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.first, self.second = CausalConvolution(width, dilation), CausalConvolution(width, 2 * dilation)
        self.first_norm, self.second_norm = nn.LayerNorm(width, eps=1e-8), nn.LayerNorm(width, eps=1e-8)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        inner = F.relu(self.first_norm(self.first(hidden)))
        return hidden + F.relu(self.second_norm(self.second(inner)))


@sequence_encoders.register("nextitnet")
class NextItNet(SequenceEncoder):
    """NextItNet (Yuan et al. 2019) as in the released code: residual blocks and no dropout.

    Two blocks, the paper's number, see 31 positions; the released code builds 4. Padding stands right of all that is
    real, out of every convolution's sight; the released code lets it in from the left.
    """

    default_layers = 2

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        dilations = itertools.islice(itertools.cycle(_DILATIONS), num_layers)
        self.blocks = nn.Sequential(*(ResidualBlock(width, dilation) for dilation in dilations))

    @classmethod
    def from_config(cls, config: ModelConfig) -> SequenceEncoder:
        """See SequenceEncoder."""
        return cls(config.width, cls.num_layers(config))

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """See SequenceEncoder."""
        return self.blocks(vectors)

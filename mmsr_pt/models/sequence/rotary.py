"""A causal transformer of today's kind: norms before each part, rotary positions, gated feed-forward.

Shapes: B users, L positions, D width, d width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsr_pt.config import ModelConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.attention import SelfAttention, init_xavier
from mmsr_pt.models.sequence.base import SequenceEncoder, sequence_encoders

_LONGEST_WAVE = 10_000.0


def rotate(heads: Tensor) -> Tensor:
    """Turns each pair of entries (i, i + d/2) by an angle that grows with the position: [..., L, d] -> [..., L, d].

    The product of a query and a key turned so depends on how far apart they stand (Su et al. 2021, equation 34).
    """
    length, width = heads.shape[-2:]
    # in float32 whatever the model computes in: angles need the digits
    places = torch.arange(length, device=heads.device, dtype=torch.float32)
    pairs = torch.arange(0, width, 2, device=heads.device, dtype=torch.float32)
    angles = places[:, None] * _LONGEST_WAVE ** -(pairs / width)
    cos, sin = angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class RotaryAttention(SelfAttention):
    """Self-attention that knows how far apart two positions stand."""

    def _split(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super()._split(hidden)
        return rotate(query), rotate(key), value


class PreNormBlock(nn.Module):
    """x + dropout(attention(norm(x))), then x + dropout(W2 (silu(Wg x') * W1 x')), x' = norm(x) (Shazeer 2020)."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        # three matrices of this width have as many weights as the usual two of 4 D
        inner = 8 * -(-width // 3)
        self.attention_norm, self.feed_forward_norm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.attention = RotaryAttention(width, num_heads, bias=False)
        self.gate, self.inner = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.outer = nn.Linear(inner, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        return self._finish(hidden, self.attention(self.attention_norm(hidden), None, is_causal=True))

    def at(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """What `forward` gives at one position of each history: [B, L, D], [B] int64 -> [B, D]."""
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return self._finish(hidden[rows, positions], self.attention.at(self.attention_norm(hidden), positions))

    def _finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = hidden + self.dropout(attended)
        normed = self.feed_forward_norm(hidden)
        return hidden + self.dropout(self.outer(F.silu(self.gate(normed)) * self.inner(normed)))


@sequence_encoders.register("rotary")
class RotaryTransformer(SequenceEncoder):
    """The decoder of Llama (Touvron et al. 2023) over item vectors; it has no number of positions to learn."""

    default_layers = 2

    def __init__(self, width: int, num_layers: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if width // num_heads % 2:
            raise UserError(
                f"--sequence rotary turns entries in pairs: --width {width} over --sequence_heads {num_heads} "
                "must be even"
            )
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(PreNormBlock(width, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        init_xavier(self)

    @classmethod
    def from_config(cls, config: ModelConfig) -> SequenceEncoder:
        """See SequenceEncoder."""
        return cls(config.width, cls.num_layers(config), config.sequence_heads, config.dropout)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """See SequenceEncoder."""
        hidden = self.dropout(vectors)
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)

    def last(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """See SequenceEncoder; the last block computes that position only."""
        hidden = self.dropout(vectors)
        for block in self.blocks[:-1]:
            hidden = block(hidden)
        top = self.blocks[-1]
        assert isinstance(top, PreNormBlock)
        return self.norm(top.at(hidden, mask.sum(dim=1) - 1))

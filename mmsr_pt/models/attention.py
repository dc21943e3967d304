"""Self-attention and the block of it that towers, fusions and sequence encoders share.

Shapes: N sequences, S tokens, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SHORT = 64
"""Tokens up to which the plain formula is the faster one on a CPU also where no gradient is wanted."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Scaled dot-product attention by the kernel that is fast where the tensors are.

    The fused kernel of CPUs has a backward pass that takes, in bf16, ten times as long as two products and a softmax
    written out; on accelerators the fused ones are used.

    Args:
        query: [N, heads, S, d].
        key: [N, heads, S', d].
        value: [N, heads, S', d].
        mask: bool, True where a token may be attended to, broadcastable to [N, heads, S, S'].
        dropout: of the probabilities.
        is_causal: without a mask: a query sees the keys up to its own place.
        scale: of the products; none given: 1 / sqrt(d).

    Returns:
        [N, heads, S, d].
    """
    wants_gradient = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    # an exported graph has one path for any number of tokens
    is_plain = torch.compiler.is_exporting() or (
        query.device.type == "cpu" and (wants_gradient or key.shape[-2] <= _SHORT)
    )
    if not is_plain:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, scale=scale
        )
    if is_causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if mask is not None:
        # the lowest number and not -inf: a text without a token gives finite values, which nothing reads
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
        scores += bias
    return F.dropout(scores.softmax(dim=-1), dropout) @ value


class SelfAttention(nn.Module):
    """Multi-head self-attention (one matrix for queries, keys and values)."""

    dropout: float = 0.0
    """Of the attention probabilities; `set_dropout` decides."""

    def __init__(self, width: int, num_heads: int, bias: bool = True) -> None:
        super().__init__()
        assert width % num_heads == 0, f"width {width} is not divisible by {num_heads} heads"
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, hidden: Tensor, mask: Tensor | None, is_causal: bool = False) -> Tensor:
        """[N, S, D] -> [N, S, D]; `mask` [N, 1, 1 or S, S] bool, True where a token may be attended to."""
        n, s, width = hidden.shape
        query, key, value = self._split(hidden)
        mixed = attend(query, key, value, mask, self.dropout if self.training else 0.0, is_causal)
        return self.out(mixed.transpose(1, 2).reshape(n, s, width))

    def at(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """What a causal `forward` gives at one position of each sequence: [N, S, D], [N] int64 -> [N, D]."""
        n, s, width = hidden.shape
        # one matrix holds queries, keys and values, and only a call of its module has it at hand under ZeRO-3
        query, key, value = self._split(hidden)
        query = query[torch.arange(n, device=hidden.device), :, positions].unsqueeze(2)
        before = torch.arange(s, device=hidden.device) <= positions[:, None]
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, before[:, None, None], dropout)
        return self.out(mixed.reshape(n, width))

    def _split(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [N, heads, S, D / heads]."""
        n, s, _ = hidden.shape
        query, key, value = self.qkv(hidden).view(n, s, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return query, key, value


class PostNormBlock(nn.Module):
    """Self-attention and feed-forward, each LN(x + dropout(f(x))) as in BERT and SASRec."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        dropout: float,
        activation: Literal["gelu", "relu"] = "gelu",
        attention_bias: bool = True,
        norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads, attention_bias)
        self.attention_norm = nn.LayerNorm(width, eps=norm_eps)
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.activation = F.gelu if activation == "gelu" else F.relu

    def forward(self, hidden: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[N, S, D] -> [N, S, D]; `mask` as in SelfAttention."""
        return self._finish(hidden, self.attention(hidden, mask, is_causal))

    def at(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """What a causal `forward` gives at one position of each sequence: [N, S, D], [N] int64 -> [N, D]."""
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return self._finish(hidden[rows, positions], self.attention.at(hidden, positions))

    def _finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """All that comes after attention, each position for itself: [..., D], [..., D] -> [..., D]."""
        hidden = self.attention_norm(hidden + self.dropout(attended))
        inner = self.activation(self.inner(hidden))
        return self.feed_forward_norm(hidden + self.dropout(self.outer(inner)))


def init_normal(module: nn.Module, std: float = 0.02) -> None:
    """BERT's initialisation of every Linear and Embedding below `module`: N(0, std), biases 0."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def init_xavier(module: nn.Module) -> None:
    """The released code's initialisation of every Linear and Embedding below `module`: xavier normal, biases 0."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.xavier_normal_(part.weight)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, SelfAttention):
            # three square matrices in one, each initialised by its own size
            for square in part.qkv.weight.data.chunk(3):
                nn.init.xavier_normal_(square)

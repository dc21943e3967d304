"""Fusions by name: how the text and the image of an item become one vector.

Formulas: section 3.2 of the paper and its released code. Coarse fusions (`sum`, `concat`) pool each modality first;
attention fusions (`merge`) see all tokens.

Shapes: N items, T text tokens, V vision tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmsr_pt.config import ModelConfig
from mmsr_pt.models.attention import PostNormBlock, init_normal, init_xavier
from mmsr_pt.registry import Registry


class Fusion(nn.Module):
    """Text and vision tokens of an item to its vector."""

    @classmethod
    def from_config(cls, config: ModelConfig) -> Fusion:
        """A new one, of the sizes that the configuration asks for."""
        raise NotImplementedError

    def forward(self, text: Tensor, text_mask: Tensor, vision: Tensor) -> Tensor:
        """[N, T, D], [N, T] bool, [N, V, D] -> [N, D]."""
        raise NotImplementedError


fusions: Registry[type[Fusion]] = Registry("fusion")


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens: [N, S, D], [N, S] bool -> [N, D]; zeros where there is none."""
    weights = mask.to(tokens.dtype)
    total = torch.bmm(weights.unsqueeze(1), tokens).squeeze(1)
    return total / weights.sum(dim=1, keepdim=True).clamp(min=1)


class _CoarseFusion(Fusion):
    """Pools, then normalises both modalities with one shared LayerNorm, as the released code does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)

    @classmethod
    def from_config(cls, config: ModelConfig) -> Fusion:
        return cls(config.width)

    def forward(self, text: Tensor, text_mask: Tensor, vision: Tensor) -> Tensor:
        return self.fuse(self.norm(masked_mean(text, text_mask)), self.norm(vision.mean(dim=1)))

    def fuse(self, text: Tensor, vision: Tensor) -> Tensor:
        """[N, D], [N, D] -> [N, D]."""
        raise NotImplementedError


@fusions.register("sum")
class SumFusion(_CoarseFusion):
    """A linear map of each, added."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.text, self.vision = nn.Linear(width, width), nn.Linear(width, width)
        init_xavier(self)

    def fuse(self, text: Tensor, vision: Tensor) -> Tensor:
        """See _CoarseFusion."""
        return self.text(text) + self.vision(vision)


@fusions.register("concat")
class ConcatFusion(_CoarseFusion):
    """One linear map of both, laid side by side."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.both = nn.Linear(2 * width, width)
        init_xavier(self)

    def fuse(self, text: Tensor, vision: Tensor) -> Tensor:
        """See _CoarseFusion."""
        return self.both(torch.cat([text, vision], dim=1))


@fusions.register("merge")
class MergeAttention(Fusion):
    """Merge-attention: blocks of self-attention over all tokens of both modalities, then their mean.

    The tokens carry a type embedding, as in the paper; the released code computes it and then drops it.
    """

    def __init__(self, width: int, num_layers: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        # read in this module's own forward, so no Embedding: see the note on ZeRO-3 in tower.py
        self.types = nn.Parameter(torch.empty(2, width))
        self.blocks = nn.ModuleList(PostNormBlock(width, num_heads, dropout) for _ in range(num_layers))
        init_normal(self)
        nn.init.normal_(self.types, std=0.02)

    @classmethod
    def from_config(cls, config: ModelConfig) -> Fusion:
        """See Fusion."""
        return cls(config.width, config.fusion_layers, config.fusion_heads, config.dropout)

    def forward(self, text: Tensor, text_mask: Tensor, vision: Tensor) -> Tensor:
        """See Fusion."""
        hidden = torch.cat([text + self.types[0], vision + self.types[1]], dim=1)
        mask = torch.cat([text_mask, text_mask.new_ones(vision.shape[:2])], dim=1)
        for block in self.blocks:
            hidden = block(hidden, mask[:, None, None])
        return masked_mean(hidden, mask)

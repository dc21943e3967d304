"""Fusions by name: how the text and the image of an item become one vector.

Formulas: section 3.2 of the paper and its released code. Coarse fusions (`sum`, `concat`, `gate`, `film`) pool each
modality first, and each exists with a perceptron behind it, too (`sum+dnn`); `vanilla` is FDSA's; attention fusions
(`co`, `merge`) see all tokens.

MoRec++, the paper's multimodal MoRec, is `sum` or `concat`, in which no modality acts on the other: both add a linear
map of each, and differ in how these start. MoRec (Yuan et al. 2023) has an activation where they have a LayerNorm.

Shapes: N items, T text tokens, V vision tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmsr_pt.config import ModelConfig
from mmsr_pt.models.attention import PostNormBlock, SelfAttention, init_normal, init_xavier
from mmsr_pt.registry import Registry


class Fusion(nn.Module):
    """Text and vision tokens of an item to its vector."""

    sees_means: bool = False
    """Whether all that it reads of either modality is the mean of its tokens."""
    has_gates: bool = False
    """Whether it weighs what it reads, so that `gates` has something to show."""

    @classmethod
    def from_config(cls, config: ModelConfig) -> Fusion:
        """A new one, of the sizes that the configuration asks for."""
        raise NotImplementedError

    def forward(self, text: Tensor, text_mask: Tensor, vision: Tensor) -> Tensor:
        """[N, T, D], [N, T] bool, [N, V, D] -> [N, D]."""
        raise NotImplementedError

    def gates(self, text: Tensor, text_mask: Tensor, vision: Tensor) -> dict[str, Tensor]:
        """The weights by which it lets through what it reads, by name [N, ...]: to be looked at; see `has_gates`."""
        raise NotImplementedError


fusions: Registry[type[Fusion]] = Registry("fusion")


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens: [N, S, D], [N, S] bool -> [N, D]; zeros where there is none."""
    weights = mask.to(tokens.dtype)
    total = torch.bmm(weights.unsqueeze(1), tokens).squeeze(1)
    return total / weights.sum(dim=1, keepdim=True).clamp(min=1)


class CoarseFusion(Fusion):
    """Pools, then normalises both modalities with one shared LayerNorm, as the released code does."""

    sees_means = True
    num_dnn_layers: int = 0
    """Layers of the perceptron behind the fusion."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        # the last ReLU stays, as in the released code: such item vectors have no negative entry
        layers = [(nn.Dropout(dropout), nn.Linear(width, width), nn.ReLU()) for _ in range(self.num_dnn_layers)]
        self.dnn = nn.Sequential(*(part for layer in layers for part in layer))

    @classmethod
    def from_config(cls, config: ModelConfig) -> Fusion:
        """See Fusion."""
        return cls(config.width, config.dropout)

    def forward(self, text: Tensor, text_mask: Tensor, vision: Tensor) -> Tensor:
        """See Fusion."""
        return self.dnn(self.fuse(*self.pooled(text, text_mask, vision)))

    def pooled(self, text: Tensor, text_mask: Tensor, vision: Tensor) -> tuple[Tensor, Tensor]:
        """[N, T, D], [N, T] bool, [N, V, D] -> [N, D], [N, D]."""
        return self.norm(masked_mean(text, text_mask)), self.norm(vision.mean(dim=1))

    def fuse(self, text: Tensor, vision: Tensor) -> Tensor:
        """[N, D], [N, D] -> [N, D]."""
        raise NotImplementedError


def _register_coarse(name: str) -> Callable[[type[CoarseFusion]], type[CoarseFusion]]:
    """Files a coarse fusion under its name, and with a perceptron of three layers behind it under `name`+dnn."""

    def add(part: type[CoarseFusion]) -> type[CoarseFusion]:
        fusions.register(name)(part)
        fusions.register(f"{name}+dnn")(type(f"{part.__name__}WithDNN", (part,), {"num_dnn_layers": 3}))
        return part

    return add


@_register_coarse("sum")
class SumFusion(CoarseFusion):
    """A linear map of each, added."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(width, dropout)
        self.text, self.vision = nn.Linear(width, width), nn.Linear(width, width)
        init_xavier(self)

    def fuse(self, text: Tensor, vision: Tensor) -> Tensor:
        """See CoarseFusion."""
        return self.text(text) + self.vision(vision)


@_register_coarse("concat")
class ConcatFusion(CoarseFusion):
    """One linear map of both, laid side by side."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(width, dropout)
        self.both = nn.Linear(2 * width, width)
        init_xavier(self)

    def fuse(self, text: Tensor, vision: Tensor) -> Tensor:
        """See CoarseFusion."""
        return self.both(torch.cat([text, vision], dim=1))


@_register_coarse("gate")
class GatedFusion(CoarseFusion):
    """The text opens gates for what the picture shows: out(sigmoid(text(t)) * vision(v))."""

    has_gates = True

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(width, dropout)
        self.text, self.vision, self.out = (nn.Linear(width, width) for _ in range(3))
        init_xavier(self)

    def fuse(self, text: Tensor, vision: Tensor) -> Tensor:
        """See CoarseFusion."""
        return self.out(self.text(text).sigmoid() * self.vision(vision))

    def gates(self, text: Tensor, text_mask: Tensor, vision: Tensor) -> dict[str, Tensor]:
        """See Fusion; `gate` [N, D] in [0, 1]."""
        return {"gate": self.text(self.pooled(text, text_mask, vision)[0]).sigmoid()}


@_register_coarse("film")
class FiLMFusion(CoarseFusion):
    """The text scales and shifts what the picture shows (Perez et al. 2018): out(gamma(t) * v + beta(t))."""

    has_gates = True

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(width, dropout)
        self.condition, self.out = nn.Linear(width, 2 * width), nn.Linear(width, width)
        init_xavier(self)

    def fuse(self, text: Tensor, vision: Tensor) -> Tensor:
        """See CoarseFusion."""
        gamma, beta = self.condition(text).chunk(2, dim=1)
        return self.out(gamma * vision + beta)

    def gates(self, text: Tensor, text_mask: Tensor, vision: Tensor) -> dict[str, Tensor]:
        """See Fusion; `scale` [N, D] is gamma, `shift` beta."""
        gamma, beta = self.condition(self.pooled(text, text_mask, vision)[0]).chunk(2, dim=1)
        return {"scale": gamma, "shift": beta}


@fusions.register("vanilla")
class VanillaAttention(Fusion):
    """FDSA's vanilla attention (Zhang et al. 2019): the mean of an item's features, weighted by softmax(w . feature).

    Features are here the means of text and vision tokens, which FDSA takes from fixed embeddings.
    """

    sees_means = True
    has_gates = True

    def __init__(self, width: int) -> None:
        super().__init__()
        # a bias would be the same for both
        self.weigh = nn.Linear(width, 1, bias=False)
        init_xavier(self)

    @classmethod
    def from_config(cls, config: ModelConfig) -> Fusion:
        """See Fusion."""
        return cls(config.width)

    def forward(self, text: Tensor, text_mask: Tensor, vision: Tensor) -> Tensor:
        """See Fusion."""
        features, weights = self._weighed(text, text_mask, vision)
        return (weights * features).sum(dim=1)

    def gates(self, text: Tensor, text_mask: Tensor, vision: Tensor) -> dict[str, Tensor]:
        """See Fusion; `text` [N] in [0, 1] is the title's weight, the rest of 1 is the picture's."""
        return {"text": self._weighed(text, text_mask, vision)[1][:, 0, 0]}

    def _weighed(self, text: Tensor, text_mask: Tensor, vision: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, 2, D] and their weights [N, 2, 1]."""
        features = torch.stack([masked_mean(text, text_mask), vision.mean(dim=1)], dim=1)
        return features, self.weigh(features).softmax(dim=1)


class CoAttentionBlock(nn.Module):
    """Each modality looks at the other through one shared attention, then at itself through a block of its own.

    After LXMERT (Tan & Bansal 2019), without its separate cross attentions: those of the released code share weights.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.cross = SelfAttention(width, num_heads)
        self.cross_norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.text = PostNormBlock(width, num_heads, dropout)
        self.vision = PostNormBlock(width, num_heads, dropout)

    def forward(self, text: Tensor, text_mask: Tensor, vision: Tensor) -> tuple[Tensor, Tensor]:
        """[N, T, D], [N, T] bool, [N, V, D] -> [N, T, D], [N, V, D]."""
        num_text, num_vision = text.shape[1], vision.shape[1]
        # shared weights: both directions are one attention over all tokens that sees the other modality only
        both = torch.cat([text, vision], dim=1)
        is_text = torch.arange(num_text + num_vision, device=both.device) < num_text
        real = torch.cat([text_mask, text_mask.new_ones(text.shape[0], num_vision)], dim=1)
        mask = (is_text[:, None] != is_text) & real[:, None]
        both = self.cross_norm(both + self.dropout(self.cross(both, mask[:, None])))
        text, vision = both.split([num_text, num_vision], dim=1)
        return self.text(text, text_mask[:, None, None]), self.vision(vision)


class AttentionFusion(Fusion):
    """Blocks of attention over all tokens, which carry an embedding of their type."""

    block: Callable[[int, int, float], nn.Module]
    """Makes one of a width, a number of heads and a dropout."""

    def __init__(self, width: int, num_layers: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        # read in this module's own forward, so no Embedding: see the note on ZeRO-3 in tower.py
        self.types = nn.Parameter(torch.empty(2, width))
        self.blocks = nn.ModuleList(type(self).block(width, num_heads, dropout) for _ in range(num_layers))
        init_normal(self)
        nn.init.normal_(self.types, std=0.02)

    @classmethod
    def from_config(cls, config: ModelConfig) -> Fusion:
        """See Fusion."""
        return cls(config.width, config.fusion_layers, config.fusion_heads, config.dropout)


@fusions.register("co")
class CoAttention(AttentionFusion):
    """Co-attention: blocks in which text and picture look at each other; one linear map of both means."""

    block = CoAttentionBlock

    def __init__(self, width: int, num_layers: int, num_heads: int, dropout: float) -> None:
        super().__init__(width, num_layers, num_heads, dropout)
        self.out = nn.Linear(2 * width, width)
        init_normal(self.out)

    def forward(self, text: Tensor, text_mask: Tensor, vision: Tensor) -> Tensor:
        """See Fusion."""
        text, vision = text + self.types[0], vision + self.types[1]
        for block in self.blocks:
            text, vision = block(text, text_mask, vision)
        return self.out(torch.cat([masked_mean(text, text_mask), vision.mean(dim=1)], dim=1))


@fusions.register("merge")
class MergeAttention(AttentionFusion):
    """Merge-attention: blocks of self-attention over all tokens of both modalities, then their mean.

    The tokens carry a type embedding, as in the paper; the released code computes it and then drops it.
    """

    block = PostNormBlock

    def forward(self, text: Tensor, text_mask: Tensor, vision: Tensor) -> Tensor:
        """See Fusion."""
        hidden = torch.cat([text + self.types[0], vision + self.types[1]], dim=1)
        mask = torch.cat([text_mask, text_mask.new_ones(vision.shape[:2])], dim=1)
        for block in self.blocks:
            hidden = block(hidden, mask[:, None, None])
        return masked_mean(hidden, mask)

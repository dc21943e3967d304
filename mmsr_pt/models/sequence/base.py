"""What every sequence encoder is: item vectors of a history in, at each position what scores the next item out.

Shapes: B users, L positions, C candidates, D width. Real positions stand left, padding right: what is causal never sees
padding. Where learned vectors stand beside content, vectors are 2 D wide.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmsr_pt.config import ModelConfig
from mmsr_pt.registry import Registry


class SequenceEncoder(nn.Module):
    """Reads a history from the left; neither padding nor what comes later changes a valid output of `forward`."""

    is_causal: bool = True
    """Trained to score the next item at every position; else by `fill`, which sees both sides of a hidden item."""

    scores_by_product: bool = True
    """Whether an item's score is the product of its vector with the output at a position; else `score_pairs` and
    `score_all` say what it is."""

    default_layers: int
    """Blocks where the configuration names no number: as many as in the paper."""

    @classmethod
    def from_config(cls, config: ModelConfig) -> SequenceEncoder:
        """A new one, of the sizes that the configuration asks for."""
        raise NotImplementedError

    @classmethod
    def num_layers(cls, config: ModelConfig) -> int:
        """How many blocks the configuration asks for."""
        return cls.default_layers if config.sequence_layers is None else config.sequence_layers

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """[B, L, D], [B, L] bool -> [B, L, D]; values at padding have no meaning."""
        raise NotImplementedError

    def fill(self, vectors: Tensor, mask: Tensor, hidden: Tensor) -> Tensor:
        """Of an encoder that is not causal: what scores the items at hidden positions, of which it sees the others.

        Args:
            vectors: [B, L, D].
            mask: [B, L] bool.
            hidden: [B, L] bool: positions that must not be seen.

        Returns:
            [B, L, D]; values at positions that are not hidden have no meaning.
        """
        raise NotImplementedError

    def last(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """What `forward` gives at the last real position: [B, L, D], [B, L] bool, at least one True -> [B, D]."""
        rows = torch.arange(vectors.shape[0], device=vectors.device)
        return self(vectors, mask)[rows, mask.sum(dim=1) - 1]

    def as_candidates(self, vectors: Tensor) -> Tensor:
        """Of an encoder that does not score by products: item vectors [..., D] as `score_*` want them."""
        raise NotImplementedError

    def score_pairs(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Likewise: outputs of `forward` [B, L, D], each with a candidate of its own [B, L, D] -> [B, L] float32."""
        raise NotImplementedError

    def score_all(self, users: Tensor, candidates: Tensor) -> Tensor:
        """Likewise: outputs [B, L, D], each with all candidates [C, D] -> [B, L, C] float32; calls no module."""
        raise NotImplementedError


def positions_from_end(mask: Tensor, num_positions: int) -> Tensor:
    """[B, L] bool -> [B, L] int64: where each item stands, the newest at the last position however long its history is.

    Padding gets any position, as nothing looks there.
    """
    length = mask.shape[1]
    assert length <= num_positions, f"{length} positions, at most {num_positions} are known"
    positions = torch.arange(length, device=mask.device) - mask.sum(dim=1, keepdim=True) + num_positions
    return positions.clamp(max=num_positions - 1)


sequence_encoders: Registry[type[SequenceEncoder]] = Registry("sequence encoder")

"""FDSA: self-attention over the items of a history and, apart from it, over their features.

Shapes: B users, L positions, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsr_pt.config import ModelConfig
from mmsr_pt.models.attention import init_xavier
from mmsr_pt.models.sequence.base import SequenceEncoder, sequence_encoders
from mmsr_pt.models.sequence.sasrec import SASRec


@sequence_encoders.register("fdsa")
class FDSA(SequenceEncoder):
    """FDSA (Zhang et al. 2019): one SASRec over learned item vectors, one over features, a linear map of both.

    Reads [item | features], 2 D wide. What it gives scores learned vectors alone, as in the paper: its second half is
    zero, so that the product with an item is that with the item's first half. Features of an item are weighed by
    `--fusion vanilla`. Two things differ: blocks are those of SASRec here, and features come from towers that train.
    """

    default_layers = 2

    def __init__(self, item_stream: SASRec, feature_stream: SASRec, width: int) -> None:
        super().__init__()
        self.width = width
        self.item_stream, self.feature_stream = item_stream, feature_stream
        self.out = nn.Linear(2 * width, width)
        init_xavier(self.out)

    @classmethod
    def from_config(cls, config: ModelConfig) -> SequenceEncoder:
        """See SequenceEncoder."""
        layers, heads = cls.num_layers(config), config.sequence_heads
        items, features = (
            SASRec(config.width, config.max_history, layers, heads, config.dropout) for _ in ("items", "features")
        )
        return cls(items, features, config.width)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """See SequenceEncoder; [B, L, 2 D] -> [B, L, 2 D]."""
        items, features = vectors.split(self.width, dim=-1)
        return self._join(self.item_stream(items, mask), self.feature_stream(features, mask))

    def last(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """See SequenceEncoder; [B, L, 2 D] -> [B, 2 D]."""
        items, features = vectors.split(self.width, dim=-1)
        return self._join(self.item_stream.last(items, mask), self.feature_stream.last(features, mask))

    def _join(self, items: Tensor, features: Tensor) -> Tensor:
        return F.pad(self.out(torch.cat([items, features], dim=-1)), (0, self.width))

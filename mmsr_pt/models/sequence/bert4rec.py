"""BERT4Rec: self-attention from both sides, trained to fill in hidden items.

Shapes: B users, L positions, D width. Real positions stand left, padding right.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsr_pt.config import ModelConfig
from mmsr_pt.models.attention import PostNormBlock, init_xavier
from mmsr_pt.models.sequence.base import SequenceEncoder, positions_from_end, sequence_encoders


@sequence_encoders.register("bert4rec")
class BERT4Rec(SequenceEncoder):
    """BERT4Rec (Sun et al. 2019): BERT's blocks and prediction head; one learned vector stands for every hidden item.

    What comes next is asked for as in that paper: a hidden item is appended to the history. Positions count from the
    end. Two things differ: an item has no bias of its own, as it is known by its content, and weights start as SASRec's
    do, since item vectors are fifty times as long as BERT's embeddings at their start.
    """

    is_causal = False
    default_layers = 2

    def __init__(self, width: int, max_history: int, num_layers: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.max_positions = max_history + 1
        self.positions = nn.Embedding(self.max_positions, width)
        self.hidden_item = nn.Embedding(1, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(PostNormBlock(width, num_heads, dropout) for _ in range(num_layers))
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-12))
        init_xavier(self)

    @classmethod
    def from_config(cls, config: ModelConfig) -> SequenceEncoder:
        """See SequenceEncoder."""
        return cls(config.width, config.max_history, cls.num_layers(config), config.sequence_heads, config.dropout)

    def fill(self, vectors: Tensor, mask: Tensor, hidden: Tensor) -> Tensor:
        """See SequenceEncoder; at most L + 1 positions of a model that reads L."""
        unseen = self.hidden_item(torch.zeros(1, dtype=torch.int64, device=vectors.device))
        places = self.positions(positions_from_end(mask, self.max_positions))
        states = self.dropout(self.norm(torch.where(hidden[..., None], unseen, vectors) + places))
        for block in self.blocks:
            states = block(states, mask[:, None, None])
        return self.head(states)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """See SequenceEncoder; reads L histories to answer for L positions, which training never does."""
        length = vectors.shape[1]
        is_before = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        prefixes = is_before & mask[:, None] | torch.eye(length, dtype=torch.bool, device=mask.device)
        repeated = vectors[:, None].expand(-1, length, -1, -1).flatten(0, 1)
        return self.last(repeated, prefixes.flatten(0, 1)).view_as(vectors)

    def last(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """See SequenceEncoder."""
        newest = torch.arange(mask.shape[1] + 1, device=mask.device) == mask.sum(dim=1, keepdim=True)
        longer = F.pad(vectors, (0, 0, 0, 1))
        filled = self.fill(longer, F.pad(mask, (0, 1)) | newest, newest)
        return filled[torch.arange(vectors.shape[0], device=vectors.device), mask.sum(dim=1)]

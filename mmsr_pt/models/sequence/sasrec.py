"""SASRec: causal self-attention over the history.

Shapes: B users, L positions, D width. Real positions stand left, padding right.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmsr_pt.config import ModelConfig
from mmsr_pt.models.attention import PostNormBlock, init_xavier
from mmsr_pt.models.sequence.base import SequenceEncoder, positions_from_end, sequence_encoders


@sequence_encoders.register("sasrec")
class SASRec(SequenceEncoder):
    """SASRec (Kang & McAuley 2018) as in the released code: learned positions and causal post-norm blocks.

    Positions count from the end, so the newest item always stands at the last one: what left padding gives in the
    paper. With padding on the right a causal mask alone keeps it away from every valid position.
    """

    default_layers = 2

    def __init__(self, width: int, max_history: int, num_layers: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.max_history = max_history
        self.positions = nn.Embedding(max_history, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            PostNormBlock(width, num_heads, dropout, activation="relu", attention_bias=False, norm_eps=1e-6)
            for _ in range(num_layers)
        )
        init_xavier(self)

    @classmethod
    def from_config(cls, config: ModelConfig) -> SequenceEncoder:
        """See SequenceEncoder."""
        return cls(config.width, config.max_history, cls.num_layers(config), config.sequence_heads, config.dropout)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """See SequenceEncoder."""
        hidden = self._embed(vectors, mask)
        for block in self.blocks:
            hidden = block(hidden, is_causal=True)
        return hidden

    def last(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """See SequenceEncoder; the last block computes that position only."""
        hidden = self._embed(vectors, mask)
        for block in self.blocks[:-1]:
            hidden = block(hidden, is_causal=True)
        top = self.blocks[-1]
        assert isinstance(top, PostNormBlock)
        return top.at(hidden, mask.sum(dim=1) - 1)

    def _embed(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """[B, L, D]: what goes into the first block."""
        positions = self.positions(positions_from_end(mask, self.max_history))
        return self.dropout(self.norm(vectors + positions))

"""GRURec: a recurrent network over the history.

Shapes: B users, L positions, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmsr_pt.config import ModelConfig
from mmsr_pt.models.sequence.base import SequenceEncoder, sequence_encoders


@sequence_encoders.register("grurec")
class GRURec(SequenceEncoder):
    """GRU4Rec (Hidasi et al. 2016) as in the released code: dropout on what goes in, GRU layers without bias.

    Padding stands right of all that is real, so that the state never reads it; the released code lets it in from the
    left. All layers start with Xavier uniform; the released code forgets all but the first.
    """

    default_layers = 4

    def __init__(self, width: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(width, width, num_layers, bias=False, batch_first=True)
        for weight in self.gru.parameters():
            # one matrix for each of the three gates
            for square in weight.data.chunk(3):
                nn.init.xavier_uniform_(square)

    @classmethod
    def from_config(cls, config: ModelConfig) -> SequenceEncoder:
        """See SequenceEncoder."""
        return cls(config.width, cls.num_layers(config), config.dropout)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """See SequenceEncoder."""
        hidden, _ = self.gru(self.dropout(vectors))
        return hidden

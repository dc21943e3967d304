"""CARCA: the candidate looks at the history, so a score is no product of two vectors.

Shapes: B users, L positions, C candidates, H heads, D width, d = D / H. Real positions stand left, padding right.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsr_pt.config import ModelConfig
from mmsr_pt.models.attention import attend, init_xavier
from mmsr_pt.models.sequence.base import SequenceEncoder, sequence_encoders
from mmsr_pt.models.sequence.sasrec import SASRec


class CandidateAttention(nn.Module):
    """What candidates and histories meet by: score(c) = w . (sum_l softmax_l(<q_c, k_l> / sqrt(d)) v_l * e_c).

    The candidate's vector e_c multiplies what its heads have found (`*` entry by entry), so that the sum over entries
    may come first: score(c) = sum_h sum_l softmax_l(<q_hc, k_hl>) <v_hl, (w * e_c)_h>, two products for each position
    and candidate and nothing of width D.
    """

    dropout: float = 0.0
    """Of the attention probabilities; `set_dropout` decides."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.weigh = Weights(width)

    def of_candidates(self, vectors: Tensor) -> Tensor:
        """e_c [..., D] -> [..., 2 D]: query beside w * e_c."""
        return torch.cat([F.leaky_relu(self.query(vectors), 0.2), self.weigh(vectors)], dim=-1)

    def of_history(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., 2 D]: key beside value."""
        return F.leaky_relu(torch.cat([self.key(states), self.value(states)], dim=-1), 0.2)

    def pairs(self, history: Tensor, candidates: Tensor) -> Tensor:
        """[B, L, 2 D] and [B, L, 2 D] -> [B, L] float32: the candidate at a position sees the history up to there."""
        query, weighed = (part.transpose(1, 2) for part in self._heads(candidates))
        key, value = (part.transpose(1, 2) for part in self._heads(history))
        found = attend(query, key, value, dropout=self.dropout if self.training else 0.0, is_causal=True)
        return (found.float() * weighed.float()).sum(dim=(1, 3))

    def all(self, history: Tensor, candidates: Tensor) -> Tensor:
        """[B, L, 2 D] and [C, 2 D] -> [B, L, C] float32: at each position each candidate sees the history up to there.

        Softmax over every prefix at the cost of one over the whole: sums are carried from position to position, and
        scaled anew where a larger exponent comes (Milakov & Gimelshein 2018).
        """
        query, weighed = self._heads(candidates)
        key, value = self._heads(history)
        logits = (torch.einsum("blhd,chd->lbhc", key, query) * query.shape[-1] ** -0.5).float()
        values = torch.einsum("blhd,chd->lbhc", value, weighed).float()
        # the largest exponent so far cancels out of the result, so no gradient goes through it
        top, total, mixed = torch.full_like(logits[0], float("-inf")), torch.zeros(()), torch.zeros(())
        scores = []
        for logit, value_part in zip(logits, values):
            higher = torch.maximum(top, logit.detach())
            kept, weight = (top - higher).exp(), (logit - higher).exp()
            total = total * kept + weight
            dropped = F.dropout(weight, self.dropout, self.training)
            mixed = mixed * kept + dropped * value_part
            scores.append((mixed / total).sum(dim=1))
            top = higher
        return torch.stack(scores, dim=1)

    def _heads(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """[..., 2 D] -> [..., H, d] twice."""
        first, second = both.chunk(2, dim=-1)
        split = (self.num_heads, -1)
        return first.unflatten(-1, split), second.unflatten(-1, split)


class Weights(nn.Module):
    """One weight for each entry; a module of its own, since ZeRO-3 gathers weights where a module is called."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, width))
        nn.init.xavier_normal_(self.weight)

    def forward(self, vectors: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return vectors * self.weight


@sequence_encoders.register("carca")
class CARCA(SequenceEncoder):
    """CARCA (Rashed et al. 2022) as in its released code, over learned vectors and the features of titles and pictures.

    An item is a linear map of [item | features], 2 D wide, in the history and as a candidate. Self-attention blocks
    read the history; each candidate attends to what they give and is multiplied with what it finds.

    Differences: candidates of a position see the history up to it, in the code all of it, targets included. The blocks
    are causal, those of SASRec here, and know positions; the code knows times instead, which this data lacks. A score
    has no bias, which no rank depends on. Neither side is scaled by sqrt(D) before the map, the code scales histories.
    """

    scores_by_product = False
    default_layers = 2

    def __init__(self, profile: SASRec, width: int, num_heads: int) -> None:
        super().__init__()
        self.joint = nn.Linear(2 * width, width)
        self.profile = profile
        self.cross = CandidateAttention(width, num_heads)
        init_xavier(self.joint)
        init_xavier(self.cross)

    @classmethod
    def from_config(cls, config: ModelConfig) -> SequenceEncoder:
        """See SequenceEncoder."""
        layers, heads = cls.num_layers(config), config.sequence_heads
        profile = SASRec(config.width, config.max_history, layers, heads, config.dropout)
        return cls(profile, config.width, heads)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """See SequenceEncoder; [B, L, 2 D] -> [B, L, 2 D], key and value of each position."""
        return self.cross.of_history(self.profile(self.joint(vectors), mask))

    def as_candidates(self, vectors: Tensor) -> Tensor:
        """See SequenceEncoder; [..., 2 D] -> [..., 2 D]."""
        return self.cross.of_candidates(self.joint(vectors))

    def score_pairs(self, users: Tensor, candidates: Tensor) -> Tensor:
        """See SequenceEncoder."""
        return self.cross.pairs(users, candidates)

    def score_all(self, users: Tensor, candidates: Tensor) -> Tensor:
        """See SequenceEncoder."""
        return self.cross.all(users, candidates)

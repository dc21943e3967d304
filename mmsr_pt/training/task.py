"""Model and loss as one module: what the engine runs on a micro-batch."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsr_pt.batch import UserBatch
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.training.attended import attended_softmax_loss
from mmsr_pt.training.losses import bce_loss, inclusion_probability, softmax_loss
from mmsr_pt.training.negatives import gather_vectors, interactions_by_domain, own_columns


class NextItemTask(nn.Module):
    """Dense next-item prediction: every position of a history predicts the item after it (section 3 of the paper).

    Where the batch hides items, these are predicted instead, from both sides (BERT4Rec's Cloze task).
    """

    def __init__(self, model: Recommender, loss: Literal["softmax", "bce"], num_domains: int) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.num_domains = num_domains

    def forward(self, batch: UserBatch) -> tuple[Tensor, Tensor, dict[str, float | Tensor]]:
        """Loss of a micro-batch. Collective with `softmax`: call on every rank.

        Returns:
            The loss summed over this rank's valid positions (scalar, float32); their number (scalar, int64); scalars to
            log, each a sum over this rank.
        """
        vectors = self.model.encode_items(batch.items)
        if self.loss == "softmax":
            vectors = gather_vectors(batch, vectors)
        assert batch.positions is not None
        users = self._users(batch, vectors)
        report: dict[str, float | Tensor] = {
            "items_encoded": float(len(batch.items)),
            "slots": float(2 * batch.sequence.numel()),
        }
        if self.model.scores_by_product:
            users = users.flatten(0, 1)[batch.positions]
        positive = self._score(batch, users, batch.sequence[:, 1:], vectors)
        if self.loss == "bce":
            assert batch.negatives is not None
            loss = bce_loss(positive, self._score(batch, users, batch.negatives, vectors))
        else:
            loss = self._softmax(batch, vectors, users, positive)
            report |= self._negatives(batch)
        return loss, batch.targets.sum(), report

    def _negatives(self, batch: UserBatch) -> dict[str, float | Tensor]:
        """How many candidates are left as negatives once a user's own items are out, over positions with a target."""
        assert batch.domain is not None
        domain = batch.domain if batch.bank is None else torch.cat([batch.domain, batch.bank.domain])
        candidates = torch.zeros(self.num_domains, dtype=torch.int64, device=domain.device)
        candidates.index_add_(0, domain, torch.ones_like(domain))
        own = own_columns(batch).sort(dim=1).values
        left = candidates[batch.domain[batch.sequence[:, 0]]] - 1 - (own[:, 1:] != own[:, :-1]).sum(dim=1)
        positions = batch.targets.sum(dim=1)
        return {
            "negatives": (left * positions).sum(),
            "positions": positions.sum(),
            "positions_without_negatives": (positions * (left <= 0)).sum(),
        }

    def _users(self, batch: UserBatch, vectors: Tensor) -> Tensor:
        """[B, L, D]: what scores the target at each position."""
        if batch.hidden is None:
            return self.model.encode_users(F.embedding(batch.sequence[:, :-1], vectors), batch.targets)
        hidden = F.pad(batch.hidden, (1, 0))  # the first item is no target
        return self.model.encode_hidden(F.embedding(batch.sequence, vectors), batch.mask, hidden)[:, 1:]

    def _score(self, batch: UserBatch, users: Tensor, items: Tensor, vectors: Tensor) -> Tensor:
        """[M] float32: what each position that has a target gives the item that `items` [B, L] names there."""
        assert batch.positions is not None
        if self.model.scores_by_product:
            return self.model.score_pairs(users, F.embedding(items.flatten()[batch.positions], vectors))
        return self.model.score_pairs(users, F.embedding(items, vectors)).flatten()[batch.positions]

    def _softmax(self, batch: UserBatch, vectors: Tensor, users: Tensor, positive: Tensor) -> Tensor:
        assert batch.domain is not None
        assert batch.occurrence_rate is not None
        assert batch.pool_rate is not None
        assert batch.positions is not None
        domain, occurrence, pool, frozen = batch.domain, batch.occurrence_rate, batch.pool_rate, None
        if batch.bank is not None:
            domain = torch.cat([domain, batch.bank.domain])
            occurrence = torch.cat([occurrence, batch.bank.occurrence_rate])
            pool = torch.cat([pool, batch.bank.pool_rate])
            frozen = batch.bank.vectors.to(vectors.dtype)
        inclusion = inclusion_probability(occurrence, interactions_by_domain(batch, self.num_domains)[domain], pool)
        own = own_columns(batch)
        if not self.model.scores_by_product:
            assert self.num_domains == 1, "such a model learns the items of one domain"
            encoder = self.model.sequence_encoder
            candidates = encoder.as_candidates(vectors if frozen is None else torch.cat([vectors, frozen]))
            return attended_softmax_loss(
                positive, encoder.score_all, users, candidates, inclusion, own, batch.positions
            )
        user = batch.positions.div(batch.targets.shape[1], rounding_mode="floor")
        domains = None
        if self.num_domains > 1:
            domains = domain[batch.sequence[:, 0]][user], domain
        queries = self.model.score_scale * users
        return softmax_loss(positive, queries, vectors, inclusion, own[user], domains, frozen)

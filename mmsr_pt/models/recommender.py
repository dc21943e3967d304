"""The recommender: an item encoder and a sequence encoder, saved and loaded as one strict bundle.

Shapes: B users, L positions, N = C items, M users or positions, D width. Where learned vectors stand beside content
(`--item both`), vectors are 2 D wide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmsr_pt.batch import ImageSpec, ItemInputs
from mmsr_pt.config import ModelConfig, from_dict
from mmsr_pt.models import bundle
from mmsr_pt.models.dropout import set_dropout
from mmsr_pt.models.item_encoder import NO_TOWERS, ItemEncoder, TrainedTowers, rest_group
from mmsr_pt.models.items import build_items, items_from_config
from mmsr_pt.models.layer_groups import LayerGroup
from mmsr_pt.models.sequence import SequenceEncoder, sequence_encoders


class Recommender(nn.Module):
    """Scores items behind histories: score = `score_scale` * <user vector, item vector>.

    Of a model that does not score by products (`scores_by_product`, CARCA), `score` and `score_pairs` take whole
    histories [B, L, 2 D] from `encode_users`, whose earlier positions count too.
    """

    def __init__(self, config: ModelConfig, item_encoder: ItemEncoder, sequence_encoder: SequenceEncoder) -> None:
        super().__init__()
        self.config = config
        self.item_encoder = item_encoder
        self.sequence_encoder = sequence_encoder
        self.trained_on: list[dict[str, Any]] = []
        self.step: int | None = None
        set_dropout(self, config.dropout, config.attention_dropout)

    @classmethod
    def build(
        cls,
        config: ModelConfig,
        vocab_size: int | None = None,
        num_items: int | None = None,
        trained: TrainedTowers = NO_TOWERS,
    ) -> Recommender:
        """A fresh model on the CPU in float32, its pretrained towers loaded.

        Args:
            config: which parts, and how large.
            vocab_size: of the tokenizer, where titles are read.
            num_items: of the catalogue, for `--item id` and `both`.
            trained: towers of another model, which go on learning in this one.

        Raises:
            UserError: an unknown part, or weights that cannot be had.
        """
        sequence_encoder = sequence_encoders[config.sequence]
        item_encoder = build_items(config, vocab_size, num_items, trained)
        # towers come in evaluation mode from their libraries
        return cls(config, item_encoder, sequence_encoder.from_config(config)).train()

    @property
    def image_spec(self) -> ImageSpec | None:
        """What images must look like; None where they are not read."""
        return self.item_encoder.image_spec

    @property
    def scores_by_product(self) -> bool:
        """Whether a score is a product of two vectors; else the sequence encoder says what it is."""
        return self.sequence_encoder.scores_by_product

    @property
    def score_scale(self) -> float:
        """What the inner product of a user and an item vector is multiplied by."""
        if self.config.score_kind == "cosine":
            return 1 / self.config.temperature
        return self.config.width**-0.5 if self.config.score_kind == "scaled" else 1.0

    def encode_items(self, items: ItemInputs) -> Tensor:
        """[N, D]; of length 1 where scores are cosines, of `--item both` either half."""
        return self._finish(self.item_encoder(items))

    def encode_users(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """What to score next items with.

        Args:
            vectors: [B, L, D] from `encode_items`, oldest first, real ones left.
            mask: [B, L] bool.

        Returns:
            [B, L, D]; the output at a position scores the item after it. Values at padding have no meaning.
        """
        return self._finish(self.sequence_encoder(self._history(vectors), mask))

    def encode_hidden(self, vectors: Tensor, mask: Tensor, hidden: Tensor) -> Tensor:
        """What to score hidden items with, by an encoder that is not causal.

        Args:
            vectors: [B, L, D] from `encode_items`, oldest first, real ones left.
            mask: [B, L] bool.
            hidden: [B, L] bool, within `mask`: positions whose items are not seen.

        Returns:
            [B, L, D]; the output at a hidden position scores the item that stands there.
        """
        return self._finish(self.sequence_encoder.fill(self._history(vectors), mask, hidden))

    def encode_last(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """[B, D]: what `encode_users` gives at the last real position, of which each history has one."""
        return self._finish(self.sequence_encoder.last(self._history(vectors), mask))

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """Every user with every item: [M, D], [C, D] -> [M, C], in their dtype."""
        if not self.scores_by_product:
            return self.sequence_encoder.score_all(users, self.sequence_encoder.as_candidates(items))
        return (self.score_scale * users) @ items.T

    def score_pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """Each user with the item in the same row: [M, D], [M, D] -> [M] float32."""
        if not self.scores_by_product:
            return self.sequence_encoder.score_pairs(users, self.sequence_encoder.as_candidates(items))
        return self.score_scale * (users.float() * items.float()).sum(dim=-1)

    def forward(self, items: ItemInputs, sequence: Tensor, mask: Tensor) -> Tensor:
        """User vectors [B, L, D] from items and `sequence` [B, L] int64, the index of each position's item."""
        return self.encode_users(F.embedding(sequence, self.encode_items(items)), mask)

    def layer_groups(self) -> list[LayerGroup]:
        """Ordered, complete partition of the parameters."""
        groups = [
            dataclasses.replace(group, parameters=tuple(f"item_encoder.{name}" for name in group.parameters))
            for group in self.item_encoder.layer_groups()
        ]
        return [*groups, rest_group("sequence_encoder", self.sequence_encoder)]

    def _history(self, vectors: Tensor) -> Tensor:
        # back from length 1 to entries of size 1, the size at which positions are added
        return vectors * self.config.width**0.5 if self.config.score_kind == "cosine" else vectors

    def _finish(self, vectors: Tensor) -> Tensor:
        if self.config.score_kind != "cosine":
            return vectors
        # learned vector and content each by itself: the second must not change what the first scores
        halves = vectors.float().unflatten(-1, (-1, self.config.width))
        return F.normalize(halves, dim=-1).flatten(-2).to(vectors.dtype)

    def save(
        self,
        directory: Path,
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        trained_on: Sequence[Mapping[str, Any]] | None = None,
        step: int | None = None,
        max_shard_size: int = bundle.MAX_SHARD_SIZE,
    ) -> None:
        """Writes config.json and model.safetensors; preprocessing files are written beside them by their owner.

        Args:
            directory: made if it is not there.
            state_dict: the weights, where they are not in this module (ZeRO-3).
            trained_on: name and fingerprint of each domain, and what else is to be known of it; none given: those it
                was loaded with.
            step: optimizer steps that the weights have seen; none given: those it was loaded with.
            max_shard_size: bytes of weights above which they stand in several files.
        """
        state = self.state_dict() if state_dict is None else state_dict
        bundle.write(directory, self._described(trained_on, step), state, max_shard_size)

    def save_config(self, directory: Path, *, trained_on: Sequence[Mapping[str, Any]], step: int) -> None:
        """Writes config.json alone, beside weights that are kept otherwise; see `save`."""
        bundle.write_config(directory, self._described(trained_on, step))

    def _described(self, trained_on: Sequence[Mapping[str, Any]] | None, step: int | None) -> dict[str, Any]:
        return {
            "model": dataclasses.asdict(self.config),
            "item_encoder": self.item_encoder.config(),
            "trained_on": [dict(domain) for domain in (self.trained_on if trained_on is None else trained_on)],
            "step": self.step if step is None else step,
        }

    @classmethod
    def load(cls, directory: Path) -> Recommender:
        """The model of a bundle, on the CPU in float32 and in evaluation mode; its towers need no file of their own.

        Args:
            directory: of the bundle.

        Raises:
            UserError: no bundle, one of another format, or weights of another model.
        """
        saved = bundle.read_config(directory)
        config = from_dict(ModelConfig, saved["model"], str(directory / bundle.CONFIG_FILE))
        item_encoder = items_from_config(config, saved["item_encoder"])
        model = cls(config, item_encoder, sequence_encoders[config.sequence].from_config(config))
        bundle.load_weights(directory, model)
        model.trained_on, model.step = saved["trained_on"], saved.get("step")
        return model.eval()

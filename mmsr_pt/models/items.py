"""What an item is, by `--item`: its content, its number, both side by side, or codes of its title.

Shapes: N items, D width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from mmsr_pt.batch import ItemInputs
from mmsr_pt.config import ModelConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.codes import CodeItemEncoder
from mmsr_pt.models.item_encoder import (
    NO_TOWERS,
    ContentItemEncoder,
    ItemActivations,
    ItemEncoder,
    TrainedTowers,
    build_item_encoder,
    item_encoder_from_config,
    rest_group,
)
from mmsr_pt.models.layer_groups import LayerGroup
from mmsr_pt.models.towers.side import tuned
from mmsr_pt.models.towers.text import build_text_tower, text_tower_from_config
from mmsr_pt.models.towers.tower import Tower


class BothItemEncoder(ItemEncoder):
    """IDSR with side features: the learned vector of an item beside what an encoder makes of its content, 2 D wide."""

    def __init__(self, num_items: int, width: int, content: ContentItemEncoder) -> None:
        super().__init__()
        self.content = content
        self.items = nn.Embedding(num_items, width)
        nn.init.xavier_normal_(self.items.weight)
        self.image_spec, self.joins_itself = content.image_spec, content.joins_itself

    def config(self) -> dict[str, Any]:
        """See ItemEncoder."""
        return {"num_items": self.items.num_embeddings, **self.content.config()}

    def layer_groups(self) -> list[LayerGroup]:
        """See ItemEncoder."""
        of_content = [
            dataclasses.replace(group, parameters=tuple(f"content.{name}" for name in group.parameters))
            for group in self.content.layer_groups()
        ]
        return [rest_group("items", self.items), *of_content]

    def prefix(self, items: ItemInputs) -> ItemActivations:
        """See ItemEncoder."""
        return self.content.prefix(items)._replace(ids=items.ids)

    def suffix(self, activations: ItemActivations) -> Tensor:
        """See ItemEncoder; [N, 2 D]."""
        assert activations.ids is not None
        return torch.cat([self.items(activations.ids), self.content.suffix(activations)], dim=1)

    def forward(self, items: ItemInputs) -> Tensor:
        """[N, 2 D]."""
        return torch.cat([self.items(items.ids), self.content(items)], dim=1)


def content_of(encoder: ItemEncoder) -> ContentItemEncoder | None:
    """The part that reads titles and pictures; None where there is none."""
    if isinstance(encoder, BothItemEncoder):
        return encoder.content
    return encoder if isinstance(encoder, ContentItemEncoder) else None


def build_items(
    config: ModelConfig,
    vocab_size: int | None,
    num_items: int | None,
    trained: TrainedTowers = NO_TOWERS,
) -> ItemEncoder:
    """A fresh item encoder with its towers' pretrained weights; that of `codes` is yet to be fitted.

    Args:
        config: which parts.
        vocab_size: of the tokenizer, where titles are read.
        num_items: of the catalogue, where items are known by number.
        trained: towers that are taken as they are, in place of those that their names stand for.

    Raises:
        UserError: a part that is not known or does not go with the others.
    """
    if config.item == "codes":
        if config.text == "tiny":
            raise UserError(
                "--item codes are codes of what a pretrained text tower makes of titles, and --text tiny is none: "
                "give --text hf:NAME or hf:/a/local/dir"
            )
        text = trained.text or build_text_tower(config.text, vocab_size, config.title_tokens)
        assert text is not None, "codes are made of titles"
        return _of_codes(config, text)
    encoder = build_item_encoder(config, vocab_size, num_items, trained)
    return _beside_ids(config, encoder, num_items)


def items_from_config(config: ModelConfig, saved: dict[str, Any]) -> ItemEncoder:
    """The item encoder that `ItemEncoder.config` described, with weights yet to be loaded."""
    if config.item == "codes":
        return _of_codes(config, text_tower_from_config(saved["text"]))
    return _beside_ids(config, item_encoder_from_config(config, saved), saved.get("num_items"))


def _of_codes(config: ModelConfig, text: Tower) -> CodeItemEncoder:
    return CodeItemEncoder(tuned(text, "frozen", config.width), config.num_codes, config.code_values, config.width)


def _beside_ids(config: ModelConfig, encoder: ItemEncoder, num_items: int | None) -> ItemEncoder:
    if config.item != "both":
        return encoder
    assert isinstance(encoder, ContentItemEncoder)
    assert num_items is not None, "learned vectors need the number of items"
    return BothItemEncoder(num_items, config.width, encoder)

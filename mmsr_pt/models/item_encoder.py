"""Item encoders: what an item is to the recommender, from its content or from its number.

Shapes: N items, T text tokens, V vision tokens, d a tower's width, D width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmsr_pt.batch import ImageSpec, ItemInputs
from mmsr_pt.config import ModelConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.dropout import ModalityDropout
from mmsr_pt.models.fusion import Fusion, fusions, masked_mean
from mmsr_pt.models.layer_groups import Kind, LayerGroup, is_split
from mmsr_pt.models.towers.joint import DeepVLP, joined, parted
from mmsr_pt.models.towers.side import tuned
from mmsr_pt.models.towers.text import build_text_tower, text_tower_from_config
from mmsr_pt.models.towers.tower import Activations, Tower
from mmsr_pt.models.towers.vision import build_vision_tower, vision_tower_from_config
from mmsr_pt.models.towers.vision_tower import VisionTower


class ItemActivations(NamedTuple):
    """What the frozen bottoms of the towers make of N items: the part that a cache may keep, item by item."""

    text: Activations | None = None
    vision: Activations | None = None
    ids: Tensor | None = None
    """[N] int64 item numbers, where the encoder knows items by number."""


class ItemEncoder(nn.Module):
    """Items to vectors, cut into a frozen prefix and a trained suffix."""

    image_spec: ImageSpec | None = None
    """What images must look like; None where they are not read."""
    joins_itself: bool = False
    """Whether pretrained blocks join title and picture, and no fusion does."""

    def config(self) -> dict[str, Any]:
        """JSON from which the same architecture is built again without the towers' original files."""
        raise NotImplementedError

    def layer_groups(self) -> list[LayerGroup]:
        """Ordered, complete partition of the parameters, named from this module."""
        raise NotImplementedError

    def prefix(self, items: ItemInputs) -> ItemActivations:
        """The frozen part: the same for an item at every step of training."""
        raise NotImplementedError

    def suffix(self, activations: ItemActivations) -> Tensor:
        """The trained part: [N, D]."""
        raise NotImplementedError

    def forward(self, items: ItemInputs) -> Tensor:
        """[N, D]."""
        return self.suffix(self.prefix(items))


_PIECE = {"cpu": 192}
"""Items encoded at once, by type of device: on a CPU so few that memory of one size is used again and again, elsewhere
as many as fill an accelerator."""
_PIECE_ELSEWHERE = 512
_RECOMPUTED_PIECES = 4
"""How much smaller pieces are where only one at a time is in memory."""


class ContentItemEncoder(ItemEncoder):
    """Titles, images or both through towers; what follows the towers is for subclasses to say."""

    own_modules: tuple[str, ...] = ()
    """Names of the children behind the towers, which start from random weights."""

    def __init__(self, text: Tower | None, vision: VisionTower | None, recompute: bool = False) -> None:
        """An encoder on these towers.

        Args:
            text: None: titles are not read.
            vision: None: pictures are not read.
            recompute: keep nothing of the suffix for the backward pass but what goes in.
        """
        super().__init__()
        self.recompute = recompute
        self.text, self.vision = text, vision
        self.image_spec = None if vision is None else vision.image_spec

    def towers(self) -> dict[Kind, Tower]:
        """The towers it has, by name, from the bottom up."""
        named: dict[Kind, Tower | None] = {"text": self.text, "vision": self.vision}
        return {name: tower for name, tower in named.items() if tower is not None}

    def layer_groups(self) -> list[LayerGroup]:
        """See ItemEncoder."""
        groups: list[LayerGroup] = []
        for kind, tower in self.towers().items():
            for group, names in tower.layer_groups().items():
                rate: Kind = kind if tower.is_pretrained(group) else "rest"
                inside = tuple(f"{kind}.{name}" for name in names)
                groups.append(LayerGroup(f"{kind}.{group}", rate, inside, group in tower.trained_groups))
        for child in self.own_modules:
            module = getattr(self, child)
            if module is not None:
                groups.append(rest_group(child, module))
        return groups

    def forward(self, items: ItemInputs) -> Tensor:
        """[N, D], encoded in pieces of titles of like length, so that little of what is computed is padding."""
        if torch.compiler.is_exporting():
            return self.suffix(self.prefix(items))  # an exported graph has one path for any number of items
        pieces = self._pieces(items)
        if len(pieces) == 1:
            return self._trained(self.prefix(items))
        vectors = [self._trained(self.prefix(_trimmed(items.select(rows), longest))) for rows, longest in pieces]
        places = torch.empty_like(items.ids)
        places[torch.cat([rows for rows, _ in pieces])] = torch.arange(len(items), device=places.device)
        return F.embedding(places, torch.cat(vectors))

    def _trained(self, activations: ItemActivations) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.suffix, activations, use_reentrant=False)
        return self.suffix(activations)

    def _pieces(self, items: ItemInputs) -> list[tuple[Tensor, int | None]]:
        """(rows, tokens of the longest title among them) of each piece; one piece of all items where that must be.

        ZeRO-3 gathers weights at every call of a module, and ranks must call equally often, whatever they hold.
        """
        size = _PIECE.get(items.ids.device.type, _PIECE_ELSEWHERE) // (_RECOMPUTED_PIECES if self.recompute else 1)
        if is_split(self) or items.as_one or len(items) <= size:
            return [(torch.arange(len(items), device=items.ids.device), None)]
        if items.title_mask is None:
            return [(rows, None) for rows in torch.arange(len(items), device=items.ids.device).split(size)]
        lengths, order = items.title_mask.sum(dim=1).sort()
        # the one moment at which the host must know what is on the device
        longest = lengths[size - 1 :: size].tolist() + lengths[-1:].tolist()
        return list(zip(order.split(size), longest))

    def prefix(self, items: ItemInputs) -> ItemActivations:
        """See ItemEncoder; a modality that is not given has no activations."""
        text = vision = None
        if self.text is not None and items.title_activations is not None:
            text = Activations(items.title_activations.to(self.text.dtype), items.title_mask)
        elif self.text is not None and items.title_ids is not None:
            text = self.text.prefix(Activations(items.title_ids, items.title_mask))
        if self.vision is not None and items.image_activations is not None:
            vision = Activations(items.image_activations.to(self.vision.dtype))
        elif self.vision is not None and items.images is not None:
            vision = self.vision.prefix(Activations(items.images))
        return ItemActivations(text=text, vision=vision)


class FusedItemEncoder(ContentItemEncoder):
    """Towers, a projection of their tokens to the width D, then fusion or, of one modality, the mean."""

    own_modules = ("text_projection", "vision_projection", "fusion")

    def __init__(
        self,
        text: Tower | None,
        vision: VisionTower | None,
        fusion: Fusion | None,
        width: int,
        recompute: bool = False,
        modality_dropout: float = 0.0,
    ) -> None:
        """An encoder of these parts.

        Args:
            text: see ContentItemEncoder.
            vision: likewise.
            fusion: of both towers' tokens.
            width: D.
            recompute: see ContentItemEncoder.
            modality_dropout: see ModalityDropout.
        """
        super().__init__(text, vision, recompute)
        assert (fusion is not None) == (text is not None and vision is not None)
        self.fusion = fusion
        self.modality_dropout = ModalityDropout(modality_dropout)
        self.text_projection = None if text is None else _projection(text.out_dim, width)
        self.vision_projection = None if vision is None else _projection(vision.out_dim, width)

    def config(self) -> dict[str, Any]:
        """See ItemEncoder."""
        return {
            "text": None if self.text is None else self.text.config(),
            "vision": None if self.vision is None else self.vision.config(),
        }

    def suffix(self, activations: ItemActivations) -> Tensor:
        """See ItemEncoder."""
        text = vision = mask = None
        # the mean of projected tokens is the projected mean of them, at a fraction of the work
        pools_first = self.fusion is None or self.fusion.sees_means
        if self.text is not None and self.text_projection is not None:
            assert activations.text is not None
            tokens, mask = self.text.suffix(activations.text)
            assert mask is not None
            if pools_first:
                tokens, mask = masked_mean(tokens, mask).unsqueeze(1), mask[:, :1]
            text = self.text_projection(tokens)
        if self.vision is not None and self.vision_projection is not None:
            assert activations.vision is not None
            tokens = self.vision.suffix(activations.vision).hidden
            vision = self.vision_projection(tokens.mean(dim=1, keepdim=True) if pools_first else tokens)
        if self.fusion is not None:
            text, vision = self.modality_dropout(text, vision)
            return self.fusion(text, mask, vision)
        if text is not None:
            assert mask is not None
            return masked_mean(text, mask)
        assert vision is not None
        return vision.mean(dim=1)


class DeepItemEncoder(ContentItemEncoder):
    """A deep VLP: two towers, and a joint one over their tokens; the mean of its tokens, projected to the width D."""

    text: Tower
    vision: VisionTower
    own_modules = ("projection",)
    joins_itself = True

    def __init__(self, vlp: DeepVLP, width: int, recompute: bool = False) -> None:
        """An encoder on the parts of a VLP, of which has been decided what trains."""
        super().__init__(vlp.text, vlp.vision, recompute)
        self.joint = vlp.joint
        self.joint.is_input_trained = not (vlp.text.is_all_prefix and vlp.vision.is_all_prefix)
        self.joint.train(self.joint.training)
        self.projection = _projection(vlp.joint.out_dim, width)

    def towers(self) -> dict[Kind, Tower]:
        """See ContentItemEncoder."""
        return {**super().towers(), "joint": self.joint}

    def config(self) -> dict[str, Any]:
        """See ItemEncoder."""
        return {"joint": self.joint.config(), "vision": self.vision.config()}

    def prefix(self, items: ItemInputs) -> ItemActivations:
        """See ItemEncoder."""
        done = super().prefix(items)
        if not self.joint.has_prefix or items.title_activations is not None:
            return done
        assert done.text is not None
        assert done.text.mask is not None
        assert done.vision is not None
        both = self.joint.prefix(self.joint.enter(done.text, done.vision.hidden))
        text, vision = parted(both, done.text.mask)
        return ItemActivations(text, vision)

    def suffix(self, activations: ItemActivations) -> Tensor:
        """See ItemEncoder."""
        assert activations.text is not None
        assert activations.vision is not None
        if self.joint.has_prefix:
            state = joined(activations.text, torch.cat([activations.text.hidden, activations.vision.hidden], dim=1))
        else:
            text, vision = self.text.suffix(activations.text), self.vision.suffix(activations.vision)
            state = self.joint.enter(text, vision.hidden)
        tokens, mask = self.joint.suffix(state)
        assert mask is not None
        return self.projection(masked_mean(tokens, mask))


def _trimmed(items: ItemInputs, longest: int | None) -> ItemInputs:
    """The same items without the padding that no title of theirs needs."""
    if longest is None:
        return items
    cut = {
        name: value[:, :longest]
        for name in ("title_ids", "title_mask", "title_activations")
        if (value := getattr(items, name)) is not None
    }
    return dataclasses.replace(items, **cut)


class IdItemEncoder(ItemEncoder):
    """IDSR: a learned vector for each item of one catalogue: it means nothing in another, so it never transfers."""

    def __init__(self, num_items: int, width: int) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items, width)
        nn.init.xavier_normal_(self.items.weight)

    def config(self) -> dict[str, Any]:
        """See ItemEncoder."""
        return {"num_items": self.items.num_embeddings}

    def layer_groups(self) -> list[LayerGroup]:
        """See ItemEncoder."""
        return [rest_group("items", self.items)]

    def prefix(self, items: ItemInputs) -> ItemActivations:
        """See ItemEncoder."""
        return ItemActivations(ids=items.ids)

    def suffix(self, activations: ItemActivations) -> Tensor:
        """See ItemEncoder."""
        assert activations.ids is not None
        return self.items(activations.ids)


def rest_group(name: str, module: nn.Module) -> LayerGroup:
    """The group of all parameters of the child called `name`, which trains from random weights."""
    return LayerGroup(name, "rest", tuple(f"{name}.{inside}" for inside, _ in module.named_parameters()), True)


def _projection(in_dim: int, width: int) -> nn.Linear:
    projection = nn.Linear(in_dim, width)
    nn.init.xavier_normal_(projection.weight)
    nn.init.zeros_(projection.bias)
    return projection


class TrainedTowers(NamedTuple):
    """Towers that have been trained here before, with their weights; None: of such a name there is none."""

    text: Tower | None = None
    vision: VisionTower | None = None
    deep: DeepVLP | None = None

    @property
    def names(self) -> set[str]:
        """What an item encoder calls them."""
        alone = {"text": self.text, "vision": self.vision}
        if self.deep is not None:
            return {*alone, "joint"}
        return {name for name, tower in alone.items() if tower is not None}


NO_TOWERS = TrainedTowers()


def build_item_encoder(
    config: ModelConfig,
    vocab_size: int | None,
    num_items: int | None,
    trained: TrainedTowers = NO_TOWERS,
) -> ItemEncoder:
    """A fresh item encoder with its towers' pretrained weights.

    Args:
        config: which parts.
        vocab_size: of the tokenizer, where titles are read.
        num_items: of the catalogue, where items are known by number.
        trained: towers that are taken as they are, in place of those that their names stand for.
    """
    if config.item == "id":
        assert num_items is not None, "an ID model needs the number of items"
        return IdItemEncoder(num_items, config.width)
    if trained.deep is not None:
        return _assemble_deep(config, trained.deep)
    if config.vlp != "none" and trained.text is None:
        from mmsr_pt.models.towers.vlp import build_deep_vlp

        vlp = build_deep_vlp(config.vlp, config.vision, vocab_size, config.title_tokens)
        if vlp is not None:
            if config.fusion is not None:
                raise UserError(
                    f"--vlp {config.vlp} joins title and picture itself: leave --fusion {config.fusion} out"
                )
            if config.modality_dropout:
                raise UserError(
                    f"--vlp {config.vlp} always reads both: leave --modality_dropout {config.modality_dropout} out"
                )
            return _assemble_deep(config, vlp)
    # named before anything is loaded: a mistyped fusion shows at once
    fusion = fusions[config.fusion_name]
    text = trained.text or build_text_tower(config.text, vocab_size, config.title_tokens)
    return _assemble(config, text, trained.vision or build_vision_tower(config.vision), fusion)


def item_encoder_from_config(config: ModelConfig, saved: dict[str, Any]) -> ItemEncoder:
    """The item encoder that `ItemEncoder.config` described, with weights yet to be loaded."""
    if config.item == "id":
        return IdItemEncoder(saved["num_items"], config.width)
    if "joint" in saved:
        from mmsr_pt.models.towers.vlp import deep_vlp_from_config

        return _assemble_deep(config, deep_vlp_from_config(saved["joint"], saved["vision"]))
    text = None if saved["text"] is None else text_tower_from_config(saved["text"])
    vision = None if saved["vision"] is None else vision_tower_from_config(saved["vision"])
    return _assemble(config, text, vision, fusions[config.fusion_name])


def _assemble(
    config: ModelConfig, text: Tower | None, vision: VisionTower | None, fusion: type[Fusion]
) -> FusedItemEncoder:
    text = None if text is None else tuned(text, config.text_policy, config.width)
    if vision is not None:
        vision.hide_patches(config.patch_mask, config.patch_mask_eval)
        vision = tuned(vision, config.vision_policy, config.width)
    fused = fusion.from_config(config) if text is not None and vision is not None else None
    return FusedItemEncoder(text, vision, fused, config.width, config.recompute, config.modality_dropout)


def _assemble_deep(config: ModelConfig, vlp: DeepVLP) -> DeepItemEncoder:
    joint = tuned(vlp.joint, vlp.joint.choose_policy(config.joint_tune, config.tune), config.width)
    text, vision = config.text_policy, config.vision_policy
    if joint.is_single_stream:
        below = "full" if joint.trains_in_full else "frozen"
        text, vision = config.text_tune or below, config.vision_tune or below
    vlp.vision.hide_patches(config.patch_mask, config.patch_mask_eval)
    parts = DeepVLP(tuned(vlp.text, text, config.width), tuned(vlp.vision, vision, config.width), joint)
    return DeepItemEncoder(parts, config.width, config.recompute)

"""Where title and picture meet inside a deep VLP: a tower over the tokens of both.

    text tower, vision tower -> enter: [title tokens; picture tokens] -> blocks -> tokens of the item

ViLT, VisualBERT and FLAVA are each such a triple. Its cut may lie below the towers' tops, or inside the joint blocks:
then what is kept of an item is the state of its title tokens and of its picture tokens, as two towers would have given.

Shapes: N items, T title tokens, V picture tokens, d width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmsr_pt.log import UserError
from mmsr_pt.models.towers.tower import SIDE, Activations, Step, Tower, block_steps
from mmsr_pt.models.towers.vision_tower import VisionTower


class JointTower(Tower):
    """Blocks over title and picture tokens; titles are padded in the middle, which the mask [N, T + V] says."""

    default_policy: str
    """What of it trains where the user says nothing (appendix E of the paper)."""
    is_single_stream: bool
    """Whether it is all there is: what stands below it is embeddings, which train only if everything does."""
    is_input_trained: bool = False
    """Whether gradients must reach what enters, so that nothing here is part of the prefix, frozen or not."""

    def __init__(
        self, described: dict[str, Any], backbone: Any, entry: nn.Module, blocks: str, top: tuple[str, ...]
    ) -> None:
        """A tower of a transformers model.

        Args:
            described: what `config` gives.
            backbone: holds the blocks; what it holds besides must have been taken out of it.
            entry: ([N, T, d_t], [N, V, d_v]) -> [N, T + V', d], title tokens first.
            blocks: dotted name of their list in the backbone.
            top: names of the norms behind them.
        """
        from mmsr_pt.models.towers.hf import use_own_attention

        super().__init__()
        self._described = described
        use_own_attention(backbone)
        self.entry, self.backbone = entry, backbone
        self._blocks, self._top = blocks, top
        self.out_dim = backbone.config.hidden_size

    def entry_groups(self) -> dict[str, tuple[str, ...]]:
        """Layer groups below the blocks: name -> dotted names of their modules and parameters."""
        return {"embeddings": ("entry",)}

    def steps(self) -> list[Step]:
        """See Tower; the entry itself takes two inputs and has run by then."""
        groups = [Step(group, parts, _as_it_is) for group, parts in self.entry_groups().items()]
        return [*groups, *block_steps(self.backbone, self._blocks, self._top)]

    def config(self) -> dict[str, Any]:
        """See Tower."""
        return self._described

    def context(self, inputs: Activations) -> Tensor:
        """[N, 1, 1, T + V] bool."""
        assert inputs.mask is not None
        return inputs.mask[:, None, None]

    def num_prefix_steps(self) -> int:
        """See Tower."""
        return 0 if self.is_input_trained else super().num_prefix_steps()

    def enter(self, text: Activations, vision: Tensor) -> Activations:
        """[N, T, d_t] with its mask and [N, V, d_v] -> [N, T + V', d] with the mask of both."""
        assert text.mask is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.has_prefix):
            return joined(text, self.entry(text.hidden, vision))

    def choose_policy(self, own: str | None, tune: str | None) -> str:
        """What of it trains.

        Args:
            own: what was asked of it alone.
            tune: what was asked of all towers.

        Raises:
            UserError: a side network, which reads one modality.
        """
        policy = own or self.policy_under(tune)
        if policy == SIDE:
            raise UserError(f"--tune {SIDE} is for towers of one modality: give top:K, full, frozen or lora:R")
        return policy

    def policy_under(self, tune: str | None) -> str:
        """Its part of what was asked of all towers."""
        return tune or self.default_policy

    @property
    def trains_in_full(self) -> bool:
        """Whether all of its pretrained groups train."""
        return self.trained_groups == frozenset(self.layer_groups())


class EmbeddedTitles(Tower):
    """What a single-stream model has in the place of a text tower: title ids, embedded."""

    def __init__(self, described: dict[str, Any], embeddings: nn.Module, out_dim: int) -> None:
        """See JointTower for `described`; `embeddings`: [N, T] int64 -> [N, T, out_dim]."""
        super().__init__()
        self._described, self.embeddings, self.out_dim = described, embeddings, out_dim

    def steps(self) -> list[Step]:
        """See Tower."""
        return [Step("embeddings", ("embeddings",), lambda title_ids, _: self.embeddings(title_ids))]

    def config(self) -> dict[str, Any]:
        """See Tower."""
        return self._described


class DeepVLP(NamedTuple):
    """A model of titles and pictures in three parts."""

    text: Tower
    vision: VisionTower
    joint: JointTower


def joined(text: Activations, hidden: Tensor) -> Activations:
    """Tokens [N, T + V, d] of both with their mask, from the title's [N, T] one."""
    assert text.mask is not None
    num_vision = hidden.shape[1] - text.mask.shape[1]
    return Activations(hidden, torch.cat([text.mask, text.mask.new_ones(hidden.shape[0], num_vision)], dim=1))


def parted(both: Activations, text_mask: Tensor) -> tuple[Activations, Activations]:
    """The title's and the picture's part of a joint state."""
    length = text_mask.shape[1]
    return Activations(both.hidden[:, :length], text_mask), Activations(both.hidden[:, length:])


def _as_it_is(hidden: Tensor, _: object) -> Tensor:
    return hidden

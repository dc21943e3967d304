"""What every tower is: an ordered list of named steps, from which forward, layer groups and the cut all follow.

Freezing goes by group name, never by parameter index. The steps of frozen groups at the bottom form the prefix: it runs
in evaluation mode without gradients, so its output belongs to the item and can be kept; the rest is the suffix.

Every parameter is read inside the forward of the module that owns it, called as a module: ZeRO-3 gathers it there.

Shapes: N items, T text tokens, V vision tokens, d the tower's width.
"""

from __future__ import annotations

import functools
import itertools
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmsr_pt.log import UserError
from mmsr_pt.models.layer_groups import is_split

log = logging.getLogger(__name__)

BLOCK = "block."
"""Names of groups that `top:K` counts start with this."""

_PIECE = 32
"""Items that a CPU takes through a prefix at once."""

LORA = "lora"
"""Tuning policy that trains low-rank updates of frozen blocks, and how the groups of these end: block.<i>.lora."""

SIDE = "side"
"""Tuning policy that trains a side network beside the frozen tower, and the name of that network's group."""


class Activations(NamedTuple):
    """What goes into a tower, through it, and out of it; first dimension N, so a cache can keep it item by item."""

    hidden: Tensor
    """In: [N, T] int64 title ids or [N, 3, H, W] uint8 images; out: [N, T, d] or [N, V, d] float."""
    mask: Tensor | None = None
    """[N, T] bool, True where a text token is real; None for images."""


@dataclass(frozen=True)
class Step:
    """A stretch of a tower's forward pass that is frozen or trained as one."""

    group: str
    """Layer group: the bottom one (embeddings or stem) or block.<i>; steps of one group follow each other."""
    parts: tuple[str, ...]
    """Dotted names, from the tower, of the modules and parameters that the step uses."""
    run: Callable[[Tensor, Any], Tensor]
    """(hidden, the tower's context) -> hidden."""
    is_random: bool = False
    """Gives something else at every step of training, so that nothing from here on is part of the prefix."""


class Tower(nn.Module):
    """Turns the text or the image of an item into tokens."""

    out_dim: int
    """d: width of the tokens."""
    pretrained: bool = True
    """False: starts from random weights, so it always trains in full and at the rate of the rest."""
    can_train: bool = True
    """False: stays frozen, whatever the policy."""
    is_pooled: bool = False
    """Whether `prefix` gives one vector an item, as a single token, however many tokens went in."""

    def __init__(self) -> None:
        super().__init__()
        self._trained_groups: frozenset[str] | None = None

    def steps(self) -> list[Step]:
        """The whole forward pass in order."""
        raise NotImplementedError

    def context(self, inputs: Activations) -> Any:
        """What all steps share besides the hidden state, such as an attention mask."""
        return None

    def as_tokens(self, hidden: Tensor) -> Tensor:
        """[N, T, d] or [N, V, d] from the hidden state after any step, whose d may differ from `out_dim`."""
        return hidden

    def is_pretrained(self, group: str) -> bool:
        """Whether a group came with trained weights; one that did not learns at the rate of the rest."""
        return self.pretrained and not group.endswith(f".{LORA}")

    def config(self) -> dict[str, Any]:
        """JSON from which the same architecture is built again without its original files."""
        raise NotImplementedError

    def layer_groups(self) -> dict[str, list[str]]:
        """Ordered, complete partition of the parameters: group -> names as in `named_parameters`."""
        part_of = {part: step.group for step in self.steps() for part in step.parts}
        groups: dict[str, list[str]] = {step.group: [] for step in self.steps()}
        for name, _ in self.named_parameters():
            owners = [group for part, group in part_of.items() if name == part or name.startswith(part + ".")]
            assert len(owners) == 1, f"{type(self).__name__}: {name} belongs to {owners or 'no step'}"
            groups[owners[0]].append(name)
        return with_lora_apart(groups)

    @property
    def trained_groups(self) -> frozenset[str]:
        """Names of the groups that train."""
        return frozenset(self.layer_groups()) if self._trained_groups is None else self._trained_groups

    def tune(self, policy: str) -> None:
        """Decides what trains.

        Args:
            policy: `top:K` (the last K blocks), `full`, `frozen`, `side` (of the tower itself nothing, see side.py) or
                `lora:R` (what `add_lora` has put in); what did not come with trained weights trains under each.

        Raises:
            UserError: another word.
        """
        groups = list(self.layer_groups())
        new = [group for group in groups if not self.is_pretrained(group)]
        self._trained_groups = frozenset([*_trained_by(policy, groups), *new])
        for group, names in self.layer_groups().items():
            for name in names:
                self.get_parameter(name).requires_grad_(group in self._trained_groups)
        self.train(self.training)

    def train(self, mode: bool = True) -> Tower:
        """As in torch, but frozen parts stay in evaluation mode and so does every BatchNorm.

        A frozen block that still drops out has no reusable output; a BatchNorm that looks at its batch makes an item's
        vector depend on the other items and on the number of ranks. Its affine weights train all the same.
        """
        super().train(mode)
        if mode:
            for step in self.steps()[: self.num_prefix_steps()]:
                for part in step.parts:
                    module = _find(self, part)
                    if isinstance(module, nn.Module):
                        module.eval()
            # the tower itself stays in training mode, also where all of it is frozen
            for module in itertools.islice(self.modules(), 1, None):
                parameters = list(module.parameters())
                is_frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
                if is_frozen or isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def num_prefix_steps(self) -> int:
        """Where the cut is: how many of the steps, from the bottom, form the prefix."""
        steps = self.steps()
        trained = self.trained_groups
        ends = [step.is_random or step.group in trained or f"{step.group}.{LORA}" in trained for step in steps]
        return ends.index(True) if any(ends) else len(steps)

    @property
    def has_prefix(self) -> bool:
        """Whether anything at the bottom is frozen."""
        return self.num_prefix_steps() > 0

    @property
    def is_all_prefix(self) -> bool:
        """Whether its tokens are the same at every step of training."""
        return self.num_prefix_steps() == len(self.steps())

    def prefix_state(self) -> dict[str, Tensor]:
        """Weights and buffers that the output of `prefix` depends on (and no trained ones)."""
        frozen = {name: value for name, value in self.named_parameters() if not value.requires_grad}
        return {**frozen, **dict(self.named_buffers())}

    def prefix(self, inputs: Activations) -> Activations:
        """The frozen steps: the same for an item at every step of training."""
        steps = self.steps()[: self.num_prefix_steps()]
        if not steps:
            return inputs
        with torch.no_grad():
            if self._in_pieces(inputs):
                hidden = inputs.hidden.split(_PIECE)
                masks = [None] * len(hidden) if inputs.mask is None else inputs.mask.split(_PIECE)
                done = [self._run(steps, Activations(*piece)).hidden for piece in zip(hidden, masks)]
                return Activations(torch.cat(done), inputs.mask)
            return self._run(steps, inputs)

    def _in_pieces(self, inputs: Activations) -> bool:
        """On a CPU small pieces stay in its caches, which makes convolutions without gradients twice as fast.

        Not where ZeRO-3 has split the weights: it gathers them in every call, and ranks must call equally often.
        """
        if torch.compiler.is_exporting():
            return False  # an exported graph has one path for any number of items
        return inputs.hidden.device.type == "cpu" and len(inputs.hidden) > _PIECE and not is_split(self)

    def suffix(self, activations: Activations) -> Activations:
        """The trained steps: [N, T, d] with its mask, or [N, V, d]."""
        return self._run(self.steps()[self.num_prefix_steps() :], activations)

    def forward(self, inputs: Activations) -> Activations:
        """Tokens [N, T, d] with their mask from title ids, or [N, V, d] from images."""
        return self.suffix(self.prefix(inputs))

    def _run(self, steps: Sequence[Step], inputs: Activations) -> Activations:
        context, hidden = self.context(inputs), inputs.hidden
        for step in steps:
            hidden = step.run(hidden, context)
        return Activations(hidden, inputs.mask)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, in which the tower computes."""
        return next(self.parameters()).dtype


def with_lora_apart(groups: dict[str, list[str]]) -> dict[str, list[str]]:
    """The same partition with the low-rank updates of a group as a group of their own, behind it."""
    apart: dict[str, list[str]] = {}
    for group, names in groups.items():
        updates = [name for name in names if ".lora_" in name]
        apart[group] = [name for name in names if name not in updates]
        if updates:
            apart[f"{group}.{LORA}"] = updates
    return apart


def _find(root: nn.Module, dotted: str) -> object:
    found: object = root
    for name in dotted.split("."):
        found = getattr(found, name)
    return found


def check_policy(policy: str) -> None:
    """Raises UserError where a tuning policy is none that any tower knows."""
    if not re.fullmatch(rf"full|frozen|{SIDE}|(top|{LORA}):0*[1-9]\d*", policy):
        raise _unknown(policy)


def _unknown(policy: str) -> UserError:
    return UserError(
        f"unknown tuning policy {policy!r}: give top:K (the last K blocks, K >= 1), full, frozen, side or lora:R"
    )


def _trained_by(policy: str, groups: Sequence[str]) -> list[str]:
    """The groups that a tuning policy trains."""
    if policy == "full":
        return list(groups)
    if policy == "frozen":
        return []
    if policy == SIDE:
        return [group for group in groups if group == SIDE]
    if policy.startswith(f"{LORA}:") and any(group.endswith(f".{LORA}") for group in groups):
        return [group for group in groups if group.endswith(f".{LORA}")]
    top = re.fullmatch(r"top:(\d+)", policy)
    if top is None or int(top[1]) == 0:
        raise _unknown(policy)
    blocks = [group for group in groups if group.startswith(BLOCK)]
    if int(top[1]) > len(blocks):
        log.info("tuning %s of a tower with %d blocks: all of it trains", policy, len(blocks))
        return list(groups)
    return blocks[-int(top[1]) :]


def block_steps(backbone: nn.Module, blocks: str, top: tuple[str, ...]) -> list[Step]:
    """The steps of blocks, which take the tower's context as their mask, and of what follows the last of them.

    Args:
        backbone: of the tower.
        blocks: dotted name of their list.
        top: names of norms, which belong to the last block.
    """
    modules = backbone.get_submodule(blocks)
    assert isinstance(modules, nn.ModuleList)
    steps = [
        Step(f"{BLOCK}{i}", (f"backbone.{blocks}.{i}",), functools.partial(_run_block, block))
        for i, block in enumerate(modules)
    ]
    for name in top:
        norm = backbone.get_submodule(name)
        steps.append(Step(steps[-1].group, (f"backbone.{name}",), functools.partial(_run_norm, norm)))
    return steps


def _run_block(block: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
    out = block(hidden, mask)
    return out[0] if isinstance(out, tuple) else out


def _run_norm(norm: nn.Module, hidden: Tensor, _: object) -> Tensor:
    return norm(hidden)

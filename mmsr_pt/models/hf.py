"""What towers of the transformers library have in common, whatever they read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mmsr_pt.log import UserError
from mmsr_pt.models.attention import attend

_ATTENTION = "mmsr_pt"
"""What the library knows `attend` as."""

_NOT_ARCHITECTURE = ("_name_or_path", "dtype", "transformers_version")


def use_own_attention(backbone: PreTrainedModel) -> None:
    """Makes the library's attention modules call `attend`, with the masks that they would give to torch's own."""
    transformers.AttentionInterface.register(_ATTENTION, _attention)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    backbone.set_attn_implementation(_ATTENTION)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """`attend` with the signature of transformers' AttentionInterface."""
    mixed = attend(query, key, value, attention_mask, dropout, scale=scaling)
    return mixed.transpose(1, 2).contiguous(), None


def architecture_of(backbone: PreTrainedModel) -> dict[str, Any]:
    """The configuration from which `AutoConfig.for_model` makes the same architecture."""
    config = backbone.config.to_dict()
    return {name: value for name, value in config.items() if name not in _NOT_ARCHITECTURE}


def blocks_by_name(backbone: nn.Module) -> Iterator[tuple[str, int | None]]:
    """(parameter name, its block or None for the embeddings) by the longest list of blocks in the module tree."""
    lists = [(name, part) for name, part in backbone.named_modules() if isinstance(part, nn.ModuleList)]
    where, blocks = max(lists, key=lambda found: sum(p.numel() for p in found[1].parameters()), default=("", []))
    pattern = re.compile(rf"{re.escape(where)}\.(\d+)\.")
    is_past_blocks = False
    for name, _ in backbone.named_parameters():
        found = pattern.match(name)
        is_past_blocks |= found is not None
        if found is not None:
            yield name, int(found[1])
        elif is_past_blocks and "embed" not in name:
            yield name, len(blocks) - 1
        else:
            yield name, None


def check_complete(name: str, backbone: PreTrainedModel, loading: Mapping[str, Any]) -> None:
    """Refuses a checkpoint that lacks weights of the model, which the library fills up with random ones.

    Args:
        name: flag and value that asked for it.
        backbone: the model.
        loading: what the library says of how it was loaded.

    Raises:
        UserError: naming the first that is missing.
    """
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UserError(
            f"{name} lacks {len(missing)} weights of {type(backbone).__name__} ({missing[0]}, ...): "
            "it is a checkpoint of another model"
        )

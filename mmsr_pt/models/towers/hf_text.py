"""Text encoders of the transformers library: `hf:NAME_OR_DIR`.

BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, DistilBERT and the text sides of CLIP, SigLIP and FLAVA are cut between their
blocks. Any other encoder works too, with layer groups found by name; it runs as one step, so unless it is frozen as a
whole its prefix is the identity.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from mmsr_pt.log import UserError
from mmsr_pt.models.towers.hf import (
    DEEP,
    architecture_of,
    from_architecture,
    keep_only,
    load_side,
    use_own_attention,
)
from mmsr_pt.models.towers.tower import Activations, Step, Tower, block_steps
from mmsr_pt.models.towers.whole import WholeTower, drop_unused

log = logging.getLogger(__name__)


class _Family(NamedTuple):
    """Where a model type has its parts; its forward is embeddings, blocks, top."""

    blocks: str = "encoder.layer"
    top: tuple[str, ...] = ()
    is_causal: bool = False
    """A token sees those before it only."""


_FAMILIES = {
    "bert": _Family(),
    "roberta": _Family(),
    "xlm-roberta": _Family(),
    "camembert": _Family(),
    "electra": _Family(),
    "distilbert": _Family("transformer.layer"),
    "clip_text_model": _Family("encoder.layers", ("final_layer_norm",), is_causal=True),
    "siglip_text_model": _Family("encoder.layers", ("final_layer_norm",)),
    # its multimodal encoder reads what is before the last norm
    "flava_text_model": _Family(),
}


class BertLikeText(Tower):
    """An encoder whose forward is embeddings, a projection of them (ELECTRA), blocks, a norm (CLIP)."""

    backbone: Any

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.family = _FAMILIES[backbone.config.model_type]
        keep_only(backbone, ["embeddings", "embeddings_project", self.family.blocks, *self.family.top])
        use_own_attention(backbone)
        self.backbone = backbone
        self.out_dim = backbone.config.hidden_size

    def steps(self) -> list[Step]:
        """See Tower."""
        embeddings = ["backbone.embeddings"]
        if hasattr(self.backbone, "embeddings_project"):
            embeddings.append("backbone.embeddings_project")
        embed = Step("embeddings", tuple(embeddings), self._embed)
        return [embed, *block_steps(self.backbone, self.family.blocks, self.family.top)]

    def context(self, inputs: Activations) -> Tensor | None:
        """The library's own mask for its own attention, made once for all blocks."""
        assert inputs.mask is not None
        if self.family.is_causal:
            length = inputs.mask.shape[1]
            earlier = torch.ones(length, length, dtype=torch.bool, device=inputs.mask.device).tril()
            return earlier & inputs.mask[:, None, None]
        if not self.backbone._supports_sdpa:
            return inputs.mask[:, None, None]
        like = torch.empty((), dtype=self.dtype, device=inputs.mask.device).expand(*inputs.mask.shape, 1)
        return create_bidirectional_mask(self.backbone.config, like, inputs.mask)

    def config(self) -> dict[str, Any]:
        """See Tower."""
        return _config_of(self.backbone)

    def _embed(self, title_ids: Tensor, _: object) -> Tensor:
        hidden = self.backbone.embeddings(title_ids)
        return self.backbone.embeddings_project(hidden) if hasattr(self.backbone, "embeddings_project") else hidden


class AnyText(WholeTower):
    """Any other encoder that gives a last hidden state from ids and a mask."""

    bottom = "embeddings"

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__(backbone)
        ids = torch.ones((1, 4), dtype=torch.int64)
        self.out_dim = drop_unused(backbone, lambda: self.run_backbone(ids, torch.ones_like(ids, dtype=torch.bool)))

    def context(self, inputs: Activations) -> Tensor | None:
        """[N, T] bool."""
        return inputs.mask

    def config(self) -> dict[str, Any]:
        """See Tower."""
        return _config_of(self.backbone)

    def run_backbone(self, inputs: Tensor, context: Tensor) -> Tensor:
        """See WholeTower."""
        return self.backbone(input_ids=inputs, attention_mask=context.long()).last_hidden_state


def _config_of(backbone: PreTrainedModel) -> dict[str, Any]:
    return {"kind": "hf", "config": architecture_of(backbone)}


def from_config(config: dict[str, Any]) -> Tower:
    """The tower of a transformers configuration, with random weights."""
    return _wrap(from_architecture(config))


def load_pretrained(reference: str, vocab_size: int | None, title_tokens: int) -> Tower:
    """The tower of a hub name or a directory, its weights in float32 whatever the file holds.

    Raises:
        UserError: it cannot be had, lacks weights, or does not fit the tokenizer or the length of titles.
    """
    backbone = load_side(reference, "text")
    check_fits(f"--text hf:{reference}", backbone.config, vocab_size, title_tokens)
    return _wrap(backbone)


def check_fits(flag: str, config: PretrainedConfig, vocab_size: int | None, title_tokens: int) -> None:
    """Refuses a model, named by its flag, that does not fit the tokenizer or cannot read titles of that length."""
    if vocab_size is not None and vocab_size > config.vocab_size:
        raise UserError(
            f"{flag} knows {config.vocab_size} tokens, its tokenizer has {vocab_size}: their files do not belong "
            "together"
        )
    longest = _longest_title(config)
    if longest is not None and title_tokens > longest:
        raise UserError(f"{flag} reads at most {longest} tokens: give --title_tokens {longest}, not {title_tokens}")


def _longest_title(config: PretrainedConfig) -> int | None:
    """Tokens that the learned positions reach; None where there is no such limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or config.model_type not in (*_FAMILIES, *DEEP):
        return None
    # RoBERTa's family counts positions from behind the padding id
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return positions - offset


def _wrap(backbone: PreTrainedModel) -> Tower:
    config = backbone.config
    if config.is_encoder_decoder:
        backbone = backbone.get_encoder()
    if config.model_type in _FAMILIES and not getattr(config, "is_decoder", False):
        return BertLikeText(backbone)
    log.info("%s runs as one piece: no part of it can be cached unless it is frozen", config.model_type)
    return AnyText(backbone)

"""Text towers by name: `tiny`, `hf:NAME_OR_DIR`; titles in, tokens and their mask out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmsr_pt.log import UserError
from mmsr_pt.models.attention import PostNormBlock, init_normal
from mmsr_pt.models.towers.side import with_side
from mmsr_pt.models.towers.tower import BLOCK, SIDE, Activations, Step, Tower
from mmsr_pt.registry import unknown_name


class TinyText(Tower):
    """A small untrained encoder: SentencePiece embeddings and a few blocks, for tests, demos and short titles."""

    pretrained = False

    def __init__(self, vocab_size: int, width: int = 64, num_layers: int = 2, num_heads: int = 4) -> None:
        super().__init__()
        self.out_dim = width
        self.vocab_size = vocab_size
        self.tokens = nn.Embedding(vocab_size, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(PostNormBlock(width, num_heads, dropout=0.1) for _ in range(num_layers))
        init_normal(self)

    def steps(self) -> list[Step]:
        """See Tower."""
        embed = Step("embeddings", ("tokens", "norm"), self._embed)
        return [embed, *(_block_step(f"blocks.{i}", i, block) for i, block in enumerate(self.blocks))]

    def context(self, inputs: Activations) -> Tensor:
        """[N, 1, 1, T] bool."""
        assert inputs.mask is not None
        return inputs.mask[:, None, None]

    def config(self) -> dict[str, Any]:
        """See Tower."""
        return {"kind": "tiny", "vocab_size": self.vocab_size}

    def _embed(self, title_ids: Tensor, _: object) -> Tensor:
        tokens = self.tokens(title_ids)
        # scaled to the size of the embeddings' own start, so that order does not drown content
        positions = 0.02 * _sinusoids(title_ids.shape[1], self.out_dim, tokens)
        return self.norm(tokens + positions)


def _block_step(part: str, index: int, block: nn.Module) -> Step:
    return Step(f"{BLOCK}{index}", (part,), lambda hidden, mask: block(hidden, mask))


def _sinusoids(length: int, width: int, like: Tensor) -> Tensor:
    """[length, width] sine and cosine of the position at geometric wavelengths, in the dtype and place of `like`."""
    rates = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(10_000.0) / width))
    angles = torch.arange(length, device=like.device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(like.dtype)


def build_text_tower(name: str, vocab_size: int | None, title_tokens: int) -> Tower | None:
    """The text tower called `name` with its pretrained weights; None for `none`.

    Args:
        name: tiny, hf:NAME_OR_DIR or none.
        vocab_size: of the tokenizer.
        title_tokens: longest title it will read.

    Raises:
        UserError: unknown name, unreadable weights, or weights that do not fit the tokenizer or the titles.
    """
    check_text_name(name)
    if name == "none":
        return None
    if name == "tiny":
        assert vocab_size is not None, "a tiny text tower needs the size of the vocabulary"
        return TinyText(vocab_size)
    from mmsr_pt.models.towers.hf_text import load_pretrained

    return load_pretrained(name.removeprefix("hf:"), vocab_size, title_tokens)


def check_text_name(name: str) -> None:
    """Refuses what names no text tower, before anything (a tokenizer on the hub, say) is looked for under that name."""
    kind, _, reference = name.partition(":")
    if kind == "hf" and reference:
        check_hf_place("--text", reference)
    elif name not in ("tiny", "none"):
        if kind != "hf" and _looks_like_a_model(name):
            raise UserError(f"--text {name} has no prefix: write hf:{name} for a transformers model or directory")
        raise unknown_name("text tower", name, ("tiny", "hf:NAME", "hf:/a/local/dir", "none"))


def check_hf_place(flag: str, reference: str) -> None:
    """Refuses a directory that is not there, before it is looked for on the hub."""
    path = Path(reference).expanduser()
    if not path.is_dir() and (path.is_absolute() or reference.startswith(".") or reference.count("/") > 1):
        raise UserError(f"{flag} hf:{reference}: there is no such directory; give one with config.json and weights")


def _looks_like_a_model(name: str) -> bool:
    return ":" not in name and any(sign in name for sign in "/-_.")


def text_tower_from_config(config: dict[str, Any]) -> Tower:
    """The tower that `Tower.config` described, with weights yet to be loaded; needs no file and no network."""
    if config["kind"] == "tiny":
        return TinyText(config["vocab_size"])
    if config["kind"] == "hf":
        from mmsr_pt.models.towers.hf_text import from_config

        return from_config(config["config"])
    if config["kind"] == SIDE:
        return with_side(text_tower_from_config(config["tower"]), config["width"], config["depths"])
    raise unknown_name("kind of text tower", config["kind"], ("tiny", "hf", SIDE))

"""What the contestants run on: the domain and the towers that were named, else a drawn domain and random weights."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import ROOT
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.shards.build import BuildOptions, build_domain, ensure_drawn_domain
from mmsr_pt.data.shards.interactions import SplitRule
from mmsr_pt.data.sources.synthetic import Synthetic, World
from mmsr_pt.log import UserError

log = logging.getLogger(__name__)

WORK_DIR = Path("data/bench")
"""Random towers, drawn domains and what contestants print; may be deleted at any time."""
_BERT_VOCABULARY, _ROBERTA_VOCABULARY = 30522, 50265
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass(frozen=True)
class Parts:
    """Where the rows find their domain and their towers."""

    domain: Path
    text: str
    vision: str
    base_text: str
    base_vision: str
    recbole: Path | None = None
    """Interpreter of an environment with RecBole."""


def find_parts(
    data: Path | None, weights: Path | None, text: str | None, vision: str | None, recbole: Path | None
) -> Parts:
    """Looks at what was given and makes what was not; says which.

    Args:
        data: domain directory.
        weights: directory with minilm-l6 and tf_efficientnet_lite0.
        text: text tower as for pretrain/run.py, in place of the one in `weights`.
        vision: likewise.
        recbole: interpreter of an environment with RecBole.

    Raises:
        UserError: something given is not there.
    """
    if weights is not None:
        for name in ("minilm-l6", "tf_efficientnet_lite0"):
            if not (weights / name).is_dir():
                raise UserError(f"--weights {weights} has no {name}: name a directory that has, or leave --weights out")
        text = text or f"hf:{(weights / 'minilm-l6').resolve()}"
        vision = vision or f"timm:local-dir:{(weights / 'tf_efficientnet_lite0').resolve()}"
    if recbole is not None and not recbole.is_file():
        raise UserError(f"--recbole {recbole} is no file: name the python of an environment with RecBole")
    if data is None:
        log.info("no --data given: measuring on the drawn domain, whose titles are short and whose pictures are plain")
        data = ensure_drawn_domain()
    titles = Domain.load(data).titles()
    if text is None or vision is None:
        log.info("no --weights given: towers of the same architecture with random weights, which take the same time")
    return Parts(
        domain=data.resolve(),
        text=text or random_text("minilm", titles),
        vision=vision or random_vision("tf_efficientnet_lite0"),
        base_text=random_text("roberta", titles),
        base_vision=random_vision("swin_base_patch4_window7_224"),
        # not resolved: a virtual environment is known by the path of the link
        recbole=None if recbole is None else recbole.absolute(),
    )


def random_text(kind: str, titles: Sequence[str]) -> str:
    """The name of a text tower of MiniLM's or RoBERTa-base's size with random weights, its tokenizer made of titles."""
    import transformers
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoModel, BertConfig, BertTokenizer, RobertaConfig, RobertaTokenizer

    of_titles = hashlib.sha256("\n".join(titles).encode()).hexdigest()[:8]
    directory = (WORK_DIR / "towers" / f"{kind}-{of_titles}").resolve()
    if not (directory / "model.safetensors").is_file():
        directory.mkdir(parents=True, exist_ok=True)
        transformers.utils.logging.disable_progress_bar()
        torch.manual_seed(0)
        config: Any
        if kind == "minilm":
            (directory / "vocab.txt").write_text("\n".join(_word_pieces(titles)), encoding="utf-8")
            BertTokenizer.from_pretrained(directory).save_pretrained(directory)
            config = BertConfig(
                vocab_size=_BERT_VOCABULARY,
                hidden_size=384,
                num_hidden_layers=6,
                num_attention_heads=12,
                intermediate_size=1536,
            )
        else:
            special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
            trained = ByteLevelBPETokenizer()
            trained.train_from_iterator(
                titles, vocab_size=_ROBERTA_VOCABULARY, special_tokens=special, show_progress=False
            )
            trained.save_model(str(directory))
            RobertaTokenizer.from_pretrained(directory).save_pretrained(directory)
            config = RobertaConfig(vocab_size=_ROBERTA_VOCABULARY, max_position_embeddings=514, type_vocab_size=1)
        AutoModel.from_config(config).save_pretrained(directory)
    return f"hf:{directory}"


def _word_pieces(titles: Sequence[str]) -> list[str]:
    """A vocabulary with the words of the titles, and every letter for what is not among them."""
    words = {word for title in titles for word in title.lower().split() if word.isalnum()}
    letters = {letter for title in titles for letter in title.lower() if not letter.isspace()}
    pieces = sorted(words | letters | {f"##{letter}" for letter in letters})
    return [*_SPECIAL, *pieces[: _BERT_VOCABULARY - len(_SPECIAL)]]


def random_vision(architecture: str) -> str:
    """The name of a vision tower of that timm architecture with random weights."""
    import timm
    from safetensors.torch import save_file

    directory = (WORK_DIR / "towers" / architecture).resolve()
    if not (directory / "model.safetensors").is_file():
        torch.manual_seed(0)
        model = timm.create_model(architecture, pretrained=False)
        timm.models.save_for_hf(model, str(directory), safe_serialization=True)
        save_file(
            {name: value.contiguous() for name, value in model.state_dict().items()}, directory / "model.safetensors"
        )
    return f"timm:local-dir:{directory}"


_WALKS = 4
"""Drawn walks of a user, of at least 12 items each, so that a history of 50 and its two held-out items are full."""
_LONGEST = 53


class LongWalks(Synthetic):
    """The drawn domain with several walks for a user, one after the other."""

    def world(self, rng: np.random.Generator) -> World:
        """See Synthetic."""
        drawn = replace(self, num_users=_WALKS * self.num_users)
        world = Synthetic.world(drawn, rng)
        users = range(0, len(world.walks), _WALKS)
        walks = [np.concatenate(world.walks[first : first + _WALKS])[:_LONGEST] for first in users]
        return replace(world, walks=walks)


def drawn_domain(num_users: int, items_per_cell: int) -> Path:
    """A drawn domain of some size whose users have about 50 interactions each, made once."""
    out = WORK_DIR / "domains" / f"drawn_{num_users}_{items_per_cell}"
    if not out.exists():
        log.info("drawing %d users and %d items per style and kind", num_users, items_per_cell)
        source = LongWalks(num_users=num_users, items_per_cell=items_per_cell)
        options = BuildOptions(split=SplitRule(keep_last=_LONGEST), num_workers=1)
        with tempfile.TemporaryDirectory() as scratch:
            build_domain(source.read(Path(scratch), with_images=True), out, options)
    return out.resolve()


def write_ds_config(path: Path, batch: int, bf16: bool) -> Path:
    """A copy of ds_configs/zero2.json but for batch and precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    config = json.loads((ROOT / "ds_configs" / "zero2.json").read_text())
    config |= {"train_micro_batch_size_per_gpu": batch, "bf16": {"enabled": bf16}}
    path.write_text(json.dumps(config, indent=1) + "\n")
    return path

"""The README.md of a bundle: what the model is, what it was trained on, and the commands to use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from mmsr_pt.config import ModelConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.models.sequence import sequence_encoders

CARD_FILE = "README.md"
_DIRECTORY = "THIS_DIRECTORY_OR_HUB_ID"
_WITH_FEATURES = {"fdsa": "FDSA", "carca": "CARCA++"}


def model_card(
    config: ModelConfig,
    domains: Sequence[Domain],
    step: int,
    validation_ndcg: float,
    joins_itself: bool = False,
    before: Sequence[str] = (),
) -> str:
    """A short model card in Markdown, with the header that the Hugging Face hub reads.

    Args:
        config: of the model.
        domains: that it was trained on.
        step: optimizer steps that these weights have seen.
        validation_ndcg: their NDCG@10 on the validation targets, a fraction, mean over the domains.
        joins_itself: see ItemEncoder.
        before: names of the domains on which it was trained before these.
    """
    names = ", ".join(domain.name for domain in domains)
    start = f", started from a model of {', '.join(before)}" if before else ""
    header = ModelCardData(
        library_name="mmsr_pt", tags=["recommender-system", "sequential-recommendation", *_modalities(config)]
    )
    return f"""---
{header.to_yaml()}
---

# {kind(config)}, trained on {names}{start}

A sequential recommender: it reads the newest {config.max_history} items of a user's history and scores every item of a
catalogue as the next one. {_what_an_item_is(config)}

| part | choice |
| --- | --- |
{_rows(_parts(config, joins_itself))}

## Training data

| domain | users | items | source and licence |
| --- | --- | --- | --- |
{_rows([(d.name, f"{d.num_users:,}", f"{d.num_items:,}", _licence(d)) for d in domains])}

Weights of step {step}, the best of its run: validation NDCG@10 {validation_ndcg:.4f} over the whole catalogue.

## Use

```
mmsr-pt evaluate  --model {_DIRECTORY} --data DOMAIN
mmsr-pt recommend --model {_DIRECTORY} --data DOMAIN --history ITEM_ID,ITEM_ID
```

`DOMAIN` is a directory made by `shards/build.py`. The files here are all it takes: weights, configuration, tokenizer
and preprocessing.
"""


def kind(config: ModelConfig) -> str:
    """What the paper calls a model of these parts: MMSR, MMSR-T, MMSR-V, IDSR, or one of its baselines."""
    if config.item == "both":
        return _WITH_FEATURES[config.sequence]
    return {"id": "IDSR", "codes": "VQRec"}.get(config.item) or _content(config)


def _content(config: ModelConfig) -> str:
    return {"none": "MMSR-V"}.get(config.text) or {"none": "MMSR-T"}.get(config.vision) or "MMSR"


def _what_an_item_is(config: ModelConfig) -> str:
    if config.item == "id":
        return "An item is a learned vector of its own, so it knows the items of its training data only."
    content = {"MMSR": "title and picture", "MMSR-T": "title", "MMSR-V": "picture"}[_content(config)]
    if config.item == "both":
        return f"An item is its {content} and a learned vector, so it knows the items of its training data only."
    if config.item == "codes":
        return (
            f"An item is {config.num_codes} codes of its title, so it can rank items and whole catalogues that it was "
            "not trained on, and cannot tell apart what has the same codes."
        )
    return f"An item is its {content}, so it can rank items and whole catalogues that it was not trained on."


def _modalities(config: ModelConfig) -> list[str]:
    return ["multimodal"] if config.reads_content and _content(config) == "MMSR" else []


def _parts(config: ModelConfig, joins_itself: bool) -> list[tuple[str, str]]:
    num_layers = sequence_encoders[config.sequence].num_layers(config)
    sequence = ("sequence encoder", f"{config.sequence}, {num_layers} layers, width {config.width}")
    if config.item == "id":
        return [("item", "learned vectors"), sequence]
    if config.item == "codes":
        codes = ("codes", f"{config.num_codes}, of {config.code_values} values each")
        return [("text tower, frozen", _tower(config.text)), codes, sequence]
    towers = [("text tower", _tower(config.text)), ("vision tower", _tower(config.vision))]
    fusion = "none: the first joins both" if joins_itself else config.fusion_name
    joined = [("fusion", fusion)] if _content(config) == "MMSR" else []
    learned = [("beside it", "learned vectors")] if config.item == "both" else []
    return [*towers, *joined, *learned, sequence]


def _tower(name: str) -> str:
    # where a local directory stands is nobody else's matter
    prefix, _, reference = name.rpartition(":")
    path = Path(reference)
    return f"`{prefix}:{path.name}` (a local copy)" if path.is_absolute() or path.is_dir() else f"`{name}`"


def _licence(domain: Domain) -> str:
    return f"{domain.meta['source']}: {domain.meta['licence']}"


def _rows(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)

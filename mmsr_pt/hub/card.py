"""The README.md of a bundle: what the model is, what it was trained on, how well it ranks, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from mmsr_pt.config import ModelConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.hub.card_figures import figure_tables, model_index
from mmsr_pt.hub.places import short_place
from mmsr_pt.models.sequence import sequence_encoders

CARD_FILE = "README.md"
PAPER = "2403.17372"
_DIRECTORY = "THIS_DIRECTORY_OR_HUB_ID"
_WITH_FEATURES = {"fdsa": "FDSA", "carca": "CARCA++"}
_NOT_STATED = "not recorded"


def domain_entry(domain: Domain) -> dict[str, Any]:
    """What a bundle keeps of a domain that it was trained on, for its card and to know the domain again."""
    return {
        "name": domain.name,
        "fingerprint": domain.fingerprint,
        "users": domain.num_users,
        "training_users": domain.max_users or domain.num_users,
        "items": domain.num_items,
        "source": domain.meta["source"],
        "licence": domain.meta["licence"],
    }


def model_card(
    config: ModelConfig,
    domains: Sequence[Mapping[str, Any]],
    step: int | None = None,
    validation_ndcg: float | None = None,
    joins_itself: bool = False,
    before: Sequence[Mapping[str, Any]] = (),
    *,
    lines: Sequence[Mapping[str, Any]] = (),
    licence: str | None = None,
    reference: str = _DIRECTORY,
    has_training: bool = False,
) -> str:
    """A model card in Markdown, with the header that the Hugging Face hub reads.

    Args:
        config: of the model.
        domains: that it was trained on, from `domain_entry`; earlier versions kept name and fingerprint only.
        step: optimizer steps that these weights have seen; None: nobody knows.
        validation_ndcg: their NDCG@10 on the validation targets, a fraction, mean over the domains; None: unknown.
        joins_itself: see ItemEncoder.
        before: domains on which it was trained before these.
        lines: `eval` lines of these weights on test targets and cold items, as in metrics.jsonl.
        licence: of the weights, as the hub spells it; None: the publisher stated none.
        reference: what the commands call the model: a hub id.
        has_training: whether the bundle has `training/` beside it.
    """
    names = ", ".join(entry["name"] for entry in domains) or "nothing that was recorded"
    start = f", started from a model of {', '.join(entry['name'] for entry in before)}" if before else ""
    return f"""---
{_header(config, lines, licence, reference).to_yaml()}
---

# {kind(config)}, trained on {names}{start}

A sequential recommender: it reads the newest {config.max_history} items of a user's history and scores every item of a
catalogue as the next one. {_what_an_item_is(config)}

Made with mmsr_pt; parts, formulas and protocol follow the MMSR paper
([arXiv {PAPER}](https://arxiv.org/abs/{PAPER})).

| part | choice |
| --- | --- |
{_rows(_parts(config, joins_itself))}

## Training data

| domain | users | items | source and licence | fingerprint |
| --- | --- | --- | --- | --- |
{_rows([_domain_row(entry) for entry in (*before, *domains)])}

{_which_weights(step, validation_ndcg)}
{figure_tables(lines)}
## Use

```
mmsr-pt evaluate  --model {reference} --data DOMAIN
mmsr-pt recommend --model {reference} --data DOMAIN --history ITEM_ID,ITEM_ID
```

```python
from mmsr_pt import MMSRModel

model = MMSRModel.from_pretrained("{reference}")
```

`DOMAIN` is a directory made by `shards/build.py`. The files here are all it takes: weights, configuration, tokenizer
and preprocessing.{_what_training_holds(has_training)} Loading them runs no code from here.

## Fine-tune

```
deepspeed finetune/run.py --ds_config ds_configs/zero2.json --init {reference} --data DOMAIN
```

{_what_comes_along(config)}

## Limits

{_limits(config)}

## Licence

{_about_licence(licence)}
"""


def _header(
    config: ModelConfig, lines: Sequence[Mapping[str, Any]], licence: str | None, reference: str
) -> ModelCardData:
    name = kind(config) if reference == _DIRECTORY else reference.rpartition("/")[2]
    results = model_index(lines)
    return ModelCardData(
        library_name="mmsr_pt",
        license=licence or "other",
        # without a name the hub takes "other" for an oversight
        license_name=None if licence else "not-stated",
        tags=["recommender-system", "sequential-recommendation", *_modalities(config), f"arxiv:{PAPER}"],
        model_name=name if results else None,
        eval_results=results or None,
    )


def _domain_row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    users, items = (f"{entry[key]:,}" if key in entry else _NOT_STATED for key in ("users", "items"))
    if entry.get("training_users") != entry.get("users"):
        users = f"{entry['training_users']:,} of {users}"
    rights = f"{entry['source']}: {entry['licence']}" if "licence" in entry else _NOT_STATED
    return entry["name"], users, items, rights, f"`{entry['fingerprint'][:16]}`"


def _which_weights(step: int | None, validation_ndcg: float | None) -> str:
    if step is None:
        return "After how many steps of training these weights were taken was not recorded."
    if validation_ndcg is None:
        return f"Weights of step {step}, on which no validation figure was recorded."
    return f"Weights of step {step}: validation NDCG@10 {validation_ndcg:.4f} over the whole catalogue."


def _what_training_holds(has_training: bool) -> str:
    if not has_training:
        return ""
    return (
        " `training/` says how they were trained: flags (`config.json`), DeepSpeed (`ds_config.json`), every figure "
        "(`metrics.jsonl`, fractions) and curves (`tensorboard/`); local paths are shortened to their last name."
    )


def _what_comes_along(config: ModelConfig) -> str:
    if config.learns_items:
        return (
            "Learned vectors of items mean nothing in another catalogue and never come along; the parts that read "
            "content or histories do, where their settings are the same."
        )
    return (
        "Towers come with their tokenizer from here, without their original files; projections, fusion and "
        "sequence encoder come along where their settings are the same. Settings that no flag gives are those of this "
        "model."
    )


def _limits(config: ModelConfig) -> str:
    known = (
        "It ranks the items of its training catalogue only."
        if config.learns_items
        else "On a catalogue unlike its training data it may rank no better than popularity: evaluate it there first."
    )
    return (
        f"{known} It has learnt what people of its training data did next, with all that decided what they were "
        "shown, and repeats it. Figures are of the domains named above, on held-out items of users that it was "
        "trained on; they tell nothing of other people, and little of other times. Of what pretrained towers have "
        "learnt elsewhere, their own cards tell."
    )


def _about_licence(licence: str | None) -> str:
    data = (
        "Titles and pictures are not part of this repository; the notes on the training data above are those of its "
        "sources, and may restrict what the weights may be used for. Pretrained towers, where there are any, "
        "come under licences of their own."
    )
    if licence is None:
        return f"Who published these weights stated no licence for them. {data}"
    return f"The weights are published under `{licence}` as far as their publisher can grant it. {data}"


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
    short = short_place(name)
    return f"`{name}`" if short == name else f"`{short}` (a local copy)"


def _rows(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)

"""A trained model goes on learning on another domain: which of its parts come along, and which start anew.

Towers that are named as they were are taken from the source's bundle with their tokenizer, whatever is on this machine;
all other parts come along where the settings that decide what they mean, and their tensors' shapes, are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from mmsr_pt.assembly import build_model
from mmsr_pt.config import FinetuneConfig, ModelConfig, from_dict
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.evaluation.table import wide_console
from mmsr_pt.flags import flag_value, parse_flags
from mmsr_pt.hub.find import find_bundle
from mmsr_pt.log import UserError
from mmsr_pt.models import bundle
from mmsr_pt.models.item_encoder import NO_TOWERS, TrainedTowers
from mmsr_pt.models.items import content_of
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.models.sequence import sequence_encoders
from mmsr_pt.models.towers.lora import without_lora
from mmsr_pt.models.towers.text import text_tower_from_config
from mmsr_pt.models.towers.vision import vision_tower_from_config
from mmsr_pt.training.distributed import from_rank0

Weights = Mapping[str, Tensor]
"""By the names that they have where nothing stands beside content (`_plain`)."""
SCRATCH = "none"
"""What --init says to start from scratch."""
_ITEMS = "item_encoder.items"
_SEQUENCE = "sequence_encoder"
_MEANING: dict[str, tuple[str, ...]] = {
    "item_encoder.text_projection": ("text", "width"),
    "item_encoder.vision_projection": ("vision", "width"),
    "item_encoder.projection": ("vlp", "vision", "width"),
    "item_encoder.codebook": ("text", "num_codes", "code_values"),
    "item_encoder.codes": ("text", "num_codes", "code_values", "width"),
    "item_encoder.fusion": ("fusion_name", "fusion_layers", "fusion_heads", "width"),
    _SEQUENCE: ("sequence", "sequence_heads", "width"),
}
"""The settings in which two parts of a name must agree: weights of one shape may mean different things."""


@dataclass(frozen=True)
class Source:
    """A trained model as its bundle describes it."""

    reference: str
    """What --init said."""
    directory: Path
    config: ModelConfig
    towers: dict[str, Any]
    """What ItemEncoder.config said."""
    trained_on: list[dict[str, str]]

    @classmethod
    def open(cls, reference: str) -> Source:
        """Reads the bundle that --init names; raises UserError where there is none."""
        directory = find_bundle(reference, "--init")
        saved = bundle.read_config(directory)
        config = from_dict(ModelConfig, saved["model"], str(directory / bundle.CONFIG_FILE))
        return cls(reference, directory, config, saved["item_encoder"], saved["trained_on"])

    def read_weights(self) -> Weights:
        """Those of the bundle; not kept here, as a run goes on for long after they are copied."""
        return {_plain(name): value for name, value in bundle.read_weights(self.directory).items()}


def parse_finetune_flags(argv: list[str]) -> tuple[FinetuneConfig, Source | None]:
    """The configuration that flags ask for, and the model it starts from, whose settings stand where no flag does.

    Raises:
        UserError: a wrong flag, no --init, or one that names no model.
    """
    reference = flag_value(argv, "init")
    if reference is None and not {"-h", "--help"} & set(argv):
        raise UserError("--init is missing: give a run directory, a bundle or a hub id, or none to start from scratch")
    if reference in (None, SCRATCH):
        return parse_flags(argv, FinetuneConfig), None
    source = Source.open(str(reference))
    return parse_flags(argv, FinetuneConfig, source.config), source


def build_transferred(
    config: ModelConfig, source: Source | None, domains: Sequence[Domain]
) -> tuple[Recommender, Preprocessor]:
    """The model that a fine-tuning starts from, on the CPU, and its preprocessing. Collective: rank 0 prints the parts.

    Args:
        config: of the model to be.
        source: whose parts come along; None: all is fresh.
        domains: to train on.

    Raises:
        UserError: a tower of the source cannot be trained as asked, or nothing of the source fits.
    """
    if source is None:
        return build_model(config, domains)
    weights = source.read_weights()
    trained = _trained_towers(config, source, weights)
    tokenizer = Preprocessor.load(source.directory).tokenizer if "text" in trained.names else None
    model, preprocessor = build_model(config, domains, trained, tokenizer)
    taken = {f"item_encoder.{name}" for name in trained.names}
    parts = _parts(model)
    found = {
        part: "" if part in taken else _take(part, module, config, source, _of_part(weights, part))
        for part, module in parts.items()
    }
    if all(found.values()):
        raise UserError(
            f"--init {source.reference}: no part of it fits this model "
            f"({'; '.join(f'{part}: {why}' for part, why in found.items())}): leave out the flags that change its parts"
        )
    from_rank0(lambda: wide_console().print(_table(source, parts, found)))
    if not config.learns_items:
        model.trained_on = source.trained_on
    return model, preprocessor


def _parts(model: Recommender) -> dict[str, nn.Module]:
    """The parts that come along or not as a whole, by name."""
    encoder, content = model.item_encoder, content_of(model.item_encoder)
    children = {**dict(encoder.named_children()), **({} if content is None else dict(content.named_children()))}
    inside = {f"item_encoder.{name}": child for name, child in children.items() if child is not content}
    return {name: part for name, part in {**inside, _SEQUENCE: model.sequence_encoder}.items() if part.state_dict()}


def _plain(name: str) -> str:
    """The name of a weight without the step into the content that stands beside learned vectors."""
    return name.replace("item_encoder.content.", "item_encoder.", 1)


def _of_part(weights: Weights, part: str) -> dict[str, Tensor]:
    """The weights of a part, by their names in it."""
    start = f"{part}."
    return {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}


def _trained_towers(config: ModelConfig, source: Source, weights: Weights) -> TrainedTowers:
    """The source's towers that the new model has under the same names, with their weights."""
    before, saved = source.config, source.towers
    if "id" in (config.item, before.item):
        return NO_TOWERS
    same_text = (config.text, config.tokenizer) == (before.text, before.tokenizer)
    if "joint" in saved:
        if not same_text or (config.vlp, config.vision) != (before.vlp, before.vision):
            return NO_TOWERS
        from mmsr_pt.models.towers.vlp import deep_vlp_from_config

        deep = deep_vlp_from_config(saved["joint"], saved["vision"])
        for name, tower in (("text", deep.text), ("vision", deep.vision), ("joint", deep.joint)):
            _load_tower(name, tower, weights)
        return TrainedTowers(deep=deep)
    text = vision = None
    if saved.get("text") is not None and same_text:
        text = text_tower_from_config(saved["text"])
        _load_tower("text", text, weights)
    if saved.get("vision") is not None and config.vision == before.vision:
        vision = vision_tower_from_config(saved["vision"])
        _load_tower("vision", vision, weights)
    return TrainedTowers(text, vision)


def _load_tower(name: str, tower: nn.Module, weights: Weights) -> None:
    """Gives a tower its weights before a tuning policy adds to it; those that lora:R learnt become part of them."""
    tower.load_state_dict(without_lora(_of_part(weights, f"item_encoder.{name}")))


def _take(part: str, module: nn.Module, config: ModelConfig, source: Source, weights: Mapping[str, Tensor]) -> str:
    """Copies the source's weights of a part into the module, or says why not."""
    own = module.state_dict()
    if part == _ITEMS:
        return "another domain's items mean nothing here"
    if not weights:
        return "the source has none"
    name = part.rpartition(".")[2]
    if name in ("text", "vision", "joint"):
        was = getattr(source.config, "vlp" if name == "joint" else name)
        return f"another one than the source's {was}: its own weights"
    for setting in _MEANING.get(part, ("item", "width")):
        was, now = getattr(source.config, setting), getattr(config, setting)
        if was != now:
            return f"the source has {setting.removesuffix('_name')} {was}, not {now}"
    if {key: value.shape for key, value in weights.items()} == {key: value.shape for key, value in own.items()}:
        module.load_state_dict(weights)
        return ""
    return _other_size(config, source.config) if part == _SEQUENCE else "its tensors have other names or shapes"


def _other_size(config: ModelConfig, before: ModelConfig) -> str:
    """Why a sequence encoder of the same kind and width does not fit."""
    encoder = sequence_encoders[config.sequence]
    was, now = encoder.num_layers(before), encoder.num_layers(config)
    if was != now:
        return f"the source has {was} layers, not {now}"
    return f"the source has max_history {before.max_history}, not {config.max_history}"


def _table(source: Source, parts: Mapping[str, nn.Module], found: Mapping[str, str]) -> Table:
    names = ", ".join(domain["name"] for domain in source.trained_on)
    table = Table(
        title=escape(f"from {source.reference} (trained on {names})"), title_justify="left", box=box.SIMPLE_HEAD
    )
    for column in ("part", "tensors", "parameters", "", "why"):
        table.add_column(column, justify="right" if column in ("tensors", "parameters") else "left")
    for part, module in parts.items():
        sizes = [value.numel() for value in module.state_dict().values()]
        state = "starts anew" if found[part] else "loaded"
        table.add_row(part.removeprefix("item_encoder."), f"{len(sizes)}", f"{sum(sizes):,}", state, found[part])
    return table

"""What of a run is published: the bundle, how it was trained, every figure, and a card that says it.

    config.json  preprocessor.json  tokenizer files  model.safetensors (in several files above 5 GB, with an index)
    README.md                       the card, filled from the run
    training/config.json  training/ds_config.json  training/metrics.jsonl  training/tensorboard/

All of it is laid out in a directory of its own first, so the run is never changed and may go on meanwhile. A run
without a bundle, or a checkpoint of it, is published as well: a checkpoint has all weights, whatever ranks wrote it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from mmsr_pt.config import ModelConfig, from_dict
from mmsr_pt.data.preprocess import PREPROCESSOR_FILE, Preprocessor
from mmsr_pt.hub.card import CARD_FILE, model_card
from mmsr_pt.hub.card_figures import figures_of, tested_step, validation_ndcg
from mmsr_pt.hub.places import without_places
from mmsr_pt.log import UserError
from mmsr_pt.models import bundle
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.run_dir import BUNDLE, CONFIGS, METRICS, TENSORBOARD, metric_lines, write_text
from mmsr_pt.training.checkpoint import MODEL, CheckpointManager, is_checkpoint, read_weights

log = logging.getLogger(__name__)

TRAINING = "training"


@dataclass(frozen=True)
class Origin:
    """Where a model comes from; exactly one of bundle and checkpoint is there."""

    bundle: Path | None
    checkpoint: Path | None
    run: Path | None
    """Of which it is; None: a bundle by itself, or a checkpoint that was taken out of its run."""


def find_origin(reference: Path) -> Origin:
    """What `--model` names: a run, its bundle or one of its checkpoints, or a bundle by itself.

    Raises:
        UserError: none of them, or a run with nothing to publish yet.
    """
    path = reference.expanduser().absolute()
    if not path.is_dir():
        raise UserError(f"--model {reference} is no directory here: give a run, a checkpoint of it or a bundle")
    if is_checkpoint(path):
        return Origin(None, path, _run_of(path.parent.parent))
    if bundle.is_bundle(path):
        return Origin(path, None, _run_of(path.parent) if path.name == BUNDLE else None)
    if bundle.is_bundle(path / BUNDLE):
        return Origin(path / BUNDLE, None, _run_of(path))
    newest = CheckpointManager(path).newest()
    if newest is not None:
        return Origin(None, newest, _run_of(path))
    if _run_of(path) is not None:
        raise UserError(f"the run {path} has neither {BUNDLE}/ nor a complete checkpoint yet: wait for its first")
    raise UserError(
        f"{path} is neither a run directory (with {BUNDLE}/ or checkpoints/), nor a checkpoint, nor a bundle (with "
        f"{bundle.CONFIG_FILE} and {bundle.WEIGHTS_FILE})"
    )


def lay_out(origin: Origin, directory: Path, repo_id: str, licence: str | None = None) -> str:
    """Puts all that is published into `directory`, which is empty.

    Args:
        origin: of the model.
        directory: is there.
        repo_id: what the card's commands call the model.
        licence: of the weights, as the hub spells it.

    Returns:
        In a few words what it is.

    Raises:
        UserError: the model, or what belongs to it, is not complete.
    """
    if origin.bundle is not None:
        _take_bundle(origin.bundle, directory)
    else:
        assert origin.checkpoint is not None
        _make_bundle(origin.checkpoint, origin.run, directory)
    shorten_places(directory / bundle.CONFIG_FILE)
    # what cannot be loaded here can be loaded nowhere
    Recommender.load(directory)
    Preprocessor.load(directory)
    if origin.run is not None:
        _take_training(origin.run, directory / TRAINING)
    return write_card(directory, repo_id, licence, origin.run)


def write_card(directory: Path, repo_id: str, licence: str | None = None, run: Path | None = None) -> str:
    """Writes the card of the bundle in `directory`, with the figures of its run; returns what the model is in words."""
    saved = bundle.read_config(directory)
    config = from_dict(ModelConfig, saved["model"], str(directory / bundle.CONFIG_FILE))
    lines = [] if run is None else metric_lines(run)
    step = saved["step"] if "step" in saved else tested_step(lines)
    own = {line["domain"] for line in lines if line["event"] == "eval"}
    domains = [entry for entry in saved["trained_on"] if not own or entry["name"] in own]
    before = [entry for entry in saved["trained_on"] if entry not in domains]
    card = model_card(
        config,
        domains,
        step,
        validation_ndcg(lines, step),
        "joint" in saved["item_encoder"],
        before,
        lines=figures_of(lines, step),
        licence=licence,
        reference=repo_id,
        has_training=run is not None,
    )
    # not through the file that may stand there: it is a run's own
    write_text(directory / CARD_FILE, card)
    return card.partition("\n# ")[2].partition("\n")[0] + ("" if step is None else f" (step {step})")


def _run_of(path: Path) -> Path | None:
    return path if all((path / name).is_file() for name in CONFIGS) else None


def _take_bundle(source: Path, directory: Path) -> None:
    """The files of a bundle that may be replaced at any moment by a better one: all of one, or all of the other."""
    for _ in range(3):
        before = source.stat().st_ino
        try:
            for path in source.iterdir():
                if path.is_file() and not path.name.startswith("."):
                    _link(path, directory / path.name)
            if source.stat().st_ino == before:
                break
        except FileNotFoundError:
            pass
        for path in directory.iterdir():
            path.unlink()
    else:
        raise UserError(f"{source} is replaced over and over: publish one of the run's checkpoints")


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name, without a copy where the file system allows."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _make_bundle(checkpoint: Path, run: Path | None, directory: Path) -> None:
    """A bundle of a checkpoint's weights; what stands beside them is in it, or in an earlier version in the run's."""
    places = [checkpoint / MODEL, *([] if run is None else [run / BUNDLE])]
    beside = next((place for place in places if (place / PREPROCESSOR_FILE).is_file()), None)
    if beside is None:
        raise UserError(
            f"{checkpoint} was written by an earlier version, which kept weights alone, and its run has no {BUNDLE}/: "
            "go on with the run until its next checkpoint"
        )
    log.info("checking and reading the weights of %s", checkpoint)
    for path in beside.iterdir():
        if path.is_file() and not path.name.endswith((".safetensors", ".md", bundle.INDEX_FILE)):
            shutil.copyfile(path, directory / path.name)
    config = json.loads((directory / bundle.CONFIG_FILE).read_text(encoding="utf-8"))
    step = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["step"]
    bundle.write(directory, {**config, "step": step}, read_weights(checkpoint))


def _take_training(run: Path, directory: Path) -> None:
    """How the run was trained; what it goes on writing to is cut behind its last whole line."""
    directory.mkdir()
    for name in CONFIGS:
        shutil.copyfile(run / name, directory / name)
        shorten_places(directory / name)
    if (run / METRICS).is_file():
        written = (run / METRICS).read_bytes()
        (directory / METRICS).write_bytes(written[: written.rfind(b"\n") + 1])
    curves = sorted((run / TENSORBOARD).glob("events.out.tfevents.*"))
    for number, path in enumerate(curves):
        (directory / TENSORBOARD).mkdir(exist_ok=True)
        # TensorBoard's names tell the machine's
        began = path.name.split(".")[3]
        shutil.copyfile(path, directory / TENSORBOARD / f"events.out.tfevents.{began}.{number}")


def shorten_places(file: Path) -> None:
    """Replaces a JSON file where it names local paths, never writing into a file that may be linked."""
    value = json.loads(file.read_text(encoding="utf-8"))
    shortened = without_places(value)
    if shortened != value:
        write_text(file, json.dumps(shortened, indent=2) + "\n")

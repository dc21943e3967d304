"""Where a trained model comes from: a run directory, a bundle directory, or the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.log import UserError, reason
from mmsr_pt.models.bundle import CONFIG_FILE, WEIGHTS_FILE
from mmsr_pt.models.recommender import MMSRModel
from mmsr_pt.run_dir import BUNDLE

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_bundle(reference: str) -> Path:
    """The bundle that `--model` names: a run's `model/`, a bundle directory, or a download from the hub.

    Raises:
        UserError: there is none.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        for directory in (path / BUNDLE, path):
            if (directory / WEIGHTS_FILE).is_file() and (directory / CONFIG_FILE).is_file():
                return directory
        if (path / "ds_config.json").is_file():
            raise UserError(
                f"the run {path} has no bundle {BUNDLE}/ yet, which its first evaluation writes; go on with it: "
                f"deepspeed pretrain/run.py --ds_config {path / 'ds_config.json'} --run_dir {path} --resume"
            )
        raise UserError(
            f"{path} is neither a run directory (with {BUNDLE}/) nor a bundle (with {CONFIG_FILE} and {WEIGHTS_FILE})"
        )
    if path.exists():
        raise UserError(f"--model {reference} is a file: give the run directory or the bundle directory it belongs to")
    if not _HUB_ID.fullmatch(reference) or Path(reference).parent.exists():
        raise UserError(f"there is no directory {reference}: give a run directory, a bundle or a hub id like user/name")
    return _download(reference)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        directory = Path(snapshot_download(hub_id))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{hub_id} is neither a directory here nor a model that could be had from the hub ({reason(error)})"
        ) from error
    if not (directory / WEIGHTS_FILE).is_file():
        raise UserError(f"the hub's {hub_id} has no {WEIGHTS_FILE}: it is not a model of this toolkit")
    return directory


def load_model(bundle: Path, domain: Domain) -> tuple[MMSRModel, Preprocessor]:
    """The bundle's model (on the CPU, in evaluation mode) and preprocessing, checked to fit `domain`.

    Raises:
        UserError: the bundle is incomplete, or the model cannot read this domain.
    """
    model, preprocessor = MMSRModel.from_pretrained(bundle), Preprocessor.load(bundle)
    fingerprints = {entry["fingerprint"] for entry in model.trained_on}
    if model.config.learns_items and domain.fingerprint not in fingerprints:
        names = ", ".join(entry["name"] for entry in model.trained_on)
        raise UserError(
            f"{bundle} is an ID model, which knows the items of {names} only; {domain.path} is another domain or "
            "another build: use the domain it was trained on, or a model trained with --item content"
        )
    for part, modality in ((preprocessor.tokenizer, "text"), (preprocessor.image, "image")):
        if part is not None and modality not in domain.modalities:
            raise UserError(
                f"{bundle} reads {modality}, {domain.path} was built without: build it again with {modality}"
            )
    return model, preprocessor

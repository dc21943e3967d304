"""Where a trained model comes from, or the vectors of a catalogue: a directory, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2

from mmsr_pt.catalogue_index import INDEX_FILE, ITEMS_FILE, VECTORS_FILE
from mmsr_pt.evaluation.evaluate import BASELINES
from mmsr_pt.log import UserError, reason
from mmsr_pt.models.bundle import CONFIG_FILE, WEIGHTS_FILE, is_bundle
from mmsr_pt.run_dir import BUNDLE

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt"]
_UNWANTED = ["*/*"]
"""What lies in directories: how a model was trained is no part of it."""


def find_bundle(
    reference: str,
    flag: str = "--model",
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Path | str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The bundle that `flag` names: a run's `model/`, a bundle directory, or a download from the hub.

    Args:
        reference: what it names.
        flag: as errors call it.
        revision: branch, tag or commit; this and what follows is for the hub.
        token: none given: the one of `hf auth login` or HF_TOKEN.
        cache_dir: where downloads are kept; None: the library's own place.
        local_files_only: look into the cache only.

    Raises:
        UserError: there is none.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        for directory in (path / BUNDLE, path):
            if is_bundle(directory):
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
        raise UserError(f"{flag} {reference} is a file: give the run directory or the bundle directory it belongs to")
    if not HUB_ID.fullmatch(reference) or Path(reference).parent.exists():
        raise UserError(f"there is no directory {reference}: give a run directory, a bundle or a hub id like user/name")
    directory = _download(
        reference,
        "model",
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        # no pickles, no code, whatever else the repository holds
        allow_patterns=_WANTED,
        ignore_patterns=_UNWANTED,
    )
    if not is_bundle(directory):
        raise UserError(f"the hub's {reference} has no {WEIGHTS_FILE}: it is not a model of this toolkit")
    return directory


def find_index(reference: Path | str) -> Path:
    """The catalogue index that `--index` names: a directory, or a download of a dataset from the hub.

    Raises:
        UserError: there is none.
    """
    reference = str(reference)
    path = Path(reference).expanduser()
    if path.exists() or not HUB_ID.fullmatch(reference) or path.parent.exists():
        # what is wrong with a directory says who reads it
        return path
    directory = _download(reference, "dataset", allow_patterns=[INDEX_FILE, ITEMS_FILE, VECTORS_FILE])
    if not (directory / INDEX_FILE).is_file():
        raise UserError(f"the hub's dataset {reference} has no {INDEX_FILE}: it is not a catalogue of this toolkit")
    return directory


def short_names(references: Sequence[str]) -> list[str]:
    """What tables call the models: `mmsr` a lone one, several by the ends of their paths or hub ids.

    Each has as few parts from the end of its path as set it apart from the others and from the baselines: of runs/a and
    runs/b a and b, of runs/a/seed-0 and runs/b/seed-0 these two last parts.

    Raises:
        UserError: one is named twice.
    """
    if len(references) == 1:
        return ["mmsr"]
    paths = [_parts(reference) for reference in references]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise UserError(f"--model names {references[number]} twice: leave one out")
    ends = [1] * len(paths)
    while True:
        names = ["/".join(path[-end:]) for path, end in zip(paths, ends)]
        clashes = [n for n, name in enumerate(names) if names.count(name) > 1 or name in BASELINES]
        clashes = [n for n in clashes if ends[n] < len(paths[n])]
        if not clashes:
            return names
        for number in clashes:
            ends[number] += 1


def _parts(reference: str) -> tuple[str, ...]:
    """Of the whole path of a run directory, also where its bundle is named; or of a hub id."""
    path = Path(reference).expanduser()
    if not path.exists():
        return tuple(reference.split("/"))
    parts = (path.resolve() if ".." in path.parts else path.absolute()).parts[1:]
    return parts[:-1] if parts[-1:] == (BUNDLE,) and len(parts) > 1 else parts


def _download(hub_id: str, repo_type: str, **options: Any) -> Path:
    """A repository in the cache, as whole and true as the hub's hashes can tell; options as of the library."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        directory = Path(snapshot_download(hub_id, repo_type=repo_type, **options))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, httpx2.HTTPError) as error:
        raise UserError(
            f"{hub_id} is neither a directory here nor a {repo_type} that could be had from the hub ({reason(error)})"
        ) from error
    _require_true_copies(hub_id, directory)
    return directory


def _require_true_copies(hub_id: str, directory: Path) -> None:
    """Refuses files that are not what the hub has, which names each in the cache by a hash of its content.

    The library itself compares sizes only. Where the cache has no links (some file systems of Windows) nothing can be
    told here, and only the weights' own header shows whether they are whole.
    """
    for path in sorted(directory.iterdir()):
        kept = path.resolve()
        hashed = _HASHES.get(len(kept.name)) if kept.parent.name == "blobs" else None
        if hashed is not None and hashed(kept) != kept.name:
            raise UserError(
                f"{path.name} of {hub_id} came from the hub damaged, or was changed in the cache since: remove {kept} "
                "and give the same command again"
            )


def _git_hash(path: Path) -> str:
    """Of a small file, as git names its content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_HASHES: dict[int, Callable[[Path], str]] = {40: _git_hash, 64: _sha256}
"""By the length of a hash: of files that stand in git, and of those that are stored apart for their size."""

"""A directory onto the Hugging Face hub in one commit: all of it, or nothing.

The library sends large files first, each by its content, and names them all in one commit at the end; what breaks off
before leaves the repository as it was, and what was sent is not sent again. Who is asked for a token: the library's own
login (`hf auth login`) or HF_TOKEN; it is never written anywhere.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from mmsr_pt.hub.find import HUB_ID
from mmsr_pt.log import UserError, reason
from mmsr_pt.models.bundle import INDEX_FILE, SHARD_FILES, WEIGHTS_FILE

log = logging.getLogger(__name__)

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
RepoType = Literal["model", "dataset", "space"]
_OURS: dict[RepoType, tuple[str, ...]] = {
    "model": (WEIGHTS_FILE, INDEX_FILE, SHARD_FILES, "training/*"),
    "dataset": (),
    "space": ("exhibit/*", "mmsr_pt/*"),
}
"""What an earlier upload may have left that would contradict this one; anything else in a repository is its owner's."""
_WHY = {
    401: "the hub does not accept the login: type hf auth login, or set HF_TOKEN to a token that may write there",
    403: "the login may not write there: use a token with write permission, or propose it with --create_pr",
    404: "the hub knows no such repository or revision, or does not show it to this login",
    409: "somebody else changed it meanwhile: look at it and give the same command again",
    412: "somebody else changed it meanwhile: look at it and give the same command again",
    429: "the hub asks for fewer requests: wait some minutes and give the same command again",
}


@dataclass(frozen=True)
class Target:
    """Where on the hub."""

    repo_id: str
    """user/name."""
    revision: str | None = None
    """Branch, made where there is none; None: main."""
    private: bool = False
    """Of a repository that is made now."""
    create_pr: bool = False
    """Propose the commit instead of making it."""
    repo_type: RepoType = "model"
    """What the repository is; names of models, datasets and spaces do not clash."""

    def __post_init__(self) -> None:
        if not HUB_ID.fullmatch(self.repo_id):
            raise UserError(f"--repo_id {self.repo_id} is no name on the hub: give user/name")
        if self.create_pr and self.revision not in (None, "main"):
            raise UserError(f"--create_pr proposes a change of main, not of {self.revision}: leave one of both out")


@dataclass(frozen=True)
class Uploaded:
    """What has become of it."""

    url: str
    """Of the commit, or of the pull request."""
    is_new: bool
    """False: the same bytes were there, and no commit was made."""


def check_licence(licence: str | None) -> None:
    """Raises UserError where it is not spelled as the hub spells licences."""
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise UserError(
            f"--license {licence!r} is not how the hub spells licences: give a name such as apache-2.0 or cc-by-nc-4.0"
        )


def files_of(directory: Path) -> dict[str, Path]:
    """The files below a directory by their names in a repository, in order."""
    return {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}


def upload(directory: Path, target: Target, message: str, token: str | bool | None = None) -> Uploaded:
    """Makes a repository hold the files of a directory, in one commit; equal bytes make none.

    Files that earlier uploads left and that would contradict these (other weights, other training files) go in the same
    commit, files of anybody else stay.

    Args:
        directory: what `lay_out` made.
        target: where to.
        message: of the commit.
        token: None: that of the login.

    Raises:
        UserError: it failed, with what to do; the repository holds what it held.
    """
    if token in (None, True) and get_token() is None:
        raise UserError("there is no login for the hub: type hf auth login, or set HF_TOKEN")
    api = HfApi(token=token)
    with _telling(target, "looking at it", token):
        held = _ready(api, target)
        stale = _stale(api, target, held, directory)
    operations = [CommitOperationAdd(name, path) for name, path in files_of(directory).items()]
    with _telling(target, "uploading", token), warnings.catch_warnings():
        # the library doubts that tables belong into a Space
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
        made = api.create_commit(
            target.repo_id,
            [*operations, *(CommitOperationDelete(name) for name in stale)],
            commit_message=message,
            repo_type=target.repo_type,
            revision=target.revision,
            create_pr=target.create_pr,
            # what was just looked at is what is changed
            parent_commit=held,
        )
    is_new = made.oid != held
    return Uploaded(made.pr_url or made.commit_url, is_new)


def _ready(api: HfApi, target: Target) -> str | None:
    """Of the newest commit; repository and branch are made where they are not there."""
    kind = target.repo_type
    try:
        found = api.repo_info(target.repo_id, repo_type=kind)
        if target.private and found.private is False:
            raise UserError(
                f"{target.repo_id} is there and public, and --private is for new ones: choose another --repo_id, or "
                "make it private on the hub and leave --private out"
            )
    except RepositoryNotFoundError:
        sdk = "gradio" if kind == "space" else None
        api.create_repo(target.repo_id, repo_type=kind, space_sdk=sdk, private=target.private or None, exist_ok=True)
    if target.revision is None or target.create_pr:
        return api.repo_info(target.repo_id, repo_type=kind).sha
    try:
        return api.repo_info(target.repo_id, repo_type=kind, revision=target.revision).sha
    except RevisionNotFoundError:
        api.create_branch(target.repo_id, repo_type=kind, branch=target.revision, exist_ok=True)
        return api.repo_info(target.repo_id, repo_type=kind, revision=target.revision).sha


def _stale(api: HfApi, target: Target, held: str | None, directory: Path) -> list[str]:
    new, ours = files_of(directory), _OURS[target.repo_type]
    names = api.list_repo_files(target.repo_id, repo_type=target.repo_type, revision=held)
    return [name for name in names if name not in new and any(fnmatch(name, pattern) for pattern in ours)]


@contextmanager
def _telling(target: Target, doing: str, token: str | bool | None) -> Iterator[None]:
    """Makes one sentence of whatever goes wrong on the way to the hub."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        code = _status(error)
        if code is None and not isinstance(error, (OSError, ValueError, RuntimeError, httpx2.HTTPError)):
            raise
        if code in _WHY:
            why = _WHY[code]
        elif code is not None and code < 500:
            why = "the hub refuses it"
        elif code is None and isinstance(_first(error), ValueError):
            why = "the hub would refuse it"
        else:
            why = "the hub or the way to it fails: give the same command again later"
        said = _without_secrets(reason(_first(error)), token)
        raise UserError(
            f"{target.repo_id}: {doing} failed, {why} ({said}). No file of the repository has changed, and what was "
            "sent is not sent again"
        ) from None


def _first(error: BaseException) -> BaseException:
    """What was behind an exception that the library raised of another."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    """Of the hub's answer, where there was one."""
    first = _first(error)
    return first.response.status_code if isinstance(first, HfHubHTTPError) else None


def _without_secrets(text: str, token: str | bool | None) -> str:
    for secret in (token, get_token()):
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "...")
    return text

"""Fetches the pictures that items lack, politely, into the folder of pictures of a raw dataset.

For any source whose items have addresses of pictures. What is in the folder is never asked for again, so a download
that was broken off goes on where it stopped. Pictures appear under their name when they are complete and checked.
What could not be had stands in FOLDER/download_failures.jsonl with the reason. Of its lines those with `"gone": true`
(the host said 404 or 410) are remembered and not asked for again; the others are tried anew by the next run. Remove a
line, or the file, to ask again.
"""

from __future__ import annotations

import fcntl
import json
import logging
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import httpx2
import polars as pl
from PIL import Image

from mmsr_pt.data.shards.workers import progress
from mmsr_pt.data.sources.fetch import Fetcher
from mmsr_pt.data.sources.hosts import Hosts, Limits, Refused
from mmsr_pt.log import UserError, naming_a_full_disk

log = logging.getLogger(__name__)

FAILURES_FILE = "download_failures.jsonl"
_LOCK_FILE = ".download.lock"
_PARTIAL = ".part"
_HEADERS = {
    "User-Agent": "mmsr_pt (shards/build.py --download)",
    "Accept": "image/jpeg, image/png, image/webp, image/gif;q=0.5",
    "Accept-Encoding": "identity",
}
_LONGEST_NAME = 200  # bytes, of the 255 that file systems take
_GLANCE = 0.5  # seconds
_Fetching = Future[dict[str, Any] | None]
_SUBDIRECTORIES = 256  # a folder of a million files is slow to list


@dataclass(frozen=True)
class DownloadOptions:
    """Whether and how pictures are fetched."""

    download: bool = False
    """Fetch the pictures that items lack, from the addresses in the metadata into ROOT/images."""
    connections: int = 8
    """Pictures that --download fetches at the same time, in all."""
    requests_per_second: float = 10.0
    """Of --download to each host, at most."""

    def __post_init__(self) -> None:
        if not 1 <= self.connections <= 256:
            raise UserError(f"--connections {self.connections} must lie in 1 ... 256")
        if not 0 < self.requests_per_second <= 1000:
            raise UserError(f"--requests_per_second {self.requests_per_second} must lie above 0 and not above 1000")


@dataclass(frozen=True)
class Downloaded:
    """What became of the wanted pictures."""

    fetched: int
    failed: int
    known_as_gone: int
    """Not asked for, as an earlier run was told that they are gone."""


def download_pictures(
    wanted: pl.DataFrame, folder: Path, options: DownloadOptions, limits: Limits | None = None
) -> Downloaded:
    """Fetches pictures into `folder`; those that cannot be had are listed there and are no error.

    Args:
        wanted: item_id str, url str; no item twice. All are asked for: leave out those that have a picture.
        folder: of the pictures; made where it is missing.
        options: how many at a time, and how often.
        limits: of time and size.

    Raises:
        UserError: another download into the folder is at work, or the disk is full.
    """
    Image.init()  # here, not in many threads at once
    limits = limits or Limits()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder), _failures(folder / FAILURES_FILE) as (failures, gone):
        asked = wanted.join(gone, on=["item_id", "url"], how="anti", maintain_order="left")
        counts = _download(asked, folder, options, limits, failures)
    done = Downloaded(counts["fetched"], counts["failed"], wanted.height - asked.height)
    log.info(
        "pictures: %d fetched, %d could not be had, %d known to be gone from an earlier download; see %s",
        done.fetched,
        done.failed,
        done.known_as_gone,
        folder / FAILURES_FILE,
    )
    return done


def _download(
    wanted: pl.DataFrame, folder: Path, options: DownloadOptions, limits: Limits, failures: TextIO
) -> Counter[str]:
    counts: Counter[str] = Counter()
    stopped = threading.Event()
    hosts = Hosts(options.requests_per_second, limits.max_unanswered, stopped)
    connections = httpx2.Limits(max_connections=options.connections)

    def note_some(waiting: set[_Fetching]) -> set[_Fetching]:
        """Notes those that are done soon; returns the others."""
        # not for ever: where polars is imported, Ctrl-C does not wake a thread that waits
        done, others = wait(waiting, timeout=_GLANCE, return_when=FIRST_COMPLETED)
        for future in done:
            failure = future.result()
            counts["failed" if failure else "fetched"] += 1
            if failure:
                failures.write(json.dumps(failure) + "\n")
                failures.flush()
            bar.update()
        return others

    pool = ThreadPoolExecutor(options.connections)
    with (
        httpx2.Client(headers=_HEADERS, timeout=limits.silence, limits=connections) as client,
        progress("pictures", wanted.height) as bar,
    ):
        fetcher = Fetcher(client, hosts, limits, stopped)
        waiting: set[_Fetching] = set()
        try:
            for item_id, url in wanted.select("item_id", "url").iter_rows():
                waiting.add(pool.submit(_save_picture, fetcher, folder, item_id, url))
                while len(waiting) >= 2 * options.connections:  # a future for each of millions would fill the memory
                    waiting = note_some(waiting)
            while waiting:
                waiting = note_some(waiting)
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C need not wait for a host that is silent
    return counts


def _save_picture(fetcher: Fetcher, folder: Path, item_id: str, url: str) -> dict[str, Any] | None:
    """Fetches one picture; returns the line for the list of failures where it cannot be had."""
    try:
        if "/" in item_id or "\0" in item_id or item_id.startswith(".") or len(item_id.encode()) > _LONGEST_NAME:
            raise Refused("the item's id can be no file name")
        data, suffix = fetcher.fetch(url)
    except Refused as refused:
        return {"item_id": item_id, "url": url, "reason": str(refused), "gone": refused.gone}
    target = folder / f"{zlib.crc32(item_id.encode()) % _SUBDIRECTORIES:02x}" / f"{item_id}{suffix}"
    partial = target.with_name(target.name + _PARTIAL)
    with naming_a_full_disk(target, "free some space and start again: what has been fetched is kept"):
        target.parent.mkdir(exist_ok=True)
        partial.write_bytes(data)
        partial.replace(target)
    return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / _LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another download into {folder} is at work: wait for it, or end it first") from error
        yield


@contextmanager
def _failures(file: Path) -> Iterator[tuple[TextIO, pl.DataFrame]]:
    """The list of failures, open to append to, emptied of all but what is gone; and what is gone: item_id, url."""
    kept = [line for line in _read_failures(file) if line.get("gone") is True]
    partial = file.with_name(file.name + _PARTIAL)
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
    partial.replace(file)
    with file.open("a") as failures:
        rows = [(str(line.get("item_id")), str(line.get("url"))) for line in kept]
        yield failures, pl.DataFrame(rows, schema={"item_id": pl.String, "url": pl.String}, orient="row")


def _read_failures(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a list of failures; one that a killed run left unfinished is passed over."""
    if file.is_file():
        for text in file.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict):
                yield line

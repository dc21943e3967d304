"""Whether the other hosts of a run are still there, which no collective tells: it waits, for two hours.

Each rank counts aloud in the store at which the ranks met, and rank 0 listens. A rank that nobody has heard of for
LOST_SECONDS, or one that cannot reach the store for as long, ends its process with one sentence; the others lose the
store with it, or are ended by their launcher. On a host of its own a launcher cannot know of the others.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import torch.distributed as dist

from mmsr_pt.signals import RESUME_EXIT_CODE

LOST_SECONDS = 45.0
_BEATS = 12
"""Counts in LOST_SECONDS."""
_LEFT = "left"
"""In place of a count: this rank has done its work."""

log = logging.getLogger(__name__)


class Liveness:
    """The threads of one rank; `leave` ends them when the run is done, on every rank.

    One counts and listens; it may wait for ever, as the store's answers are waited for without a limit. So another one
    looks at how long ago it was answered.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world_size: int,
        lost_after: float = LOST_SECONDS,
        end: Callable[[str], None] | None = None,
    ) -> None:
        """A rank's.

        Args:
            store: that all ranks reach; it is cloned, so that nobody waits for this thread.
            rank: of this process.
            world_size: of the run.
            lost_after: seconds.
            end: what to do with the sentence in place of ending the process.
        """
        self._store = store.clone()
        self._pause = lost_after / _BEATS
        self._rank, self._world_size, self._lost_after = rank, world_size, lost_after
        self._end = end or _end_process
        self._done = threading.Event()
        self._reached = time.monotonic()
        self._threads = [
            threading.Thread(target=work, name=work.__name__.strip("_"), daemon=True)
            for work in (self._count_aloud, self._watch)
        ]

    def start(self) -> None:
        """Begins to count. Collective: another rank's count is looked for from now on."""
        self._reached = time.monotonic()
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """Says that this rank is done and will be heard of no more."""
        self._done.set()
        for thread in self._threads:
            thread.join(self._pause)
        try:
            self._store.set(_key(self._rank), _LEFT)
        except (dist.DistError, RuntimeError):
            return  # rank 0 and its store have left before

    def _count_aloud(self) -> None:
        # rank 0 listens to all, the others to it
        heard = Heard(range(self._world_size) if self._rank == 0 else range(1), self._lost_after, time.monotonic())
        count = 0
        while not self._done.wait(self._pause):
            count += 1
            try:
                self._store.set(_key(self._rank), str(count))
                # a write alone is on its way whether or not it arrives
                said = self._listen(heard.ranks)
            except (dist.DistError, RuntimeError):
                continue
            self._reached = time.monotonic()
            lost = heard.lost(said, self._reached)
            if lost:
                self._give_up(f"nothing was heard of rank {', '.join(map(str, lost))}")

    def _watch(self) -> None:
        while not self._done.wait(self._pause):
            if time.monotonic() - self._reached > self._lost_after:
                self._give_up(f"rank {self._rank} has not reached rank 0")

    def _give_up(self, sentence: str) -> None:
        if not self._done.is_set():
            self._done.set()
            self._end(f"{sentence} for {self._lost_after:.0f} s")

    def _listen(self, ranks: Sequence[int]) -> dict[int, bytes]:
        """What ranks have said last."""
        keys = {rank: _key(rank) for rank in ranks}
        there = {rank: key for rank, key in keys.items() if self._store.check([key])}
        return dict(zip(there, self._store.multi_get(list(there.values())))) if there else {}


class Heard:
    """When each rank was last heard."""

    def __init__(self, ranks: Sequence[int], lost_after: float, now: float) -> None:
        self.ranks, self._lost_after = ranks, lost_after
        self._last = dict.fromkeys(ranks, (b"", now))

    def lost(self, said: Mapping[int, bytes], now: float) -> list[int]:
        """The ranks that have said nothing new for too long and have not left.

        Args:
            said: what each has said last; one that has said nothing yet is missing.
            now: in seconds.
        """
        for rank, word in said.items():
            if word == _LEFT.encode() or word != self._last[rank][0]:
                self._last[rank] = (word, now)
        return [rank for rank, (_, since) in self._last.items() if now - since > self._lost_after]


def _key(rank: int) -> str:
    return f"mmsr_pt/alive/{rank}"


def _end_process(sentence: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(
        f"error: {sentence}: its host is gone, or the way to it. Go on with --resume, when all hosts are there\n"
    )
    sys.stderr.flush()
    os._exit(RESUME_EXIT_CODE)

"""Ranks that are heard, that leave, and that fall silent; their store on loopback."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import torch.distributed as dist

from mmsr_pt.training.liveness import Heard, Liveness

LOST = 3.0


def test_a_rank_is_lost_when_it_says_nothing_new_for_too_long() -> None:
    heard = Heard(range(3), 60, 0)
    assert heard.lost({0: b"1", 1: b"1"}, 30) == []
    # rank 2 has never said anything
    assert heard.lost({0: b"2", 1: b"1"}, 61) == [2]
    assert heard.lost({0: b"3", 1: b"1", 2: b"1"}, 90) == []
    assert heard.lost({0: b"4", 1: b"1", 2: b"2"}, 91) == [1]


def test_a_rank_that_has_left_is_never_lost() -> None:
    heard = Heard(range(2), 60, 0)
    assert heard.lost({0: b"1", 1: b"left"}, 1) == []
    assert heard.lost({0: b"2", 1: b"left"}, 1000) == []


class Ranks:
    """Liveness threads of one run in this process, and how each ended."""

    def __init__(self, number: int) -> None:
        self.server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.said: dict[int, list[str]] = {rank: [] for rank in range(number)}
        self.ended = {rank: threading.Event() for rank in range(number)}
        self.threads = [self._rank(rank, number) for rank in range(number)]

    def _rank(self, rank: int, number: int) -> Liveness:
        def end(sentence: str) -> None:
            self.said[rank].append(sentence)
            self.ended[rank].set()

        client = dist.TCPStore("127.0.0.1", self.server.port, is_master=False, timeout=timedelta(seconds=5))
        return Liveness(client, rank, number, LOST, end)


def test_who_leaves_is_not_missed_and_who_falls_silent_is_named() -> None:
    ranks = Ranks(4)
    for rank in ranks.threads:
        rank.start()
    time.sleep(LOST / 2)
    ranks.threads[2].leave()
    # as if its process were gone: no count any more, and no word of leaving
    ranks.threads[1]._done.set()
    assert ranks.ended[0].wait(5 * LOST)
    # rank 0 is gone now, and so the last one loses it
    assert ranks.ended[3].wait(5 * LOST)
    assert ranks.said == {
        0: ["nothing was heard of rank 1 for 3 s"],
        1: [],
        2: [],
        3: ["nothing was heard of rank 0 for 3 s"],
    }

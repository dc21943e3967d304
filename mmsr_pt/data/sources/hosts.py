"""How the hosts of pictures are treated: how often they are asked, for how long, and when they are given up."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How long a picture is tried for, and how large it may be."""

    tries: int = 5
    first_wait: float = 1.0
    """Seconds before the second try; twice as many before each further one."""
    longest_wait: float = 120.0
    """Seconds, also where a host asks for more."""
    silence: float = 20.0
    """Seconds without a byte after which a connection counts as cut."""
    longest_request: float = 60.0
    """Seconds from the first byte of a picture to its last."""
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_redirects: int = 5
    max_unanswered: int = 50
    """Questions in a row without an answer after which a host is given up."""


class Refused(Exception):  # noqa: N818 (not an error of the program: the picture cannot be had)
    """Why a picture cannot be had."""

    def __init__(self, reason: str, again: bool = False, gone: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.again = again
        """Another try may help."""
        self.gone = gone
        """The host says that there is no such picture."""
        self.wait = wait
        """Seconds that the host asks to wait."""


class Stopped(Exception):  # noqa: N818
    """The download as a whole is being ended."""


class Hosts:
    """When each host may be asked next, and whether it answers at all; shared by all threads."""

    def __init__(self, requests_per_second: float, max_unanswered: int, stopped: threading.Event) -> None:
        self._interval = 1 / requests_per_second
        self._max_unanswered = max_unanswered
        self._stopped = stopped
        self._lock = threading.Lock()
        self._due: dict[str, float] = defaultdict(float)
        self._unanswered: dict[str, int] = defaultdict(int)

    def wait(self, host: str) -> None:
        """Returns when the host may be asked.

        Raises:
            Refused: it has been given up.
            Stopped: the download ends.
        """
        while True:
            with self._lock:
                if self._unanswered[host] >= self._max_unanswered:
                    raise Refused(f"{host} gave no answer {self._max_unanswered} times in a row and was given up")
                now = time.monotonic()
                due = self._due[host]
                if due <= now and not self._stopped.is_set():
                    self._due[host] = now + self._interval
                    return
            if self._stopped.wait(due - now):
                raise Stopped

    def hold(self, host: str, seconds: float) -> None:
        """Nobody asks the host for so long: it has said that it is asked too often."""
        with self._lock:
            self._due[host] = max(self._due[host], time.monotonic() + seconds)

    def note(self, host: str, answered: bool) -> None:
        """Whether the host gave any answer."""
        with self._lock:
            self._unanswered[host] = 0 if answered else self._unanswered[host] + 1

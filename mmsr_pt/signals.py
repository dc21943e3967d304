"""A thread beside the training that hears what the training itself cannot while it waits for a collective.

SIGTERM and SIGUSR1 (SLURM's warning) ask a run to save and to end with RESUME_EXIT_CODE. While steps are made they are
only noted here, as all ranks must save at the same step (`Trainer` agrees on it); before and after there is nothing to
save, and the process ends at once. The thread also sees another rank on this host die, which no collective tells where
GPUs are waited for, and a step that does not end, of which it prints every thread's stack.

Launchers: deepspeed's hands SIGTERM to one rank after the other, waits 30 s for each and kills it then; torchrun's to
all, to their loader processes too, and likewise kills after 30 s. When one rank has died both do so with the others.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Concatenate, ParamSpec

RESUME_EXIT_CODE = 85
"""Of a run that was asked to end and can go on; HTCondor expects the same number, and launchers use no such code."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_ECHO = 5.0
"""Seconds in which the same request comes twice: to the whole process group, and handed on by the launcher."""
_PATIENCE = 3.0
"""Seconds after another rank's death in which the launcher, which looks once a second, would have ended this one."""
_MOMENT = 0.5
"""Seconds in which ranks that stop together leave one after the other."""
_POLL = 0.5
_LAUNCHERS = {"CROSS_RANK", "TORCHELASTIC_RUN_ID"}
"""What deepspeed and torchrun leave in the environment; a process without must outlive the shell that it is of."""

Given = ParamSpec("Given")


class Stopped(Exception):  # noqa: N818
    """The run was asked to end and has saved; all ranks raise it behind the same step."""


class Watch:
    """Listens for signals, dead ranks and steps that do not end; use in the main thread, one at a time."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        """The signal that asked this process to end, once one has come while steps were made."""
        self._asked_at = 0.0
        self._makes_steps, self._saves = False, False
        self._launcher = None if _LAUNCHERS.isdisjoint(os.environ) else _parent
        self._own = int(os.environ.get("RANK", "0"))
        self._ranks: set[int] = set()  # alive on this host
        self._gone: tuple[int, int] | None = None
        self._gone_at, self._is_told = 0.0, False
        self._hang_seconds, self._doing, self._since = 0.0, "", 0.0
        self._selector, self._lock = selectors.DefaultSelector(), threading.Lock()
        self._read, self._write = socket.socketpair()
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)

    def start(self) -> None:
        """Takes the signals over."""
        for end in (self._read, self._write):
            end.setblocking(False)
        self._selector.register(self._read, selectors.EVENT_READ)
        # the interpreter writes a signal's number there at once, even while the main thread waits in a library
        self._before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, _do_nothing) for number in SIGNALS}
        self._thread.start()

    def close(self) -> None:
        """Gives the signals back."""
        signal.set_wakeup_fd(self._before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._write.send(b"\0")
        self._thread.join()
        self._forget_ranks()
        self._selector.close()
        self._read.close()
        self._write.close()

    @contextlib.contextmanager
    def steps(self, ranks: Mapping[int, int], hang_seconds: float) -> Iterator[None]:
        """While inside, signals are noted and not obeyed, and other ranks and the time between steps watched.

        Args:
            ranks: process numbers of the other ranks on this host.
            hang_seconds: after which a step that has not ended is reported; 0: never.
        """
        self._ranks = {self._own, *ranks}
        for rank, process in ranks.items():
            # where a kernel has no such descriptors, the collectives' own errors and time limits are left
            with contextlib.suppress(OSError, AttributeError):
                self._selector.register(os.pidfd_open(process), selectors.EVENT_READ, (rank, process))
        self._hang_seconds = hang_seconds
        self.now("before the first step")
        self._makes_steps = True
        try:
            yield
        except RuntimeError:
            # most likely a collective's, of which a rank's death is the reason; connections close a moment before
            self._look_for_dead(_MOMENT if self._gone is None and ranks else 0)
            self._tell_of_dead()
            raise
        finally:
            self._makes_steps = False
            self._forget_ranks()
        if self.asked is not None:
            self._end_at_once(self.asked)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """While inside, even a second signal waits: a checkpoint under way is worth finishing."""
        self._saves = True
        try:
            yield
        finally:
            self._saves = False

    def now(self, doing: str) -> None:
        """Says what begins now; the time without such news is what `hang_seconds` limits."""
        self._doing, self._since = doing, time.monotonic()

    def _listen(self) -> None:
        while True:
            self._look_for_dead(_POLL)
            for number in self._received():
                if number == 0:
                    return
                if number in SIGNALS:
                    self._take(signal.Signals(number))
            if self._launcher is not None and os.getppid() != self._launcher:
                _say("the launcher is gone")
                self._launcher = None
                self._take(signal.SIGTERM)
            if not self._makes_steps:
                continue
            now = time.monotonic()
            if self._gone is not None and now - self._gone_at > _MOMENT:
                self._tell_of_dead()
            if self._gone is not None and now - self._gone_at > _PATIENCE:
                os._exit(1)
            if 0 < self._hang_seconds < now - self._since:
                self._report_hang()

    def _received(self) -> bytes:
        try:
            return self._read.recv(4096)
        except BlockingIOError:
            return b""

    def _take(self, number: signal.Signals) -> None:
        # a launcher that saw a rank die asks the others to end: no step of theirs will, any more
        self._look_for_dead(0)
        if self._makes_steps and self._gone is not None:
            self._tell_of_dead()
            os._exit(1)
        if not self._makes_steps:
            self._end_at_once(number)
        if self.asked is None:
            self.asked, self._asked_at = number, time.monotonic()
            _say(
                f"{number.name}: the run will be saved behind this step; once more, {_ECHO:g} s later, ends it at once"
            )
        elif number == self.asked and time.monotonic() - self._asked_at > _ECHO and not self._saves:
            # another one, as SLURM's SIGTERM behind its warning, leaves some seconds for what is under way
            _say(f"{number.name} again: ended without saving")
            os._exit(128 + number)

    def _look_for_dead(self, timeout: float) -> None:
        """Waits for news of any kind, and takes in which ranks have ended."""
        for key, _ in self._selector.select(timeout):
            if key.data is not None:
                self._ranks.discard(key.data[0])
                if self._gone is None and self._makes_steps:
                    self._gone, self._gone_at = key.data, time.monotonic()
                self._forget(key.fd)

    def _tell_of_dead(self) -> None:
        with self._lock:
            if self._gone is None or self._is_told:
                return
            self._is_told = True
        rank, process = self._gone
        if self._own == min(self._ranks):
            _say(f"rank {rank} (process {process}) has ended, so the others end too", all_ranks=True)

    def _end_at_once(self, number: signal.Signals) -> None:
        _say(f"{number.name}: ended; what is complete stays, go on with --resume_or_start")
        os._exit(RESUME_EXIT_CODE)

    def _report_hang(self) -> None:
        waited = time.monotonic() - self._since
        _say(f"nothing has ended for {waited:.0f} s, {self._doing}; the stacks of this process:", all_ranks=True)
        with contextlib.suppress(OSError):
            faulthandler.dump_traceback(sys.stderr)
            sys.stderr.flush()
        self._since = time.monotonic()

    def _forget_ranks(self) -> None:
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                self._forget(key.fd)

    def _forget(self, descriptor: int) -> None:
        # both threads may come upon it; other ranks are news once
        with self._lock, contextlib.suppress(KeyError):
            self._selector.unregister(descriptor)
            os.close(descriptor)


def watched(main: Callable[Concatenate[Watch, Given], None]) -> Callable[Given, None]:
    """Gives a script's `main` a Watch that listens for as long as it runs."""

    @functools.wraps(main)
    def wrapped(*args: Given.args, **kwargs: Given.kwargs) -> None:
        watch = Watch()
        watch.start()
        try:
            main(watch, *args, **kwargs)
        finally:
            watch.close()

    return wrapped


def leave_to_parent() -> None:
    """In a helper that is about to run a program: its parent ends it, by SIGKILL, or takes it along however it dies."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()


def hear_parent_only(worker: int) -> None:
    """In a process of torch's loader: launchers ask the whole group to end, but the step may need its next batch.

    Args:
        worker: its number, with which the loader calls this.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, daemon=True).start()
    _die_with_parent()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _die_with_parent() -> None:
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _do_nothing(number: int, frame: object) -> None:
    """A handler of Python's own must be there, or nothing reaches the thread."""


def _say(sentence: str, all_ranks: bool = False) -> None:
    """To stderr, past `logging`, whose lock the main thread may hold; where all say the same, rank 0 alone."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or all_ranks:
        clock = time.strftime("%H:%M:%S")
        # a progress bar may stand in the line
        line = f"\n{clock} {sentence}\n" if rank == "0" else f"\n{clock} [rank {rank}] {sentence}\n"
        # who reads it may be gone; what has to be done is done all the same
        with contextlib.suppress(OSError):
            sys.stderr.write(line)
            sys.stderr.flush()


def _begin_anew() -> None:
    """In a forked process: another has made it, and what it receives must not be told to that one."""
    global _parent
    _parent = os.getppid()
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_begin_anew)

_parent = os.getppid()
"""Which process made this one, as long as it lives: so scripts import this module before torch, which takes seconds."""

_PRCTL = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1

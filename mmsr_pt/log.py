"""How the program speaks: logging, and the one sentence a user's mistake gets."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from mmsr_pt.signals import RESUME_EXIT_CODE, Stopped

USER_ERROR_EXIT_CODE = 2
_PATIENCE = 5
"""Seconds in which the launcher, which looks once a second, ends the other ranks of a run in which one has ended."""
_DISK_FULL = ("No space left on device", "Disk quota exceeded", "unexpected pos ", "iostream error")
"""What writers say that have no errno: safetensors hands the system's words on, torch.save has only its own."""


class UserError(ValueError):
    """The user's mistake: its message is one sentence with what was given, what is allowed and what to type."""


def reason(error: BaseException) -> str:
    """The first line of what a library says was wrong, else the kind of its exception."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def redraw_seconds() -> float:
    """Least time between two drawings of a progress bar: smooth on a terminal, four lines a minute in a file."""
    return 0.5 if sys.stderr.isatty() else 15


def setup_logging(rank: int = 0) -> None:
    """Logs to stderr with the time; ranks other than 0 speak only from WARNING upwards."""
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format="%(asctime)s %(message)s" if rank == 0 else f"%(asctime)s [rank {rank}] %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    for noisy in ("httpx", "httpx2", "PIL", "matplotlib", "DeepSpeed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # warns of every try to reach the hub; the error that comes of it says enough
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    threading.excepthook = end_of_thread


def end_of_thread(failed: threading.ExceptHookArgs) -> None:
    """Tells what ended a thread; not that TensorBoard's writer met a full disk, which its next caller is told too."""
    if not is_disk_full(failed.exc_value):
        threading.__excepthook__(failed)


@contextlib.contextmanager
def naming_a_full_disk(path: Path, advice: str) -> Iterator[None]:
    """Makes a full disk met while writing `path` the user's matter, with what to do."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise UserError(f"the disk is full while writing {path}: {advice}") from error
        raise


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk or an exhausted quota is behind an exception, whichever library met it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in _DISK_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def user_facing(main: Callable[..., None]) -> Callable[..., None]:
    """Wraps a script's `main`: a UserError or a full disk becomes one sentence and exit code 2, never a traceback."""

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> None:
        try:
            main(*args, **kwargs)
        except UserError as error:
            _leave(_sentence(error))
        except Stopped:
            # it has said so, and saved; loader processes may be waiting for this one
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(RESUME_EXIT_CODE)
        except Exception as error:
            if is_disk_full(error):
                filename = getattr(error, "filename", None)
                where = f" while writing {filename}" if filename else ""
                _leave(f"the disk is full{where}: free some space or choose another output directory, then start again")
            if _num_ranks() > 1:
                _leave_with_traceback()
            raise
        except KeyboardInterrupt:
            # os._exit: loader workers and collectives may be waiting for this rank and would hang a normal exit
            logging.getLogger(__name__).warning("interrupted; what was complete stays (a run goes on with --resume)")
            sys.stderr.flush()
            os._exit(130)

    return wrapped


def _num_ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _sentence(error: UserError) -> str:
    """The message; where a loader process met the mistake, torch has wrapped it into a traceback."""
    message = str(error)
    if "Original Traceback" in message:
        message = message.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(message.split())


def _leave_with_traceback() -> None:
    """A failure on one of several ranks; where it is only the echo of another rank's end, the launcher is faster.

    So one mistake is told once, by the rank that met it, and not again as a lost connection by all the others.
    """
    told = traceback.format_exc()
    time.sleep(_PATIENCE)
    # who reads it may be gone, and an orderly end of the interpreter could wait for other ranks
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.write(f"[rank {os.environ.get('RANK', '0')}] {told}")
        sys.stderr.flush()
    os._exit(1)


def _leave(sentence: str) -> None:
    """Prints the sentence once and exits with 2.

    On several ranks the same mistake is usually met by all: rank 0 speaks at once, the others wait long enough for
    the launcher to end them first, so that the sentence appears once, but is not lost if only they met it.
    """
    if int(os.environ.get("RANK", "0")) != 0:
        time.sleep(_PATIENCE)
    sys.stderr.write(f"error: {sentence}\n")
    sys.stderr.flush()
    # os._exit: other ranks may be inside a collective, which would block an orderly interpreter exit
    sys.stdout.flush()
    if _num_ranks() > 1:
        os._exit(USER_ERROR_EXIT_CODE)
    sys.exit(USER_ERROR_EXIT_CODE)

"""How the program speaks: logging, and the one sentence a user's mistake gets."""

from __future__ import annotations

import errno
import functools
import logging
import os
import sys
import time
from collections.abc import Callable

USER_ERROR_EXIT_CODE = 2


class UserError(ValueError):
    """The user's mistake: its message is one sentence with what was given, what is allowed and what to type."""


def setup_logging(rank: int = 0) -> None:
    """Logs to stderr with the time; ranks other than 0 speak only from WARNING upwards."""
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format="%(asctime)s %(message)s" if rank == 0 else f"%(asctime)s [rank {rank}] %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    for noisy in ("httpx", "PIL", "matplotlib", "DeepSpeed"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def user_facing(main: Callable[..., None]) -> Callable[..., None]:
    """Wraps a script's `main`: a UserError or a full disk becomes one sentence and exit code 2, never a traceback."""

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> None:
        try:
            main(*args, **kwargs)
        except UserError as error:
            _leave(str(error))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            where = f" while writing {error.filename}" if error.filename else ""
            _leave(f"the disk is full{where}: free some space or choose another output directory, then start again.")
        except KeyboardInterrupt:
            # os._exit: loader workers and collectives may be waiting for this rank and would hang a normal exit
            logging.getLogger(__name__).warning("interrupted; finished checkpoints stay usable (--resume goes on)")
            sys.stderr.flush()
            os._exit(130)

    return wrapped


def _leave(sentence: str) -> None:
    """Prints the sentence once and exits with 2.

    On several ranks the same mistake is usually met by all: rank 0 speaks at once, the others wait long enough for
    the launcher to end them first, so that the sentence appears once, but is not lost if only they met it.
    """
    if int(os.environ.get("RANK", "0")) != 0:
        time.sleep(5)
    sys.stderr.write(f"error: {sentence}\n")
    sys.stderr.flush()
    # os._exit: other ranks may be inside a collective, which would block an orderly interpreter exit
    sys.stdout.flush()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(USER_ERROR_EXIT_CODE)
    sys.exit(USER_ERROR_EXIT_CODE)

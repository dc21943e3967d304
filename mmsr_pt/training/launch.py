"""How a process of a run finds the others: under the deepspeed launcher, under torchrun, or alone."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from mmsr_pt.log import UserError
from mmsr_pt.training.liveness import Liveness

# rank 0 alone writes bundles and tables while the others wait; a dead rank is noticed by the launcher long before
_COLLECTIVE_TIMEOUT = timedelta(hours=2)

_FORK_PAUSE = 0.05
"""Seconds in which what a thread does behind a collective is long done: it takes microseconds."""

_liveness: Liveness | None = None
"""Of a run on several hosts, from `init_distributed` until the process ends."""


@dataclass(frozen=True)
class DistInfo:
    """Where this process stands in the run."""

    rank: int
    local_rank: int
    """Rank on this host."""
    world_size: int
    device: torch.device


def strip_local_rank(argv: Sequence[str]) -> list[str]:
    """The arguments without the `--local_rank=N` that the launcher puts in front of them."""
    return [word for word in argv if not word.startswith(("--local_rank=", "--local-rank="))]


def init_distributed() -> DistInfo:
    """Joins this process to the others of its launcher; without a launcher it becomes a run of its own.

    Collective: call on every rank, before anything else that is.

    Raises:
        UserError: another run has the port, or there are fewer GPUs than ranks.
    """
    if "RANK" not in os.environ:
        # without these DeepSpeed would look for MPI
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(_free_port()))
    # the deepspeed launcher has a name of its own for it
    os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1"))
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    device = _choose_device(local_rank, local_size)
    backend = "gloo" if device.type == "cpu" else "nccl"
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=_COLLECTIVE_TIMEOUT))
        group_store = dist.PrefixStore("default_group", store)
        dist.init_process_group(
            backend, store=group_store, rank=rank, world_size=world_size, timeout=_COLLECTIVE_TIMEOUT
        )
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        port = os.environ["MASTER_PORT"]
        raise UserError(
            f"port {port}, at which ranks meet, is taken, most likely by another run on this host: start this one with "
            f"deepspeed --master_port {int(port) + 1}"
        ) from error
    _let_threads_pass_before_a_fork()
    # gloo's threads would abort an interpreter that ends without it, after all work is done
    atexit.register(_leave_group)
    if local_size < world_size:
        # on one host the launcher knows who is gone
        global _liveness
        _liveness = Liveness(store, rank, world_size)
        _liveness.start()
    return DistInfo(rank, local_rank, world_size, device)


def _choose_device(local_rank: int, local_size: int) -> torch.device:
    # DS_ACCELERATOR is how DeepSpeed is told to leave the GPUs alone
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available():
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))
        _spare_memory()
        # else DeepSpeed looks for accelerators and warns that it found none
        os.environ["DS_ACCELERATOR"] = "cpu"
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"{local_size} ranks were started for {count} GPUs: use deepspeed --num_gpus {count}")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _spare_memory() -> None:
    """Bounds what libraries keep on a CPU, and keeps what would only be fetched again.

    Batches hold another number of items at each step; oneDNN keeps a kernel with its buffers for each shape it has met,
    1024 of them, which adds megabytes a step. Read at its first product, so set before.
    """
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, "32")
    _keep_freed_memory()


def _let_threads_pass_before_a_fork() -> None:
    """Waits a moment before each fork, where Python's own is not safe: before 3.11.10.

    There a child hangs when at that moment a thread of a library is asking for the interpreter, as gloo's do behind a
    collective, and a loader process never gives its first batch (https://github.com/python/cpython/issues/112275).
    """
    if sys.version_info < (3, 11, 10):
        os.register_at_fork(before=functools.partial(time.sleep, _FORK_PAUSE))


def _keep_freed_memory() -> None:
    """Keeps glibc from handing tensors of up to 32 MB back to the kernel, to be cleared page by page at the next step.

    Clearing pages takes up to a third of a training step on a CPU. Larger ones still go back: kept too, they would
    leave holes that let the process grow several times over. Elsewhere than with glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 32 * 2**20)
        mallopt(m_trim_threshold, 2**31 - 1)


def end_process() -> NoReturn:
    """Ends a process whose work is done, with exit code 0 and at once.

    The interpreter's own end takes libraries apart while threads of theirs still run; seldom, but with all done and
    written, that aborts a rank, and the launcher calls the run a failure.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    _say_farewell()
    os._exit(0)


def _say_farewell() -> None:
    global _liveness
    if _liveness is not None:
        _liveness.leave()
        _liveness = None


def _leave_group() -> None:
    _say_farewell()
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

"""The processes of an evaluation: who does which chunk, and how the parts come together again.

Works in one plain process, under torchrun or `accelerate launch`, and inside a run whose torch.distributed DeepSpeed
has already started.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import torch
from accelerate import PartialState
from accelerate.utils import gather, patch_environment
from torch import Tensor


def processes() -> PartialState:
    """The state of this process among its peers. Collective at its first call under a launcher."""
    started = torch.distributed.is_available() and torch.distributed.is_initialized()
    # without cpu=True accelerate takes every rank of a machine without accelerator for a lone process
    on_cpu = not torch.cuda.is_available() or (started and torch.distributed.get_backend() == "gloo")
    # without OMP_NUM_THREADS accelerate would change the thread count of a training that is under way
    with patch_environment(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS") or str(torch.get_num_threads())):
        state = PartialState(cpu=on_cpu)
    if started:
        world_size = torch.distributed.get_world_size()
        assert state.num_processes == world_size, (
            f"torch.distributed has {world_size} processes, accelerate {state.num_processes}: set LOCAL_RANK first"
        )
    return state


class Portion:
    """This process's contiguous share of `total` things, cut into chunks whose bounds no world size changes.

    Every process makes the same number of calls, so that modules whose forward is collective (ZeRO-3 gathers
    parameters at each one) never wait for a peer that has nothing left to do. A process that is short of chunks
    repeats its last one, or does thing 0 if it has none; `gathered` drops what such calls gave.
    """

    def __init__(self, total: int, chunk: int) -> None:
        assert min(total, chunk) > 0, f"nothing to share: {total} in chunks of {chunk}"
        state = processes()
        self.total, self.chunk = total, min(chunk, total)
        self.num_calls = math.ceil(math.ceil(total / self.chunk) / state.num_processes)
        self._size = self.num_calls * self.chunk
        first = min(state.process_index * self._size, total)
        self.own = range(first, min(first + self._size, total))

    @property
    def work(self) -> range:
        """The things this process needs at hand: its own, or thing 0 in their place."""
        return self.own or range(1)

    def calls(self) -> Iterator[range]:
        """The chunk of each of `num_calls` calls."""
        starts = self.work[:: self.chunk]
        for call in range(self.num_calls):
            start = starts[min(call, len(starts) - 1)]
            yield range(start, min(start + self.chunk, self.work.stop))

    def gathered(self, parts: list[Tensor]) -> Tensor:
        """Collective: all [total, ...] in order, from what the calls on each process gave, [chunk, ...] each."""
        mine = torch.cat(parts)[: len(self.own)]
        assert len(mine) == len(self.own), f"the calls gave {len(mine)} of {len(self.own)} results"
        padded = mine.new_zeros(self._size, *mine.shape[1:])
        padded[: len(mine)] = mine
        return gather(padded)[: self.total]

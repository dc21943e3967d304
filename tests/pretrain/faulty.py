"""pretrain/run.py with a fault: FAULT="what rank step" in the environment says what happens to whom at which step.

raise: an exception of the rank's own; die: SIGKILL, as the kernel sends where memory is short; sleep: the rank hangs;
nan: the loss of the rank's batch is not a number; still: the loss no longer depends on the model, from that step on.
"""

import os
import signal
import time
from typing import Any
from unittest import mock

from mmsr_pt.training.engine import Engine
from mmsr_pt.training.task import NextItemTask
from pretrain.run import main

WHAT, RANK, STEP = os.environ["FAULT"].split()
train_step, forward = Engine.train_step, NextItemTask.forward
calls = 0


def faulty(engine: Engine, *args: Any, **kwargs: Any) -> Any:
    global calls
    calls += 1
    if engine.place.rank == int(RANK) and calls == int(STEP):
        if WHAT == "raise":
            raise RuntimeError("the fault of this test")
        if WHAT == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if WHAT == "sleep":
            time.sleep(10_000)
    return train_step(engine, *args, **kwargs)


def spoiled(task: NextItemTask, batch: Any) -> Any:
    loss, count, report = forward(task, batch)
    if WHAT == "nan" and calls == int(STEP) and int(os.environ["RANK"]) == int(RANK):
        loss = loss * float("nan")
    if WHAT == "still" and calls >= int(STEP):
        loss = loss * 0
    return loss, count, report


if __name__ == "__main__":
    with mock.patch.object(Engine, "train_step", faulty), mock.patch.object(NextItemTask, "forward", spoiled):
        main()

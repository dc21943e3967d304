"""pretrain/run.py with a fault: FAULT="what rank step" in the environment says what happens to whom before which step.

raise       an exception of the rank's own
die         SIGKILL, as the kernel does where memory is short
sleep       the rank hangs
nan-loss    the batch's pictures are NaN ... see `_spoil`
"""

import os
import signal
import time
from typing import Any
from unittest import mock

from mmsr_pt.training.engine import Engine
from pretrain.run import main

WHAT, RANK, STEP = os.environ["FAULT"].split()
train_step = Engine.train_step


def faulty(engine: Engine, *args: Any, **kwargs: Any) -> Any:
    if engine.place.rank == int(RANK) and engine.num_steps + 1 == int(STEP):
        if WHAT == "raise":
            raise RuntimeError("the fault of this test")
        if WHAT == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if WHAT == "sleep":
            time.sleep(10_000)
    return train_step(engine, *args, **kwargs)


if __name__ == "__main__":
    with mock.patch.object(Engine, "train_step", faulty):
        main()

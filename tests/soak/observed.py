"""pretrain/run.py that notes what each rank did: a line of JSON behind every step, in OBSERVED/rank_00000.jsonl.

    OBSERVED=DIR python tests/soak/observed.py --data D --run_dir R

A line has the step, the rank's users, its loss, and the resident memory in bytes (with that of its loader processes),
threads and open files of the rank.
"""

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import mmsr_pt.signals  # noqa: F401  first, as in pretrain/run.py

# isort: split
import psutil

from mmsr_pt.batch import UserBatch
from mmsr_pt.trainer import Trainer
from pretrain.run import main

OBSERVED = Path(os.environ["OBSERVED"])
step = Trainer._step
own = psutil.Process()


def observed(trainer: Trainer, batches: list[UserBatch]) -> Any:
    report = step(trainer, batches)
    assert report is not None, "nothing here gives a loss that is no number"
    line = {
        "step": trainer.step + 1,
        "users": [user for batch in batches for user in batch.users.tolist() if user >= 0],
        "loss": report.loss,
        "memory": sum(one.memory_info().rss for one in (own, *own.children(recursive=True))),
        "threads": own.num_threads(),
        "files": own.num_fds(),
    }
    # unbuffered: a line that was written outlives the process, however it ends
    with (OBSERVED / f"rank_{trainer.place.rank:05}.jsonl").open("ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")
    return report


if __name__ == "__main__":
    OBSERVED.mkdir(parents=True, exist_ok=True)
    with mock.patch.object(Trainer, "_step", observed):
        main()

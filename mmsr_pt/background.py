"""Validation beside the training: `mmsr-pt evaluate` on a snapshot of the model, in a process of its own.

Training goes on meanwhile; all ranks take the figures up together at a later step. One evaluation runs at a time: a
new one waits for the one before it, so that the same steps are evaluated however slow the machine is. What is on disk:

    run_dir/.evaluating/step_00000100/   model/ (the snapshot), <number of the domain>.json (figures), log
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmsr_pt.config import RunConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.log import UserError
from mmsr_pt.run_dir import BUNDLE
from mmsr_pt.signals import leave_to_parent
from mmsr_pt.training.distributed import barrier, from_rank0, rank

log = logging.getLogger(__name__)

DIRECTORY = ".evaluating"
_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "CROSS_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_")
"""What the names of variables begin with by which a process would take itself for a rank of the training."""
_NICENESS = 10
_SHOWN_LINES = 5


@dataclass(frozen=True)
class Figures:
    """What an evaluation found."""

    step: int
    """Of the snapshot."""
    lines: list[dict[str, Any]]
    """As in metrics.jsonl, of all domains."""


class BackgroundEvaluation:
    """At most one evaluation on the validation targets in the background; its processes are children of rank 0."""

    def __init__(self, run_dir: Path, domains: Sequence[Domain], run: RunConfig, device: torch.device) -> None:
        self._directory = run_dir / DIRECTORY
        self._domains, self._run, self._device = domains, run, device
        self.step = 0
        """Of the snapshot under evaluation, the same on all ranks; 0: none."""
        self._kept = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._next_domain = 0

    def snapshot(self, step: int) -> Path:
        """Where the model of a step is while it is evaluated, and until nothing can resume before its figures."""
        return self._place(step) / BUNDLE

    def start(self, step: int, write: Callable[[Path], None]) -> None:
        """Has `write` fill the snapshot's directory on rank 0, and starts. Collective: call on every rank."""
        assert not self.step, f"step {self.step} is still under evaluation"
        self.step = step

        def begin() -> None:
            shutil.rmtree(self._place(step), ignore_errors=True)
            self.snapshot(step).mkdir(parents=True)
            write(self.snapshot(step))
            self._begin()

        from_rank0(begin)

    def resume(self, step: int) -> None:
        """Evaluates the snapshot of `step` again (0: none was under evaluation), and removes what a killed run left.

        Collective: call on every rank.
        """

        def begin() -> bool:
            for leftover in self._directory.glob("*"):
                if leftover != self._place(step):
                    shutil.rmtree(leftover)
            is_there = step > 0 and self.snapshot(step).is_dir()
            if is_there:
                self.step = step
                self._begin()
            elif step > 0:
                log.warning("the snapshot of step %d is gone: its evaluation is left out", step)
            return is_there

        self.step = self._kept = step if from_rank0(begin) else 0

    def figures(self, wait: bool) -> Figures | None:
        """What the evaluation found, once it is done. Collective: call on every rank.

        Args:
            wait: until it is done.

        Raises:
            UserError: on every rank, where the evaluation failed.
        """
        if not self.step:
            return None
        found = from_rank0(lambda: self._collect(wait))
        if found is not None:
            self.step = 0
        return found

    def done_with(self, step: int) -> None:
        """Removes a snapshot, unless the newest checkpoint is from before its figures. Collective."""
        barrier()
        if rank() == 0 and step != self._kept:
            shutil.rmtree(self._place(step), ignore_errors=True)

    def checkpointed(self) -> None:
        """A checkpoint knows all figures but those under way: only their snapshot is needed to resume from it."""
        old, self._kept = self._kept, self.step
        if old != self._kept:
            self.done_with(old)

    def close(self) -> None:
        """Ends the process, if one runs; on any rank."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """Removes all snapshots at the end of a run. Collective: call on every rank."""
        barrier()
        if rank() == 0:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _place(self, step: int) -> Path:
        return self._directory / f"step_{step:08}"

    def _out(self, domain: int) -> Path:
        return self._place(self.step) / f"{domain}.json"

    def _begin(self) -> None:
        self._next_domain = 0
        self._begin_domain()

    def _begin_domain(self) -> None:
        run, number = self._run, self._next_domain
        self._next_domain += 1
        self._out(number).unlink(missing_ok=True)
        command = [sys.executable, "-m", "mmsr_pt.cli", "evaluate", "--split", "valid", "--no_baselines"]
        command += ["--model", str(self.snapshot(self.step)), "--data", str(self._domains[number].path)]
        command += ["--batch_size", str(run.eval_batch_size), "--eval_users", str(run.eval_users)]
        command += ["--seed", str(run.seed), "--max_users", str(self._domains[number].max_users)]
        command += ["--out", str(self._out(number))]
        with (self._place(self.step) / "log").open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env=_environment(os.environ, self._device),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_stay_behind,
            )

    def _collect(self, wait: bool) -> Figures | None:
        while True:
            assert self._process is not None
            if not wait and self._process.poll() is None:
                return None
            code = self._process.wait()
            self._process = None
            if code != 0:
                raise UserError(self._complaint(code))
            if self._next_domain == len(self._domains):
                return Figures(self.step, [line for number in range(len(self._domains)) for line in self._read(number)])
            self._begin_domain()

    def _read(self, number: int) -> list[dict[str, Any]]:
        lines = json.loads(self._out(number).read_text(encoding="utf-8"))["lines"]
        return [{**line, "step": self.step, "domain": self._domains[number].name} for line in lines]

    def _complaint(self, code: int) -> str:
        text = (self._place(self.step) / "log").read_text(encoding="utf-8", errors="replace")
        said = "; ".join(line.strip() for line in text.splitlines() if line.strip())
        last = "; ".join(said.split("; ")[-_SHOWN_LINES:])
        return (
            f"--async_eval: the evaluation of step {self.step} ended with exit code {code} ({last}): put that right "
            "and go on with --resume, or leave out --async_eval"
        )


def _environment(own: Mapping[str, str], device: torch.device) -> dict[str, str]:
    """What an evaluator sees: no launcher, this package, rank 0's device, and few threads where training needs them."""
    variables = {name: value for name, value in own.items() if not name.startswith(_LAUNCHERS)}
    packages = [str(Path(__file__).resolve().parents[1]), *filter(None, [own.get("PYTHONPATH")])]
    variables["PYTHONPATH"] = os.pathsep.join(packages)
    variables["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // 4))
    visible = [name for name in own.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if device.type == "cuda":
        variables["CUDA_VISIBLE_DEVICES"] = visible[device.index or 0] if visible else str(device.index or 0)
    else:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables


def _stay_behind() -> None:
    """In the new process: training goes first, and decides what a signal means."""
    os.nice(_NICENESS)
    leave_to_parent()

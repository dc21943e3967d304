"""Checkpoints to resume from: run_dir/checkpoints/step_00001000/, complete or not there at all.

    step_00001000/
      state.json              step, parameters, what the trainer must remember, the layout it was written in (for
                              people), and size and sha256 of every other file
      weights.safetensors     all weights and buffers by name, whole; trained ones in float32, as Adam steps them
      optimizer.safetensors   Adam's two moments of each trained weight, whole, in float32
      random.safetensors      torch's random state, a row for each rank
      model/                  what a bundle has beside its weights, so that one can be made of the checkpoint alone

Nothing in it depends on the number of ranks, the ZeRO stage, precision or offload, so a run may go on in another
layout. Only the random numbers belong to ranks: on as many as before they go on, on others they are drawn anew. Rank 0
alone writes and reads: the ranks gather one tensor after the other for it, and get them from it again, so that not
every rank of every host reads all of a checkpoint from a shared disk.

`latest` beside them names the newest, for people and tools. A checkpoint is written under a hidden name and renamed
when its last byte is on the disk, so a kill at any moment leaves the one before it in use.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmsr_pt.log import UserError
from mmsr_pt.training.checkpoint_state import (
    STATE,
    layout_of,
    read_state,
    refuse_other_model,
    tell_what_changed,
    write_state,
)
from mmsr_pt.training.distributed import barrier, from_rank0, rank, tensor_from_rank0
from mmsr_pt.training.engine import Engine
from mmsr_pt.training.random_state import random_states, set_random_state
from mmsr_pt.training.tensor_file import Layout, seal_of, write_tensors

log = logging.getLogger(__name__)

MODEL = "model"
_WEIGHTS = "weights.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_RANDOM = "random.safetensors"
_LATEST = "latest"


class CheckpointManager:
    """Writes, keeps and reads the checkpoints of one run."""

    def __init__(self, run_dir: Path, keep: int = 2) -> None:
        """A run directory's checkpoints.

        Args:
            run_dir: need not be there yet.
            keep: how many of the newest stay.
        """
        self.directory = run_dir / "checkpoints"
        self.keep = keep

    def save(
        self,
        engine: Engine,
        step: int,
        state: Mapping[str, Any],
        write_model: Callable[[Path], None] = lambda directory: None,
    ) -> Path:
        """Writes a checkpoint and drops the oldest. Collective: call on every rank.

        Args:
            engine: whose weights and optimizer state are kept.
            step: optimizer steps done; it names the checkpoint.
            state: what JSON can hold; `load` gives it back.
            write_model: puts what a bundle has beside its weights into the directory it is given; called on rank 0.
        """
        random = random_states(engine.place.device)
        if rank() == 0:
            self._remove_leftovers()
            unfinished = self.directory / f".{self._name(step).name}.tmp"
            try:
                unfinished.mkdir(parents=True)
                _write(unfinished, engine, step, state, random, write_model)
                self._publish(unfinished, self._name(step))
                self._remove_old()
            except Exception:
                # most likely the disk is full: this would keep it so
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            log.info("checkpoint %s", self._name(step))
        else:
            for _ in itertools.chain(engine.weights(), engine.moments()):
                pass  # gathered for rank 0, and let go
        barrier()
        return self._name(step)

    def latest(self) -> Path | None:
        """The newest complete checkpoint, None if there is none."""
        complete = self._complete()
        return complete[-1] if complete else None

    def newest(self) -> Path | None:
        """As `latest`, for one that is going to be read.

        Raises:
            UserError: the newest is not complete: it is not passed over without a word.
        """
        found = max(self.directory.glob("step_*"), default=None)
        if found is not None and not is_checkpoint(found):
            raise UserError(f"{found} is damaged: {STATE} is missing; {self._way_out(found)}")
        return found

    def how_to_go_on(self) -> str:
        """What to do when the disk is full."""
        last = self.latest()
        if last is None:
            return "free some space and start again in another --run_dir, there is no checkpoint yet"
        return f"free some space and go on with --resume, the last good checkpoint is {last}"

    def load(self, engine: Engine) -> dict[str, Any]:
        """Puts weights, optimizer and random state back; returns the `state` of `save`. Collective: on every rank.

        Raises:
            UserError: no checkpoint, a damaged one, or one that this engine cannot take.
        """
        path, saved = from_rank0(self._open_newest)
        refuse_other_model(path, saved["parameters"], engine.parameters)
        device = engine.place.device
        weights = _SharedFile(path / _WEIGHTS, engine.weights_layout, device)
        moments = _SharedFile(path / _OPTIMIZER, engine.moments_layout, device)
        engine.load(weights.tensor, moments.tensor, saved["engine_steps"], saved["engine_updates"])
        random = from_rank0(lambda: load_file(path / _RANDOM))
        set_random_state(random, saved["step"])
        tell_what_changed(saved["layout"], layout_of(engine))
        barrier()
        return saved["state"]

    def _open_newest(self) -> tuple[Path, dict[str, Any]]:
        """The newest checkpoint, checked to the last byte. On rank 0."""
        self._restore()
        for leftover in sorted(self.directory.glob(".step_*.tmp")):
            log.warning("%s was never finished, as the run was killed while it wrote it: left out", leftover)
        path = self.newest()
        if path is None:
            raise UserError(
                f"there is no checkpoint in {self.directory} to resume from: start again in another --run_dir"
            )
        return path, read_state(path, self._way_out(path), files=None)

    def _way_out(self, damaged: Path) -> str:
        """What to do about a damaged checkpoint."""
        others = [path for path in self._complete() if path != damaged]
        if not others:
            return "there is no other checkpoint: start again in another --run_dir"
        return f"delete that directory to go on from the one before, {others[-1].name}"

    def _name(self, step: int) -> Path:
        return self.directory / f"step_{step:08d}"

    def _complete(self) -> list[Path]:
        return sorted(path for path in self.directory.glob("step_*") if is_checkpoint(path))

    def _publish(self, unfinished: Path, final: Path) -> None:
        if final.exists():
            # a run resumed from an older checkpoint comes by this step again
            before = [path for path in self._complete() if path != final]
            self._point_to(before[-1] if before else None)
            final.rename(self.directory / f".{final.name}.old")
        unfinished.rename(final)
        _flush(self.directory)
        self._point_to(final)

    def _point_to(self, path: Path | None) -> None:
        pointer = self.directory / _LATEST
        if path is None:
            pointer.unlink(missing_ok=True)
        else:
            fresh = self.directory / f".{_LATEST}.tmp"
            fresh.write_text(path.name + "\n", encoding="utf-8")
            _flush(fresh)
            fresh.replace(pointer)
        _flush(self.directory)

    def _remove_old(self) -> None:
        self._remove_leftovers()
        for path in self._complete()[: -self.keep]:
            # under its hidden name half a checkpoint cannot pass for a whole one
            hidden = path.with_name(f".{path.name}.dropped")
            path.rename(hidden)
            shutil.rmtree(hidden)

    def _restore(self) -> None:
        """Finishes what a kill between two renames has left: one about to be replaced gets its name back."""
        for old in self.directory.glob(".step_*.old"):
            final = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
            if not final.exists():
                old.rename(final)
        last, pointer = self.latest(), self.directory / _LATEST
        if last is not None and not (pointer.exists() and pointer.read_text(encoding="utf-8").strip() == last.name):
            self._point_to(last)

    def _remove_leftovers(self) -> None:
        self._restore()
        for leftover in self.directory.glob(".step_*"):
            shutil.rmtree(leftover)


class _SharedFile:
    """Tensors of a safetensors file that rank 0 reads for all."""

    def __init__(self, path: Path, layout: Layout, device: torch.device) -> None:
        self._layout, self._device = layout, device
        self._file = safe_open(path, framework="pt") if rank() == 0 else None

    def tensor(self, name: str) -> Tensor:
        """The tensor on every rank. Collective: call on every rank."""
        dtype, shape = self._layout[name]
        mine = None if self._file is None else self._file.get_tensor(name)
        return tensor_from_rank0(mine, dtype, shape, self._device)


def _write(
    directory: Path,
    engine: Engine,
    step: int,
    state: Mapping[str, Any],
    random: Mapping[str, Tensor],
    write_model: Callable[[Path], None],
) -> None:
    """Fills the directory of a checkpoint, to the disk. On rank 0, while the others gather for it."""
    seals = {
        _WEIGHTS: write_tensors(directory / _WEIGHTS, engine.weights_layout, engine.weights()),
        _OPTIMIZER: write_tensors(directory / _OPTIMIZER, engine.moments_layout, engine.moments()),
    }
    save_file(dict(random), directory / _RANDOM)
    (directory / MODEL).mkdir()
    write_model(directory / MODEL)
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        seals.setdefault(str(path.relative_to(directory)), seal_of(path))
    write_state(directory, engine, step, state, seals)
    _flush_tree(directory)


def is_checkpoint(path: Path) -> bool:
    """Whether a directory is a complete checkpoint."""
    return (path / STATE).is_file()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The model's weights of a checkpoint, however many ranks wrote it: float32, on the CPU, in this one process.

    Raises:
        UserError: the checkpoint is of another format, or damaged.
    """
    read_state(path, "use another checkpoint", files=(_WEIGHTS,))
    return load_file(path / _WEIGHTS)


def _flush_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        _flush(path)
    _flush(directory)


def _flush(path: Path) -> None:
    """Puts a file's bytes, or a directory's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Checkpoints to resume from: run_dir/checkpoints/step_00001000/, complete or not there at all.

    step_00001000/
      state.json            step, ranks, ZeRO stage, parameters, and what the trainer must remember
      rng_rank_00000.pt     torch's random state of each rank
      deepspeed/            weights and optimizer state of all ranks
      model/                what a bundle has beside its weights, so that one can be made of the checkpoint alone

`latest` beside them names the newest, for people and tools. A checkpoint is written under a hidden name and renamed
when its last byte is on the disk, so a kill at any moment leaves the one before it in use.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmsr_pt.log import UserError
from mmsr_pt.training.distributed import barrier, rank, world_size
from mmsr_pt.training.engine import Engine, consolidated

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
MODEL = "model"
_STATE = "state.json"
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
        final = self.directory / f"step_{step:08d}"
        unfinished = self.directory / f".{final.name}.tmp"
        if rank() == 0:
            self._remove_leftovers()
            unfinished.mkdir(parents=True)
        barrier()
        try:
            engine.save(unfinished)
            torch.save(_random_state(), unfinished / f"rng_rank_{rank():05d}.pt")
            barrier()
            if rank() == 0:
                (unfinished / MODEL).mkdir()
                write_model(unfinished / MODEL)
                _write_json(unfinished / _STATE, {**_describe(engine), "step": step, "state": dict(state)})
                _flush_tree(unfinished)
                self._publish(unfinished, final)
                self._remove_old()
                log.info("checkpoint %s", final)
        except Exception:
            # most likely the disk is full: this would keep it so
            if rank() == 0:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise
        barrier()
        return final

    def latest(self) -> Path | None:
        """The newest complete checkpoint, None if there is none."""
        complete = self._complete()
        return complete[-1] if complete else None

    def how_to_go_on(self) -> str:
        """What to do when the disk is full."""
        last = self.latest()
        if last is None:
            return "free some space and start again in another --run_dir, there is no checkpoint yet"
        return f"free some space and go on with --resume, the last good checkpoint is {last}"

    def load(self, engine: Engine) -> dict[str, Any]:
        """Puts weights, optimizer and random state back; returns the `state` of `save`. Collective: on every rank.

        Raises:
            UserError: no checkpoint, or one that this engine cannot take.
        """
        path = self.latest()
        if path is None:
            raise UserError(
                f"there is no checkpoint in {self.directory} to resume from: start again in another --run_dir"
            )
        saved = json.loads((path / _STATE).read_text(encoding="utf-8"))
        _refuse_other_format(path, saved)
        _refuse_other_model(path, saved["parameters"], engine.parameters)
        _refuse_other_layout(path, saved["layout"], _layout(engine))
        engine.load(path)
        _set_random_state(torch.load(path / f"rng_rank_{rank():05d}.pt", weights_only=True))
        barrier()
        return saved["state"]

    def _complete(self) -> list[Path]:
        return sorted(path for path in self.directory.glob("step_*") if (path / _STATE).is_file())

    def _publish(self, unfinished: Path, final: Path) -> None:
        if final.exists():
            # a run resumed from an older checkpoint comes by this step again
            final.rename(self.directory / f".{final.name}.old")
        unfinished.rename(final)
        _flush(self.directory)
        pointer = self.directory / f".{_LATEST}.tmp"
        pointer.write_text(final.name + "\n", encoding="utf-8")
        _flush(pointer)
        pointer.replace(self.directory / _LATEST)
        _flush(self.directory)

    def _remove_old(self) -> None:
        self._remove_leftovers()
        for path in self._complete()[: -self.keep]:
            # under its hidden name half a checkpoint cannot pass for a whole one
            hidden = path.with_name(f".{path.name}.old")
            path.rename(hidden)
            shutil.rmtree(hidden)

    def _remove_leftovers(self) -> None:
        for leftover in self.directory.glob(".step_*"):
            shutil.rmtree(leftover)


def is_checkpoint(path: Path) -> bool:
    """Whether a directory is a complete checkpoint."""
    return (path / _STATE).is_file()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The model's weights of a checkpoint, however many ranks wrote it: float32, on the CPU, in this one process.

    Raises:
        UserError: the checkpoint is of another format, or lacks weights of its model.
    """
    saved = json.loads((path / _STATE).read_text(encoding="utf-8"))
    _refuse_other_format(path, saved)
    weights = consolidated(path, saved["layout"]["zero_stage"])
    for name, parameter in saved["parameters"].items():
        found = list(weights[name].shape) if name in weights else "missing"
        if found != parameter["shape"]:
            raise UserError(
                f"{path} is damaged: {name} is {found} and should be {parameter['shape']}; use another checkpoint"
            )
    return weights


def _layout(engine: Engine) -> dict[str, Any]:
    return {
        "ranks": world_size(),
        "zero_stage": engine.zero_stage,
        "precision": str(engine.dtype).removeprefix("torch."),
        "offloads_optimizer": engine.offloads_optimizer,
    }


def _describe(engine: Engine) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, "layout": _layout(engine), "parameters": engine.parameters}


def _refuse_other_format(path: Path, saved: Mapping[str, Any]) -> None:
    if saved.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} is of checkpoint format {saved.get('format_version')}, this version reads {FORMAT_VERSION}: "
            "go on with the version that wrote it, or start another run"
        )


def _refuse_other_model(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in [*saved, *now]:
        if saved.get(name) != now.get(name):
            before, after = _describe_parameter(saved.get(name)), _describe_parameter(now.get(name))
            raise UserError(
                f"{path} is of another model: {name} is {before} there and {after} here; "
                "resume with the model flags of its config.json, or start another run"
            )


def _describe_parameter(parameter: Mapping[str, Any] | None) -> str:
    if parameter is None:
        return "missing"
    group = parameter["group"]
    return f"{parameter['shape']}, {'frozen' if group is None else f'trained in group {group}'}"


def _refuse_other_layout(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if saved != now:
        raise UserError(
            f"{path} was saved on {_describe_layout(saved)}, this run is on {_describe_layout(now)}: resume with "
            f"deepspeed --num_gpus {saved['ranks']} (on one host) and the ds_config.json of that run"
        )


def _describe_layout(layout: Mapping[str, Any]) -> str:
    offload = ", optimizer offloaded" if layout["offloads_optimizer"] else ""
    ranks = f"{layout['ranks']} rank{'s' if layout['ranks'] > 1 else ''}"
    return f"{ranks}, ZeRO stage {layout['zero_stage']}, {layout['precision']}{offload}"


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


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

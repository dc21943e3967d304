"""state.json of a checkpoint: what it says of itself, read only when nothing in the checkpoint has changed since."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmsr_pt.log import UserError
from mmsr_pt.training.distributed import world_size
from mmsr_pt.training.engine import Engine
from mmsr_pt.training.tensor_file import Seal, broken_seal

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
STATE = "state.json"
_OWN_SEAL = "sha256"


def write_state(
    directory: Path, engine: Engine, step: int, state: Mapping[str, Any], files: Mapping[str, Seal]
) -> None:
    """Writes state.json, the last file of a checkpoint: with it the directory is one.

    Args:
        directory: of the checkpoint.
        engine: whose it is.
        step: optimizer steps done.
        state: what the trainer must remember.
        files: the seals of all other files, by name.
    """
    counts = {"step": step, "engine_steps": engine.num_steps, "engine_updates": engine.num_updates}
    about = {"format_version": FORMAT_VERSION, **counts, "layout": layout_of(engine)}
    content = {**about, "parameters": engine.parameters, "state": dict(state), "files": files}
    text = json.dumps({**content, _OWN_SEAL: _digest(content)}, indent=1)
    (directory / STATE).write_text(text + "\n", encoding="utf-8")


def read_state(path: Path, way_out: str, files: tuple[str, ...] | None) -> dict[str, Any]:
    """What stands in state.json of a checkpoint whose `files` (None: all) are as they were written.

    Raises:
        UserError: it is of another format, or something in it is not as it was written.
    """
    try:
        saved = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {STATE} cannot be read ({error}); {way_out}") from error
    if not isinstance(saved, dict) or saved.get("format_version") == 1:
        raise UserError(
            f"{path} is of checkpoint format 1, made of DeepSpeed's own files, this version reads {FORMAT_VERSION}: "
            "go on with the version that wrote it, or start another run"
        )
    own_seal = saved.pop(_OWN_SEAL, None)
    if own_seal != _digest(saved):
        raise UserError(f"{path} is damaged: {STATE} does not hold the bytes that were written; {way_out}")
    if saved["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{path} is of checkpoint format {saved['format_version']}, this version reads {FORMAT_VERSION}: "
            "go on with the version that wrote it, or start another run"
        )
    for name, seal in saved["files"].items():
        wrong = broken_seal(path / name, seal) if files is None or name in files else None
        if wrong is not None:
            raise UserError(f"{path} is damaged: {name} {wrong}; {way_out}")
    return saved


def _digest(content: Mapping[str, Any]) -> str:
    """Of what stands in state.json beside it, however it is spelt there."""
    as_read = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def refuse_other_model(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises UserError where the parameters of a checkpoint and of an engine differ, by the first of them."""
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


def layout_of(engine: Engine) -> dict[str, Any]:
    """How the engine's work is shared out: nothing that a checkpoint depends on."""
    return {
        "ranks": world_size(),
        "micro_batch": engine.micro_batch_size,
        "accumulation": engine.accumulation_steps,
        "zero_stage": engine.zero_stage,
        "precision": str(engine.dtype).removeprefix("torch."),
        "offloads_optimizer": engine.offloads_optimizer,
    }


def tell_what_changed(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """One log line where a run goes on in another layout: which, and what is not as it would have been."""
    if saved == now:
        return
    changes = []
    if saved["ranks"] != now["ranks"]:
        changes.append("dropout and masks are drawn anew, as random numbers belong to ranks")
    if saved["accumulation"] != now["accumulation"]:
        changes.append("under softmax a position's candidates are those of its micro-batch on all ranks, now others")
    if saved["precision"] != now["precision"]:
        changes.append(f"the model now computes in {now['precision']}")
    told = "; ".join(changes) or "nothing else changes but how sums are rounded"
    log.info("saved on %s, going on with %s: %s", _describe_layout(saved), _describe_layout(now), told)


def _describe_layout(layout: Mapping[str, Any]) -> str:
    offload = ", optimizer offloaded" if layout["offloads_optimizer"] else ""
    ranks = f"{layout['ranks']} rank{'s' if layout['ranks'] > 1 else ''}"
    share = f"micro-batch {layout['micro_batch']} x {layout['accumulation']}"
    return f"{ranks}, {share}, ZeRO stage {layout['zero_stage']}, {layout['precision']}{offload}"

"""Checkpoints: all or nothing, the newest kept, the wrong ones refused. Real weights: test_engine.py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsr_pt.log import UserError
from mmsr_pt.training import checkpoint
from mmsr_pt.training.checkpoint import CheckpointManager


class StubEngine:
    """Saves one number instead of weights."""

    def __init__(self, weight: int = 0) -> None:
        self.weight = weight
        self.zero_stage, self.dtype, self.offloads_optimizer = 2, torch.bfloat16, False
        self.parameters = {"a.weight": {"shape": [2, 3], "group": "rest"}, "b.bias": {"shape": [3], "group": None}}

    def save(self, directory: Path) -> None:
        (directory / "deepspeed").mkdir()
        (directory / "deepspeed" / "weight").write_text(str(self.weight))

    def load(self, directory: Path) -> None:
        self.weight = int((directory / "deepspeed" / "weight").read_text())


def saved(run: Path, *steps: int, keep: int = 2) -> CheckpointManager:
    manager = CheckpointManager(run, keep)
    for step in steps:
        manager.save(StubEngine(10 * step), step, {"at": step})
    return manager


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def loaded(run: Path) -> tuple[int, dict[str, Any]]:
    engine = StubEngine()
    state = CheckpointManager(run).load(engine)
    return engine.weight, state


def test_a_checkpoint_gives_back_weights_state_and_random_numbers(tmp_path: Path) -> None:
    torch.manual_seed(5)
    saved(tmp_path, 3)
    expected = torch.rand(4)
    torch.manual_seed(6)
    assert loaded(tmp_path) == (30, {"at": 3})
    assert torch.equal(torch.rand(4), expected)


def test_the_newest_are_kept_and_latest_names_the_newest(tmp_path: Path) -> None:
    manager = saved(tmp_path, 5, 10, 100, keep=2)
    assert names(tmp_path) == ["latest", "step_00000010", "step_00000100"]
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step_00000100"
    assert manager.latest() == tmp_path / "checkpoints" / "step_00000100"


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    manager = saved(tmp_path, 5)
    manager.save(StubEngine(7), 5, {"at": 55})
    assert loaded(tmp_path) == (7, {"at": 55})
    assert names(tmp_path) == ["latest", "step_00000005"]


class Killed(KeyboardInterrupt):
    pass


def die_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Lets the process 'die' right before the given call of a function."""
    real: Callable[..., Any] = getattr(owner, name)
    left = [call]

    def dying(*args: Any, **kwargs: Any) -> Any:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, dying)


STATIONS = [
    (StubEngine, "save", range(1)),
    (torch, "save", range(1)),
    (checkpoint, "_write_json", range(1)),
    (checkpoint, "_flush", range(9)),
    (Path, "rename", range(3)),
    (Path, "replace", range(1)),
    (Path, "write_text", range(3)),
    (checkpoint.shutil, "rmtree", range(1)),
]


@pytest.mark.parametrize("step", [3, 2], ids=["new step", "same step again"])
@pytest.mark.parametrize(
    ("owner", "name", "call"), [(owner, name, call) for owner, name, calls in STATIONS for call in calls]
)
def test_a_kill_at_any_moment_of_a_save_leaves_a_checkpoint_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, step: int
) -> None:
    manager = saved(tmp_path, 1, 2)
    with monkeypatch.context() as patch:
        die_at(patch, owner, name, call)
        try:
            manager.save(StubEngine(99), step, {"at": 99})
            completed = True
        except Killed:
            completed = False
    weight, state = loaded(tmp_path)
    whole = {20: {"at": 2}, 99: {"at": 99}}
    if step == 2:
        whole[10] = {"at": 1}  # between two renames the step before is all there is
    assert state == whole[weight]
    if completed:
        assert weight == 99
    manager.save(StubEngine(40), 4, {"at": 4})
    assert loaded(tmp_path) == (40, {"at": 4})
    assert not [name for name in names(tmp_path) if name.startswith(".")], "leftovers are cleaned by the next save"


def test_a_directory_without_its_last_file_is_no_checkpoint(tmp_path: Path) -> None:
    manager = saved(tmp_path, 1, 2)
    (tmp_path / "checkpoints" / "step_00000002" / "state.json").unlink()
    assert manager.latest() == tmp_path / "checkpoints" / "step_00000001"


def test_nothing_to_resume_from_is_the_users_mistake(tmp_path: Path) -> None:
    assert CheckpointManager(tmp_path).latest() is None
    sentence = "there is no checkpoint in .*checkpoints to resume from: start again in another --run_dir"
    with pytest.raises(UserError, match=sentence):
        CheckpointManager(tmp_path).load(StubEngine())


def refusal(run: Path, engine: StubEngine) -> str:
    with pytest.raises(UserError) as error:
        CheckpointManager(run).load(engine)
    assert engine.weight == 0, "refused before anything was loaded"
    return str(error.value)


def test_another_layout_is_refused_with_both_and_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "world_size", lambda: 2)
    saved(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "world_size", lambda: 1)
    engine = StubEngine()
    engine.zero_stage, engine.dtype = 3, torch.float32
    sentence = refusal(tmp_path, engine)
    assert "saved on 2 ranks, ZeRO stage 2, bfloat16" in sentence
    assert "this run is on 1 rank, ZeRO stage 3, float32" in sentence
    assert "deepspeed --num_gpus 2" in sentence


@pytest.mark.parametrize(
    ("name", "parameter", "sentence"),
    [
        ("a.weight", {"shape": [2, 4], "group": "rest"}, r"a.weight is [2, 3], trained in group rest there and [2, 4]"),
        ("a.weight", {"shape": [2, 3], "group": None}, r"there and [2, 3], frozen here"),
        ("c", {"shape": [1], "group": "rest"}, r"c is missing there and [1], trained in group rest here"),
        ("b.bias", None, r"b.bias is [3], frozen there and missing here"),
    ],
)
def test_another_model_is_refused_by_its_first_differing_parameter(
    tmp_path: Path, name: str, parameter: dict[str, Any] | None, sentence: str
) -> None:
    saved(tmp_path, 1)
    engine = StubEngine()
    if parameter is None:
        del engine.parameters[name]
    else:
        engine.parameters[name] = parameter
    found = refusal(tmp_path, engine)
    assert "is of another model" in found
    assert sentence in found


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, 1).latest() / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    assert "of checkpoint format 99, this version reads 1" in refusal(tmp_path, StubEngine())

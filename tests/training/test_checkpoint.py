"""Checkpoints: all or nothing, checked to the last byte, the wrong ones refused. Real weights: test_engine.py."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmsr_pt.log import UserError
from mmsr_pt.training import checkpoint, checkpoint_state, random_state, tensor_file
from mmsr_pt.training.checkpoint import CheckpointManager, read_weights
from mmsr_pt.training.launch import DistInfo


class StubEngine:
    """Has one number in all of its weights."""

    def __init__(self, weight: float = 0, num_steps: int = 0) -> None:
        self.weight, self.num_steps = weight, num_steps
        self.place = DistInfo(0, 0, 1, torch.device("cpu"))
        self.zero_stage, self.dtype, self.offloads_optimizer = 2, torch.bfloat16, False
        self.micro_batch_size, self.accumulation_steps = 8, 1
        self.parameters = {"a.weight": {"shape": [2, 3], "group": "rest"}, "b.bias": {"shape": [3], "group": None}}
        self.weights_layout = {
            "a.weight": (torch.float32, (2, 3)),
            "b.bias": (torch.float32, (3,)),
            "seen": (torch.int64, ()),
        }
        self.moments_layout = {f"a.weight.{name}": (torch.float32, (2, 3)) for name in ("exp_avg", "exp_avg_sq")}

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        yield "a.weight", torch.full((2, 3), float(self.weight))
        yield "b.bias", torch.full((3,), float(self.weight))
        yield "seen", torch.tensor(7)

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.moments_layout:
            yield name, torch.full((2, 3), self.weight / 2)

    @property
    def num_updates(self) -> int:
        return self.num_steps - 1

    def load(
        self, weights: Callable[[str], Tensor], moments: Callable[[str], Tensor], num_steps: int, num_updates: int
    ) -> None:
        assert num_updates == num_steps - 1
        found = [weights(name) for name in self.weights_layout]
        assert all(torch.equal(moments(name), found[0] / 2) for name in self.moments_layout)
        assert found[2].item() == 7
        self.weight, self.num_steps = int(found[1][2]), num_steps


def saved(run: Path, *steps: int, keep: int = 2) -> CheckpointManager:
    manager = CheckpointManager(run, keep)
    for step in steps:
        manager.save(StubEngine(10 * step, step), step, {"at": step}, write_model)
    return manager


def write_model(directory: Path) -> None:
    (directory / "config.json").write_text('{"width": 32}')


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def loaded(run: Path) -> tuple[int, dict[str, Any]]:
    engine = StubEngine()
    state = CheckpointManager(run).load(engine)
    assert engine.num_steps > 0
    return int(engine.weight), state


def test_a_checkpoint_gives_back_weights_state_and_random_numbers(tmp_path: Path) -> None:
    torch.manual_seed(5)
    saved(tmp_path, 3)
    expected = torch.rand(4)
    torch.manual_seed(6)
    assert loaded(tmp_path) == (30, {"at": 3})
    assert torch.equal(torch.rand(4), expected)


def test_its_files_are_plain_safetensors(tmp_path: Path) -> None:
    """Read by the library, whose writer would need all tensors at once."""
    path = saved(tmp_path, 3).latest()
    assert path is not None
    weights = load_file(path / "weights.safetensors")
    assert {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in weights.items()
    } == StubEngine().weights_layout
    assert torch.equal(weights["a.weight"], torch.full((2, 3), 30.0))
    assert torch.equal(read_weights(path)["b.bias"], torch.full((3,), 30.0))
    assert load_file(path / "random.safetensors")["cpu"].shape == (1, len(torch.get_rng_state()))


def test_on_another_number_of_ranks_random_numbers_are_drawn_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    at_the_start = torch.rand(4)
    saved(tmp_path, 3)
    as_before = torch.rand(4)

    def drawn(seed: int) -> list[float]:
        torch.manual_seed(seed)
        loaded(tmp_path)
        return torch.rand(4).tolist()

    monkeypatch.setattr(random_state, "world_size", lambda: 2)
    assert drawn(5) == drawn(5)
    assert drawn(5) != drawn(6), "each rank has a seed of its own"
    assert drawn(5) not in (at_the_start.tolist(), as_before.tolist())


def test_the_newest_are_kept_and_latest_names_the_newest(tmp_path: Path) -> None:
    manager = saved(tmp_path, 5, 10, 100, keep=2)
    assert names(tmp_path) == ["latest", "step_00000010", "step_00000100"]
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step_00000100"
    assert manager.latest() == tmp_path / "checkpoints" / "step_00000100"


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    manager = saved(tmp_path, 5)
    manager.save(StubEngine(7, 5), 5, {"at": 55})
    assert loaded(tmp_path) == (7, {"at": 55})
    assert names(tmp_path) == ["latest", "step_00000005"]


def test_a_save_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    manager = saved(tmp_path, 1)

    def fail(directory: Path) -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        manager.save(StubEngine(99, 2), 2, {}, fail)
    assert names(tmp_path) == ["latest", "step_00000001"]
    assert loaded(tmp_path) == (10, {"at": 1})


# ---- kills: the process itself dies by SIGKILL between two lines of Python

WATCHED = {module.__file__ for module in (checkpoint, checkpoint_state, tensor_file)}
DEEPLY_WATCHED = {*WATCHED, shutil.__file__, sys.modules["pathlib"].__file__}


def killed_while_saving(manager: CheckpointManager, step: int, line: int, watched: set[str | None]) -> bool:
    """Saves in a process that kills itself before the `line`-th line that it runs; False: it was done before."""
    child = os.fork()
    if child == 0:
        left = line

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename not in watched:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            manager.save(StubEngine(99, step), step, {"at": 99}, write_model)
            sys.settrace(None)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def check_what_a_kill_leaves(run: Path, step: int, at: int) -> None:
    pointer = run / "checkpoints" / "latest"
    if pointer.exists() or step == 3:
        read_weights(run / "checkpoints" / pointer.read_text().strip())
    weight, state = loaded(run)
    whole = {20: {"at": 2}, 99: {"at": 99}}
    assert state == whole.get(weight), f"killed before line {at}"
    manager = CheckpointManager(run)
    assert manager.latest() == run / "checkpoints" / pointer.read_text().strip()
    manager.save(StubEngine(40, 4), 4, {"at": 4}, write_model)
    assert loaded(run) == (40, {"at": 4})
    assert not [name for name in names(run) if name.startswith(".")], "leftovers are cleaned by the next save"


def kill_everywhere(tmp_path: Path, step: int, first: int, stride: int, watched: set[str | None]) -> int:
    """Kills saves of `step` at every `stride`-th line; returns at how many."""
    saved(tmp_path / "before", 1, 2)
    run = tmp_path / "run"
    for kills, line in enumerate(range(first, 100_000, stride)):
        shutil.copytree(tmp_path / "before", run)
        was_killed = killed_while_saving(CheckpointManager(run), step, line, watched)
        check_what_a_kill_leaves(run, step, line)
        shutil.rmtree(run)
        if not was_killed:
            return kills
    raise AssertionError("the save never ended")


@pytest.mark.parametrize("step", [3, 2], ids=["new step", "same step again"])
def test_a_kill_at_any_moment_of_a_save_leaves_a_checkpoint_in_use(tmp_path: Path, step: int) -> None:
    assert kill_everywhere(tmp_path, step, first=4, stride=8, watched=WATCHED) > 20


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 2], ids=["new step", "same step again"])
def test_a_kill_before_every_line_of_a_save_leaves_a_checkpoint_in_use(tmp_path: Path, step: int) -> None:
    assert kill_everywhere(tmp_path, step, first=1, stride=1, watched=WATCHED) > 200


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 2], ids=["new step", "same step again"])
def test_a_kill_within_the_librarys_file_functions_leaves_a_checkpoint_in_use(tmp_path: Path, step: int) -> None:
    """Before every 7th line of thousands."""
    assert kill_everywhere(tmp_path, step, first=1, stride=7, watched=DEEPLY_WATCHED) > 400


def test_one_that_was_never_finished_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, 1)
    killed_while_saving(CheckpointManager(tmp_path), 2, 60, WATCHED)
    assert ".step_00000002.tmp" in names(tmp_path)
    assert loaded(tmp_path) == (10, {"at": 1})
    assert ".step_00000002.tmp was never finished" in caplog.text


# ---- damage


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


FILES = ("weights.safetensors", "optimizer.safetensors", "random.safetensors", "model/config.json", "state.json")


def refusal(run: Path, engine: StubEngine) -> str:
    with pytest.raises(UserError) as error:
        CheckpointManager(run).load(engine)
    assert engine.weight == 0, "refused before anything was loaded"
    return str(error.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 0.99])
def test_a_flipped_bit_is_found_and_the_file_named(tmp_path: Path, name: str, where: float) -> None:
    saved(tmp_path, 1, 2)
    damaged = tmp_path / "checkpoints" / "step_00000002" / name
    flip(damaged, int(where * damaged.stat().st_size))
    sentence = refusal(tmp_path, StubEngine())
    assert f"step_00000002 is damaged: {name}" in sentence
    assert "delete that directory to go on from the one before, step_00000001" in sentence
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000002")
    assert loaded(tmp_path) == (10, {"at": 1})


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_cut_is_named(tmp_path: Path, name: str) -> None:
    saved(tmp_path, 2)
    damaged = tmp_path / "checkpoints" / "step_00000002" / name
    with damaged.open("r+b") as file:
        file.truncate(damaged.stat().st_size - 1 - (name == "state.json"))
    assert f"is damaged: {name}" in refusal(tmp_path, StubEngine())
    damaged.unlink()
    sentence = refusal(tmp_path, StubEngine())
    assert f"is damaged: {name} is missing" in sentence
    assert "there is no other checkpoint: start again in another --run_dir" in sentence


def test_damaged_weights_are_not_published(tmp_path: Path) -> None:
    path = saved(tmp_path, 1).latest()
    assert path is not None
    flip(path / "optimizer.safetensors", 200)
    read_weights(path)
    flip(path / "weights.safetensors", -1)
    with pytest.raises(UserError, match=r"is damaged: weights.safetensors does not hold the bytes that were written"):
        read_weights(path)


def test_nothing_to_resume_from_is_the_users_mistake(tmp_path: Path) -> None:
    assert CheckpointManager(tmp_path).latest() is None
    sentence = "there is no checkpoint in .*checkpoints to resume from: start again in another --run_dir"
    with pytest.raises(UserError, match=sentence):
        CheckpointManager(tmp_path).load(StubEngine())


# ---- what an engine takes


def test_another_layout_is_taken_up_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    saved(tmp_path, 1)
    assert loaded(tmp_path)[0] == 10
    assert "going on" not in caplog.text
    engine = StubEngine()
    engine.zero_stage, engine.dtype, engine.accumulation_steps = 3, torch.float32, 2
    CheckpointManager(tmp_path).load(engine)
    assert engine.weight == 10
    assert "saved on 1 rank, micro-batch 8 x 1, ZeRO stage 2, bfloat16, going on with 1 rank" in caplog.text
    assert "1 rank, micro-batch 8 x 2, ZeRO stage 3, float32: under softmax" in caplog.text
    assert "the model now computes in float32" in caplog.text


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


@pytest.mark.parametrize("version", [1, 99])
def test_another_format_is_refused(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_state, "FORMAT_VERSION", version)
        path = saved(tmp_path, 1).latest()
    assert path is not None
    if version == 1:  # had no seals
        content = json.loads((path / "state.json").read_text())
        (path / "state.json").write_text(json.dumps({"format_version": 1, "parameters": content["parameters"]}))
    sentence = f"of checkpoint format {version}.*this version reads 2"
    with pytest.raises(UserError, match=sentence):
        CheckpointManager(tmp_path).load(StubEngine())
    with pytest.raises(UserError, match=sentence):
        read_weights(path)

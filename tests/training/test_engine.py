"""The engine under the real launcher, against plain torch: one and two ranks, ZeRO 0 to 3, float32 and bf16.

Two runs of engine_worker.py (one process by plain python, two by the deepspeed command) go through all cases; further
ones take up on other ranks what these have saved.
"""

import fcntl
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsr_pt.log import UserError
from mmsr_pt.training.checkpoint import read_weights
from mmsr_pt.training.engine import Engine
from mmsr_pt.training.launch import DistInfo, strip_local_rank
from mmsr_pt.training.optim import param_groups
from tests.training.toy import OPTIM, ToyModel, ToyTask, joined, slots_of_step

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("engine_worker.py")
STAGES = range(4)
DTYPES = ("float32", "bfloat16")
CROSSINGS = [(2, 1), *(pytest.param(*ranks, marks=pytest.mark.slow) for ranks in ((1, 2), (2, 4), (1, 4)))]
"""Ranks that save, ranks that go on."""
Results = list[dict[str, Any]]  # of each rank, by case


def launch(out: Path, num_ranks: int, *flags: str) -> None:
    """Runs the worker on so many ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [
        str(Path(sys.executable).with_name("deepspeed")),
        "--num_gpus",
        str(num_ranks),
        "--master_port",
        str(port),
    ]
    command = [*(launcher if num_ranks > 1 else [sys.executable]), str(WORKER), str(out), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # a run inside pytest-xdist or accelerate must not look like part of another one
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    done = subprocess.run(command, env=environment, cwd=out, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]


def saved_results(out: Path, num_ranks: int) -> Results:
    """What every rank of the worker saw."""
    return [torch.load(out / f"rank_{rank}.pt", weights_only=True) for rank in range(num_ranks)]


def run_of_all_cases(num_ranks: int, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """All cases on so many ranks; launched once, whatever the number of pytest-xdist workers."""
    root = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        root = root.parent  # the directory that all xdist workers share
    out = root / f"engine_{num_ranks}"
    with (root / "engine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            out.mkdir()
            launch(out, num_ranks)
    return out


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Results:
    """All cases on one and on two ranks."""
    return saved_results(run_of_all_cases(request.param, tmp_path_factory, worker_id), request.param)


def reference(num_steps: int) -> dict[str, Any]:
    """The same training by plain torch in one process: AdamW on the mean over all valid positions of a step."""
    model = ToyModel(seed=0)
    optimizer = torch.optim.AdamW([{**group} for group in param_groups(model, OPTIM)])
    losses, norms = [], []
    for step in range(num_steps):
        batch = joined(slots_of_step(step))
        loss_sum, count, _ = ToyTask(model)(batch)
        optimizer.zero_grad()
        (loss_sum / count).backward()
        losses.append((loss_sum / count).item())
        norms.append(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item())
        optimizer.step()
    return {"losses": losses, "norms": norms, "state": model.state_dict()}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_training_equals_plain_torch_on_the_mean_of_all_positions(seen: Results, stage: int, accumulation: int) -> None:
    expected = reference(6)
    for result in (rank[f"training zero{stage} float32 {accumulation}"] for rank in seen):
        assert result["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert result["norms"] == pytest.approx(expected["norms"], rel=1e-5)
    state = seen[0][f"training zero{stage} float32 {accumulation}"]["state"]
    assert state.keys() == expected["state"].keys()
    for name, tensor in expected["state"].items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_training_in_bf16_follows_float32(seen: Results, stage: int) -> None:
    assert seen[0][f"training zero{stage} bfloat16 1"]["losses"] == pytest.approx(reference(6)["losses"], rel=0.03)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_tensor_learns_at_its_own_rate_and_decay(seen: Results, stage: int, dtype: str) -> None:
    """Adam's first step is -lr * sign(gradient), AdamW's decay -lr * wd * weight: solve the change for both."""
    model = ToyModel(seed=0)
    loss_sum, count, _ = ToyTask(model)(joined(slots_of_step(0)))
    (loss_sum / count).backward()
    settings = {
        "text": (OPTIM.text_lr, OPTIM.encoder_weight_decay),
        "vision": (OPTIM.vision_lr, OPTIM.encoder_weight_decay),
        "rest": (OPTIM.lr, OPTIM.weight_decay),
        "rest_no_decay": (OPTIM.lr, 0.0),
    }
    group_of = {
        "text_top": "text", "vision_bottom": "vision", "vision_top": "vision", "positions": "rest_no_decay",
        "norm": "rest_no_decay", "head.weight": "rest", "head.bias": "rest_no_decay",
    }  # fmt: skip
    result = seen[0][f"first step zero{stage} {dtype}"]
    assert result["rates"] == {name: 0.5 * lr for name, (lr, _) in settings.items()}
    for name, parameter in model.named_parameters():
        change = result["state"][name] - parameter.detach()
        if parameter.grad is None:
            assert not change.any(), name
            continue
        lr, weight_decay = settings[group_of.get(name) or group_of[name.split(".")[0]]]
        # where a gradient is small its sign in bf16 may differ, and Adam's epsilon counts
        clear = parameter.grad.abs() > 0.05 * parameter.grad.abs().max()
        effects = torch.stack([-parameter.grad[clear].sign(), -parameter.detach()[clear]], dim=1)
        found_lr, found_product = torch.linalg.lstsq(effects.double(), change[clear].double().unsqueeze(1)).solution
        assert found_lr.item() == pytest.approx(0.5 * lr, rel=1e-3), name
        assert found_product.item() == pytest.approx(0.5 * lr * weight_decay, rel=1e-2, abs=1e-5), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", STAGES)
def test_the_export_holds_frozen_trained_and_buffers_in_float32(seen: Results, stage: int, dtype: str) -> None:
    start = ToyModel(seed=0)
    for rank, results in enumerate(seen):
        state = results[f"evaluation zero{stage} {dtype}"]["exported"]
        if rank > 0:
            assert state is None
            continue
        assert list(state) == list(start.state_dict())
        assert all(tensor.dtype == torch.float32 for tensor in state.values())
        for name in ("text_bottom.weight", "text_bottom.bias", "shift"):
            assert torch.equal(state[name], start.state_dict()[name]), name
        assert not torch.equal(state["head.weight"], start.head.weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", STAGES)
def test_the_engines_model_can_be_used_between_steps(seen: Results, stage: int, dtype: str) -> None:
    model = ToyModel(seed=1)
    result = seen[0][f"evaluation zero{stage} {dtype}"]
    model.load_state_dict(result["exported"])
    for parameter in model.parameters():  # buffers stay in float32
        parameter.data = parameter.data.to(getattr(torch, dtype))
    with torch.no_grad():
        expected = model.encode(result["x"]).float()
    # ZeRO-3 rounds once more in a linear map, between product and bias
    tolerance = 1e-5 if dtype == "float32" else 0.02
    for rank in seen:
        for output in rank[f"evaluation zero{stage} {dtype}"]["outputs"]:
            torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    undisturbed = seen[0][f"training zero{stage} {dtype} 1"]
    assert result["losses"] == undisturbed["losses"][2:]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_goes_on_bit_for_bit(seen: Results, stage: int, dtype: str) -> None:
    for results in seen:
        check_resumed(results[f"resume zero{stage} {dtype}"])


def check_resumed(result: dict[str, Any]) -> None:
    straight, resumed = result["straight"], result["resumed"]
    assert result["returned"] == {"seen": [1, 2], "best": 0.1}
    assert resumed["num_steps"] == 6
    assert resumed["losses"] == straight["losses"]
    if straight["state"] is not None:
        assert all(torch.equal(resumed["state"][name], tensor) for name, tensor in straight["state"].items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_all_ranks_is_put_together_by_one_process(seen: Results, stage: int, dtype: str) -> None:
    check_put_together(seen[0][f"resume zero{stage} {dtype}"])


def check_put_together(result: dict[str, Any]) -> None:
    weights, expected = read_weights(Path(result["saved"]["path"])), result["saved"]["state"]
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert weights[name].dtype == torch.float32
        assert torch.equal(weights[name], tensor), name


def check_taken_up(left: dict[str, Any], taken_up: list[dict[str, Any]], is_exact: bool) -> None:
    """The same weights and moments, and the losses of the run that was never stopped.

    Args:
        left: by the run that was stopped.
        taken_up: by each rank of the run that went on.
        is_exact: whether both compute in float32.
    """
    for result in taken_up:
        # in bf16 a frozen weight is what it is rounded to; these are exact in it (toy.py)
        assert result["changed"] == []
        assert (result["num_steps"], result["num_updates"]) == (6, 6)
        assert result["losses"] == pytest.approx(left["losses"], rel=1e-5 if is_exact else 0.03)
    if is_exact:
        for name, tensor in left["state"].items():
            torch.testing.assert_close(taken_up[0]["state"][name], tensor, rtol=1e-5, atol=1e-5)


def check_all_taken_up(out: Path, num_ranks: int, source: Path, num_before: int, *flags: str) -> None:
    """Every stage and precision that was saved on so many ranks, at every stage and precision on others."""
    out.mkdir()
    launch(out, num_ranks, "--take_up", str(source), *flags)
    before, after = saved_results(source, num_before)[0], saved_results(out, num_ranks)
    assert len(after[0]) == len([name for name in before if name.startswith("left ")]) * (4 if flags else 8)
    for name in after[0]:
        run, _, bf16 = name.split()
        config, _, was_bf16 = run.removeprefix("left_").rpartition("_")
        left = before[f"left {config} {was_bf16}"]
        is_exact = bf16 == "False" and run.endswith("_False")
        check_taken_up(left, [results[name] for results in after], is_exact)


@pytest.mark.parametrize(("before", "after"), CROSSINGS)
def test_what_ranks_have_saved_goes_on_on_others_at_any_stage(
    before: int, after: int, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, worker_id: str
) -> None:
    check_all_taken_up(tmp_path / "after", after, run_of_all_cases(before, tmp_path_factory, worker_id), before)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", STAGES)
def test_what_is_not_finite_stops_every_rank_before_the_weights(
    seen: Results, stage: int, dtype: str, where: str
) -> None:
    for results in seen:
        result = results[f"non-finite {where} zero{stage} {dtype}"]
        assert f"the {where} is NaN or infinite in step 3 at learning rates text 0.01, vis" in result["message"]
    result = seen[0][f"non-finite {where} zero{stage} {dtype}"]
    assert all(torch.equal(result["after"][name], tensor) for name, tensor in result["before"].items())
    # moments and accumulated gradients are as if the step had never been, too
    check_same(result["gone on"], result["unharmed"])


def check_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["losses"] == other["losses"]
    assert all(math.isfinite(loss) for loss in one["losses"])
    assert all(torch.equal(tensor, other["state"][name]) for name, tensor in one["state"].items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_can_be_taken_up_by_an_engine_that_has_gone_on(seen: Results, stage: int, dtype: str) -> None:
    result = seen[0][f"rollback zero{stage} {dtype}"]
    check_same(result["again"], result["straight"])


def test_task_reports_are_summed_over_the_ranks_own_micro_batches(seen: Results) -> None:
    rows = [rank["training zero2 float32 2"]["scalars"]["rows"] for rank in seen]
    assert sum(rows) == 4 * 3  # 4 slots of 3 rows, shared out
    assert max(rows) == 4 * 3 / len(seen)


@pytest.mark.slow  # builds DeepSpeed's CPU Adam where it was never built
def test_offloaded_optimizers_train_and_resume_alike(tmp_path: Path) -> None:
    source = tmp_path / "offloaded"
    source.mkdir()
    launch(source, 2, "--offload")
    seen = saved_results(source, 2)
    check_all_taken_up(tmp_path / "without", 1, source, 2)
    check_all_taken_up(tmp_path / "with", 1, source, 2, "--offload")
    expected = reference(6)
    for config in ("zero2_offload", "zero3_offload"):
        for results in seen:
            assert results[f"training {config} float32 2"]["losses"] == pytest.approx(expected["losses"], rel=1e-4)
            check_resumed(results[f"resume {config} bfloat16"])
        check_put_together(seen[0][f"resume {config} bfloat16"])
        state = seen[0][f"training {config} float32 2"]["state"]
        for name, tensor in expected["state"].items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-4)


def test_parameters_without_dimension_are_refused_by_name() -> None:
    model = ToyModel(seed=0)
    model.logit_scale = torch.nn.Parameter(torch.tensor(math.log(14.0)))
    with pytest.raises(UserError, match=r"give model\.logit_scale the shape \[1\]"):
        Engine(ToyTask(model), [], {}, DistInfo(0, 0, 1, torch.device("cpu")))


def test_the_launchers_argument_is_taken_off() -> None:
    assert strip_local_rank(["--local_rank=1", "--seed", "3", "--local-rank=0"]) == ["--seed", "3"]

"""Evaluations in the background, but for training: what they see of the environment, how they fail and end."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from mmsr_pt.background import DIRECTORY, BackgroundEvaluation, _environment
from mmsr_pt.config import RunConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.log import UserError


def background(run_dir: Path, *domains: Path) -> BackgroundEvaluation:
    named = [cast(Domain, SimpleNamespace(path=path, name=path.name, max_users=0)) for path in domains]
    return BackgroundEvaluation(run_dir, named, RunConfig(), torch.device("cpu"))


def write_nothing(directory: Path) -> None:
    """A snapshot without a model."""


def test_an_evaluator_takes_itself_for_no_rank_of_the_training() -> None:
    launcher = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CROSS_RANK"]
    own = {**dict.fromkeys(launcher, "1"), "HOME": "/home", "CUDA_VISIBLE_DEVICES": "4,6", "PYTHONPATH": "/mine"}
    seen = _environment(own, torch.device("cuda", 1))
    assert not set(launcher) & set(seen)
    assert (seen["HOME"], seen["CUDA_VISIBLE_DEVICES"]) == ("/home", "6")
    assert seen["PYTHONPATH"].split(os.pathsep)[1:] == ["/mine"]
    assert 1 <= int(seen["OMP_NUM_THREADS"]) <= max(1, (os.cpu_count() or 1) // 2)
    assert _environment(own, torch.device("cpu"))["CUDA_VISIBLE_DEVICES"] == ""
    del own["CUDA_VISIBLE_DEVICES"]
    assert _environment(own, torch.device("cuda", 3))["CUDA_VISIBLE_DEVICES"] == "3"


def test_a_failed_evaluation_says_what_its_process_said(tmp_path: Path) -> None:
    evaluation = background(tmp_path, tmp_path / "nowhere")
    evaluation.start(5, write_nothing)
    with pytest.raises(UserError, match=r"step 5 ended with exit code 2 .*there is no domain directory .*nowhere"):
        evaluation.figures(wait=True)


def test_closing_ends_the_process_and_no_figures_come_without_one(tmp_path: Path) -> None:
    evaluation = background(tmp_path, tmp_path / "nowhere")
    assert evaluation.figures(wait=True) is None
    evaluation.start(5, write_nothing)
    process = evaluation._process
    assert process is not None
    assert evaluation.figures(wait=False) is None
    evaluation.close()
    assert process.returncode is not None


def test_a_snapshot_stays_until_a_checkpoint_knows_its_figures(tmp_path: Path) -> None:
    evaluation = background(tmp_path, tmp_path / "nowhere")

    def snapshots() -> list[str]:
        return sorted(path.name for path in (tmp_path / DIRECTORY).iterdir())

    for step in (2, 4, 6):
        evaluation.start(step, write_nothing)
        evaluation.close()
        if step == 4:
            evaluation.checkpointed()
        evaluation.step = 0  # its figures were taken up
        evaluation.done_with(step)
        assert snapshots() == {2: [], 4: ["step_00000004"], 6: ["step_00000004"]}[step]
    evaluation.checkpointed()
    assert snapshots() == []


def test_resuming_removes_all_but_what_was_under_evaluation(tmp_path: Path) -> None:
    for step in (2, 4):
        (tmp_path / DIRECTORY / f"step_0000000{step}" / "model").mkdir(parents=True)
    evaluation = background(tmp_path, tmp_path / "nowhere")
    evaluation.resume(4)
    evaluation.close()
    assert evaluation.step == 4
    assert [path.name for path in (tmp_path / DIRECTORY).iterdir()] == ["step_00000004"]
    evaluation = background(tmp_path, tmp_path / "nowhere")
    evaluation.resume(0)
    assert not list((tmp_path / DIRECTORY).iterdir())
    evaluation.resume(7)
    assert evaluation.step == 0, "a snapshot that is gone cannot be evaluated"
    evaluation.remove()
    assert not (tmp_path / DIRECTORY).exists()

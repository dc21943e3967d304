"""A run with cached negatives: resumed as if unbroken, and the same on any number of ranks."""

import shutil
from pathlib import Path

import pytest

from mmsr_pt.data.domain import Domain
from tests.pretrain.launching import ds_config, finish, launch, losses, small_run

BANK = ["--bank_size", 60, "--text", "none", "--num_workers", 0, "--width", 16, "--steps", 8]


@pytest.mark.slow
def test_a_resumed_run_has_the_bank_of_the_unbroken_one(tmp_path: Path, small_domain: Domain) -> None:
    """The checkpoint of step 4 lies between refreshes at steps 3 and 6; dropout is on."""
    flags = [*BANK, "--bank_refresh", 3, "--checkpoint_every", 4, "--eval_every", 8]
    finish(*small_run(tmp_path, small_domain, *flags, name="straight"))
    killed = shutil.copytree(tmp_path / "straight", tmp_path / "killed")
    shutil.rmtree(killed / "checkpoints" / "step_00000008")
    (killed / "checkpoints" / "latest").write_text("step_00000004\n")
    ended = finish(*small_run(tmp_path, small_domain, *flags, name="killed"), "--resume")
    assert "resumed at step 4" in ended.err
    assert losses(killed) == losses(tmp_path / "straight")


@pytest.mark.slow
def test_two_ranks_at_stage_3_draw_and_learn_what_one_does(tmp_path: Path, small_domain: Domain) -> None:
    flags = ["--data", small_domain.path, *BANK, "--dropout", 0, "--max_history", 6, "--pool_size", 8]
    flags += ["--log_every", 1, "--steps", 4]
    one = ds_config(tmp_path / "one.json", stage=0, micro_batch=8)
    two = ds_config(tmp_path / "two.json", stage=3, micro_batch=4)
    finish(*flags, "--ds_config", one, "--run_dir", tmp_path / "one")
    ended = finish(*flags, "--ds_config", two, "--run_dir", tmp_path / "two", num_ranks=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert ended.err.count("2 ranks encode") == 1, "what sharing costs and saves is said once"


def test_a_bank_needs_the_softmax(tmp_path: Path, small_domain: Domain) -> None:
    ended = launch(*small_run(tmp_path, small_domain, "--bank_size", 60, "--loss", "bce"))
    assert ended.code == 2
    assert len(ended.errors) == 1
    assert "--bank_size 60 needs --loss softmax" in ended.errors[0]

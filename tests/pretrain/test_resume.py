"""Runs that are killed, interrupted, stopped early or taken up with other settings."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mmsr_pt.data.domain import Domain
from tests.pretrain.launching import (
    ds_config,
    end,
    finish,
    group_members,
    launch,
    losses,
    made_once,
    metrics,
    shared_root,
    small_run,
    start,
    wait_for,
)

NUM_STEPS = 14


def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path, small_domain: Domain) -> None:
    """With dropout, with a loader process, and with lines in metrics.jsonl that were written after the checkpoint."""
    flags = ["--steps", NUM_STEPS, "--checkpoint_every", 4, "--eval_every", 5, "--num_workers", 1, "--dropout", 0.2]
    finish(*small_run(tmp_path, small_domain, *flags, name="straight"))
    run = small_run(tmp_path, small_domain, *flags, name="killed")
    process = start(*run)
    wait_for(tmp_path / "killed" / "checkpoints" / "step_00000004", process)
    os.killpg(process.pid, signal.SIGKILL)
    assert end(process).code == -signal.SIGKILL
    # as if the kill had come a little later, and in the middle of a line
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "step": 13, "loss": 99.0}\n{"event": "tra')
    resumed = finish(*run, "--resume")
    assert f"of {NUM_STEPS}" in resumed.err
    assert "resumed at step" in resumed.err
    straight = losses(tmp_path / "straight")
    assert len(straight) == NUM_STEPS
    assert losses(tmp_path / "killed") == straight
    for split in ("valid", "test"):
        before, after = (
            [
                {name: value for name, value in line.items() if name != "seconds"}
                for line in metrics(tmp_path / name, "eval", split=split)
            ]
            for name in ("straight", "killed")
        )
        assert after == before
    weights, again = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("straight", "killed"))
    assert all(weights[name].equal(again[name]) for name in weights)
    assert sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()) == [
        "latest", "step_00000012", "step_00000014",
    ]  # fmt: skip


def test_ctrl_c_ends_all_ranks_and_leaves_a_usable_checkpoint(tmp_path: Path, small_domain: Domain) -> None:
    flags = ["--checkpoint_every", 3, "--eval_every", 1000, "--patience", 0, "--num_workers", 1]
    process = start(*small_run(tmp_path, small_domain, *flags, "--steps", 5000), num_ranks=2)
    run_dir = tmp_path / "run"
    wait_for(run_dir / "checkpoints" / "latest", process)
    assert len(group_members(process.pid)) >= 6, "launcher, two ranks, two loaders"
    pressed = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    end(process, timeout=20)
    while group_members(process.pid):
        assert time.monotonic() - pressed < 10, group_members(process.pid)
        time.sleep(0.1)
    step = int((run_dir / "checkpoints" / "latest").read_text().strip().removeprefix("step_"))
    finish(*small_run(tmp_path, small_domain, *flags, "--steps", step + 2, "--resume"), num_ranks=2)
    assert len(losses(run_dir)) == step + 2
    assert (run_dir / "model" / "model.safetensors").is_file()
    assert not list((run_dir / "checkpoints").glob(".*")), "nothing half-written is left"


def test_a_run_that_stops_improving_ends_early_with_its_best_step(tmp_path: Path, small_domain: Domain) -> None:
    flags = ["--steps", 50, "--eval_every", 2, "--checkpoint_every", 2, "--patience", 1, "--lr", 1e-12, "--item", "id"]
    run = small_run(tmp_path, small_domain, *flags)
    ended = finish(*run)
    assert len(losses(tmp_path / "run")) == 4, "weights that do not move: the second evaluation cannot be better"
    assert "no better validation NDCG@10 for 1 evaluations: stopped at step 4" in ended.err
    assert {line["step"] for line in metrics(tmp_path / "run", "eval", split="test")} == {2}
    assert "best model (step 2)" in ended.err
    again = finish(*run, "--resume")
    assert "stopped at step 4" in again.err
    assert len(losses(tmp_path / "run")) == 4
    test = metrics(tmp_path / "run", "eval", split="test", slice="all")
    assert [line["model"] for line in test] == ["popularity", "transitions", "mmsr"], "the closing lines stand once"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, small_domain: Domain, worker_id: str) -> Path:
    """The parent of a run of two steps; its flags are `small_run(finished, ...)`."""
    parent = shared_root(tmp_path_factory, worker_id) / "finished"
    return made_once(parent, lambda: finish(*small_run(parent, small_domain, "--steps", 2, "--item", "id")))


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--seed", 1], "trained with seed 0, now it is 1"),
        (["--width", 64], "is of another model: item_encoder."),
    ],
)
def test_a_run_is_not_taken_up_with_another_order_or_model(
    finished: Path, small_domain: Domain, flags: list[object], sentence: str
) -> None:
    before = snapshot(finished / "run")
    ended = launch(*small_run(finished, small_domain, "--item", "id", "--steps", 4, "--resume", *flags))
    assert ended.code == 2
    assert len(ended.errors) == 1
    assert sentence in ended.errors[0]
    assert "Traceback" not in ended.err
    assert snapshot(finished / "run") == before, "a refused run leaves the directory as it was"


def test_a_run_is_not_taken_up_on_another_domain(finished: Path, small_domain: Domain, tmp_path: Path) -> None:
    """As many users and items, so that the same model would fit it."""
    shutil.copytree(small_domain.path, tmp_path / "other")
    meta = {**small_domain.meta, "name": "other", "fingerprint": "0123456789abcdef0123456789abcdef"}
    (tmp_path / "other" / "domain.json").write_text(json.dumps(meta))
    other = Domain.load(tmp_path / "other")
    ended = launch(*small_run(finished, other, "--item", "id", "--steps", 4, "--resume"))
    assert ended.code == 2
    assert len(ended.errors) == 1
    assert f"trained with domains ['{small_domain.name} (" in ended.errors[0]
    assert "now it is ['other (0123456789abcdef)']" in ended.errors[0]


@pytest.mark.slow
def test_another_global_batch_is_refused_with_the_numbers_that_keep_it(finished: Path, small_domain: Domain) -> None:
    before = snapshot(finished / "run")
    config = ds_config(finished / "four.json", micro_batch=4)
    flags = ["--item", "id", "--steps", 4, "--resume", "--ds_config", config]
    ended = launch(*small_run(finished, small_domain, *flags))
    assert ended.code == 2
    assert len(ended.errors) == 1
    assert "with a global batch of 8 users, now a micro-batch of 4 x 1 accumulation steps x 1 ranks make 4" in ended.err
    assert "set train_micro_batch_size_per_gpu to 8 in the ds_config to keep it" in ended.errors[0]
    assert "--allow_new_batch" in ended.errors[0]
    assert snapshot(finished / "run") == before


@pytest.mark.slow
def test_another_global_batch_begins_the_next_epoch(tmp_path: Path, small_domain: Domain) -> None:
    """Half an epoch of 8 users a step, then epochs of 4: resumed there once more, as if it had not been stopped."""
    eights, fours = -(-small_domain.num_users // 8), -(-small_domain.num_users // 4)
    flags = ["--item", "id", "--patience", 0, "--eval_every", 1000, "--checkpoint_every", fours, "--decay_from", 1]
    finish(*small_run(tmp_path, small_domain, *flags, "--steps", eights // 2))
    four = ["--ds_config", ds_config(tmp_path / "four.json", micro_batch=4), "--resume"]
    total = eights // 2 + 2 * fours
    shutil.copytree(tmp_path / "run", tmp_path / "twice")
    begun = finish(*small_run(tmp_path, small_domain, *flags, "--steps", total, *four, "--allow_new_batch"))
    assert "the global batch was 8 users and is 4 now: epoch 2 begins here with its first user, " in begun.err
    assert f"an epoch has {fours} steps instead of {eights}" in begun.err
    lines = metrics(tmp_path / "run", "train")
    assert [line["epoch"] for line in lines if (line["step"] - eights // 2) % fours == 0][-2:] == [2.0, 3.0]
    once_more = small_run(tmp_path, small_domain, *flags, *four, name="twice")
    finish(*once_more, "--steps", eights // 2 + fours, "--allow_new_batch")
    finish(*once_more, "--steps", total)
    assert losses(tmp_path / "twice") == losses(tmp_path / "run")
    assert len(losses(tmp_path / "twice")) == total

"""Runs that are asked to end, and ranks that die or hang, under the launchers that people use."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from mmsr_pt.data.domain import Domain
from mmsr_pt.signals import RESUME_EXIT_CODE
from tests.pretrain.launching import (
    Ended,
    end,
    finish,
    group_members,
    losses,
    metrics,
    ranks_of,
    small_run,
    start,
    wait_for,
)

FAULTY = Path(__file__).with_name("faulty.py")
LONG = ["--steps", 5000, "--patience", 0, "--eval_every", 5000, "--checkpoint_every", 5000, "--num_workers", 1]


def started(tmp_path: Path, *flags: object, steps: int = 2, **launcher: Any) -> subprocess.Popen[str]:
    """A run that has logged some steps."""
    process = start(*flags, **launcher)
    wait_for(tmp_path / "run" / "metrics.jsonl", process, timeout=300)
    until = time.monotonic() + 300
    while len(metrics(tmp_path / "run", "train")) < steps:
        assert process.poll() is None, end(process)
        assert time.monotonic() < until, end(process, timeout=1)
        time.sleep(0.05)
    return process


def check_saved(ended: Ended, run_dir: Path) -> int:
    """That the run has ended behind a checkpoint of its last step; which one."""
    assert "mmsr_pt/" not in ended.err, "a traceback of ours; torchrun has one of its own"
    step = int(re.findall(r"asked to end: saved at step (\d+)", ended.err)[0])
    assert (run_dir / "checkpoints" / "latest").read_text() == f"step_{step:08}\n"
    assert len(losses(run_dir)) == step
    return step


def test_a_loop_of_one_command_trains_as_if_nobody_had_interrupted(tmp_path: Path, small_domain: Domain) -> None:
    """Also where a validation was due at the very step, and with a loader process that hears the signal too."""
    flags = ["--steps", 8, "--eval_every", 1, "--patience", 0, "--num_workers", 1, "--resume_or_start"]
    finish(*small_run(tmp_path, small_domain, *flags, name="straight"))
    process = started(tmp_path, *small_run(tmp_path, small_domain, *flags))
    os.killpg(process.pid, signal.SIGTERM)
    ended = end(process)
    assert ended.code == RESUME_EXIT_CODE
    assert 2 <= check_saved(ended, tmp_path / "run") < 8
    finish(*small_run(tmp_path, small_domain, *flags))
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    for split in ("valid", "test"):
        one, other = (
            [{**line, "seconds": 0} for line in metrics(tmp_path / name, "eval", split=split)]
            for name in ("straight", "run")
        )
        assert one == other
    weights, again = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("straight", "run"))
    assert all(weights[name].equal(again[name]) for name in weights)


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(tmp_path: Path, small_domain: Domain) -> None:
    flags = ["--steps", 3, "--item", "id", "--resume_or_start"]
    finish(*small_run(tmp_path, small_domain, *flags))
    # what is there then: settings and some lines
    for name in ("checkpoints", "model"):
        (tmp_path / "run" / name).rename(tmp_path / name)
    (tmp_path / "run" / "test_ranks.parquet").unlink()
    ended = finish(*small_run(tmp_path, small_domain, *flags))
    assert "there is no checkpoint yet: the run starts" in ended.err
    assert len(losses(tmp_path / "run")) == 3


def to_group(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGTERM)


def to_last_rank(process: subprocess.Popen[str]) -> None:
    ranks_of(process.pid)[-1].send_signal(signal.SIGUSR1)


def to_group_whose_launchers_ignore_it(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGUSR1)


def to_launcher(process: subprocess.Popen[str]) -> None:
    process.terminate()


def kill_launcher(process: subprocess.Popen[str]) -> None:
    process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by_torchrun", "ask", "code"),
    [
        (False, to_last_rank, RESUME_EXIT_CODE),
        (False, to_group_whose_launchers_ignore_it, RESUME_EXIT_CODE),
        (False, to_group, -signal.SIGTERM),
        (True, to_last_rank, 1),
        (True, to_launcher, 1),
        (True, kill_launcher, -signal.SIGKILL),
    ],
)
def test_two_ranks_save_at_the_same_step_whoever_is_asked(
    tmp_path: Path,
    small_domain: Domain,
    by_torchrun: bool,
    ask: Callable[[subprocess.Popen[str]], None],
    code: int,
) -> None:
    """The codes that are not ours are those of launchers, which hand on none (docs/multi-node.md)."""
    # inherited, as from a shell's trap '' USR1
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    process = started(tmp_path, *small_run(tmp_path, small_domain, *LONG), num_ranks=2, by_torchrun=by_torchrun)
    signal.signal(signal.SIGUSR1, before)
    ranks = ranks_of(process.pid)
    assert len(ranks) == 2
    ask(process)
    ended = end(process)
    assert ended.code == code
    psutil.wait_procs(ranks, timeout=60)
    step = check_saved(ended, tmp_path / "run")
    assert not group_members(process.pid)
    flags = [*LONG[2:], "--steps", step + 1, "--resume_or_start"]
    finish(*small_run(tmp_path, small_domain, *flags), num_ranks=2)
    assert len(losses(tmp_path / "run")) == step + 1


def loads_torch(rank: psutil.Process) -> bool:
    return any("libtorch" in part.path for part in rank.memory_maps())


@pytest.mark.slow
@pytest.mark.parametrize("by_torchrun", [False, True])
def test_ranks_miss_a_launcher_that_is_killed_while_they_import(
    tmp_path: Path, small_domain: Domain, by_torchrun: bool
) -> None:
    process = start(*small_run(tmp_path, small_domain, *LONG), num_ranks=2, by_torchrun=by_torchrun)
    until = time.monotonic() + 60
    while sum(map(loads_torch, ranks := ranks_of(process.pid))) < 2:
        assert process.poll() is None, end(process)
        assert time.monotonic() < until, end(process, timeout=1)
        time.sleep(0.05)
    launcher = ranks[0].parent()
    assert launcher is not None
    launcher.kill()
    _, left = psutil.wait_procs(ranks, timeout=60)
    assert not left, end(process, timeout=1)
    assert "the launcher is gone" in end(process).err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_validation_in_the_background_is_taken_up_again(tmp_path: Path, small_domain: Domain) -> None:
    """Launchers ask the evaluating process too, which is not to fail of it."""
    flags = ["--async_eval", "--eval_every", 2, "--patience", 0, "--checkpoint_every", 5000]
    process = started(tmp_path, *small_run(tmp_path, small_domain, *flags, "--steps", 5000), num_ranks=2)
    os.killpg(process.pid, signal.SIGTERM)
    step = check_saved(end(process), tmp_path / "run")
    until = time.monotonic() + 30
    while group_members(process.pid):
        assert time.monotonic() < until, group_members(process.pid)
        time.sleep(0.1)
    finish(*small_run(tmp_path, small_domain, *flags, "--steps", step + 2, "--resume"), num_ranks=2)
    asked = [line["step"] for line in metrics(tmp_path / "run", "eval", split="valid", slice="all")]
    assert asked == [*range(2, step + 2, 2), step + 2] if step % 2 else [*range(2, step + 3, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("by_torchrun", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("fault", ["raise", "die"])
def test_a_rank_that_dies_takes_the_others_along_and_is_named_first(
    tmp_path: Path, small_domain: Domain, monkeypatch: pytest.MonkeyPatch, by_torchrun: bool, rank: int, fault: str
) -> None:
    monkeypatch.setenv("FAULT", f"{fault} {rank} 5")
    run = small_run(tmp_path, small_domain, *LONG)
    process = started(tmp_path, *run, steps=4, num_ranks=2, by_torchrun=by_torchrun, script=FAULTY)
    began = time.monotonic()
    ended = end(process)
    assert time.monotonic() - began < 60
    assert ended.code not in (0, RESUME_EXIT_CODE)
    assert not group_members(process.pid)
    first = re.search(
        r"RuntimeError: the fault of this test|rank (\d) \(process \d+\) has ended|gloo|Connection", ended.err
    )
    assert first is not None, ended.err
    if fault == "raise":
        assert first[0] == "RuntimeError: the fault of this test"
        assert f"[rank {rank}] Traceback" in ended.err
    else:
        assert first[1] == str(rank)


@pytest.mark.slow
def test_a_rank_that_hangs_is_reported_by_all_with_their_stacks(
    tmp_path: Path, small_domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "sleep 1 5")
    flags = [*LONG, "--hang_seconds", 10]
    process = started(tmp_path, *small_run(tmp_path, small_domain, *flags), steps=4, num_ranks=2, script=FAULTY)
    time.sleep(15)
    os.killpg(process.pid, signal.SIGKILL)
    _, err = process.communicate()
    assert "[rank 1] nothing has ended for 10 s, behind step 4" in err
    assert re.search(r'faulty\.py", line \d+ in faulty', err)
    assert re.search(r"\d nothing has ended for 10 s, behind step 4", err), "rank 0, which waits"
    assert re.search(r'distributed_c10d\.py", line \d+ in all_reduce|distributed\.py", line \d+ in', err)


@pytest.mark.parametrize("fault", ["nan 0 3"])
def test_a_batch_that_is_no_number_is_left_out_and_named(
    tmp_path: Path, small_domain: Domain, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("FAULT", fault)
    flags = ["--steps", 5, "--item", "id", "--on_nan", "skip"]
    ended = finish(*small_run(tmp_path, small_domain, *flags), script=FAULTY)
    run_dir = tmp_path / "run"
    assert [line["step"] for line in metrics(run_dir, "train")] == [1, 2, 4, 5]
    (warning,) = metrics(run_dir, "warning", kind="non_finite")
    assert warning["step"] == 3
    assert "the loss is NaN or infinite in step 3" in warning["message"]
    assert len(warning["users"]) == 5
    known = set(small_domain.eval["user_id"])
    assert all(name.removeprefix(f"{small_domain.name}/") in known for name in warning["users"])
    assert f"users {', '.join(warning['users'])}" in ended.err


@pytest.mark.slow
@pytest.mark.parametrize("on_nan", ["stop", "skip", "rollback"])
def test_two_ranks_do_the_same_about_a_nan(
    tmp_path: Path, small_domain: Domain, monkeypatch: pytest.MonkeyPatch, on_nan: str
) -> None:
    """Of rank 1 alone; then only its users are named."""
    monkeypatch.setenv("FAULT", "nan 1 5")
    flags = ["--steps", 8, "--checkpoint_every", 3, "--eval_every", 8, "--on_nan", on_nan]
    process = start(*small_run(tmp_path, small_domain, *flags), num_ranks=2, script=FAULTY)
    ended = end(process)
    steps = [line["step"] for line in metrics(tmp_path / "run", "train")]
    (warning,) = metrics(tmp_path / "run", "warning", kind="non_finite")
    assert warning["step"] == 5
    assert 1 <= len(warning["users"]) <= 5, "of one rank"
    if on_nan == "stop":
        assert ended.code == 2
        assert steps == [1, 2, 3, 4]
        assert "the last good checkpoint is" in ended.errors[0]
        return
    assert ended.code == 0, ended.err[-3000:]
    assert steps == [1, 2, 3, 4, 6, 7, 8]
    if on_nan == "rollback":
        assert "back to" in warning["message"]
        assert "step_00000003" in warning["message"]

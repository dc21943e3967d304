"""`--async_eval` through the real launcher: what validation finds and keeps is what it finds when training waits."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmsr_pt.background import DIRECTORY
from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.metrics import METRICS
from tests.conftest import build_drawn
from tests.pretrain.launching import end, finish, losses, metrics, small_run, start

FLAGS = ["--steps", 6, "--eval_every", 2, "--checkpoint_every", 3, "--dropout", 0, "--eval_users", 40, "--lr", 5e-3]


def figures(run_dir: Path, split: str) -> list[tuple[int, str, int, list[float]]]:
    """Step, slice, users and metrics of each of the model's lines, by step."""
    lines = metrics(run_dir, "eval", split=split, model="mmsr")
    return sorted((line["step"], line["slice"], line["users"], [line[name] for name in METRICS]) for line in lines)


def check_same(found: Path, expected: Path) -> None:
    """The same figures, each once, and the same best bundle; nothing else is left behind."""
    for split in ("valid", "test"):
        ours, theirs = figures(found, split), figures(expected, split)
        assert [line[:3] for line in ours] == [line[:3] for line in theirs]
        for (*_, our), (*_, their) in zip(ours, theirs):
            assert our == pytest.approx(their, abs=1e-9)
    assert losses(found) == pytest.approx(losses(expected), rel=1e-5)
    best, same = (load_file(run_dir / "model" / "model.safetensors") for run_dir in (found, expected))
    assert best.keys() == same.keys()
    for name, tensor in best.items():
        assert torch.allclose(tensor, same[name], atol=1e-4), name
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}
    assert {path.name for path in (found / "model").iterdir()} == {path.name for path in (expected / "model").iterdir()}
    cards = [(run_dir / "model" / "README.md").read_text() for run_dir in (found, expected)]
    assert cards[0] == cards[1]


def evaluators(run_dir: Path) -> list[int]:
    """Processes that evaluate a snapshot of this run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if any(word.startswith(str(run_dir / DIRECTORY)) for word in words):
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory, small_domain: Domain) -> Path:
    """Two ranks that wait for each validation."""
    root = tmp_path_factory.mktemp("waiting")
    finish(*small_run(root, small_domain, *FLAGS), num_ranks=2)
    lines = metrics(root / "run", "eval", split="valid", slice="all")
    assert [(line["step"], line["users"]) for line in lines] == [(2, 40), (4, 40), (6, 40)]
    assert metrics(root / "run", "eval", split="test", slice="all")[0]["users"] == small_domain.num_users
    return root / "run"


@pytest.mark.slow
def test_it_finds_and_keeps_what_validation_does_while_training_waits(
    tmp_path: Path, small_domain: Domain, waiting: Path
) -> None:
    finish(*small_run(tmp_path, small_domain, *FLAGS, "--async_eval"), num_ranks=2)
    check_same(tmp_path / "run", waiting)


@pytest.mark.slow
def test_a_killed_run_leaves_no_evaluator_and_goes_on_with_its_snapshot(
    tmp_path: Path, small_domain: Domain, waiting: Path
) -> None:
    flags = small_run(tmp_path, small_domain, *FLAGS, "--async_eval")
    run_dir = tmp_path / "run"
    process = start(*flags, num_ranks=2)
    until = time.monotonic() + 200
    # the checkpoint of step 3, made while the snapshot of step 2 is under evaluation
    while not (run_dir / "checkpoints" / "latest").exists() or not evaluators(run_dir):
        assert process.poll() is None, end(process)
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    end(process)
    # an older snapshot, as another kill might have left one
    (run_dir / DIRECTORY / "step_00000001" / "model").mkdir(parents=True)
    until = time.monotonic() + 20
    while evaluators(run_dir):
        assert time.monotonic() < until, "an evaluator outlives its run"
        time.sleep(0.1)
    finish(*flags, "--resume", num_ranks=2)
    check_same(run_dir, waiting)


@pytest.mark.slow
def test_several_domains_are_evaluated_one_after_the_other(tmp_path: Path, small_domain: Domain) -> None:
    other = build_drawn(tmp_path / "other", "target", num_users=60, items_per_cell=2)
    flags = small_run(tmp_path, small_domain, "--steps", 2, "--eval_every", 1, "--async_eval")
    flags[flags.index(small_domain.path) + 1 : flags.index(small_domain.path) + 1] = [other.path]
    finish(*flags)
    for domain in (small_domain, other):
        lines = metrics(tmp_path / "run", "eval", split="valid", slice="all", domain=domain.name)
        assert [(line["step"], line["users"]) for line in lines] == [(1, domain.num_users), (2, domain.num_users)]
    assert not (tmp_path / "run" / DIRECTORY).exists()

"""A run goes on in another layout, other ranks and another ZeRO stage, with the users and losses of one never stopped.

And exactly: killed at drawn steps, several times, with everything on that draws random numbers or keeps state.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mmsr_pt.data.domain import Domain
from tests.conftest import build_drawn
from tests.models.towers.vlps import publish_eyes
from tests.pretrain.launching import SMALL, ds_config, end, finish, losses, made_once, shared_root, start

GLOBAL_BATCH = 16
NUM_STEPS = 12
Layout = tuple[int, int, bool]
"""Ranks, ZeRO stage, bf16."""


def run_flags(parent: Path, domain: Domain, layout: Layout, run_dir: Path, steps: int) -> list[object]:
    """Flags of a run whose epoch has 10 steps, without dropout, which is other numbers on other ranks."""
    num_ranks, stage, bf16 = layout
    config = ds_config(parent / f"{num_ranks}_{stage}_{bf16}.json", stage, GLOBAL_BATCH // num_ranks, bf16)
    sizes = [*SMALL, "--dropout", 0, "--num_workers", 1, "--checkpoint_every", 1000, "--eval_every", 1000]
    # the rates are to be those of one run, whatever the steps after which it is stopped
    same = ["--decay_from", 1, "--patience", 0, "--steps", steps]
    return ["--ds_config", config, "--data", domain.path, "--run_dir", run_dir, *sizes, *same]


@pytest.fixture(scope="session")
def never_stopped(small_domain: Domain, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> list[float]:
    """The losses of one run in one process."""
    parent = shared_root(tmp_path_factory, worker_id) / "never_stopped"

    def make() -> None:
        finish(*run_flags(parent, small_domain, (1, 0, False), parent / "run", NUM_STEPS))

    return losses(made_once(parent, make) / "run")


CROSSINGS: list[list[Layout]] = [
    [(2, 2, False), (1, 0, False)],
    [(1, 1, False), (2, 3, False), (1, 2, False)],
    [(2, 2, False), (4, 3, False)],
    [(4, 1, False), (1, 3, False), (2, 0, False)],
    [(2, 3, True), (1, 1, True), (2, 2, False)],
]


@pytest.mark.slow
@pytest.mark.parametrize("layouts", CROSSINGS, ids=str)
def test_a_run_goes_on_in_other_layouts(
    tmp_path: Path, small_domain: Domain, never_stopped: list[float], layouts: list[Layout]
) -> None:
    """Each layout takes its share of the steps; the first stop is inside the first epoch."""
    run_dir = tmp_path / "run"
    said = ""
    for number, layout in enumerate(layouts, 1):
        flags = run_flags(tmp_path, small_domain, layout, run_dir, number * NUM_STEPS // len(layouts))
        num_ranks = layout[0] if layout[0] > 1 else 0
        said = finish(*flags, *(["--resume"] if number > 1 else []), num_ranks=num_ranks, timeout=500).err
        if number > 1:
            before = layouts[number - 2]
            assert f"saved on {before[0]} rank" in said
            assert f"going on with {layout[0]} rank" in said
            assert f"ZeRO stage {layout[1]}" in said
    found = losses(run_dir)
    assert len(found) == NUM_STEPS
    is_float32 = not any(bf16 for _, _, bf16 in layouts)
    assert found == pytest.approx(never_stopped, rel=1e-4 if is_float32 else 0.02)
    assert max(found) > 1.01 * min(found), "other users give other losses: a hundred times that"


Variant = Callable[[Path, Domain], list[object]]


def with_the_papers_loss(tmp_path: Path, domain: Domain) -> list[object]:
    """Two domains mixed by weight, drawn negatives, two loader processes, accumulation, dropped titles and pictures."""
    other = build_drawn(tmp_path / "other", "target", num_users=60, items_per_cell=2)
    config = ds_config(tmp_path / "bce.json", stage=2, micro_batch=4, gradient_accumulation_steps=2)
    mixed = ["--data", domain.path, other.path, "--weights", 1, 2, "--loss", "bce", "--num_workers", 2]
    return ["--ds_config", config, *mixed, "--dropout", 0.2, "--modality_dropout", 0.3, "--attention_dropout", 0.1]


def with_a_bank_and_a_cache(tmp_path: Path, domain: Domain) -> list[object]:
    """softmax, a bank of negatives, bert4rec's hidden items, the prefix cache of a half frozen tower."""
    copy = shutil.copytree(domain.path, tmp_path / "domain")
    config = ds_config(tmp_path / "bank.json", stage=1, micro_batch=8)
    sequence = ["--sequence", "bert4rec", "--bank_size", 20, "--bank_refresh", 4]
    publish_eyes(tmp_path / "vit")
    cached = ["--vision", f"hf:{tmp_path / 'vit'}", "--tune", "top:1", "--cache"]
    return ["--ds_config", config, "--data", copy, *sequence, *cached, "--dropout", 0.2, "--num_workers", 1]


def with_hidden_patches(tmp_path: Path, domain: Domain) -> list[object]:
    """A vision transformer three quarters of whose patches are hidden by torch's own random numbers; ZeRO-3."""
    config = ds_config(tmp_path / "patches.json", stage=3, micro_batch=8)
    publish_eyes(tmp_path / "vit")
    vision = ["--vision", f"hf:{tmp_path / 'vit'}", "--patch_mask", 0.75, "--tune", "full"]
    return ["--ds_config", config, "--data", domain.path, *vision, "--dropout", 0.2, "--num_workers", 0]


def kill_after(process: Any, run_dir: Path, step: int) -> None:
    """SIGKILL to a run and all its processes once the line of that step stands in its figures."""
    path, until = run_dir / "metrics.jsonl", time.monotonic() + 240
    while not path.exists() or f'"step": {step},' not in path.read_text():
        assert process.poll() is None, end(process)
        assert time.monotonic() < until, f"no step {step} after 240 s"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    end(process)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [0, 2])
@pytest.mark.parametrize("variant", [with_the_papers_loss, with_a_bank_and_a_cache, with_hidden_patches])
def test_a_run_killed_at_drawn_steps_is_the_run_never_killed(
    tmp_path: Path, small_domain: Domain, variant: Variant, num_ranks: int
) -> None:
    """Bit for bit: losses, figures of validation and the final weights; the stops lie inside of epochs."""
    chosen = variant(tmp_path, small_domain)
    common = [*SMALL, "--shuffle_buffer", 7, "--patience", 0, "--eval_every", 9, "--checkpoint_every", 2]
    flags = [*chosen, *common, "--steps", 16]
    finish(*flags, "--run_dir", tmp_path / "straight", num_ranks=num_ranks)
    killed = tmp_path / "killed"
    seed = int(os.environ.get("KILL_SEED", "0"))
    stops = sorted(random.Random(f"{variant.__name__} {num_ranks} {seed}").sample(range(3, 16), 3))
    for number, step in enumerate(stops):
        resume = ["--resume"] if number else []
        kill_after(start(*flags, "--run_dir", killed, *resume, num_ranks=num_ranks), killed, step)
    finish(*flags, "--run_dir", killed, "--resume", num_ranks=num_ranks)
    assert losses(killed) == losses(tmp_path / "straight"), f"killed at {stops}"
    for file in ("model/model.safetensors", "checkpoints/step_00000016/weights.safetensors"):
        weights, again = load_file(tmp_path / "straight" / file), load_file(killed / file)
        assert all(weights[name].equal(again[name]) for name in weights)

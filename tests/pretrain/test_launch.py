"""Two ranks of pretrain/run.py under the real launcher: what a run leaves; no layout changes what is learnt."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.metrics import METRICS
from mmsr_pt.models.recommender import Recommender
from tests.conftest import build_drawn, real_data, real_weights
from tests.pretrain.launching import (
    ROOT,
    SMALL,
    Ended,
    ds_config,
    end,
    finish,
    losses,
    made_once,
    metrics,
    shared_root,
    small_run,
    start,
)

GLOBAL_BATCH = 16
NUM_STEPS = 6
TRAIN_FIELDS = {
    "event", "step", "epoch", "loss", "lr", "users_per_s", "items_encoded_per_s", "data_wait", "encoder_calls_saved",
    "bad_samples", "negatives", "positions_without_negatives",
}  # fmt: skip
EVAL_FIELDS = {"event", "step", "protocol", "split", "model", "slice", "users", "cases", *METRICS, "seconds", "domain"}

Run = Callable[[int, int, bool], tuple[Path, Ended]]
"""(ZeRO stage, ranks, bf16) -> the run directory and how the run ended."""


@pytest.fixture(scope="session")
def run_once(small_domain: Domain, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Run:
    """Runs of the same training, each launched once, whatever the number of pytest-xdist workers."""
    root = shared_root(tmp_path_factory, worker_id)

    def run(stage: int, num_ranks: int, bf16: bool) -> tuple[Path, Ended]:
        out = root / f"launch_zero{stage}_{num_ranks}_{'bf16' if bf16 else 'float32'}"

        def make() -> None:
            config = ds_config(out / "given.json", stage, GLOBAL_BATCH // num_ranks, bf16)
            flags = ["--ds_config", config, "--data", small_domain.path, "--run_dir", out / "run", *SMALL]
            flags += ["--steps", NUM_STEPS, "--eval_every", 3, "--checkpoint_every", 3, "--dropout", 0]
            (out / "ended.json").write_text(json.dumps(vars(finish(*flags, num_ranks=num_ranks))))

        made_once(out, make)
        return out / "run", Ended(**json.loads((out / "ended.json").read_text()))

    return run


@pytest.fixture(scope="session")
def two_ranks(run_once: Run) -> tuple[Path, Ended]:
    """ZeRO-2 in float32 on two ranks."""
    return run_once(2, 2, False)


def test_the_run_directory_is_complete(two_ranks: tuple[Path, Ended]) -> None:
    run_dir, _ = two_ranks
    files = {
        "config.json",
        "ds_config.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "model",
        "test_ranks.parquet",
    }
    assert {path.name for path in run_dir.iterdir()} == files
    checkpoints = run_dir / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"step_00000003", "step_00000006", "latest"}
    assert (checkpoints / "latest").read_text().strip() == "step_00000006"
    bundle = {"config.json", "model.safetensors", "tokenizer.model", "preprocessor.json", "README.md"}
    assert {path.name for path in (run_dir / "model").iterdir()} == bundle
    assert list((run_dir / "tensorboard").glob("events.*"))
    assert json.loads((run_dir / "config.json").read_text())["run"]["steps"] == NUM_STEPS
    resolved = json.loads((run_dir / "ds_config.json").read_text())
    assert resolved["train_batch_size"] == GLOBAL_BATCH
    assert resolved["gradient_accumulation_steps"] == 1


def test_train_lines_have_the_promised_fields(two_ranks: tuple[Path, Ended], small_domain: Domain) -> None:
    lines = metrics(two_ranks[0], "train")
    assert [line["step"] for line in lines] == list(range(1, NUM_STEPS + 1))
    steps_per_epoch = -(-small_domain.num_users // GLOBAL_BATCH)
    for line in lines:
        assert line.keys() == TRAIN_FIELDS
        assert line["epoch"] == pytest.approx(line["step"] / steps_per_epoch, abs=1e-4)
        assert line["lr"].keys() == {"rest", "rest_no_decay"}  # tiny towers learn at --lr
        assert 0 <= line["data_wait"] <= 1
        assert 0 < line["encoder_calls_saved"] < 1
        assert line["bad_samples"] == 0
        assert line["items_encoded_per_s"] > line["users_per_s"] > 0


def test_eval_lines_have_the_promised_fields(two_ranks: tuple[Path, Ended], small_domain: Domain) -> None:
    lines = metrics(two_ranks[0], "eval")
    for line in lines:
        assert line.keys() == EVAL_FIELDS
        assert all(0 <= line[name] <= 1 for name in METRICS)
    found = [(line["step"], line["split"], line["model"]) for line in lines if line["slice"] == "all"]
    best = found[-1][0]
    assert best in (3, 6)
    models = ("popularity", "transitions", "mmsr")
    closing = {(best, split, model) for split in ("any", "test") for model in models}
    assert found[:2] == [(3, "valid", "mmsr"), (6, "valid", "mmsr")]
    assert (set(found[2:]), len(found[2:])) == (closing, len(closing))
    assert found[-1] == (best, "test", "mmsr"), "the last line is what makes a run a finished one"
    num_cold = small_domain.eval["cold_cases"].list.len()
    for model in models:
        of_model = {(line["split"], line["slice"]): line for line in lines if line["model"] == model}
        users = {name: of_model["test", name]["users"] for name in ("all", "cold", "warm", "head", "tail")}
        assert users["all"] == users["cold"] + users["warm"] == users["head"] + users["tail"] == small_domain.num_users
        assert of_model["any", "all"]["protocol"] == "cold"
        assert of_model["any", "all"]["cases"] == num_cold.sum()
        assert of_model["any", "all"]["users"] == (num_cold > 0).sum()


def test_the_best_step_is_the_one_exported(two_ranks: tuple[Path, Ended]) -> None:
    """Ties go to the earlier step; the closing table is of the bundle on disk."""
    run_dir, _ = two_ranks
    valid = metrics(run_dir, "eval", split="valid", slice="all")
    best = max(valid, key=lambda line: (line["NDCG@10"], -line["step"]))
    test = metrics(run_dir, "eval", split="test", slice="all", model="mmsr")
    assert [line["step"] for line in test] == [best["step"]]
    card = (run_dir / "model" / "README.md").read_text()
    assert f"step {best['step']}" in card
    assert f"NDCG@10 {best['NDCG@10']:.4f}" in card


def test_the_closing_table_is_printed_once(two_ranks: tuple[Path, Ended], small_domain: Domain) -> None:
    run_dir, ended = two_ranks
    assert ended.out.count(f"{small_domain.name}, test, whole catalogue (percent)") == 1
    for model in ("popularity", "transitions", "mmsr"):
        line = metrics(run_dir, "eval", split="test", slice="all", model=model)[0]
        table = ended.out[ended.out.index(", test, whole catalogue") :].splitlines()
        row = next(row.split() for row in table if row.split()[:1] == ["all"] and model in row)
        assert row[3:10] == [f"{100 * line[name]:.2f}" for name in METRICS]
    assert f"the run is in {run_dir}" in ended.err


def test_nothing_is_said_that_the_user_can_do_nothing_about(two_ranks: tuple[Path, Ended]) -> None:
    ours = [line for line in two_ranks[1].err.splitlines() if "[WARNING]" not in line and "[INFO]" not in line]
    assert not [line for line in ours if "Warning" in line or "Traceback" in line]


def test_the_bundle_loads_and_differs_from_its_start(two_ranks: tuple[Path, Ended]) -> None:
    run_dir, _ = two_ranks
    model = Recommender.load(run_dir / "model")
    saved = load_file(run_dir / "model" / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_one_and_two_ranks_learn_the_same(run_once: Run, two_ranks: tuple[Path, Ended]) -> None:
    """At the same global batch, in float32 and without dropout: the loss, step by step."""
    one = losses(run_once(0, 1, False)[0])
    two = losses(two_ranks[0])
    assert len(one) == NUM_STEPS
    assert two == pytest.approx(one, rel=1e-4)
    assert one[0] != pytest.approx(one[1], rel=1e-4), "the curves must be able to differ"


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("stage", range(4))
def test_all_stages_learn_the_same_in_float32(run_once: Run, stage: int, num_ranks: int) -> None:
    reference = losses(run_once(0, 1, False)[0])
    assert losses(run_once(stage, num_ranks, False)[0]) == pytest.approx(reference, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("stage", range(4))
def test_all_stages_run_in_bf16_near_float32(run_once: Run, stage: int, num_ranks: int) -> None:
    run_dir, ended = run_once(stage, num_ranks, True)
    found = losses(run_dir)
    assert all(math.isfinite(loss) for loss in found)
    assert found == pytest.approx(losses(run_once(0, 1, False)[0]), rel=0.02)
    assert "mmsr" in ended.out
    assert (run_dir / "model" / "model.safetensors").is_file()


def check_variant(tmp_path: Path, domain: Domain, *flags: object) -> Ended:
    """Three steps of a run with these flags in one plain process: they end, finite, with a table."""
    ended = finish(*small_run(tmp_path, domain, "--steps", 3, *flags), cwd=tmp_path)
    found = losses(tmp_path / "run")
    assert len(found) == 3
    assert all(math.isfinite(loss) for loss in found)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert {line["model"] for line in metrics(tmp_path / "run", "eval")} == {"popularity", "transitions", "mmsr"}
    assert "mmsr" in ended.out
    return ended


def parts(tmp_path: Path) -> set[str]:
    """Of the item encoder in the bundle."""
    names = load_file(tmp_path / "run" / "model" / "model.safetensors")
    return {name.split(".")[1] for name in names if name.startswith("item_encoder.")}


def test_id_items(tmp_path: Path, small_domain: Domain) -> None:
    check_variant(tmp_path, small_domain, "--item", "id", "--test_users", 30)
    tested = metrics(tmp_path / "run", "eval", split="test", slice="all")
    assert [line["users"] for line in tested] == 3 * [30], "the baselines are asked for the same users"
    assert not {"text", "vision", "fusion"} & parts(tmp_path)
    assert not (tmp_path / "run" / "model" / "tokenizer.model").exists()
    assert "# IDSR" in (tmp_path / "run" / "model" / "README.md").read_text()


@pytest.mark.parametrize(("flag", "left", "name"), [("--text", "vision", "MMSR-V"), ("--vision", "text", "MMSR-T")])
def test_one_modality(tmp_path: Path, small_domain: Domain, flag: str, left: str, name: str) -> None:
    check_variant(tmp_path, small_domain, flag, "none")
    assert {"text", "vision", "fusion"} & parts(tmp_path) == {left}
    assert f"# {name}," in (tmp_path / "run" / "model" / "README.md").read_text()


def test_the_papers_preset_with_flags_that_beat_it_under_accumulation(tmp_path: Path, small_domain: Domain) -> None:
    config = ds_config(tmp_path / "two.json", micro_batch=4, gradient_accumulation_steps=2)
    flags = ["--preset", "paper", "--fusion_heads", 4, "--fusion", "sum", "--ds_config", config]
    check_variant(tmp_path, small_domain, *flags)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["optim"]["loss"], saved["model"]["score"], saved["optim"]["lr"]) == ("bce", "dot", 1e-4)
    assert (saved["model"]["width"], saved["model"]["fusion"]) == (32, "sum")


def test_two_domains_by_weight_with_the_papers_loss(tmp_path: Path, small_domain: Domain) -> None:
    other = build_drawn(tmp_path / "other", "target", num_users=60, items_per_cell=2)
    config = ds_config(tmp_path / "given.json")
    both = ["--data", small_domain.path, other.path, "--weights", 1, 2, "--loss", "bce"]
    ended = finish("--ds_config", config, *both, "--run_dir", tmp_path / "run", *SMALL, "--steps", 3)
    for domain in (small_domain, other):
        assert f"{domain.name}, test, whole catalogue" in ended.out
        assert metrics(tmp_path / "run", "eval", domain=domain.name, split="test", model="mmsr")
        assert domain.name in (tmp_path / "run" / "model" / "README.md").read_text()
    epoch = small_domain.num_users + 2 * other.num_users
    assert metrics(tmp_path / "run", "train")[-1]["epoch"] == pytest.approx(3 / math.ceil(epoch / 8), abs=1e-4)


def first_losses(process: subprocess.Popen[str], run_dir: Path, num_steps: int) -> list[float]:
    """The losses of a run's first steps; it is killed after them, as ranking a catalogue would take longer."""
    path = run_dir / "metrics.jsonl"
    until = time.monotonic() + 600
    while not path.exists() or path.read_text().count("\n") < num_steps:
        assert process.poll() is None, end(process)
        assert time.monotonic() < until, f"no {num_steps} steps after 600 s"
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    end(process)
    return losses(run_dir)[:num_steps]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_real_towers_on_real_purchases_learn_the_same_in_every_layout(tmp_path: Path) -> None:
    """50 steps of 8 users of hm, float32, pretrained towers: eight runs, one curve, below that of a model at rest.

    The learning rates are low, for otherwise so small a batch makes training chaotic: two runs on one rank that differ
    in nothing but the rounding of their sums (another number of threads) then part by more than 1e-4 as well.
    """
    text, vision = real_weights("minilm-l6"), real_weights("tf_efficientnet_lite0")
    build = [sys.executable, ROOT / "shards" / "build.py", "hm", "--root", real_data("hm"), "--out", tmp_path / "hm"]
    subprocess.run([str(word) for word in build], check=True, capture_output=True, cwd=tmp_path)
    flags = ["--data", tmp_path / "hm", "--text", f"hf:{text}", "--vision", f"timm:local-dir:{vision}"]
    flags += ["--max_history", 4, "--title_tokens", 12, "--pool_size", 8, "--width", 64, "--dropout", 0]

    def curve_of(name: str, stage: int, num_ranks: int, rates: tuple[float, float, float]) -> list[float]:
        config = ds_config(tmp_path / f"{name}.json", stage, 8 // num_ranks)
        lr, text_lr, vision_lr = rates
        own = ["--lr", lr, "--text_lr", text_lr, "--vision_lr", vision_lr, "--log_every", 1, "--steps", 1000]
        run_dir = tmp_path / name
        run = start("--ds_config", config, "--run_dir", run_dir, *flags, *own, num_ranks=num_ranks)
        return first_losses(run, run_dir, 50)

    curves = {
        (stage, num_ranks): curve_of(f"zero{stage}_{num_ranks}", stage, num_ranks, (3e-5, 1e-5, 1e-6))
        for stage in range(4)
        for num_ranks in (1, 2)
    }
    reference = curves[0, 1]
    at_rest = curve_of("at_rest", 0, 1, (1e-12, 1e-12, 1e-12))
    # step by step on the same users: from one batch to another the loss differs by more than is learnt
    learnt = [before - after for before, after in zip(at_rest[-10:], reference[-10:])]
    assert sum(learnt) / 10 > 0.03, "it must learn, else the curves could hardly differ"
    for layout, curve in curves.items():
        assert curve == pytest.approx(reference, rel=1e-4), layout

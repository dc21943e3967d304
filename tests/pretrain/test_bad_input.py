"""What a user gets wrong: one sentence that says what was given, what is allowed and what to type; exit code 2.

Most mistakes are found before anything is started, so one process meets them all; the rest is launched.
"""

import contextlib
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist

from mmsr_pt import run_dir as run_dir_module
from mmsr_pt.data.domain import Domain
from pretrain.run import main
from tests.pretrain.launching import (
    LAUNCHERS_VARIABLES,
    Ended,
    ds_config,
    end,
    finish,
    launch,
    losses,
    metrics,
    small_run,
    start,
    wait_for,
)

GOOD = {"train_micro_batch_size_per_gpu": 8, "zero_optimization": {"stage": 2}}


@pytest.fixture
def refused(
    tmp_path: Path, small_domain: Domain, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., str]]:
    """Calls `main` in this process on flags that it must refuse; returns its sentence."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    alone = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_VARIABLES}

    def call(*flags: object) -> str:
        given = [*small_run(tmp_path, small_domain, "--steps", 2), *flags]
        before = {path for path in tmp_path.rglob("*") if path.name != "ds_config.json"}
        with mock.patch.dict(os.environ, {**alone, "HF_HUB_OFFLINE": "1"}, clear=True):
            with pytest.raises(SystemExit) as ended:
                main([str(word) for word in given])
            if dist.is_initialized():
                dist.destroy_process_group()
        shown = capsys.readouterr()
        assert ended.value.code == 2
        assert shown.out == ""
        assert "Traceback" not in shown.err
        sentences = [line for line in shown.err.splitlines() if line.startswith("error: ")]
        assert len(sentences) == 1, shown.err
        assert shown.err.splitlines()[-1] == sentences[0]
        after = {path for path in tmp_path.rglob("*") if path.name != "ds_config.json"}
        assert after == before, "nothing is left behind"
        return sentences[0].removeprefix("error: ")

    yield call
    root.handlers[:], root.level = handlers, level


FLAGS: dict[str, tuple[list[object], list[str]]] = {
    "unknown flag": (["--stepz", 3], ["--stepz", "did you mean --steps?", "--help"]),
    "unknown flag with hyphens": (["--max-histori=3"], ["--max-histori", "did you mean --max_history?"]),
    "a word too much": (["fast"], ["fast", "--help"]),
    "no number": (["--lr", "quick"], ["--lr", "quick", "--help"]),
    "no value": (["--lr"], ["--lr", "--help"]),
    "unknown loss": (["--loss", "bpr"], ["bpr", "--loss", "softmax", "bce"]),
    "unknown preset": (["--preset", "papr"], ["'papr'", "default, paper, paper-best", "Did you mean 'paper'?"]),
    "unknown row": (["--preset", "paper-table3-gat"], ["paper-table3-ROW", "co, concat", "Did you mean 'gate'?"]),
    "unknown preset with =": (["--preset=papr"], ["'papr'", "Did you mean 'paper'?"]),
    "out of range": (["--dropout", 1.5], ["--dropout 1.5", "[0, 1)"]),
    "no steps": (["--steps", 0], ["--steps 0", "at least 1"]),
    "nothing to drop": (
        ["--vision", "none", "--modality_dropout", 0.3],
        ["--modality_dropout 0.3", "title and picture"],
    ),
    "odd width": (["--width", 33], ["--width 33", "--sequence_heads 2", "--fusion_heads 4"]),
    "nothing to look at": (["--text", "none", "--vision", "none"], ["--text none", "--item id"]),
    "weights without domains": (["--weights", 1, 2], ["2 numbers for 1 domains", "one for each of --data"]),
    "three workers": (["--num_workers", 3], ["--num_workers 3", "power of two"]),
    "unknown fusion": (["--fusion", "merg"], ["'merg'", "co, concat, concat+dnn, film", "Did you mean 'merge'?"]),
    "unknown sequence encoder": (["--sequence", "sasrek"], ["'sasrek'", "Did you mean 'sasrec'?"]),
    "text without prefix": (["--text", "roberta-base"], ["--text roberta-base", "hf:roberta-base"]),
    "unknown text": (["--text", "tinny"], ["'tinny'", "hf:NAME", "Did you mean 'tiny'?"]),
    "no text directory": (["--text", "hf:/no/where"], ["--text hf:/no/where", "no such directory"]),
    "vision without prefix": (["--vision", "resnet18"], ["--vision resnet18", "timm:resnet18"]),
    "unknown vision": (["--vision", "tinny"], ["'tinny'", "timm:NAME", "Did you mean 'tiny'?"]),
    "unknown timm model": (["--vision", "timm:resnet1888"], ["'resnet1888'", "timm:resnet18"]),
    "no vision directory": (["--vision", "timm:local-dir:/no/where"], ["/no/where/config.json", "give a directory"]),
    "no VLP there": (["--vlp", "hf:/no/where"], ["--vlp hf:/no/where", "no such directory"]),
    "VLP and text": (["--vlp", "hf:x", "--text", "hf:y"], ["--vlp hf:x reads titles itself", "leave --text hf:y out"]),
    "tokenizer without prefix": (["--tokenizer", "bert"], ["--tokenizer bert", "give hf:NAME"]),
    "tokenizer of tiny": (["--tokenizer", "hf:bert"], ["--text tiny has that of the domain", "leave --tokenizer out"]),
    "regions at every step": (["--vision", "region"], ["--vision region needs --cache"]),
    "regions at every validation": (["--vision", "region", "--cache", "--async_eval"], ["--async_eval reads no cache"]),
    "a test from no cache": (["--test_from_cache"], ["--test_from_cache needs --cache"]),
    "no region file": (["--vision", "region:/no/where", "--cache"], ["region:/no/where", "no such file", ".pth"]),
    "unknown policy": (["--text_tune", "top:x"], ["'top:x'", "top:K", "full, frozen, side or lora:R"]),
    "no domain there": (["--data", "/no/where"], ["/no/where", "shards/build.py --out"]),
    "too few tars": (["--num_workers", 16, "--ds_config", "16.json"], ["16 readers", "8", "--num_shards 16"]),
    "uneven batch": (["--num_workers", 16], ["global batch of 8", "--num_workers"]),
    "resume without directory": (["--resume"], ["--resume", "no run at", "leave out --resume"]),
}


@pytest.mark.parametrize("case", FLAGS)
def test_flags(refused: Callable[..., str], tmp_path: Path, case: str) -> None:
    ds_config(tmp_path / "16.json", micro_batch=16)
    flags, words = FLAGS[case]
    sentence = refused(*flags)
    for word in words:
        assert word in sentence


DS_CONFIGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "auto": ({**GOOD, "gradient_clipping": "auto"}, ['gradient_clipping is "auto"', "write the number"]),
    "optimizer": ({**GOOD, "optimizer": {"type": "AdamW"}}, ['"optimizer"', "--lr", "remove the block"]),
    "scheduler": ({**GOOD, "scheduler": {"type": "WarmupLR"}}, ['"scheduler"', "--decay_from", "remove the block"]),
    "no micro-batch": ({"zero_optimization": {"stage": 1}}, ['lacks "train_micro_batch_size_per_gpu"', "add it"]),
}


@pytest.mark.parametrize("case", DS_CONFIGS)
def test_ds_configs(refused: Callable[..., str], tmp_path: Path, case: str) -> None:
    config, words = DS_CONFIGS[case]
    (tmp_path / "given.json").write_text(json.dumps(config))
    sentence = refused("--ds_config", "given.json")
    for word in ["given.json", *words]:
        assert word in sentence


def test_a_missing_ds_config_names_those_that_are_there(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "ds_configs").mkdir()
    ds_config(tmp_path / "ds_configs" / "zero2.json")
    assert "there are ds_configs/zero2.json" in refused("--ds_config", "zero2.json")


def test_domains(refused: Callable[..., str], tmp_path: Path, small_domain: Domain) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no domain.json" in refused("--data", "empty")
    other = tmp_path / "other"
    shutil.copytree(small_domain.path, other)
    meta = json.loads((other / "domain.json").read_text())
    (other / "domain.json").write_text(json.dumps({**meta, "format_version": 99}))
    sentence = refused("--data", other)
    assert "domain format 99, this version reads 1" in sentence
    assert "--overwrite" in sentence
    (other / "domain.json").write_text(json.dumps({**meta, "modalities": ["text"]}))
    assert "use --vision none" in refused("--data", other)
    (other / "domain.json").write_text(json.dumps(meta))
    with (other / "train" / "train-00003.tar").open("r+b") as tar:
        tar.truncate(100)
    assert "train-00003.tar has 100 bytes" in refused("--data", other)
    assert "--item id learns one domain's items" in refused("--item", "id", "--data", *2 * [small_domain.path])


def test_run_directories(refused: Callable[..., str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.write_text("a file")
    assert "is a file: name a directory" in refused()
    assert "is a file: name a directory" in refused("--run_dir", run / "below")
    run.unlink()
    run.mkdir()
    assert "no run at" in refused("--resume")
    (run / "thesis.tex").write_text("years of work")
    (run / "config.json").write_text("{}")
    assert "holds something else (thesis.tex): name an empty or new directory" in refused()
    assert "holds something else (thesis.tex)" in refused("--resume")
    (run / "ds_config.json").write_text("{}")
    assert "already holds a run: add --resume to go on with it" in refused()


def test_a_disk_that_cannot_take_the_run_is_found_at_the_start(
    tmp_path: Path, small_domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_dir_module.shutil, "disk_usage", lambda path: mock.Mock(free=1_000_000))
    parameters = {"a": {"shape": [100, 500], "group": "rest"}, "b": {"shape": [50_000], "group": None}}
    # bundle 4 bytes each; checkpoint 12 bytes where trained, 4 where frozen
    with pytest.raises(run_dir_module.UserError, match=r"has 1.0 MB left, .* need 1.2 MB: free some space"):
        run_dir_module.require_space(tmp_path / "run", parameters)
    run_dir_module.require_space(tmp_path / "run", {"a": parameters["a"]})


def check(ended: Ended, *words: str) -> None:
    """One sentence with these words, in a line of its own, and exit code 2."""
    assert len(ended.errors) == 1, ended.err[-3000:]
    for word in words:
        assert word in ended.errors[0]
    assert "Traceback" not in ended.err
    assert "error:" not in ended.err.replace(ended.errors[0], "")
    assert ended.code == 2


def test_a_disk_too_small_from_the_start(
    tmp_path: Path, small_domain: Domain, full_disk: Callable[[int], Path]
) -> None:
    disk = full_disk(1000)
    ended = launch(*small_run(tmp_path, small_domain, "--steps", 2, "--run_dir", disk / "run"))
    check(ended, "its disk has 1.0 MB left", "free some space, or choose another --run_dir")
    assert not (disk / "run").exists()


@pytest.mark.parametrize("num_ranks", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_disk_that_fills_up(
    tmp_path: Path, small_domain: Domain, full_disk: Callable[[int], Path], num_ranks: int
) -> None:
    """Room for the bundle and one checkpoint, but not for the second beside it."""
    disk = full_disk(11_000)
    flags = ["--steps", 20, "--checkpoint_every", 2, "--eval_every", 2, "--patience", 0, "--run_dir", disk / "run"]
    ended = launch(*small_run(tmp_path, small_domain, *flags), num_ranks=num_ranks)
    check(ended, "the disk is full while writing", "go on with --resume", "step_00000002")
    assert {path.name for path in (disk / "run" / "checkpoints").iterdir()} == {"latest", "step_00000002"}
    bundle = {"config.json", "model.safetensors", "tokenizer.model", "preprocessor.json", "README.md"}
    assert {path.name for path in (disk / "run" / "model").iterdir()} == bundle
    subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
    flags[1] = 5
    finish(*small_run(tmp_path, small_domain, *flags, "--resume"), num_ranks=num_ranks)


def fill_up(disk: Path) -> None:
    """Leaves no page free."""
    with contextlib.suppress(OSError), (disk / "others").open("wb", buffering=0) as others:
        while True:
            others.write(bytes(4096))


@pytest.mark.slow
def test_a_disk_that_fills_up_between_two_checkpoints(
    tmp_path: Path, small_domain: Domain, full_disk: Callable[[int], Path]
) -> None:
    """The next thing written is a line of figures; after that the run goes on as if it had been killed there."""
    disk = full_disk(50_000)
    run_dir = disk / "run"
    flags = ["--item", "id", "--checkpoint_every", 40, "--eval_every", 5000, "--patience", 0, "--run_dir", run_dir]
    process = start(*small_run(tmp_path, small_domain, *flags, "--steps", 5000))
    latest = run_dir / "checkpoints" / "latest"
    wait_for(latest, process)
    fill_up(disk)
    ended = end(process)
    check(ended, "the disk is full while writing", "metrics.jsonl", "go on with --resume, the last good checkpoint is")
    last = int(latest.read_text().strip().removeprefix("step_"))
    (disk / "others").unlink()
    finish(*small_run(tmp_path, small_domain, *flags, "--steps", last + 5, "--resume"))
    assert len(losses(run_dir)) == last + 5


def test_a_loss_that_is_not_finite(tmp_path: Path, small_domain: Domain) -> None:
    flags = ["--lr", 1e30, "--steps", 50, "--checkpoint_every", 1, "--eval_every", 50]
    ended = launch(*small_run(tmp_path, small_domain, *flags))
    last = tmp_path / "run" / "checkpoints" / "step_00000001"
    check(ended, "NaN or infinite in step 2", "rest 1e+30", f"the last good checkpoint is {last}", "smaller --lr")
    assert [line["step"] for line in metrics(tmp_path / "run", "train")] == [1]


def test_a_tar_with_fewer_users_than_promised(tmp_path: Path, small_domain: Domain) -> None:
    """The mistake is met in a loader process, whose exceptions come wrapped in their tracebacks."""
    other = tmp_path / "other"
    shutil.copytree(small_domain.path, other)
    meta = json.loads((other / "domain.json").read_text())
    for tar in meta["tars"]:
        tar["samples"] += 5 * (tar["kind"] == "train")
    (other / "domain.json").write_text(json.dumps(meta))
    ended = launch(*small_run(tmp_path, Domain.load(other), "--num_workers", 1, "--steps", 100, "--patience", 0))
    check(ended, "the tar is cut short", "build the domain again")


@pytest.mark.slow
def test_two_ranks_say_it_once(tmp_path: Path, small_domain: Domain) -> None:
    """Met by both before they know of each other; the launcher hands the exit code on."""
    ended = launch(*small_run(tmp_path, small_domain, "--fusion", "merg"), num_ranks=2)
    check(ended, "unknown fusion 'merg'", "Did you mean 'merge'?")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_only_rank_0_looks_at_ends_all_ranks(tmp_path: Path, small_domain: Domain) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    ended = launch(*small_run(tmp_path, small_domain, "--steps", 2), num_ranks=2, timeout=60)
    check(ended, "holds something else (thesis.tex)")


@pytest.mark.slow
def test_two_ranks_meet_a_loss_that_is_not_finite_together(tmp_path: Path, small_domain: Domain) -> None:
    ended = launch(*small_run(tmp_path, small_domain, "--lr", 1e30, "--steps", 50), num_ranks=2, timeout=60)
    check(ended, "NaN or infinite in step 2", "there is no checkpoint yet")

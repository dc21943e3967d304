"""The run directory: chosen before anything is written, its bundle all or nothing, its metrics in two places."""

import json
import re
from pathlib import Path
from unittest import mock

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmsr_pt import run_dir as run_dir_module
from mmsr_pt.config import PretrainConfig, RunConfig
from mmsr_pt.log import UserError
from mmsr_pt.run_dir import MetricsLog, choose, figures_on_test, record, require_space, write_bundle


def config(run_dir: Path | None, resume: bool = False) -> PretrainConfig:
    return PretrainConfig(run=RunConfig(run_dir=run_dir, resume=resume))


def test_without_a_name_it_is_called_by_date_and_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.fullmatch(r"runs/\d{8}-\d{6}-hm", str(choose(config(None), "hm")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [False, True])
def test_a_new_or_empty_directory_is_taken(tmp_path: Path, there: bool) -> None:
    run_dir = tmp_path / "a" / "b"
    if there:
        run_dir.mkdir(parents=True)
    assert choose(config(run_dir), "hm") == run_dir
    assert run_dir.exists() == there, "choosing writes nothing"
    record(run_dir, config(run_dir), {"train_batch_size": 3})
    assert json.loads((run_dir / "config.json").read_text())["model"]["text"] == "tiny"
    assert json.loads((run_dir / "ds_config.json").read_text()) == {"train_batch_size": 3}
    assert len(list(run_dir.iterdir())) == 2


def test_a_run_needs_resume_and_resume_needs_a_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(UserError, match="there is no run at .*run: leave out --resume to start one"):
        choose(config(run_dir, resume=True), "hm")
    record(run_dir, config(run_dir), {})
    assert choose(config(run_dir, resume=True), "hm") == run_dir
    with pytest.raises(UserError, match="already holds a run: add --resume to go on with it, or name another"):
        choose(config(run_dir), "hm")
    (run_dir / "notes.txt").write_text("the best so far")
    assert choose(config(run_dir, resume=True), "hm") == run_dir, "people may keep notes beside a run"


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("names", [["thesis.tex"], ["config.json", "weights.bin"], ["ds_config.json", "zero2.json"]])
def test_something_else_is_left_alone(tmp_path: Path, names: list[str], resume: bool) -> None:
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds something else .{names[-1]}.: name an empty or new directory"):
        choose(config(tmp_path, resume), "hm")


@pytest.mark.parametrize("below", [".", "a/b"])
def test_a_file_cannot_be_a_run_directory(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file is a file: name a directory"):
        choose(config(tmp_path / "file" / below), "hm")


def test_a_directory_that_cannot_be_written_to_is_found_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir_module.os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be written to: name another directory"):
        choose(config(tmp_path / "new" / "run"), "hm")


def test_a_disk_that_cannot_take_the_run_is_found_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir_module.shutil, "disk_usage", lambda path: mock.Mock(free=1_000_000))
    parameters = {"a": {"shape": [100, 500], "group": "rest"}, "b": {"shape": [50_000], "group": None}}
    # (4 + 12) x 50,000 + (4 + 4) x 50,000 bytes: bundle and checkpoint, trained and frozen
    with pytest.raises(UserError, match=r"has 1.0 MB left, .* need 1.2 MB: free some space"):
        require_space(tmp_path / "run", parameters)
    require_space(tmp_path / "run", {"a": parameters["a"]})


def test_a_bundle_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for number in (1, 2):
        write_bundle(tmp_path, lambda directory, number=number: (directory / f"{number}").touch())
        assert [path.name for path in (tmp_path / "model").iterdir()] == [str(number)]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_bundle_that_fails_leaves_the_one_before(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").touch()
        raise error

    with pytest.raises(error):
        write_bundle(tmp_path, fail)
    assert not list(tmp_path.iterdir())
    write_bundle(tmp_path, lambda directory: (directory / "whole").touch())
    with pytest.raises(error):
        write_bundle(tmp_path, fail)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["model", "model/whole"]


def test_leftovers_of_a_kill_are_no_obstacle(tmp_path: Path) -> None:
    for name in (".model.new", ".model.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    write_bundle(tmp_path, lambda directory: (directory / "whole").touch())
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["model", "model/whole"]


def train_line(step: int) -> dict[str, object]:
    return {"step": step, "loss": 1 / step, "lr": {"text": 0.1, "rest": 0.2}}


def eval_line(step: int, split: str = "valid") -> dict[str, object]:
    return {
        "event": "eval", "step": step, "split": split, "model": "mmsr", "slice": "all", "users": 3, "HR@10": step / 8,
        "NDCG@10": 0.25, "MRR": 0.125, "seconds": 0.5,
    }  # fmt: skip


def lines(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def curves(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    return {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_tensorboard_shows_the_numbers_of_the_file(tmp_path: Path) -> None:
    metrics = MetricsLog(tmp_path)
    metrics.train(train_line(1))
    metrics.train(train_line(2))
    assert lines(tmp_path) == [{"event": "train", **train_line(step)} for step in (1, 2)], "readable while it runs"
    metrics.evaluation(eval_line(2))
    metrics.close()
    assert lines(tmp_path)[2] == eval_line(2)
    assert curves(tmp_path) == {
        "train/loss": [(1, 1.0), (2, 0.5)],
        "train/lr/text": [(1, pytest.approx(0.1)), (2, pytest.approx(0.1))],
        "train/lr/rest": [(1, pytest.approx(0.2)), (2, pytest.approx(0.2))],
        "valid/mmsr/all/HR@10": [(2, 0.25)],
        "valid/mmsr/all/NDCG@10": [(2, 0.25)],
        "valid/mmsr/all/MRR": [(2, 0.125)],
    }


def test_figures_are_found_by_their_protocol(tmp_path: Path) -> None:
    assert figures_on_test(tmp_path) is figures_on_test(tmp_path, "cold") is None
    metrics = MetricsLog(tmp_path)
    metrics.evaluation(eval_line(1))
    for slice_name in ("held-out", "all"):
        metrics.evaluation({**eval_line(2, "any"), "protocol": "cold", "slice": slice_name})
    assert figures_on_test(tmp_path) is None, "a run is not finished before the figures on test"
    metrics.evaluation({**eval_line(3, "test"), "slice": "cold"})
    metrics.evaluation(eval_line(4, "test"))  # without a protocol, as earlier runs have it
    metrics.close()
    found = figures_on_test(tmp_path), figures_on_test(tmp_path, "cold")
    assert [line and (line["step"], line["split"], line["slice"]) for line in found] == [
        (4, "test", "all"),
        (2, "any", "held-out"),
    ]
    assert {"cold/mmsr/held-out/MRR", "cold/mmsr/all/MRR", "test/mmsr/all/MRR"} <= curves(tmp_path).keys()


def test_a_resumed_run_drops_what_was_written_after_its_checkpoint(tmp_path: Path) -> None:
    metrics = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        metrics.train(train_line(step))
    metrics.evaluation(eval_line(2))
    metrics.evaluation(eval_line(1, "any"))
    metrics.evaluation(eval_line(1, "test"))
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "tra')
    metrics = MetricsLog(tmp_path, step=2)
    metrics.train(train_line(3))
    metrics.close()
    kept = [{"event": "train", **train_line(1)}, {"event": "train", **train_line(2)}, eval_line(2)]
    assert lines(tmp_path) == [*kept, {"event": "train", **train_line(3)}], "closing lines are made anew at the end"
    assert curves(tmp_path)["train/loss"] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


def test_figures_that_came_after_the_checkpoint_are_made_anew(tmp_path: Path) -> None:
    """Those of step 2 were still under way at step 4, from which the run goes on; those of step 1 were there."""
    metrics = MetricsLog(tmp_path)
    metrics.train(train_line(2))
    metrics.evaluation(eval_line(1))
    metrics.train(train_line(4))
    metrics.train(train_line(5))
    metrics.evaluation(eval_line(2))
    metrics.close()
    MetricsLog(tmp_path, step=4, without_figures_of=2).close()
    kept = [{"event": "train", **train_line(2)}, eval_line(1), {"event": "train", **train_line(4)}]
    assert lines(tmp_path) == kept


def test_resuming_before_any_line_leaves_no_empty_one(tmp_path: Path) -> None:
    MetricsLog(tmp_path).close()
    metrics = MetricsLog(tmp_path, step=5)
    metrics.evaluation(eval_line(6))
    metrics.close()
    assert lines(tmp_path) == [eval_line(6)]

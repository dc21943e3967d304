"""Transfer studies: what is run by which flags, verdicts by arithmetic, what is refused; one test makes real runs."""

import itertools
import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mmsr_pt import cli
from mmsr_pt.config import FinetuneConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.flags import parse_flags
from mmsr_pt.log import UserError
from mmsr_pt.run_dir import TEST_RANKS, write_ranks
from mmsr_pt.studies import transfer_report, transfer_runs, transfer_study
from mmsr_pt.studies.transfer_report import ran_out_of_steps
from mmsr_pt.studies.transfer_runs import Flags
from tests.conftest import build_drawn
from tests.pretrain.launching import SMALL, ds_config

HIT, MISS = 1, 20
"""Ranks that count 1 and 0 in HR@10 and in NDCG@10."""


@pytest.fixture
def target(tmp_path: Path, small_domain: Domain) -> Domain:
    """The small domain by another name, as another build of it would be."""
    copy = shutil.copytree(small_domain.path, tmp_path / "target")
    described = json.loads((copy / "domain.json").read_text())
    (copy / "domain.json").write_text(json.dumps({**described, "name": "target", "fingerprint": "f00d"}))
    return Domain.load(copy)


class Runs:
    """Stands for the scripts: a run ends at once, and `hits` says which share of the test users it serves."""

    def __init__(self, num_users: int) -> None:
        self.num_users = num_users
        self.done: list[str] = []
        self.flags: dict[str, list[str]] = {}
        self.panels: list[Any] = []
        """Of the picture behind each run."""
        self.hits: dict[str, float] = {}
        """By the name of a model or a seed's run; of others half."""
        self.out = Path()

    def share(self, place: str) -> float:
        return next((share for name, share in self.hits.items() if name in place), 0.5)

    def train(self, run_dir: Path, flags: Sequence[str], *_: Any) -> None:
        place = self.note(run_dir, flags)
        run_dir.mkdir(parents=True)
        (run_dir / "config.json").write_text(json.dumps({"run": {"patience": 1}}))
        share = self.share(place)
        lines: list[dict[str, Any]] = [{"event": "train", "step": 10, "epoch": 2.0}]
        for step, split, found in ((5, "valid", share), (10, "valid", share / 2), (5, "test", share)):
            line = {"event": "eval", "split": split, "step": step, "slice": "all", "domain": "target"}
            lines.append({**line, "model": "mmsr", "HR@10": found, "NDCG@10": found})
            if split == "test":
                lines.append({**line, "model": "popularity", "HR@10": 0.25, "NDCG@10": 0.125})
        self.rank(run_dir, share)
        (run_dir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def evaluate(self, flags: Sequence[str], *_: Any) -> None:
        given = dict(itertools.pairwise(flags))
        out = Path(given["--out"])
        share = self.share(self.note(out.parent, flags))
        assert Path(given["--ranks"]) == out.parent / TEST_RANKS
        self.rank(out.parent, share)
        line = {"model": "mmsr", "slice": "all", "split": "test", "HR@10": share, "NDCG@10": share}
        out.write_text(json.dumps({"lines": [line]}))

    def note(self, directory: Path, flags: Sequence[str]) -> str:
        place = str(directory.relative_to(self.out))
        self.done.append(place)
        self.flags[place] = list(flags)
        return place

    def rank(self, directory: Path, share: float) -> None:
        """The first users are hit: models of equal shares hit the same."""
        users = np.arange(self.num_users)
        hit = users < share * self.num_users
        columns = {"user": users, "target": users, "rank": np.where(hit, HIT, MISS)}
        table = pl.DataFrame(columns).with_columns(domain=pl.lit("target"), split=pl.lit("test"))
        write_ranks(directory / TEST_RANKS, [table.select("domain", "split", "user", "target", "rank")])


@pytest.fixture
def ran(tmp_path: Path, small_domain: Domain, monkeypatch: pytest.MonkeyPatch) -> Runs:
    runs = Runs(small_domain.num_users)
    runs.out = tmp_path / "out"
    monkeypatch.setattr(transfer_runs, "finish_run", runs.train)
    monkeypatch.setattr(transfer_runs, "finish_evaluation", runs.evaluate)
    # a picture behind every run takes longer than all else
    monkeypatch.setattr(transfer_report, "save", lambda figure, file: None)
    monkeypatch.setattr(transfer_report, "draw_convergence", lambda panels, title: runs.panels.append(panels))
    return runs


@pytest.fixture
def asked(tmp_path: Path, small_domain: Domain, target: Domain) -> dict[str, Any]:
    """Arguments of a study of one source size, one target size, one seed."""
    return {
        "sources": [small_domain.path],
        "target": target.path,
        "source_users": ["40"],
        "target_users": ["20"],
        "seeds": 1,
        "out": tmp_path / "out",
        "ds_config": ds_config(tmp_path / "ds_config.json"),
    }


def test_each_run_comes_behind_what_it_starts_from_and_further_sizes_and_seeds_join(
    asked: dict[str, Any], ran: Runs
) -> None:
    one = ["source-40/seed-0", "zero-shot-40/seed-0"]
    first = ["target-20/scratch/seed-0", "target-20/idsr/seed-0", "target-20/transfer-40/seed-0"]
    transfer_study.transfer_study(**asked)
    assert ran.done == [*one, *first]
    transfer_study.transfer_study(**asked)
    assert len(ran.done) == 5
    more = {"source_users": ["all", "40"], "target_users": ["20", "all"]}
    found = transfer_study.transfer_study(**{**asked, **more})
    assert ran.done[5:] == [
        *["source-all/seed-0", "zero-shot-all/seed-0", "target-20/transfer-all/seed-0", "target-all/scratch/seed-0"],
        *["target-all/idsr/seed-0", "target-all/transfer-40/seed-0", "target-all/transfer-all/seed-0"],
    ]
    assert list(found["targets"]) == ["20", "all"]
    again = transfer_study.transfer_study(**{**asked, "seeds": 2})
    assert ran.done[12:] == [place.replace("seed-0", "seed-1") for place in [*one, *first]]
    assert again["targets"]["20"]["transfer-40"]["against_scratch"]["seeds"] == [0, 1]
    assert again["targets"]["all"]["transfer-40"]["against_scratch"]["seeds"] == [0]
    assert json.loads((ran.out / "results.json").read_text()) == again


def test_curves_of_each_target_size_stand_in_a_column(asked: dict[str, Any], ran: Runs) -> None:
    ran.hits = {"scratch": 0.2}
    transfer_study.transfer_study(**{**asked, "source_users": ["40", "all"], "target_users": ["20", "all"]})
    ndcg, hr = ran.panels[-1]
    assert [panel.title for panel in ndcg] == ["20 users of target", "all users of target"]
    assert {panel.metric for panel in ndcg} == {"NDCG@10"}
    assert {panel.metric for panel in hr} == {"HR@10"}
    labels = ["IDSR", "scratch", "transfer from 40 users", "transfer from all users"]
    assert [curve.label for curve in hr[1].curves] == labels
    assert hr[0].curves[1].seeds == ({1.0: 0.2, 2.0: 0.1},)


def test_runs_get_their_flags_and_differ_in_nothing_else(asked: dict[str, Any], ran: Runs) -> None:
    flags = Flags(
        common=("--width", "32", "--cache", "--tune", "frozen", "--modality_dropout", "0.2"),
        pretrain=("--epochs", "7", "--tune", "full"),
        finetune=("--epochs", "9"),
        idsr=("--epochs", "30"),
    )
    transfer_study.transfer_study(**asked, flags=flags)
    configs = {place: parse_flags(words, FinetuneConfig) for place, words in ran.flags.items() if "zero" not in place}
    source, scratch, idsr, transfer = (
        configs[f"{place}/seed-0"]
        for place in ("source-40", "target-20/scratch", "target-20/idsr", "target-20/transfer-40")
    )
    assert (source.run.epochs, source.model.tune, source.data.max_users) == (7, "full", 40)
    assert source.data.data == tuple(asked["sources"])
    assert (scratch.run.epochs, scratch.model.tune, scratch.data.max_users) == (9, "frozen", 20)
    assert scratch.data.data == (asked["target"],)
    assert scratch.transfer.init == "none"
    assert transfer.transfer.init == str(ran.out / "source-40" / "seed-0")
    assert (transfer.run, transfer.data, transfer.model, transfer.optim) == (
        *(scratch.run, scratch.data, scratch.model, scratch.optim),
    )
    assert (idsr.model.item, idsr.run.epochs, idsr.data.cache, idsr.model.modality_dropout) == ("id", 30, False, 0.0)
    zero_shot = ran.flags["zero-shot-40/seed-0"]
    assert zero_shot[zero_shot.index("--model") + 1] == str(ran.out / "source-40" / "seed-0")
    assert zero_shot[zero_shot.index("--data") + 1] == str(asked["target"])


def test_differences_improvements_and_verdicts(asked: dict[str, Any], ran: Runs, target: Domain) -> None:
    ran.hits = {"scratch": 0.4, "target-20/transfer": 0.6, "target-60/transfer": 0.4, "target-all/transfer": 0.2}
    found = transfer_study.transfer_study(**{**asked, "target_users": ["20", "60", "all"], "seeds": 3})
    exact = {share: np.ceil(share * target.num_users) / target.num_users for share in (0.2, 0.4, 0.6)}
    expected = {"20": (0.6, "gain"), "60": (0.4, "no difference"), "all": (0.2, "negative transfer")}
    for size, (share, verdict) in expected.items():
        rows = found["targets"][size]
        assert rows["scratch"]["mean"]["HR@10"] == pytest.approx(exact[0.4])
        against = rows["transfer-40"]["against_scratch"]
        assert against["verdict"] == verdict
        for metric in ("HR@10", "NDCG@10"):  # a first place counts 1 in both
            difference = exact[share] - exact[0.4]
            assert against[metric]["difference"] == pytest.approx(difference)
            assert against[metric]["improvement"] == pytest.approx(difference / exact[0.4])
            # every seed alike: a share of the users, a fifth of them hit by one model and not by the other
            error = np.sqrt(abs(difference) * (1 - abs(difference)) / target.num_users)
            assert against[metric]["high"] - difference == pytest.approx(1.96 * error, rel=0.15)
            assert difference - against[metric]["low"] == pytest.approx(1.96 * error, rel=0.15)
        assert rows["popularity"]["mean"] == {"HR@10": 0.25, "NDCG@10": 0.125}
    table = (ran.out / "table.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert lines[0] == ["", *(f"{n} users: {m}" for n in (20, 60, "all") for m in ("HR@10", "NDCG@10"))]
    names = ["popularity", "IDSR", "scratch", "zero-shot from 40 users", "transfer from 40 users"]
    assert [cells[0] for cells in lines[2:7]] == names
    assert lines[5][1] == lines[5][5], "zero-shot has one figure for all target sizes"
    assert [cells[-1] for cells in lines[9:12]] == ["gain", "no difference", "negative transfer"]
    gain = 100 * (exact[0.6] - exact[0.4])
    assert lines[9][3].startswith(f"{gain:+.2f} [")
    assert lines[9][3].endswith(f"], {gain / exact[0.4]:+.1f} %")
    assert "not corrected for their number (3)" in table
    assert "With one seed" not in table


def test_a_difference_of_one_lucky_seed_is_none(asked: dict[str, Any], ran: Runs) -> None:
    ran.hits = {"transfer-40/seed-1": 0.9}
    found = transfer_study.transfer_study(**{**asked, "seeds": 3})
    against = found["targets"]["20"]["transfer-40"]["against_scratch"]
    assert against["NDCG@10"]["difference"] == pytest.approx(0.4 / 3, abs=0.01)
    assert against["verdict"] == "no difference"
    ran.hits = {"transfer": 0.7}
    shutil.rmtree(ran.out)
    one = transfer_study.transfer_study(**asked)
    assert one["targets"]["20"]["transfer-40"]["against_scratch"]["verdict"] == "gain"
    assert "With one seed an interval is over users alone" in (ran.out / "table.md").read_text()


def test_what_had_not_settled_is_named(tmp_path: Path, asked: dict[str, Any], ran: Runs) -> None:
    def left(name: str, figures: Sequence[float], patience: int) -> Path:
        run_dir = tmp_path / name
        run_dir.mkdir()
        (run_dir / "config.json").write_text(json.dumps({"run": {"patience": patience}}))
        line = {"event": "eval", "model": "mmsr", "split": "valid", "slice": "all"}
        lines = [{**line, "step": 10 * n, "NDCG@10": figure} for n, figure in enumerate(figures)]
        (run_dir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return run_dir

    assert ran_out_of_steps(left("rising", [0.1, 0.2, 0.3], 2))
    assert ran_out_of_steps(left("patient", [0.1, 0.3, 0.2], 2))
    assert not ran_out_of_steps(left("stopped", [0.3, 0.2, 0.2], 2))
    assert not ran_out_of_steps(left("passed", [0.1, 0.3, 0.2], 0))
    transfer_study.transfer_study(**asked)
    results = json.loads((ran.out / "results.json").read_text())
    assert results["ran_out_of_steps"] == []  # the fakes end one evaluation behind their best, at --patience 1
    scratch = ran.out / "target-20" / "scratch" / "seed-0" / "config.json"
    scratch.write_text(json.dumps({"run": {"patience": 5}}))
    found = transfer_study.transfer_study(**asked)
    assert found["ran_out_of_steps"] == ["target-20/scratch/seed-0"]
    assert "used up: target-20/scratch (1); longer" in (ran.out / "table.md").read_text()


def test_a_run_without_ranks_or_figures_is_run_again(asked: dict[str, Any], ran: Runs) -> None:
    transfer_study.transfer_study(**asked)
    (ran.out / "zero-shot-40" / "seed-0" / "evaluation.json").unlink()
    transfer_study.transfer_study(**asked)
    assert ran.done[5:] == ["zero-shot-40/seed-0"]


def test_a_dry_run_lists_all_and_runs_nothing(
    asked: dict[str, Any], ran: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    transfer_study.transfer_study(**asked, dry_run=True)
    assert not ran.done
    assert not ran.out.exists()
    shown = capsys.readouterr().out.splitlines()
    names = [line for line in shown if line.startswith("to do")]
    assert len(names) == 5
    assert "transfer from 40 source users on 20 target users, seed 0" in names[-1]
    commands = [shlex.split(line) for line in shown if ".py " in line or "mmsr_pt.cli" in line]
    assert [Path(words[1]).parent.name for words in commands if words[1] != "-m"] == ["pretrain", *["finetune"] * 3]
    assert commands[1][1:4] == ["-m", "mmsr_pt.cli", "evaluate"]


def test_other_flags_are_another_study(asked: dict[str, Any], ran: Runs) -> None:
    transfer_study.transfer_study(**asked)
    with pytest.raises(UserError, match="holds a study with other finetune_flags"):
        transfer_study.transfer_study(**asked, flags=Flags(finetune=("--lr", "1e-3")))


@pytest.mark.parametrize("name", ["transfer", "table9", "table10", "figure7"])
def test_the_papers_names_for_it_are_known_and_its_tables_stand_below(
    asked: dict[str, Any], ran: Runs, name: str
) -> None:
    words = ["--source", *asked["sources"], "--target", asked["target"], "--ds_config", asked["ds_config"]]
    cli.main([str(word) for word in ["study", name, *words, "--seeds", 1, "--out", ran.out]])
    written = (ran.out / "table.md").read_text()
    # the transfer from HM-500K to Amazon-10K, and that from Kwai to Bili-50K
    assert "| transfer-500K | 26.49 | 23.36 |" in written
    assert "| 2.78 | 1.37 |" in written


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(["study", "transfer", *map(str, words)])
    assert ended.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    return error


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no number": (["--target_users", "many"], "--target_users many: give numbers from 1 to"),
    "too many": (["--target_users", "100000"], "--target_users 100000: give numbers from 1 to"),
    "none": (["--source_users", "0"], "--source_users 0: give numbers from 1 to"),
    "twice": (["--source_users", "20", "20"], "--source_users names 20 twice"),
    "no seeds": (["--seeds", "0"], "--seeds 0 must be at least 1"),
    "no ranks": (["--num_gpus", "-1"], "--num_gpus -1 must not be negative"),
    "its own flag": (["--", "--max_users", "9"], "--max_users behind the --"),
    "its own in a flag": (["--finetune_flags", "--init runs/a"], "--init in --finetune_flags: a transfer study gives"),
    "a sample": (["--finetune_flags=--test_users 9"], "compared on all test users"),
    "unequal models": (["--pretrain_flags", "--width 32"], "--width in --pretrain_flags alone: transfer would take"),
    "a typing error": (["--idsr_flags", "--epoch 3"], "unknown flag --epoch: did you mean --epochs?"),
    "a value": (["--", "--width", "31"], "--width 31 must be divisible"),
    "no ds_config": (["--ds_config", "no.json"], "no.json"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_sentence_before_anything_is_run(
    capsys: pytest.CaptureFixture[str], small_domain: Domain, target: Domain, ran: Runs, case: str
) -> None:
    words, sentence = MISTAKES[case]
    given = ["--source", small_domain.path, "--target", target.path, "--out", ran.out]
    assert sentence in refused(capsys, *given, *words)
    assert not ran.done
    assert not ran.out.exists()


def test_a_target_that_pre_training_sees_is_refused(
    capsys: pytest.CaptureFixture[str], small_domain: Domain, target: Domain, ran: Runs
) -> None:
    sources = [small_domain.path, target.path]
    assert "is one of the sources" in refused(capsys, "--source", *sources, "--target", target.path)
    assert "no domain directory /no" in refused(capsys, "--source", small_domain.path, "--target", "/no")


@pytest.mark.slow
def test_real_runs_from_two_sources_to_their_table(
    tmp_path: Path, small_domain: Domain, capsys: pytest.CaptureFixture[str]
) -> None:
    target = build_drawn(tmp_path / "target", "target", num_users=80, items_per_cell=3)
    described = json.loads((target.path / "domain.json").read_text())
    other = shutil.copytree(small_domain.path, tmp_path / "other")
    (other / "domain.json").write_text(
        json.dumps({**json.loads((other / "domain.json").read_text()), "name": "other", "fingerprint": "0ther"})
    )
    config = ds_config(tmp_path / "ds_config.json")
    words = ["study", "transfer", "--source", small_domain.path, other, "--weights", "2", "1", "--target", target.path]
    words += ["--source_users", "60", "--target_users", "24", "--seeds", "1", "--out", tmp_path / "out"]
    words += ["--ds_config", config, "--pretrain_flags", "--steps 6", "--finetune_flags", "--steps 4 --eval_every 2"]
    words += ["--", *SMALL]
    cli.main([str(word) for word in words])
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (found["sources"], found["target"]) == ([small_domain.name, "other"], described["name"])
    assert found["test_users"] == target.num_users
    rows = found["targets"]["24"]
    for name in ("idsr", "scratch", "transfer-60"):
        run_dir = tmp_path / "out" / "target-24" / name / "seed-0"
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        wanted = {"event": "eval", "model": "mmsr", "split": "test", "slice": "all"}
        (line,) = [line for line in lines if wanted.items() <= line.items()]
        assert line["users"] == target.num_users
        for metric in ("HR@10", "NDCG@10"):  # read from the ranks, said by the run itself
            assert rows[name]["mean"][metric] == pytest.approx(line[metric], abs=1e-6)
    evaluated = json.loads((tmp_path / "out" / "zero-shot-60" / "seed-0" / "evaluation.json").read_text())["lines"]
    assert found["zero_shot"]["zero-shot-60"]["mean"]["HR@10"] == pytest.approx(evaluated[0]["HR@10"])
    against = rows["transfer-60"]["against_scratch"]["NDCG@10"]
    difference = rows["transfer-60"]["mean"]["NDCG@10"] - rows["scratch"]["mean"]["NDCG@10"]
    assert against["difference"] == pytest.approx(difference, abs=1e-6)
    assert (tmp_path / "out" / "convergence.png").read_bytes().startswith(b"\x89PNG")
    assert "| transfer from 60 users | " in capsys.readouterr().out

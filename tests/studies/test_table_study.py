"""Studies: rows as flags, what is run and what not, figures, what is refused; one test goes through real runs."""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmsr_pt import cli
from mmsr_pt.data.domain import Domain
from mmsr_pt.flags import fields_given, parse_flags
from mmsr_pt.log import UserError
from mmsr_pt.presets import TABLES, Table
from mmsr_pt.studies import table_study as study_module
from mmsr_pt.studies.child_run import finish_run
from mmsr_pt.studies.paper import PAPER_TABLES
from mmsr_pt.studies.table_report import StudyReport, mean_and_std, metrics_of, row_flags
from mmsr_pt.studies.table_study import study, varied_fields
from tests.data.raw import Interaction, build_table, write_table
from tests.pretrain.launching import ROOT, SMALL, ds_config, metrics

ROWS = [(name, row) for name, table in TABLES.items() for row in table.all_rows]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_row_comes_back_from_its_flags(name: str, row: str) -> None:
    setting = TABLES[name].all_rows[row]
    flags = row_flags(setting)
    config = parse_flags(flags)
    found = {**vars(config.model), **vars(config.optim), **vars(config.data)}
    assert {field: found[field] for field in setting} == dict(setting)
    assert fields_given(flags) == [field for field, value in setting.items() if value is not False]


def test_a_rows_flags_win_and_take_switches_away() -> None:
    further = ["--text", "tiny", "--cache", "--vision=tiny", "--cache_dtype", "int8"]
    flags = row_flags({"vision": "none", "recompute": True, "cache": False}, further)
    assert flags == ["--text", "tiny", "--vision=tiny", "--cache_dtype", "int8", "--vision", "none", "--recompute"]
    config = parse_flags(flags)
    assert (config.model.vision, config.data.cache, config.model.recompute) == ("none", False, True)


def test_what_rows_only_leave_out_may_be_given() -> None:
    assert varied_fields(TABLES["table3"]) == {"fusion", "fusion_layers"}
    assert varied_fields(TABLES["table4"]) == {"sequence", "item"}
    assert varied_fields(TABLES["table14"]) == {"patch_mask"}  # 0.0 is a value, not an omission
    assert varied_fields(Table("", {"a": {"vision": "none"}, "b": {"vision": "tiny"}})) == {"vision"}


def test_the_spread_is_that_of_a_sample() -> None:
    values = [0.10, 0.12, 0.17]
    described = mean_and_std(values)
    assert described["mean"] == pytest.approx(0.13)
    assert described["std"] == pytest.approx(statistics.stdev(values))
    assert described["std"] == pytest.approx(((0.03**2 + 0.01**2 + 0.04**2) / 2) ** 0.5)
    assert mean_and_std([0.2]) == {"mean": 0.2, "std": None}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Run directories in the order of their runs, each of which ends at once with figures that its seed decides."""
    done: list[Path] = []

    def run(run_dir: Path, flags: Sequence[str], log_file: Path, inherited: Sequence[int], num_gpus: int) -> None:
        done.append(run_dir)
        seed = int(flags[flags.index("--seed") + 1])
        line = {"event": "eval", "model": "mmsr", "split": "test", "slice": "all"}
        before = {**line, "split": "valid", "HR@10": 0.9, "NDCG@10": 0.9}
        cold = {**line, "protocol": "cold", "split": "any", "slice": "held-out", "HR@10": 0.02, "NDCG@10": 0.01}
        line.update({"HR@10": 0.1 + 0.02 * seed, "NDCG@10": 0.05})  # type: ignore[dict-item]
        (run_dir / "checkpoints").mkdir(parents=True)
        lines = "".join(f"{json.dumps(one)}\n" for one in (before, {**cold, "slice": "all", "HR@10": 0.8}, cold, line))
        (run_dir / "metrics.jsonl").write_text(lines)

    monkeypatch.setattr(study_module, "finish_run", run)
    return done


@pytest.fixture
def two_domains(tmp_path: Path, small_domain: Domain) -> list[Domain]:
    """The small domain, and a copy of it by another name."""
    copy = shutil.copytree(small_domain.path, tmp_path / "another")
    described = json.loads((copy / "domain.json").read_text())
    (copy / "domain.json").write_text(json.dumps({**described, "name": "another"}))
    return [small_domain, Domain.load(copy)]


@pytest.fixture
def asked(tmp_path: Path, small_domain: Domain) -> dict[str, Any]:
    """Arguments of a study of two rows."""
    config = ds_config(tmp_path / "ds_config.json")
    return {"data": [small_domain.path], "rows": ["gate", "merge-1"], "out": tmp_path / "out", "ds_config": config}


def test_what_is_finished_is_not_run_again_and_further_seeds_join(
    tmp_path: Path, small_domain: Domain, asked: dict[str, Any], ran: list[Path]
) -> None:
    name, out = small_domain.name, tmp_path / "out"
    study("table3", **asked)
    assert ran == [out / name / "gate" / "seed-0", out / name / "merge-1" / "seed-0"]
    assert not (ran[0] / "checkpoints").exists()
    study("table3", **asked)
    assert len(ran) == 2
    found = study("table3", **{**asked, "rows": ["merge-1"], "seeds": 3})
    assert ran[2:] == [out / name / "merge-1" / "seed-1", out / name / "merge-1" / "seed-2"]
    assert json.loads((out / "results.json").read_text()) == found
    assert found["rows"]["gate"]["domains"][name]["HR@10"] == {"mean": 0.1, "std": None}
    merged = found["rows"]["merge-1"]
    assert merged["flags"] == ["--fusion", "merge", "--fusion_layers", "1"]
    assert {seed: run["HR@10"] for seed, run in merged["domains"][name]["seeds"].items()} == pytest.approx(
        {"0": 0.1, "1": 0.12, "2": 0.14}
    )
    lines = (out / "table.md").read_text().splitlines()
    assert lines[2:6] == [
        f"| fusion | {name} HR@10 | {name} NDCG@10 "
        "| paper: HM HR@10 | paper: HM NDCG@10 | paper: Bili HR@10 | paper: Bili NDCG@10 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| gate | 10.00 | 5.00 | 8.95 | 5.08 | 3.91 | 2.01 |",
        "| merge-1 | 12.00 ± 2.00 (3) | 5.00 ± 0.00 (3) | 9.96 | 5.77 | 4.08 | 2.12 |",
    ]
    assert lines[7].startswith("`paper:` is the paper's table 3: other data and another scale (HM and Kwai of 200,000")
    assert [line[2:] for line in lines[-2:]] == list(PAPER_TABLES["table3"].notes)
    # fractions, as ours are
    assert found["paper"]["rows"]["gate"]["HM"] == {"HR@10": 0.089505, "NDCG@10": 0.050762}


def test_the_papers_figures_are_there_for_its_own_rows_and_metrics(
    tmp_path: Path, small_domain: Domain, asked: dict[str, Any], ran: list[Path]
) -> None:
    name = small_domain.name
    study("table4", **{**asked, "rows": ["sasrec", "rotary"]})
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    four = " | ".join(f"paper: {domain} HR@10" for domain in ("Bili", "Kwai", "HM", "Amazon"))
    assert lines[2].endswith(f"| {name} HR@10 | {name} NDCG@10 | {four} |")
    assert lines[4:6] == [
        "| sasrec | 10.00 | 5.00 | 4.21 | 5.53 | 10.11 | 20.11 |",
        "| rotary | 10.00 | 5.00 |  |  |  |  |",  # ours alone
    ]


def test_a_table_of_many_columns_is_one_for_each_metric(
    tmp_path: Path, asked: dict[str, Any], ran: list[Path], two_domains: list[Domain]
) -> None:
    data = [domain.path for domain in two_domains]
    first, second = (domain.name for domain in two_domains)
    paper = "paper: HM {0} | paper: Bili {0}"
    study("table3", **{**asked, "data": data})
    # 4 columns of ours and 4 of the paper's
    assert len((tmp_path / "out" / "table.md").read_text().splitlines()[2].split(" | ")) == 9
    report = StudyReport(tmp_path / "out", TABLES["table3"], {"table": "table3", "flags": []}, two_domains)
    with pytest.MonkeyPatch.context() as narrow:
        narrow.setattr("mmsr_pt.studies.table_report._WIDEST", 7)
        lines = report.markdown().splitlines()
    assert lines[2] == f"| fusion | {first} HR@10 | {second} HR@10 | {paper.format('HR@10')} |"
    assert lines[4] == "| gate | 10.00 | 10.00 | 8.95 | 3.91 |"
    assert lines[7] == f"| fusion | {first} NDCG@10 | {second} NDCG@10 | {paper.format('NDCG@10')} |"
    assert lines[9] == "| gate | 5.00 | 5.00 | 5.08 | 2.01 |"


def test_table_5_reports_six_metrics_and_the_others_two() -> None:
    six = {f"{kind}@{cutoff}" for kind in ("HR", "NDCG") for cutoff in (10, 20, 50)}
    for name in PAPER_TABLES:
        assert set(metrics_of(name)) == (six if name == "table5" else {"HR@10", "NDCG@10"})


def test_table_8_is_of_the_cold_items_that_were_held_out(
    tmp_path: Path, small_domain: Domain, asked: dict[str, Any], ran: list[Path]
) -> None:
    name = small_domain.name
    found = study("table8", **{**asked, "rows": ["sasrec-id", "sasrec"]})
    for row in ("sasrec-id", "sasrec"):
        assert found["rows"][row]["domains"][name]["seeds"] == {"0": {"HR@10": 0.02, "NDCG@10": 0.01}}
    table = (tmp_path / "out" / "table.md").read_text()
    assert "percent, cold valid and test targets, whole catalogue" in table
    study("table8", **{**asked, "rows": ["sasrec-id", "sasrec"]})
    assert len(ran) == 2, "what is finished is not run again"


def test_table_8_is_refused_where_nothing_held_out_is_cold(
    tmp_path: Path, asked: dict[str, Any], ran: list[Path]
) -> None:
    rows: list[Interaction] = [(f"u{user}", str(place % 2), place) for user in range(10) for place in range(6)]
    raw = write_table(tmp_path / "raw", rows, {"0": "cup", "1": "chair"})
    warm = build_table(raw, tmp_path / "warm")
    with pytest.raises(UserError, match=f"table8 is about cold items, and {warm.path} holds none out"):
        study("table8", **{**asked, "data": [warm.path], "rows": ["sasrec"]})
    assert (ran, (tmp_path / "out").exists()) == ([], False)


def test_other_flags_are_another_study(
    tmp_path: Path, asked: dict[str, Any], ran: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study("table3", **asked)
    with pytest.raises(UserError, match=r"holds a study with other flags \(\[\]\): name another directory"):
        study("table3", **asked, further=["--lr", "1e-3"])
    with pytest.raises(UserError, match=r"other table \(table3\)"):
        study("table4", **{**asked, "rows": []})
    study("table3", **{**asked, "out": None}, further=["--lr", "1e-3"])
    study("table3", **{**asked, "out": None})
    assert len({path.parents[2] for path in ran}) == 3
    assert all(path.name.startswith("study-table3-") for path in (tmp_path / "runs").iterdir())


def test_a_run_that_fails_stops_the_study_and_leaves_what_was_finished(
    tmp_path: Path, small_domain: Domain, asked: dict[str, Any], ran: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    well = study_module.finish_run

    def run(run_dir: Path, *others: Any) -> None:
        if run_dir.parent.name == "merge-1":
            raise UserError("a run failed with exit code 2 (so): there.log has all it said")
        well(run_dir, *others)

    with monkeypatch.context() as broken:
        broken.setattr(study_module, "finish_run", run)
        with pytest.raises(
            UserError, match="^merge-1 on .*, seed 0: a run failed .* there.log .* same command goes on"
        ):
            study("table3", **asked)
    assert list(json.loads((tmp_path / "out" / "results.json").read_text())["rows"]) == ["gate"]
    study("table3", **asked)
    assert [path.parent.name for path in ran] == ["gate", "merge-1"]


def test_two_studies_do_not_share_a_directory(asked: dict[str, Any], ran: list[Path]) -> None:
    with study_module.alone_in(asked["out"]), pytest.raises(UserError, match="another study is at work there"):
        study("table3", **asked)
    assert not ran


def test_a_run_that_was_refused_is_told_in_its_own_words(tmp_path: Path) -> None:
    left = tmp_path / "run" / "config.json"  # broken off before its first checkpoint
    left.parent.mkdir()
    left.write_text("{}")
    with pytest.raises(UserError, match=r"exit code 2 \(.*/no/where.*\): .*run.log has all it said"):
        finish_run(tmp_path / "run", ["--data", "/no/where"], tmp_path / "run.log")
    assert "/no/where" in (tmp_path / "run.log").read_text()
    assert not left.exists()


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(["study", *map(str, words)])
    assert ended.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    return error


MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown row": (["table3", "--rows", "gat"], "unknown row of table3 'gat'; known: co, concat"),
    "no seeds": (["table3", "--seeds", "0"], "--seeds 0 must be at least 1"),
    "no ranks": (["table3", "--num_gpus", "-1"], "--num_gpus -1 must not be negative"),
    "a row's flag": (
        ["table3", "--", "--fusion", "sum"],
        "--fusion behind the --: it is what the rows of table3 differ",
    ),
    "a row's flag with =": (["table4", "--", "--sequence=sasrec"], "--sequence behind the --"),
    "data twice": (["table3", "--", "--data", "d"], "type --data before the --"),
    "run_dir": (["table3", "--", "--run_dir", "d"], "type --out before the --"),
    "seed": (["table3", "--", "--seed", "3"], "type --seeds before the --"),
    "resume": (["table3", "--", "--resume"], "goes on by itself"),
    "unknown flag": (["table3", "--", "--lrr", "3"], "unknown flag --lrr: did you mean --lr?"),
    "a value": (["table3", "--", "--width", "31"], "--width 31 must be divisible"),
    "no ds_config": (["table3", "--ds_config", "no.json"], "no.json"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_sentence_before_anything_is_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, small_domain: Domain, ran: list[Path], case: str
) -> None:
    (table, *words), sentence = MISTAKES[case]
    given = [table, "--data", small_domain.path, "--out", tmp_path / "out", *words]
    assert sentence in refused(capsys, *given)
    assert not ran
    assert not (tmp_path / "out").exists()


def test_mistakes_in_names_and_places(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, small_domain: Domain, ran: list[Path]
) -> None:
    unknown = refused(capsys, "table33", "--data", small_domain.path)
    assert "unknown table or figure 'table33'" in unknown
    assert "Did you mean 'table3'?" in unknown
    assert "Did you mean 'figure4'?" in refused(capsys, "figure44", "--data", small_domain.path)
    unknown = refused(capsys, "figure4", "--data", small_domain.path, "--rows", "grurec")
    assert "unknown row of figure4 'grurec'; known: sasrec, sasrec-id, sasrec-text, sasrec-vision" in unknown
    assert "no --data given" in refused(capsys, "table3")
    assert "/no/where" in refused(capsys, "table3", "--data", "/no/where")
    twice = [small_domain.path, small_domain.path]
    assert "two domains called" in refused(capsys, "table3", "--data", *twice)
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "holds something else" in refused(capsys, "table3", "--data", small_domain.path, "--out", tmp_path)
    file = tmp_path / "thesis.tex"
    assert "is a file" in refused(capsys, "table3", "--data", small_domain.path, "--out", file)
    assert not ran


def test_a_package_without_the_script_says_so(
    capsys: pytest.CaptureFixture[str], small_domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmsr_pt.studies.child_run._ROOT", Path("/site-packages"))
    assert "from a source checkout" in refused(capsys, "table3", "--data", small_domain.path)


def is_locked(out: Path) -> bool:
    try:
        with study_module.alone_in(out):
            return False
    except UserError:
        return True


@pytest.mark.slow
def test_a_study_on_several_ranks(tmp_path: Path, small_domain: Domain) -> None:
    flags = [*SMALL, "--item", "id", "--steps", "2"]
    config = ds_config(tmp_path / "ds_config.json")
    found = study("table3", [small_domain.path], ["sum"], 1, tmp_path / "out", config, flags, num_gpus=2)
    assert found["ds_config"]["train_batch_size"] == 16
    run_dir = tmp_path / "out" / small_domain.name / "sum" / "seed-0"
    assert json.loads((run_dir / "ds_config.json").read_text())["train_batch_size"] == 16
    (line,) = metrics(run_dir, "eval", split="test", model="mmsr", slice="all")
    assert found["rows"]["sum"]["domains"][small_domain.name]["HR@10"]["mean"] == line["HR@10"]


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_to_its_table(
    tmp_path: Path, small_domain: Domain, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real runs: the whole study is killed in the first, the same command goes on and skips nothing that is missing."""
    config = ds_config(tmp_path / "ds_config.json")
    words = ["study", "table4", "--data", str(small_domain.path), "--rows", "grurec", "sasrec-id"]
    words += ["--out", str(tmp_path / "out"), "--ds_config", str(config), "--", *SMALL]
    words += ["--steps", "60", "--checkpoint_every", "5", "--eval_every", "60"]
    runs = tmp_path / "out" / small_domain.name
    run_dir = runs / "grurec" / "seed-0"
    command = [sys.executable, "-m", "mmsr_pt.cli", *words]
    killed = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True)
    begun = time.monotonic()
    while not (run_dir / "checkpoints" / "latest").exists():
        assert killed.poll() is None
        assert time.monotonic() - begun < 400
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    # its run lives on and holds the lock
    assert "another study is at work there" in refused(capsys, *words[1:])
    os.killpg(killed.pid, signal.SIGKILL)
    while is_locked(tmp_path / "out"):
        time.sleep(0.01)
    cli.main(words)
    assert re.search(r"resumed at step \d+ of 60", run_dir.with_suffix(".log").read_text())
    assert [line["step"] for line in metrics(run_dir, "train")] == list(range(1, 61))
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    for row in ("grurec", "sasrec-id"):
        (line,) = metrics(runs / row / "seed-0", "eval", split="test", model="mmsr", slice="all")
        figures = found["rows"][row]["domains"][small_domain.name]["seeds"]["0"]
        assert figures == {metric: line[metric] for metric in ("HR@10", "NDCG@10")}
    config_of_id = json.loads((runs / "sasrec-id" / "seed-0" / "config.json").read_text())
    assert (config_of_id["model"]["item"], config_of_id["model"]["width"]) == ("id", 32)
    shown = capsys.readouterr().out
    assert "| grurec | " in shown
    assert shown.index("| sasrec-id | ") < shown.index("| grurec | ")

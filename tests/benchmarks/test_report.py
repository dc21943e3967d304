"""What is filed and what is printed."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import quality, report
from benchmarks.__main__ import main
from benchmarks.quality import summary
from benchmarks.rows import ROWS
from mmsr_pt.data.domain import Domain
from mmsr_pt.log import UserError


def result(ratio: float, at_least: float | None = 2, aim: float | None = 4) -> dict[str, Any]:
    comparison = {
        "ours": "ours",
        "against": "theirs",
        "ours_median": 30.0,
        "against_median": 10.0,
        "ratio": ratio,
        "ratio_min": 2.5,
        "ratio_max": 3.5,
        "at_least": at_least,
        "aim": aim,
        "note": "both told",
    }
    return {
        "work": "toys",
        "figure": "speed",
        "unit": "items/s",
        "figures": {"ours": [{"speed": 20.0}, {"speed": 30.0}, {"speed": 40.0}]},
        "flops": {"ours": {"units": 4, "flops": {"matmul float32": 200.0, "conv bfloat16": 600.0}}},
        "comparisons": [comparison],
    }


def test_the_share_of_the_limit() -> None:
    found = result(3.0)
    report.add_limits(found, {"matmul float32": 2e4, "conv bfloat16": 6e4})
    # 4 units need 0.01 s + 0.01 s, so a unit 0.005 s, so at most 200 a second, of which 30 are reached
    limit = found["limits"]["ours"]
    assert limit["seconds"] == pytest.approx(0.005)
    assert limit["flops"] == 200
    assert limit["share"] == pytest.approx(0.15)
    line = report.table({"toys": found}).splitlines()[2]
    cells = [
        "toys: both told",
        "30 items/s",
        "10 (theirs)",
        "3.00 x",
        "2.50-3.50",
        "2 x",
        "4 x",
        "yes",
        "200 items/s",
        "15%",
    ]
    assert [cell.strip() for cell in line.strip("|").split("|")] == cells


def test_the_limit_of_seconds_is_less_and_bytes_have_none() -> None:
    rates = {"matmul float32": 2e4, "conv bfloat16": 6e4}
    timed = {**result(3.0), "unit": "s/epoch"}
    report.add_limits(timed, rates)
    # a unit needs 0.005 s and took 30 s
    assert timed["limits"]["ours"]["share"] == pytest.approx(0.005 / 30)
    assert "| 0.005 s/epoch | 0% |" in report.table({"toys": timed})
    weighed = {**result(3.0), "unit": "bytes"}
    report.add_limits(weighed, rates)
    assert weighed["limits"] == {}
    assert report.table({"toys": weighed}).endswith("|  |  |")


@pytest.mark.parametrize(
    ("ratio", "at_least", "aim", "expected"),
    [
        (1.9, 2, 4, "no"),
        (2, 2, 4, "yes"),
        (4, 2, 4, "aim"),
        (9, 2, None, "yes"),
        (1, None, 2, "no"),
        (1, None, None, ""),
    ],
)
def test_what_a_ratio_has_reached(ratio: float, at_least: float, aim: float, expected: str) -> None:
    assert report.verdict(result(ratio, at_least, aim)["comparisons"][0]) == expected


@pytest.mark.parametrize(
    ("value", "shown"), [(0.01234, "0.0123"), (12, "12"), (1234, "1.23 k"), (5.6e6, "5.6 M"), (7.89e9, "7.89 G")]
)
def test_amounts_have_three_digits(value: float, shown: str) -> None:
    assert report.amount(value) == shown


def test_a_row_that_is_measured_again_replaces_its_own_figures_only(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    report.keep(file, "rows", "a", {"x": 1})
    report.keep(file, "rows", "b", {"x": 2})
    report.keep(file, "growth", "a", {"x": 3})
    report.keep(file, "rows", "a", {"x": 4})
    kept = json.loads(file.read_text())
    assert {(part, name): found["x"] for part, of in kept.items() for name, found in of.items()} == {
        ("rows", "a"): 4,
        ("rows", "b"): 2,
        ("growth", "a"): 3,
    }
    assert kept["rows"]["a"]["machine"].keys() >= {"cpu", "cores", "threads", "memory_gb", "torch", "commit"}


def test_the_list_names_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--list"])
    assert capsys.readouterr().out.split() == [*ROWS, "growth", "quality"]


def test_an_unknown_row_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train-smal"])
    assert ended.value.code == 2
    assert "Did you mean 'train-small'?" in capsys.readouterr().err


def test_the_difference_is_taken_seed_by_seed() -> None:
    plain = [{"HR@10": 0.10, "NDCG@10": 0.05}, {"HR@10": 0.14, "NDCG@10": 0.07}]
    fast = [{"HR@10": 0.11, "NDCG@10": 0.05}, {"HR@10": 0.11, "NDCG@10": 0.05}]
    found = summary({"plain": plain, "cached": fast})["HR@10"]
    assert found["plain"]["mean"] == pytest.approx(0.12)
    assert found["plain"]["std"] == pytest.approx(0.02 * 2**0.5)
    assert found["cached"] == pytest.approx({"mean": 0.11, "std": 0})
    # 0.01 and -0.03
    assert found["cached - plain"]["mean"] == pytest.approx(-0.01)
    assert found["cached - plain"]["std"] == pytest.approx(0.02 * 2**0.5)


def test_runs_that_are_finished_are_not_run_again(
    tmp_path: Path, small_domain: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Path] = []

    def run(run_dir: Path, flags: list[str], bf16: bool, logs: Path) -> None:
        ran.append(run_dir)
        assert ("--cache" in flags) == bf16
        run_dir.mkdir(parents=True)
        line = {"event": "eval", "model": "mmsr", "split": "test", "slice": "all", "HR@10": 0.1, "NDCG@10": 0.05}
        before = {**line, "split": "valid", "HR@10": 0.9}
        trained = [{"event": "train", "users_per_s": speed} for speed in (1, 9, 8)]
        lines = [*trained, before, line]
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr(quality, "find_parts", lambda data, *_: parts_of(data))
    monkeypatch.setattr(quality, "_run", run)
    first = quality.study(small_domain.path, None, 1, tmp_path / "results.json", directory=tmp_path)
    assert len(ran) == 2
    quality.study(small_domain.path, None, 2, tmp_path / "results.json", directory=tmp_path)
    assert len(ran) == len(set(ran)) == 4
    quality.study(small_domain.path, None, 2, tmp_path / "results.json", ["--lr", "1e-3"], directory=tmp_path)
    assert len(ran) == len(set(ran)) == 8
    assert first["runs"]["plain"] == [{"HR@10": 0.1, "NDCG@10": 0.05, "users_per_s": 8}]


def test_an_unknown_setting_is_named(small_domain: Domain, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'cached'"):
        quality.study(small_domain.path, None, 1, tmp_path / "results.json", settings=["cache"], directory=tmp_path)


def parts_of(data: Path) -> Any:
    from benchmarks.parts import Parts

    return Parts(data, "tiny", "tiny", "tiny", "tiny")

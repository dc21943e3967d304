"""Contestants in turn, the arithmetic on their figures, and what becomes of their processes."""

import time
from pathlib import Path

import pytest

from benchmarks.harness import Comparison, Entrant, Process, Row, measure
from mmsr_pt.log import UserError

OURS, THEIRS = [100.0, 2.0, 8.0, 6.0], [1.0, 1.0, 2.0, 2.0]
"""The first is the warm-up."""


def toy_row(tmp_path: Path, **settings: object) -> Row:
    def toy(name: str, values: list[float]) -> Entrant:
        described = {"name": name, "values": values, "diary": str(tmp_path / "diary")}
        return Entrant("tests.benchmarks.toys:Toy", described)

    row = {
        "name": "toys",
        "work": "being told",
        "figure": "speed",
        "unit": "1/s",
        "entrants": {"ours": toy("ours", OURS), "theirs": toy("theirs", THEIRS)},
        "comparisons": [Comparison("ours", "theirs", at_least=2, aim=3.5)],
        "repetitions": 3,
    }
    return Row(**{**row, **settings})  # type: ignore[arg-type]


def told(_: str) -> None:
    """Nobody listens."""


def test_they_run_in_turn_and_the_first_round_only_warms_up(tmp_path: Path) -> None:
    found = measure(toy_row(tmp_path), tmp_path / "logs", told)
    assert (tmp_path / "diary").read_text().split() == ["ours", "theirs"] * 4
    assert [run["speed"] for run in found["figures"]["ours"]] == OURS[1:]
    assert "noise" in (tmp_path / "logs" / "toys-ours.log").read_text()
    assert found["flops"]["ours"]["units"] == 4


def test_a_ratio_is_taken_within_a_round(tmp_path: Path) -> None:
    (line,) = measure(toy_row(tmp_path), tmp_path, told)["comparisons"]
    assert (line["ours_median"], line["against_median"]) == (6, 2)
    # 2 / 1, 8 / 2, 6 / 2
    assert (line["ratio"], line["ratio_min"], line["ratio_max"]) == (3, 2, 4)
    assert (line["at_least"], line["aim"]) == (2, 3.5)


def test_of_costs_the_smaller_is_the_better(tmp_path: Path) -> None:
    (line,) = measure(toy_row(tmp_path, less_is_better=True), tmp_path, told)["comparisons"]
    # 1 / 2, 2 / 8, 2 / 6
    assert (line["ratio"], line["ratio_min"], line["ratio_max"]) == (2 / 6, 2 / 8, 1 / 2)


def test_fresh_contestants_start_anew_each_time_and_do_not_warm_up(tmp_path: Path) -> None:
    found = measure(toy_row(tmp_path, fresh=True), tmp_path, told, repetitions=2)
    assert (tmp_path / "diary").read_text().split() == ["ours", "theirs"] * 2
    assert [run["speed"] for run in found["figures"]["ours"]] == [OURS[0]] * 2


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        ("tests.benchmarks.toys:Broken", "ValueError: this cannot be"),
        ("tests.benchmarks.toys:Missing", "AttributeError"),
        ("benchmarks.nothing:At", "ModuleNotFoundError"),
    ],
)
def test_a_contestant_that_fails_is_told_in_a_sentence(tmp_path: Path, make: str, sentence: str) -> None:
    row = toy_row(tmp_path, entrants={"ours": Entrant(make)}, comparisons=[])
    with pytest.raises(UserError, match=f"a contestant failed: .*{sentence}.*toys-ours.log"):
        measure(row, tmp_path, told)
    assert "Traceback" in (tmp_path / "toys-ours.log").read_text()


def state(pid: int) -> str:
    """R, S, T (stopped), Z ... of a process, or nothing where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def becomes(pid: int, wanted: set[str]) -> bool:
    """Waits for a signal to arrive."""
    for _ in range(200):
        if state(pid) in wanted:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="no /proc here")
def test_a_contestant_that_was_killed_is_told_in_a_sentence(tmp_path: Path) -> None:
    entrant = toy_row(tmp_path).entrants["ours"]
    with Process(entrant, tmp_path / "log") as process:
        process.close()
        with pytest.raises(UserError, match="as when memory runs out"):
            process.ask("run")


def test_who_is_not_asked_stands_still_with_its_children_and_ends_with_them(tmp_path: Path) -> None:
    with Process(Entrant("tests.benchmarks.toys:WithChild"), tmp_path / "log") as process:
        child = int(process.ask("run")["child"])
        for pid in (process._process.pid, child):
            assert becomes(pid, {"T"})
        assert int(process.ask("run")["child"]) == child
    for pid in (process._process.pid, child):
        assert becomes(pid, {"", "Z"})

"""Faults of a raw dataset: each counted, named in domain.json and in the closing table, and an error with --strict."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from mmsr_pt.data.domain import Domain
from mmsr_pt.data.shards.build import BuildOptions
from mmsr_pt.data.shards.interactions import SplitRule
from mmsr_pt.data.shards.manifest import print_summary
from mmsr_pt.data.shards.problems import KINDS
from mmsr_pt.log import UserError
from shards.build import main
from tests.data.raw import Interaction, build_table, write_table
from tests.data.tars import trained_events

NUM_ITEMS = 12


def clean_rows() -> list[Interaction]:
    """6 users with 10 interactions each, with items 00 to 09; items 10 and 11 are for the faults."""
    return [(f"u{user}", f"{(user + i) % 10:02d}", i) for user in range(6) for i in range(10)]


def clean(root: Path, more: list[Interaction]) -> Path:
    return write_table(root, [*clean_rows(), *more], {f"{i:02d}": f"title {i}" for i in range(NUM_ITEMS)})


def edit_items(root: Path, old: str, new: str) -> None:
    text = (root / "items.csv").read_text()
    assert old in text
    (root / "items.csv").write_text(text.replace(old, new))


def append(file: Path, line: str) -> None:
    file.write_text(file.read_text() + line + "\n")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing_image": (lambda root: (root / "images/11.jpg").unlink(), "item 11"),
    "unreadable_image": (lambda root: (root / "images/11.jpg").write_text("<html>"), "item 11: .*images/11.jpg"),
    "unknown_item": (lambda root: append(root / "interactions.csv", "u0,99,50"), "row 61: user u0, item 99, time 50"),
    "empty_title": (lambda root: edit_items(root, '"title 11"', '"  "'), "item 11"),
    "duplicate_interaction": (
        lambda root: append(root / "interactions.csv", "u0,00,0"),
        "row 61: user u0, item 00, time 0",
    ),
    "unparsable_time": (
        lambda root: append(root / "interactions.csv", "u0,05,yesterday"),
        "row 61: user u0, item 05, time None",
    ),
    "missing_id": (lambda root: append(root / "interactions.csv", ",05,50"), "row 61: user None, item 05, time 50"),
    "duplicate_item": (lambda root: append(root / "items.csv", '11,"title 11 again"'), "item 11"),
}
"""By kind: what makes one fault in clean data, and how its example reads."""


def damaged(root: Path, kind: str) -> Path:
    clean(root, [])
    FAULTS[kind][0](root)
    return root


def same_but_for_the_fault(domain: Domain) -> None:
    expected = {f"u{u}": [(item, time) for user, item, time in clean_rows() if user == f"u{u}"][:-2] for u in range(6)}
    assert trained_events(domain) == expected


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_counted_and_the_rest_is_built(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # of the table, which folds its lines to fit
    root = damaged(tmp_path / "raw", kind)
    main(["table", "--root", str(root), "--out", str(tmp_path / "out"), "--num_workers", "1"])
    domain = Domain.load(tmp_path / "out")
    assert list(domain.meta["problems"]) == [kind]
    found = domain.meta["problems"][kind]
    assert found["count"] == 1
    pattern = f"^{FAULTS[kind][1]}"
    assert pl.Series(found["examples"]).str.contains(pattern).to_list() == [True]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if kind in line]
    assert [cell.strip() for cell in line.split("│")[1:4]] == [kind, "1", KINDS[kind]]
    same_but_for_the_fault(domain)


@pytest.mark.parametrize("kind", FAULTS)
def test_with_strict_a_fault_is_one_sentence_and_exit_code_2(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = damaged(tmp_path / "raw", kind)
    with pytest.raises(SystemExit) as caught:
        main(["table", "--root", str(root), "--out", str(tmp_path / "out"), "--num_workers", "1", "--strict"])
    assert caught.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert f"{kind}: " in errors[0]
    assert KINDS[kind] in errors[0]
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_clean_data_passes_strict_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = clean(tmp_path / "raw", [])
    domain = build_table(root, tmp_path / "out", BuildOptions(strict=True, num_workers=1))
    assert domain.meta["problems"] == {}
    print_summary(domain)
    assert "No faults" in capsys.readouterr().out


def test_interactions_with_dropped_items_are_dropped_and_counted(tmp_path: Path) -> None:
    """Items 10 (no picture) and 11 (a broken one) are known only before and after the split is first made."""
    more: list[Interaction] = [("u0", "10", 20), ("u0", "11", 21), ("u1", "11", 5), *(("v", "11", i) for i in range(7))]
    root = clean(tmp_path / "raw", more)
    (root / "images/10.jpg").unlink()
    (root / "images/11.jpg").write_text("<html>")
    domain = build_table(root, tmp_path / "out")
    counts = {kind: found["count"] for kind, found in domain.meta["problems"].items()}
    assert counts == {"missing_image": 1, "unreadable_image": 1, "item_dropped": len(more)}
    assert domain.meta["problems"]["item_dropped"]["examples"][0] == "row 61: user u0, item 10, time 20.0"
    assert domain.num_items == 10
    same_but_for_the_fault(domain)  # v had no other items


def test_a_broken_picture_in_the_middle_moves_rows_together(tmp_path: Path) -> None:
    root = clean(tmp_path / "raw", [])
    (root / "images/04.jpg").write_text("<html>")
    domain = build_table(root, tmp_path / "out")
    assert domain.items["item_id"].to_list() == [f"{i:02d}" for i in range(NUM_ITEMS) if i != 4]
    events = {user: [item for item, _ in own] for user, own in trained_events(domain).items()}
    assert events == {
        f"u{u}": [item for user, item, _ in clean_rows() if user == f"u{u}" and item != "04"][:-2] for u in range(6)
    }


def test_many_faults_of_a_kind_keep_five_examples(tmp_path: Path) -> None:
    root = clean(tmp_path / "raw", [("u0", f"lost{i}", 100 + i) for i in range(40)])
    found = build_table(root, tmp_path / "out").meta["problems"]["unknown_item"]
    assert found["count"] == 40
    assert found["examples"] == [f"row {61 + i}: user u0, item lost{i}, time {100.0 + i}" for i in range(5)]


def test_ids_that_look_like_markup_stand_in_the_closing_table_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    root = clean(tmp_path / "raw", [("u0", "[/bold]:smile:", 1)])
    print_summary(build_table(root, tmp_path / "out"))
    assert "item [/bold]:smile:" in capsys.readouterr().out


@pytest.mark.parametrize("time", ["1e300", "-1e19", "nan", "inf", "9223372036854775808"])
def test_a_time_that_no_integer_holds_is_unparsable(tmp_path: Path, time: str) -> None:
    domain = build_table(clean(tmp_path / "raw", [("u0", "00", time)]), tmp_path / "out")
    assert domain.meta["problems"]["unparsable_time"]["count"] == 1


@pytest.mark.parametrize("title", ["", " ", "\t", "\u200b", "\ufeff \u00ad"])
def test_a_title_that_nobody_can_see_is_empty(tmp_path: Path, title: str) -> None:
    root = clean(tmp_path / "raw", [])
    edit_items(root, '"title 11"', f'"{title}"')
    domain = build_table(root, tmp_path / "out")
    assert domain.meta["problems"]["empty_title"]["examples"] == ["item 11"]
    assert domain.num_items == NUM_ITEMS - 1


def test_nothing_usable_says_what_to_look_at(tmp_path: Path) -> None:
    root = clean(tmp_path / "raw", [])
    longer = BuildOptions(SplitRule(min_interactions=11), num_workers=1)
    with pytest.raises(UserError, match="no user has 11 or more of the 60 usable interactions: .* lower --min_inter"):
        build_table(root, tmp_path / "out", longer)
    for picture in (root / "images").iterdir():
        picture.write_text("<html>")
    with pytest.raises(UserError, match="no picture can be decoded: check images/, or build with --modalities text"):
        build_table(root, tmp_path / "out")
    for picture in (root / "images").iterdir():
        picture.unlink()
    with pytest.raises(UserError, match="none of the 12 items has a usable text and a usable image"):
        build_table(root, tmp_path / "out")

"""The figures on the page about memory follow from its formulas, and every DeepSpeed file stands on it."""

import re

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
ROWS = re.findall(
    r"^\| ([^|]+) \| ([^|]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$",
    PAGE,
    re.MULTILINE,
)
RANKS = 8


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}, {row[1]}")
def test_a_row_is_what_the_formulas_give(row: tuple[str, ...]) -> None:
    parameters, trained, *shown = (float(number) for number in row[2:])
    weights, gradients, optimizer = 2 * parameters, 2 * trained, 12 * trained
    expected = (
        weights + gradients + optimizer,
        weights + gradients + optimizer / RANKS,
        weights + (gradients + optimizer) / RANKS,
        (weights + gradients + optimizer) / RANKS,
        optimizer / RANKS,
    )
    assert shown == pytest.approx([megabytes / 1000 for megabytes in expected], abs=0.0051)


def test_there_are_rows_and_the_text_repeats_them() -> None:
    assert len(ROWS) >= 5
    full = next(row for row in ROWS if "full" in row[1])
    assert f"{float(full[4]):.1f} GB on one rank, {float(full[6]):.1f} at" in " ".join(PAGE.split())


def test_every_ds_config_is_on_the_page() -> None:
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "ds_configs").glob("*.json")} == set(
        re.findall(r"^\| `(ds_configs/\w+\.json)` \|", PAGE, re.MULTILINE)
    )

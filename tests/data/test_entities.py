"""Entities in titles: what they stand for, what is none, and that titles of every source are rid of them."""

from pathlib import Path

import polars as pl
import pytest

from mmsr_pt.data.domain import Domain
from mmsr_pt.data.entities import unescape, unescape_column
from tests.data.raw import build_table, write_plain_table

CASES = {
    "Shoes &amp; Jewelry": "Shoes & Jewelry",
    "It&#39;s &quot;it&quot; &#x41;&#X42;": 'It\'s "it" AB',
    "a &amp;amp; b &amp;amp;amp;lt; c": "a & b < c",
    "caf&eacute;&nbsp;&trade;": "café\xa0™",
    "&hellip;&mdash;&frac12;&NotEqualTilde;": "…—½≂̸",
    # no entities: unknown, without a semicolon, or a title that happens to look like one
    "AT&T, Good&timesBar, R&B; &nosuch; &amp": "AT&T, Good&timesBar, R&B; &nosuch; &amp",
    "&notit; &#; &#x;": "&notit; &#; &#x;",
    "&#0;&#1;&#xD800;&#x110000;": "\ufffd\ufffd\ufffd",
    "": "",
}


@pytest.mark.parametrize("text", CASES)
def test_entities_become_what_they_stand_for(text: str) -> None:
    assert unescape(text) == CASES[text]
    assert unescape(unescape(text)) == CASES[text]


def test_a_column_keeps_its_order_its_nulls_and_its_name() -> None:
    column = pl.Series("title", ["plain", None, *CASES, "last"])
    assert unescape_column(column).to_list() == ["plain", None, *CASES.values(), "last"]
    assert unescape_column(column).name == "title"
    for texts in ([], [None], ["plain"]):
        assert unescape_column(pl.Series(texts, dtype=pl.String)).to_list() == texts


def test_titles_of_any_source_lose_their_entities(tmp_path: Path) -> None:
    root = write_plain_table(tmp_path / "raw")
    text = (root / "items.csv").read_text()
    for old, new in (("title 3", "Tom &amp;amp; Jerry&#10;&nbsp; &quot;3&quot;"), ("title 5", "&nbsp;&#8203;")):
        text = text.replace(f'"{old}"', f'"{new}"')
    (root / "items.csv").write_text(text)
    domain = build_table(root, tmp_path / "out")
    assert Domain.load(tmp_path / "out").titles()[3] == 'Tom & Jerry "3"'
    assert domain.meta["problems"]["empty_title"]["examples"] == ["item 5"]  # nothing visible is left of it

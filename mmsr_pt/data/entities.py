"""HTML entities in texts that come from web pages: `Clothing, Shoes &amp; Jewelry`."""

from __future__ import annotations

import html
import re
from html.entities import html5

import polars as pl

# with their semicolon only: HTML also reads `&times` in "Good&timesBar", which is no entity but a title
_ENTITY = r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});"
_PATTERN = re.compile(_ENTITY)
_DEEPEST = 4  # `&amp;amp;amp;quot;` is as far as anyone has escaped a title again and again


def unescape(text: str) -> str:
    """The text with its entities as the characters they stand for, those escaped more than once too."""
    for _ in range(_DEEPEST):
        plain = _PATTERN.sub(_character, text)
        if plain == text:
            break
        text = plain
    return text


def _character(entity: re.Match[str]) -> str:
    name = entity.group()[1:]
    return html.unescape(entity.group()) if name.startswith("#") else html5.get(name, entity.group())


def unescape_column(texts: pl.Series) -> pl.Series:
    """`unescape` of each; only texts that hold an entity pass through Python."""
    rows = texts.str.contains(_ENTITY).fill_null(False).arg_true()
    return texts.scatter(rows, pl.Series([unescape(text) for text in texts.gather(rows)], dtype=pl.String))

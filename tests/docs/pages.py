"""README and documentation as data: pages, the blocks of code in them, and words that stand as code in their text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
SNIPPET = "--8<--"
"""What a page begins with that only shows a file of the repository."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    """Of its first line, from 1."""
    language: str
    """What stands behind the fence; empty: nothing."""
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def page_names() -> list[str]:
    """README.md, shards/README.md and all of docs/ that has text of its own, as paths from the repository."""
    docs = sorted(path for path in (ROOT / "docs").glob("*.md") if not path.read_text().startswith(SNIPPET))
    return ["README.md", "shards/README.md", *(str(path.relative_to(ROOT)) for path in docs)]


def blocks(page: str, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page in order; all, or those of a language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [Block(page, text.count("\n", 0, match.start()) + 2, match[1], match[2]) for match in _FENCE.finditer(text)]
    return [block for block in found if language is None or block.language == language]


def inline_code(page: str) -> list[str]:
    """What stands between single backticks in the text, line breaks as spaces."""
    text = _FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return [" ".join(match[1].split()) for match in _INLINE.finditer(text)]

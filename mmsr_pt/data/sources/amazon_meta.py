"""The three versions of the Amazon reviews: names of fields, and what a line of metadata says of an item.

2014  https://jmcauley.ucsd.edu/data/amazon/index_2014.html  metadata are literals of Python, not JSON
2018  https://nijianmo.github.io/amazon/index.html           metadata hold leftovers of web pages
2023  https://amazon-reviews-2023.github.io                  items are groups of variants (parent_asin)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmsr_pt.data.entities import unescape
from mmsr_pt.data.sources.json_lines import as_text


@dataclass(frozen=True)
class Version:
    """One version of the dataset."""

    name: str
    user: str
    """Field of a review; so are the next two."""
    item: str
    time: str
    ticks_per_second: int
    """Of `time`."""
    item_id: str
    """Field of a line of metadata."""
    marks: frozenset[str]
    """Fields of metadata that only this version has."""
    licence: str

    @property
    def review_fields(self) -> tuple[str, str, str]:
        """The fields wanted of a review; the item last, where `read_columns` says what is wrong."""
        return (self.user, self.time, self.item)


_REVIEW = {"user": "reviewerID", "item": "asin", "time": "unixReviewTime", "ticks_per_second": 1, "item_id": "asin"}
VERSIONS: dict[str, Version] = {
    version.name: version
    for version in (
        Version(
            name="2014",
            **_REVIEW,  # type: ignore[arg-type]
            marks=frozenset({"imUrl", "categories", "related", "salesRank"}),
            licence="Amazon product data 2014 (McAuley et al., UCSD), no licence stated, not redistributable",
        ),
        Version(
            name="2018",
            **_REVIEW,  # type: ignore[arg-type]
            marks=frozenset(
                {"imageURL", "imageURLHighRes", "image", "category", "also_buy", "also_view", "main_cat", "tech1"}
            ),
            licence="Amazon review data 2018 (Ni, Li, McAuley, UCSD), no licence stated, not redistributable",
        ),
        Version(
            name="2023",
            user="user_id",
            item="parent_asin",
            time="timestamp",
            ticks_per_second=1000,
            item_id="parent_asin",
            marks=frozenset({"parent_asin"}),
            licence="Amazon Reviews 2023 (Hou et al., McAuley Lab, UCSD), no licence stated, not redistributable",
        ),
    )
}

_SCRIPT = re.compile(r"getTime\b|<\s*(?:script|style)\b|\bfunction\s*\(")
_TAG = re.compile(
    r"</?(?:a|b|br|div|em|font|h[1-6]|i|img|li|p|small|span|strong|sub|sup|table|td|tr|u|ul)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_NO_PICTURE = re.compile(r"/no-(?:img|image)-")
"""Of the address of a picture that says that there is none."""
_SIZES = ("large", "hi_res", "thumb")
"""Of 2023's pictures: `large` has about 500 pixels a side, which is enough for a domain; `hi_res` up to 1,500."""


def title_with_categories(title: object, paths: Sequence[Sequence[str]]) -> str | None:
    """The title with the names of the item's categories behind it, each once; None where there is no title.

    The top of a path is left out, as all items of a file share it; it stays where no path has more than its top.
    """
    plain = _plain(title)
    if plain is None:
        return None
    below = [name for path in paths for name in path[1:]]
    return ", ".join(distinct([plain, *(below or [path[0] for path in paths])]))


def distinct(names: Iterable[str]) -> list[str]:
    """Each name once, in the order in which they first occur."""
    return list(dict.fromkeys(names))


def category_paths(line: Mapping[str, Any]) -> list[list[str]]:
    """From the most general category down to the finest, one or several such paths, empty ones left out."""
    found = line.get("categories") or line.get("category")
    if not isinstance(found, list):
        found = [found]
    paths = found if any(isinstance(part, list) for part in found) else [found]
    plain = ([_plain(name) for name in (path if isinstance(path, list) else [path])] for path in paths)
    named = ([name for name in path if name] for path in plain)
    return [path for path in named if path]


def picture_url(line: Mapping[str, Any]) -> str | None:
    """The address of the item's main picture, in the size that suits best; None where there is none."""
    candidates = [line.get("imUrl"), *_sizes_of_2023(line.get("images"))]
    for field in ("imageURLHighRes", "imageURL", "image"):
        found = line.get(field)
        candidates += found if isinstance(found, list) else [found]
    urls = (as_text(url).strip() for url in candidates if isinstance(url, str))  # type: ignore[union-attr]
    return next((url for url in urls if url and not _NO_PICTURE.search(url)), None)


def _sizes_of_2023(images: object) -> list[Any]:
    """Addresses of the pictures, the main one's first; `images` is a list of records or, as Hugging Face has it, a
    record of lists.
    """
    if isinstance(images, Mapping):
        lists = {name: found for name, found in images.items() if isinstance(found, list)}
        longest = max(map(len, lists.values()), default=0)
        images = [{name: found[i] for name, found in lists.items() if i < len(found)} for i in range(longest)]
    records = [image for image in images if isinstance(image, Mapping)] if isinstance(images, list) else []
    records.sort(key=lambda image: image.get("variant") != "MAIN")
    return [image.get(size) for image in records for size in _SIZES]


def _plain(text: object) -> str | None:
    """A text without tags and entities; None where it is none, or a piece of a web page's program."""
    if not isinstance(text, str) or _SCRIPT.search(text):
        return None
    return _TAG.sub(" ", unescape(as_text(text) or "")).strip() or None

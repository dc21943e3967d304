"""Which files of Amazon reviews lie in a directory, and of which version they are."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mmsr_pt.data.sources.amazon_meta import VERSIONS, Version, distinct
from mmsr_pt.data.sources.json_lines import read_objects
from mmsr_pt.log import UserError

log = logging.getLogger(__name__)

IMAGES = "images"
"""The directory of the pictures."""
_NAME = re.compile(r"(meta_|reviews_)?(.+?)(_5)?\.jsonl?(?:\.gz)?")
_LINES_LOOKED_AT = 100


@dataclass(frozen=True)
class CategoryFiles:
    """The two files of a category."""

    category: str
    reviews: Path
    meta: Path


def find_files(root: Path) -> list[CategoryFiles]:
    """The files of each category under `root`, in the order of their names.

    Raises:
        UserError: there are none, one of a pair is missing, or a category has two of a kind.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    for path in _json_files(root):
        match = _NAME.fullmatch(path.name)
        if match:
            kind = "metadata" if match[1] == "meta_" else "reviews"
            found.setdefault(match[2], {"reviews": [], "metadata": []})[kind].append(path)
    if not found:
        raise UserError(
            f"{root} has no files of Amazon reviews: put a category's there, such as All_Beauty.jsonl.gz and "
            "meta_All_Beauty.jsonl.gz"
        )
    for category, paths in found.items():
        for kind, other in (("reviews", "metadata"), ("metadata", "reviews")):
            if not paths[kind]:
                raise UserError(
                    f"{paths[other][0]} has no {kind} beside it: put the {kind} of {category} there, or take it away"
                )
            if len(paths[kind]) > 1:
                told = " and ".join(str(path) for path in paths[kind])
                raise UserError(f"{told} are both {kind} of {category}: take one away")
    return [CategoryFiles(name, *paths["reviews"], *paths["metadata"]) for name, paths in sorted(found.items())]


def _json_files(root: Path) -> Iterator[Path]:
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = sorted(name for name in subdirectories if name != IMAGES and not name.startswith("."))
        yield from (Path(directory, name) for name in sorted(names) if not name.startswith("."))


def recognise_version(files: list[CategoryFiles], asked: str) -> Version:
    """The version that all files are of.

    Args:
        files: of every category.
        asked: its name, or "auto".

    Raises:
        UserError: no version or several fit the fields of the first lines, or the one asked for lacks some there.
    """
    found = {}
    for own in files:
        of_reviews, of_meta = _fields(own.reviews), _fields(own.meta)
        version = VERSIONS[_recognise(own, of_reviews, of_meta) if asked == "auto" else asked]
        _check_fields(own.reviews, of_reviews, version.review_fields, version)
        _check_fields(own.meta, of_meta, (version.item_id, "title"), version)
        found[version.name] = own
    if len(found) > 1:
        told = ", ".join(f"{own.meta} is of {name}" for name, own in found.items())
        raise UserError(f"there are files of several versions ({told}): build each from a directory of its own")
    how = "by their fields" if asked == "auto" else "as --version says"
    log.info("Amazon reviews of %s, %s: %s", version.name, how, ", ".join(own.category for own in files))
    return version


def _check_fields(path: Path, there: list[str], wanted: tuple[str, ...], version: Version) -> None:
    lacking = [name for name in wanted if name not in there]
    if lacking:
        raise UserError(
            f"{path} lacks {', '.join(lacking)}, which the version of {version.name} has; the fields of its first "
            f"{_LINES_LOOKED_AT} lines are: {', '.join(there) or 'none'}"
        )


def _fields(path: Path) -> list[str]:
    """All fields of the first lines."""
    lines = islice(read_objects(path, quiet=True), _LINES_LOOKED_AT)
    return distinct(str(name) for _, line in lines for name in line or ())


def _recognise(files: CategoryFiles, of_reviews: list[str], of_meta: list[str]) -> str:
    """The name of the one version that the fields of reviews and metadata agree with."""
    fit = [
        version.name
        for version in VERSIONS.values()
        if version.marks & set(of_meta) and set(version.review_fields) <= set(of_reviews)
    ]
    # 2023 has `categories` too, as 2014 has, but no other version has `parent_asin`
    if len(fit) == 1:
        return fit[0]
    raise UserError(
        f"{files.reviews} and {files.meta} look like "
        + (f"each of {' and '.join(fit)}" if fit else "no version of the Amazon reviews")
        + f": say which with --version {', '.join(VERSIONS)}; the fields of their first lines are "
        + f"{', '.join(of_reviews) or 'none'} and {', '.join(of_meta) or 'none'}"
    )

"""Files of a raw dataset, found by the patterns of their names, and what a message says where they are not."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from mmsr_pt.log import UserError

_MAX_NAMES = 10


def holdings(folder: Path) -> str:
    """What lies in a folder, in words for a message."""
    if not folder.is_dir():
        return f"{folder} is no directory with files"
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    if not names:
        return f"{folder} is empty"
    more = f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
    return f"{folder} holds: {', '.join(names[:_MAX_NAMES])}{more}"


def look_below(root: Path, patterns: Sequence[str], folders: bool = False) -> str:
    """A hint for who gave the folder above the right one: which folder in `root` has what was looked for."""
    if not root.is_dir():
        return ""
    found = [p for p in sorted(root.iterdir()) if p.is_dir() and matching(p, patterns, folders)]
    return f"; {found[0]} has one: was --root {found[0]} meant?" if found else ""


def matching(root: Path, patterns: Sequence[str], folders: bool = False) -> list[Path]:
    """Files, or folders, in `root` whose names match one of the patterns (`*`, `?`), whatever their case."""
    if not root.is_dir():
        return []
    kept = [p for p in sorted(root.iterdir()) if any(fnmatchcase(p.name.lower(), q.lower()) for q in patterns)]
    return [p for p in kept if not p.name.startswith(".") and (p.is_dir() if folders else p.is_file())]


def the_one(
    root: Path, patterns: Sequence[str], flag: str | None = None, named: Path | None = None, folders: bool = False
) -> Path:
    """The one file, or folder, in `root` that matches, or the one that the user named with `flag`.

    Raises:
        UserError: there is none, or more than one.
    """
    kind = "folder" if folders else "file"
    if named is not None:
        if not (named.is_dir() if folders else named.is_file()):
            raise UserError(f"{flag} {named} is no {kind}; {holdings(named.parent)}")
        return named
    found = matching(root, patterns, folders)
    if not found:
        ways = [f"name the {kind} with {flag}"] if flag else []
        ways += ["build with --modalities text"] if folders else []
        advice = f"; {', or '.join(ways)}" if ways else ""
        raise UserError(
            f"no {kind} {' or '.join(patterns)}: {holdings(root)}{look_below(root, patterns, folders)}{advice}"
        )
    if len(found) > 1:
        advice = f"choose one, as by {flag} {found[0]}" if flag else "take one away"
        raise UserError(f"{root} holds {' and '.join(p.name for p in found)}: {advice}")
    return found[0]

"""Keeps to ourselves where files stand on this machine: of local paths only the last name is published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_PATHS = ("data", "run_dir", "ds_config")
"""Settings of a run that are paths, also where they are relative."""


def short_place(text: str) -> str:
    """Of a local path, bare or behind a tower's prefix, prefix and last name; any other text as it is.

    >>> short_place("timm:local-dir:/home/me/weights/lite0")
    'timm:local-dir:lite0'
    >>> short_place("hf:user/name")
    'hf:user/name'
    """
    prefix, colon, reference = text.rpartition(":")
    return prefix + colon + _name(reference) if _is_local(reference) else text


def without_places(value: Any, setting: str = "") -> Any:
    """The same JSON value with every local path in it shortened.

    Args:
        value: of a configuration.
        setting: its name.
    """
    if isinstance(value, dict):
        return {name: without_places(inside, name) for name, inside in value.items()}
    if isinstance(value, list):
        return [without_places(inside, setting) for inside in value]
    if isinstance(value, str):
        return _name(value) if setting in _PATHS else short_place(value)
    return value


def _name(path: str) -> str:
    return Path(path).name or path


def _is_local(reference: str) -> bool:
    if reference.startswith(("/", "~", "./", "../")):
        return True
    try:
        return "/" in reference and Path(reference).exists()
    except (OSError, ValueError):  # too long for a path, or with bytes that none has
        return False

"""Named parts: one decorator to register, one error message for an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from mmsr_pt.log import UserError

T = TypeVar("T")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name nobody registered: it lists the known names and the nearest one."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {name!r}; known: {', '.join(known)}.{hint}")


class Registry(Generic[T]):
    """A table from names to parts of one kind.

    >>> fusions = Registry("fusion")
    >>> @fusions.register("sum")
    ... class SumFusion: ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files the decorated class or function under `name`."""
        assert name not in self._parts, f"{self.kind} {name!r} is registered twice"

        def add(part: T) -> T:
            self._parts[name] = part
            return part

        return add

    def __getitem__(self, name: str) -> T:
        """Returns the part called `name`; raises UserError with the nearest known name."""
        if name not in self._parts:
            raise unknown_name(self.kind, name, self._parts)
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))

    def __contains__(self, name: str) -> bool:
        return name in self._parts

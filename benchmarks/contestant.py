"""A contestant: a process that sets one thing up, and then repeats it whenever it is asked to.

    python -m benchmarks.contestant '{"make": "benchmarks.training:Training", "settings": {...}}'

`make` names a callable, module:name, which gets the settings by keyword and returns an object with

    run() -> dict[str, float]
        One repetition: figures by name, among them the one that its row compares.
    work() -> {"units": float, "flops": {"matmul float32": float, ...}} or None
        Optional. Floating-point operations of the matrix products and convolutions of some typical work, by kind and
        dtype, and how many of the row's units (users, items) that work is for.

A request is a line on standard input: run, or work. The answer is a line of JSON on standard output. What libraries
print goes to standard error. This module needs the standard library only: a contestant may live in another environment.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1


def main(argv: list[str] | None = None) -> None:
    """Sets up, says so, and answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _die_with_parent()

    def answer(make: Callable[[], Any]) -> bool:
        try:
            said = {"answer": make()}
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        answers.write(json.dumps(said) + "\n")
        answers.flush()
        return "error" not in said

    described = json.loads((sys.argv[1:] if argv is None else argv)[0])
    made: list[Any] = []
    if not answer(lambda: made.append(_make(described))):
        return
    for request in sys.stdin:
        answer(getattr(made[0], request.strip(), lambda: None))
    # a set-up may hold loader processes and collectives that would block an orderly end
    os._exit(0)


def _make(described: dict[str, Any]) -> Any:
    module, _, name = described["make"].partition(":")
    return getattr(importlib.import_module(module), name)(**described["settings"])


def _die_with_parent() -> None:
    """A contestant is stopped while others run, and would stay so for ever if its parent were killed."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


if __name__ == "__main__":
    main()

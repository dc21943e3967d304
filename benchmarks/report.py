"""Results on disk and on the screen: benchmarks/results.json and the table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import ROOT
from benchmarks.rows import threads
from benchmarks.work import seconds_at

RESULTS = ROOT / "benchmarks" / "results.json"
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def machine() -> dict[str, Any]:
    """What is measured on, and of which commit."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads(),
        "memory_gb": round(memory / 1e9, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _git("rev-parse", "--short=12", "HEAD") + ("+" if _is_changed() else ""),
        "date": time.strftime("%Y-%m-%d"),
    }


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.is_file() else []


def _is_changed() -> bool:
    return bool(_git("status", "--porcelain", "--", ".", f":!{RESULTS.relative_to(ROOT)}"))


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def keep(path: Path, part: str, name: str, found: dict[str, Any]) -> None:
    """Files what was found under part and name; what other runs found stays, each with the machine of its own run."""
    kept = json.loads(path.read_text()) if path.is_file() else {}
    kept.setdefault(part, {})[name] = {**found, "machine": machine()}
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(kept, indent=1) + "\n")
    unfinished.replace(path)


def add_limits(result: dict[str, Any], rates: dict[str, float]) -> None:
    """Adds to a row, for every contestant with counted operations, what these need at the machine's rates.

    limits: flops (operations of a unit), seconds (that these need for a unit), share (of that limit which was reached).
    Rows whose figure is no speed get none.
    """
    result["rates"] = rates
    result["limits"] = {}
    if not _is_time(result) and not result["unit"].endswith("/s"):
        return
    for name, work in result["flops"].items():
        seconds = seconds_at(rates, work["flops"]) / work["units"]
        reached = statistics.median(run[result["figure"]] for run in result["figures"][name])
        result["limits"][name] = {
            "flops": sum(work["flops"].values()) / work["units"],
            "seconds": seconds,
            "share": seconds / reached if _is_time(result) else reached * seconds,
        }


def _is_time(result: dict[str, Any]) -> bool:
    """Whether the figure is the seconds of a unit, and not units a second."""
    return result["unit"].startswith("s/")


def table(rows: dict[str, Any]) -> str:
    """The rows as a Markdown table, each line a comparison."""
    head = ("work", "ours", "against", "ratio", "min-max", "at least", "aim", "reached", "limit", "share of it")
    lines = [head, ("---",) * len(head)]
    for row in rows.values():
        for comparison in row["comparisons"]:
            lines.append(_line(row, comparison))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _line(row: dict[str, Any], comparison: dict[str, Any]) -> tuple[str, ...]:
    limit = row.get("limits", {}).get(comparison["ours"])
    return (
        f"{row['work']}: {comparison['note']}",
        f"{amount(comparison['ours_median'])} {row['unit']}",
        f"{amount(comparison['against_median'])} ({comparison['against']})",
        f"{comparison['ratio']:.2f} x",
        f"{comparison['ratio_min']:.2f}-{comparison['ratio_max']:.2f}",
        _target(comparison["at_least"]),
        _target(comparison["aim"]),
        verdict(comparison),
        f"{amount(limit['seconds'] if _is_time(row) else 1 / limit['seconds'])} {row['unit']}" if limit else "",
        f"{limit['share']:.0%}" if limit else "",
    )


def verdict(comparison: dict[str, Any]) -> str:
    """What the median ratio has reached."""
    if comparison["aim"] is not None and comparison["ratio"] >= comparison["aim"]:
        return "aim"
    if comparison["at_least"] is None:
        return "" if comparison["aim"] is None else "no"
    return "yes" if comparison["ratio"] >= comparison["at_least"] else "no"


def amount(value: float) -> str:
    """Three digits and a prefix: 1.23 M."""
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"


def _target(value: float | None) -> str:
    return "" if value is None else f"{value:g} x"


def write(text: str) -> None:
    """To standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()

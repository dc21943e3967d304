"""How long it takes from nothing to a recommendation: loading the model, its catalogue, and the first answer.

    python -m benchmarks.first_recommendation --model runs/mine --data data/mine

In one process, each step once, as a user meets them: importing the package, loading the model, encoding the catalogue
from its pictures and titles (once in the life of an index), loading the index that was saved, the first answer, and the
median of further ones. Histories are those of the domain's first users. No ratio and no baseline: it says what to
expect.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from mmsr_pt.log import UserError, user_facing

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Settings:
    """Of what."""

    model: str
    """A run directory, a bundle directory or a hub id."""
    data: Path
    """The domain whose items are recommended."""
    answers: int = 100
    """Further ones, of which the median is shown."""

    def __post_init__(self) -> None:
        if self.answers < 1:
            raise UserError(f"--answers {self.answers} must be at least 1")


def measure(settings: Settings) -> dict[str, float]:
    """Seconds of each step by its name, in the order in which they happen."""
    seconds: dict[str, float] = {}

    def timed(step: str, work: Callable[[], _Made]) -> _Made:
        start = time.perf_counter()
        made = work()
        seconds[step] = time.perf_counter() - start
        return made

    load = timed("import mmsr_pt", _imported)
    model = timed("load the model", lambda: load(settings.model))
    from mmsr_pt.data.domain import Domain

    domain = Domain.load(settings.data)
    encoded = timed(f"encode {domain.num_items:,} items", lambda: model.index(domain))
    with tempfile.TemporaryDirectory() as scratch:
        encoded.save(Path(scratch) / "index")
        index = timed("load the index", lambda: model.load_index(Path(scratch) / "index"))
    ids = domain.items["item_id"]
    histories = [ids[rows.to_list()].to_list() for rows in domain.eval["history"].head(settings.answers + 1)]
    timed("first answer", lambda: model.recommend(histories[0], index))
    further = []
    for number in range(settings.answers):
        timed("answer", lambda number=number: model.recommend(histories[(number + 1) % len(histories)], index))  # type: ignore[misc]
        further.append(seconds.pop("answer"))
    seconds[f"median of {settings.answers} further answers"] = median(further)
    return seconds


def _imported() -> Callable:
    from mmsr_pt import MMSRModel

    return MMSRModel.from_pretrained


@user_facing
def main(argv: list[str] | None = None) -> None:
    """Measures and prints."""
    settings = tyro.cli(Settings, description=(__doc__ or "").splitlines()[0], args=argv, use_underscores=True)
    seconds = measure(settings)
    table = Table("step", "seconds")
    for step, taken in seconds.items():
        table.add_row(step, f"{taken:.3f}")
    names = list(seconds)
    saved = sum(seconds[name] for name in (names[0], names[1], names[3], names[4]))
    table.add_section()
    table.add_row("to the first answer with a saved index", f"{saved:.3f}")
    table.add_row("to the first answer without one", f"{saved - seconds[names[3]] + seconds[names[2]]:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])

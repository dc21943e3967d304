"""What was done to the runs of a soak, as a picture: their steps over time, and the fault that ended each start.

python -m tests.soak.soak --keep OUT
python -m tests.soak.picture OUT/attempts.jsonl docs/images/soak.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mmsr_pt.figures.canvas import COLOURS, MARKERS, canvas, headline, save


def draw(attempts: Path, out: Path) -> None:
    """Draws the lines that `soak` has written, one for each start."""
    lines = [json.loads(line) for line in attempts.read_text().splitlines()]
    # before the first start the undisturbed run has the machine for itself
    first, last = lines[0]["begin"] / 60, lines[-1]["end"] / 60
    rows = 1 + int((last - first) // 20.5)
    figure, axes = canvas(rows, 1, width=11, height=1.9)
    faults = sorted({line["fault"] for line in lines if not line["is_done"]})
    ranks = sorted({line["ranks"] for line in lines})
    for row, axis in enumerate(axes[:, 0]):
        for line in lines:
            colour = COLOURS[ranks.index(line["ranks"])]
            begin, end = line["begin"] / 60, line["end"] / 60
            if line["last"]:
                axis.plot([begin, end], [line["first"], line["last"]], color=colour, linewidth=1.4)
            if not line["is_done"]:
                marker = MARKERS[faults.index(line["fault"])]
                axis.plot(end, line["last"], marker, color=colour, markersize=4, markeredgewidth=0)
        axis.set_xlim(*(first + part * (last - first) / rows for part in (row, row + 1)))
        axis.set_ylabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    for number, count in enumerate(ranks):
        axes[0, 0].plot([], [], color=COLOURS[number], label=f"{count} rank{'s' if count > 1 else ''}")
    for number, fault in enumerate(faults):
        axes[0, 0].plot([], [], MARKERS[number], color="#444444", markersize=4, label=fault)
    axes[-1, 0].set_xlabel("minutes")
    figure.legend(loc="outside lower center", ncols=len(ranks) + len(faults), fontsize=7, frameon=False)
    killed = sum(not line["is_done"] for line in lines)
    rounds = sum(line["is_done"] for line in lines)
    headline(
        figure,
        f"{rounds} trainings that were interrupted {killed} times",
        "a line: one start, from the step that it went on from to its last; a mark: what ended it, at the bottom "
        "where there was no step yet",
    )
    save(figure, out)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))

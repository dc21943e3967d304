"""Measures the toolkit.

python -m benchmarks                     all rows of the table, as `make bench` does
python -m benchmarks train-small idsr    some of them
python -m benchmarks --list              their names
python -m benchmarks growth              how the time of a step grows, with a picture
python -m benchmarks quality --data D --weights W    what the fast way costs in accuracy; takes hours
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

import torch

from benchmarks import growth, quality, report
from benchmarks.harness import Entrant, Process, measure
from benchmarks.parts import WORK_DIR, Parts, find_parts
from benchmarks.rows import ROWS, Unavailable, tiny
from mmsr_pt.log import setup_logging, user_facing
from mmsr_pt.registry import unknown_name

log = logging.getLogger(__name__)

_STUDIES = ("growth", "quality")


@user_facing
def main(argv: list[str] | None = None) -> None:
    """Measures what is named, files it in results.json and prints it."""
    words = sys.argv[1:] if argv is None else argv
    own = words.index("--") if "--" in words else len(words)
    asked = _parser().parse_args(words[:own])
    setup_logging()
    if not torch.cuda.is_available():
        # else DeepSpeed, which transformers imports to save a model, warns that it found no accelerator
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # contestants are ended on the way out, which the system's own way of ending would skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if asked.list:
        report.write("\n".join([*ROWS, *_STUDIES]))
        return
    for name in asked.names:
        if name not in (*ROWS, *_STUDIES):
            raise unknown_name("row", name, (*ROWS, *_STUDIES))
    if "growth" in asked.names:
        growth.study(asked.out, asked.repetitions or 5, sweeps=asked.sweeps)
    if "quality" in asked.names:
        quality.study(asked.data, asked.weights, asked.seeds, asked.out, words[own + 1 :], asked.settings)
    rows = [name for name in asked.names if name in ROWS] or ([] if asked.names else list(ROWS))
    if rows:
        parts = find_parts(asked.data, asked.weights, asked.text, asked.vision, asked.recbole)
        _measure(rows, parts, asked.repetitions, asked.tiny, asked.out)


def _measure(names: list[str], parts: Parts, repetitions: int | None, is_tiny: bool, out: Path) -> None:
    logs = WORK_DIR / "logs"
    log.info("measuring the machine's rates")
    with Process(Entrant("benchmarks.work:Rates"), logs / "rates.log") as process:
        found = {}
        for name in names:
            try:
                row = tiny(ROWS[name](parts)) if is_tiny else ROWS[name](parts)
            except Unavailable as error:
                log.warning("%s", error)
                continue
            # at the time of the row: rates drift too
            rates = process.ask("run")
            result = measure(row, logs, log.info, repetitions)
            report.add_limits(result, rates)
            report.keep(out, "rows", name, result)
            found[name] = result
    report.write(report.table(found))
    log.info("the figures are in %s", out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measures the toolkit on this machine.")
    parser.add_argument("names", nargs="*", metavar="ROW", help="rows or studies; none given: all rows, no study")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--data", type=Path, help="domain directory; none given: the drawn domain")
    parser.add_argument("--weights", type=Path, help="directory with minilm-l6 and tf_efficientnet_lite0")
    parser.add_argument("--text", help="text tower as for pretrain/run.py, in place of the one in --weights")
    parser.add_argument("--vision", help="vision tower, likewise")
    parser.add_argument("--recbole", type=Path, help="python of an environment with RecBole 1.2.1, for idsr")
    parser.add_argument("--repetitions", type=int, help="rounds in place of each row's own number")
    parser.add_argument("--tiny", action="store_true", help="little work, once: shows that rows run, measures nothing")
    parser.add_argument(
        "--sweeps",
        nargs="+",
        default=growth.SWEEPS,
        metavar="SWEEP",
        help="for growth: " + ", ".join(growth.SWEEPS),
    )
    parser.add_argument("--seeds", type=int, default=5, help="runs of each setting, for quality")
    parser.add_argument(
        "--settings",
        nargs="+",
        default=quality.DEFAULT,
        metavar="SETTING",
        help="for quality: " + ", ".join(quality.SETTINGS),
    )
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="JSON file to put the figures in")
    return parser


if __name__ == "__main__":
    main()

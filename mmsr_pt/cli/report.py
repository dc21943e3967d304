"""`mmsr-pt report`: a run as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from mmsr_pt.cli.common import require, require_file, shown_source
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.evaluation.table import wide_console
from mmsr_pt.report.page import write_report


def report_command(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    out: Path | None = None,
    data: tuple[Path, ...] = (),
    batch_size: int = 256,
) -> None:
    """Write one self-contained HTML page about a run: settings, curves, figures, items, users, throughput.

    Example: mmsr-pt report runs/mine

    Args:
        run: The run directory, of a finished run or of one under way.
        out: The file to write; none given: report.html in the run directory.
        data: Where the domains of the run are now, in its order; none given: where they were.
        batch_size: Items encoded at once.
    """
    require(batch_size >= 1, f"--batch_size {batch_size} must be at least 1")
    require_file(out, "--out")
    file = write_report(run, out, data, shown_source, batch_size)
    if processes().is_main_process:
        size = file.stat().st_size / 1e6
        wide_console().print(f"{file} ({size:.1f} MB)", markup=False, highlight=False, soft_wrap=True)

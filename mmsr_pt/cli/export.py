"""`mmsr-pt export`: a model as ONNX, for servers without torch."""

from __future__ import annotations

from pathlib import Path

from mmsr_pt.evaluation.table import wide_console
from mmsr_pt.export.check import TOLERANCE
from mmsr_pt.export.directory import DEFAULT_OPSET, check_request, export, require_exporter
from mmsr_pt.hub.find import find_bundle
from mmsr_pt.model import MMSRModel


def export_command(model: str, out: Path, opset: int = DEFAULT_OPSET) -> None:
    """Write a model's item tower and user tower as ONNX, checked against torch with onnxruntime.

    Example: mmsr-pt export --model runs/mine --out exported

    Args:
        model: A run directory, a bundle directory or a hub id.
        out: Directory to write, new or empty; export.json there says what goes in and what a score is.
        opset: Version of ONNX's operators, 18 to 23.
    """
    # all that can be wrong with the request shows before a model is downloaded
    require_exporter()
    check_request(out, opset)
    towers = export(MMSRModel.from_pretrained(find_bundle(model)), out, opset)
    console = wide_console()
    for tower in towers:
        console.print(
            f"{tower.file:<15} {tower.num_bytes / 1e6:10,.1f} MB   largest difference from torch "
            f"{tower.difference:.1e} of the largest entry ({TOLERANCE:.0e} is allowed)",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

"""mmsr_pt: pre-train multimodal sequential recommenders at scale and transfer them to new domains."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmsr_pt.model import MMSRModel

__version__ = "0.1.0"
__all__ = ["MMSRModel"]


def __getattr__(name: str) -> object:
    # on demand: torch and all that comes with it is not for every import of this package
    if name == "MMSRModel":
        from mmsr_pt.model import MMSRModel

        return MMSRModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Raw datasets in their owners' layouts, one file each: add a file, register its class, import it here."""

from mmsr_pt.data.sources import amazon, hm, microlens, movielens, ninerec, pixelrec, synthetic, table
from mmsr_pt.data.sources.base import SOURCES, RawDomain, Source

__all__ = [
    "SOURCES",
    "RawDomain",
    "Source",
    "amazon",
    "hm",
    "microlens",
    "movielens",
    "ninerec",
    "pixelrec",
    "synthetic",
    "table",
]

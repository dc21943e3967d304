"""Sequence encoders, one file each: add a file, register its class, import it here."""

from mmsr_pt.models.sequence import bert4rec, carca, fdsa, grurec, nextitnet, rotary, sasrec
from mmsr_pt.models.sequence.base import SequenceEncoder, sequence_encoders

__all__ = [
    "SequenceEncoder",
    "bert4rec",
    "carca",
    "fdsa",
    "grurec",
    "nextitnet",
    "rotary",
    "sasrec",
    "sequence_encoders",
]

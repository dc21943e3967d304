"""The codebook of `--item codes`, fitted on the titles of a run's domains before training.

As many titles as k-means needs are drawn, and the frozen text tower reads them once, on rank 0; all ranks get the same
codebook. It is part of the bundle, so whatever is evaluated later is coded alike.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmsr_pt.data.catalogue import iter_item_batches
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.models.codes import CodeItemEncoder
from mmsr_pt.training.distributed import from_rank0

log = logging.getLogger(__name__)

_TITLES_PER_VALUE = 128
"""Drawn for each value of a code; more hardly move a centroid."""
_BATCH = 128


def fit_codebook(encoder: CodeItemEncoder, preprocessor: Preprocessor, domains: Sequence[Domain]) -> None:
    """Fits the encoder's codebook in place. Collective: call on every rank, with the same random numbers ahead.

    Args:
        encoder: on the CPU in float32.
        preprocessor: of the model.
        domains: all of whose titles may be drawn.

    Raises:
        UserError: on every rank, where there are fewer titles than values of a code.
    """
    # every rank draws, so that random numbers stay the same on all
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    device = processes().device

    def fit() -> dict[str, Tensor]:
        vectors = _vectors(encoder.to(device), preprocessor, domains, generator)
        encoder.to("cpu")
        log.info("fitting %d codes of %d values on %d titles", *encoder.codebook.centroids.shape[:2], len(vectors))
        encoder.codebook.fit(vectors, generator)
        return encoder.codebook.state_dict()

    encoder.codebook.load_state_dict(from_rank0(fit))


def _vectors(
    encoder: CodeItemEncoder, preprocessor: Preprocessor, domains: Sequence[Domain], generator: torch.Generator
) -> Tensor:
    """[N, d] float32 on the CPU: the vectors of the titles drawn from all domains together."""
    device = encoder.codes.weight.device
    ends = np.cumsum([domain.num_items for domain in domains])
    drawn = torch.randperm(int(ends[-1]), generator=generator)[: _TITLES_PER_VALUE * encoder.num_values].sort().values
    vectors = []
    for domain, end in zip(domains, ends):
        rows = drawn.numpy() - (end - domain.num_items)
        rows = rows[(rows >= 0) & (rows < domain.num_items)]
        for items in iter_item_batches(domain, preprocessor, rows, _BATCH):
            vectors.append(encoder.title_vectors(items.to(device)).cpu())
    return torch.cat(vectors)

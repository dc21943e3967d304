"""The nearest of very many vectors without looking at all of them, by faiss.

Shapes: u users, N items, D width.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsr_pt.log import UserError

log = logging.getLogger(__name__)

_LISTS_PER_ROOT = 4
_TRAINED_ON_PER_LIST = 64
_RECALL_WANTED = 0.98
_RECALL_QUERIES = 200
_RECALL_AT = 10


@dataclass(frozen=True, eq=False)
class ApproximateSearch:
    """The largest inner products without all of them: faiss's inverted lists over k-means cells, vectors kept whole."""

    index: Any
    recall: float
    """Share of the true ten best that it found, over a sample of items as queries."""

    @classmethod
    def build(cls, vectors: np.ndarray) -> ApproximateSearch:
        """As many cells are looked into as find `_RECALL_WANTED` of the ten best, measured here.

        Args:
            vectors: [N, D] float32.
        """
        faiss = _faiss()
        num_items, width = vectors.shape
        num_lists = max(1, min(_LISTS_PER_ROOT * int(num_items**0.5), num_items // _TRAINED_ON_PER_LIST))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, num_lists, faiss.METRIC_INNER_PRODUCT)
        draw = np.random.default_rng(0)
        sample = draw.permutation(num_items)[: _TRAINED_ON_PER_LIST * num_lists]
        index.train(vectors[np.sort(sample)])
        index.add(vectors)
        queries = vectors[draw.permutation(num_items)[:_RECALL_QUERIES]]
        wanted = np.argsort(-(queries @ vectors.T), axis=1)[:, :_RECALL_AT]
        index.nprobe, recall = 1, 0.0
        while True:
            found = index.search(queries, _RECALL_AT)[1]
            recall = float(np.mean([np.isin(a, b).mean() for a, b in zip(wanted, found)]))
            if recall >= _RECALL_WANTED or index.nprobe >= num_lists:
                break
            index.nprobe = min(2 * index.nprobe, num_lists)
        log.info(
            "faiss: %d items in %d cells, %d of them searched, which finds %.1f %% of the ten best",
            num_items,
            num_lists,
            index.nprobe,
            100 * recall,
        )
        return cls(index, recall)

    def search(self, users: np.ndarray, number: int) -> np.ndarray:
        """[u, D] float32 -> [u, number] int64 rows, best first; -1 where it found fewer."""
        return self.index.search(users, number)[1]

    def describe(self) -> dict[str, Any]:
        """What index.json says of it."""
        return {
            "kind": "faiss-ivf-flat",
            "cells": self.index.nlist,
            "searched": self.index.nprobe,
            "recall": self.recall,
        }

    def write(self, file: Path) -> None:
        """Writes faiss's own file."""
        _faiss().write_index(self.index, str(file))

    @classmethod
    def read(cls, file: Path, about: dict[str, Any]) -> ApproximateSearch:
        """Reads faiss's own file; raises UserError where it is damaged."""
        faiss = _faiss()
        try:
            index = faiss.read_index(str(file))
            index.nprobe = about["searched"]
            return cls(index, about["recall"])
        except (RuntimeError, AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged: make the index again with mmsr-pt encode") from error


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "approximate search needs faiss: pip install 'mmsr_pt[serve]', or search exactly with --search exact"
        ) from error
    return faiss

"""What a run writes down while it trains: metrics.jsonl and TensorBoard. Other ranks than 0 write nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmsr_pt.board import MOST_ITEMS, begin_session, clear_projector, end_session, settings_of, write_projector
from mmsr_pt.config import PretrainConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.figures.vectors import drawn_items
from mmsr_pt.log import naming_a_full_disk
from mmsr_pt.run_dir import METRICS, MetricsLog
from mmsr_pt.training.checkpoint import CheckpointManager


class Recorder:
    """Writes once it has begun; a full disk then is one sentence, which says how to go on."""

    def __init__(
        self, config: PretrainConfig, domains: Sequence[Domain], run_dir: Path, checkpoints: CheckpointManager
    ) -> None:
        """A run's."""
        self._config, self._domains, self._run_dir, self._checkpoints = config, domains, run_dir, checkpoints
        self._metrics: MetricsLog | None = None

    def begin(self, step: int, under_evaluation: int, settings: Mapping[str, str | int | float]) -> None:
        """Goes on behind a step; on rank 0.

        Args:
            step: of the checkpoint that the run goes on from; 0: a new run.
            under_evaluation: a step that was still under evaluation then; 0: none.
            settings: what TensorBoard shows beside those of the configuration.
        """
        with self._naming_a_full_disk():
            self._metrics = MetricsLog(self._run_dir, step, under_evaluation, [domain.name for domain in self._domains])
        self._write(lambda metrics: self._begin_session(metrics, settings))

    def _begin_session(self, metrics: MetricsLog, settings: Mapping[str, str | int | float]) -> None:
        clear_projector(Path(metrics.board.log_dir))
        tags = [metrics.tag(domain.name, "test", "mmsr", "all") for domain in self._domains]
        tested = [f"{tag}/{metric}" for tag in tags for metric in ("HR@10", "NDCG@10")]
        begin_session(metrics.board, settings_of(self._config, settings), tested)

    def train(self, line: Mapping[str, Any]) -> None:
        """A `train` line."""
        self._write(lambda metrics: metrics.train(line))

    def evaluation(self, line: Mapping[str, Any]) -> None:
        """An `eval` line."""
        self._write(lambda metrics: metrics.evaluation(line))

    def warning(self, line: Mapping[str, Any]) -> None:
        """A `warning` line."""
        self._write(lambda metrics: metrics.warning(line))

    def gates(self, domain: Domain, found: Mapping[str, Tensor], step: int) -> None:
        """Histograms of what `board.gates` found on a domain's items."""

        def write(metrics: MetricsLog) -> None:
            for name, values in found.items():
                metrics.board.add_histogram(metrics.tag(domain.name, "gates", name), values, step)

        self._write(write)

    def items(self, domain: Domain, catalogue: Tensor, step: int) -> None:
        """Some items of a catalogue [N, D], for TensorBoard's projector."""

        def write(metrics: MetricsLog) -> None:
            rows = drawn_items(domain.num_items, MOST_ITEMS // len(self._domains), self._config.run.seed)
            vectors = catalogue[torch.from_numpy(rows).to(catalogue.device)]
            write_projector(metrics.board, domain, rows, vectors, step)

        self._write(write)

    def flush(self) -> None:
        """Before a process that is asked to end does."""
        self._write(lambda metrics: metrics.board.flush())

    def end(self) -> None:
        """Behind the test."""
        self._write(lambda metrics: end_session(metrics.board))
        self._write(lambda metrics: metrics.close())

    def _write(self, how: Callable[[MetricsLog], None]) -> None:
        if self._metrics is not None:
            with self._naming_a_full_disk():
                how(self._metrics)

    def _naming_a_full_disk(self) -> AbstractContextManager[None]:
        return naming_a_full_disk(self._run_dir / METRICS, self._checkpoints.how_to_go_on())

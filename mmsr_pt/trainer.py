"""The training loop: steps, log lines, checkpoints; when to validate, and when to stop."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mmsr_pt.batch import UserBatch
from mmsr_pt.board import (
    MOST_ITEMS,
    begin_session,
    clear_projector,
    end_session,
    gates,
    settings_of,
    write_projector,
)
from mmsr_pt.cache import ItemCache
from mmsr_pt.config import PretrainConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.order import StreamOrder
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.evaluation.evaluate import encode_catalogue
from mmsr_pt.figures.vectors import drawn_items
from mmsr_pt.log import UserError, naming_a_full_disk, redraw_seconds
from mmsr_pt.run_dir import MetricsLog
from mmsr_pt.training.bad_samples import BadSamples
from mmsr_pt.training.bank import Bank
from mmsr_pt.training.checkpoint import CheckpointManager
from mmsr_pt.training.distributed import sum_over_ranks, world_size
from mmsr_pt.training.engine import Engine, NonFiniteLoss, StepReport
from mmsr_pt.training.launch import DistInfo
from mmsr_pt.training.optim import learning_rate_factor
from mmsr_pt.training.sharing import share_items, sharing_report
from mmsr_pt.validation import Standing, Validation

log = logging.getLogger(__name__)


@dataclass
class Meter:
    """Counts between two log lines, on this rank."""

    start: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    users: int = 0
    loss: float = 0.0
    steps: int = 0
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, waited: float, batches: list[UserBatch], loss: float, report: Mapping[str, float]) -> None:
        """Takes in one step."""
        self.waited += waited
        self.users += sum(int((batch.users >= 0).sum()) for batch in batches)
        self.loss += loss
        self.steps += 1
        for name, value in report.items():
            self.counts[name] = self.counts.get(name, 0.0) + value

    def line(self, device: torch.device) -> dict[str, float]:
        """Rates since the start over all ranks. Collective: call on every rank."""
        elapsed = time.perf_counter() - self.start
        names = sorted(self.counts)
        total = sum_over_ranks([float(self.users), self.waited, *(self.counts[name] for name in names)], device)
        counts = dict(zip(names, total[2:]))
        return {
            "loss": self.loss / self.steps,
            "users_per_s": total[0] / elapsed,
            "items_encoded_per_s": counts["items_encoded"] / elapsed,
            "data_wait": total[1] / world_size() / elapsed,
            "encoder_calls_saved": 1 - counts["items_encoded"] / counts["slots"],
        }


class Trainer:
    """Runs a task through an engine until its steps are done or validation stops improving."""

    def __init__(
        self,
        config: PretrainConfig,
        domains: list[Domain],
        preprocessor: Preprocessor,
        engine: Engine,
        order: StreamOrder,
        run_dir: Path,
        place: DistInfo,
        cache: ItemCache | None = None,
    ) -> None:
        self.config, self.run_dir, self.place = config, run_dir, place
        self.domains, self.engine, self.order = domains, engine, order
        run = config.run
        self.total_steps = run.steps or run.epochs * order.steps_per_epoch
        self.eval_every = run.eval_every or order.steps_per_epoch
        self.checkpoint_every = run.checkpoint_every or order.steps_per_epoch
        self.checkpoints = CheckpointManager(run_dir, keep=run.keep_checkpoints)
        self.step = 0
        """Optimizer steps done."""
        self.validation = Validation(
            config, domains, preprocessor, engine, run_dir, place, cache, self.checkpoints, self._record
        )
        optim = config.optim
        self.bank = Bank(domains, order, optim.bank_size, config.data.pool_size) if optim.bank_size else None
        self.bank_refreshed = -1  # after which step
        num_users = sum(sum(tars) for tars in order.tar_users)
        self.bad = BadSamples(num_users, sum(domain.num_items for domain in domains), config.data.max_bad)
        self.metrics: MetricsLog | None = None  # of rank 0, once training begins

    def resume(self) -> None:
        """Takes up the newest checkpoint of the run directory. Collective: call on every rank."""
        state = self.checkpoints.load(self.engine)
        saved = state["order"]
        for name, value in self._order_state().items():
            if saved.get(name, value) != value:
                raise UserError(
                    f"{self.run_dir} was trained with {name} {saved[name]}, now it is {value}: the order of users "
                    "would change; go on with the same domains, batch, seed and buffer, or start another run"
                )
        standing = dict(state["progress"])
        self.step = standing.pop("step")
        self.validation.standing = Standing(**standing)
        if "bad_samples" in state:  # else an earlier version wrote it
            self.bad.resume(state["bad_samples"])
        log.info("resumed at step %d of %d", self.step, self.total_steps)

    def fit(self, batches: Iterable[UserBatch], validate_first: bool = False) -> None:
        """Trains from the current step on. Collective: call on every rank.

        Args:
            batches: this rank's micro-batches from that step on.
            validate_first: judge the model before its first step too: one that has learnt elsewhere may be the best.
        """
        if self.place.rank == 0:
            names = [domain.name for domain in self.domains]
            self.metrics = MetricsLog(self.run_dir, self.step, self.validation.standing.under_evaluation, names)
            clear_projector(Path(self.metrics.board.log_dir))
            begin_session(self.metrics.board, self._settings(), self._test_tags(self.metrics))
        bar = tqdm(
            total=self.total_steps,
            initial=self.step,
            desc="train",
            unit="step",
            disable=self.place.rank != 0,
            mininterval=redraw_seconds(),
            dynamic_ncols=True,
        )
        background = self.validation.background
        # whatever ends the loop, the bar's line is closed, and log lines stand above it and not behind it
        with bar, logging_redirect_tqdm():
            try:
                background.resume(self.validation.standing.under_evaluation)
                if validate_first and self.step == 0:
                    self.validation.run(0)
                self._fit(iter(batches), bar)
                self.validation.take_up(wait=True)
                background.remove()
            finally:
                background.close()

    def _fit(self, stream: Iterator[UserBatch], bar: tqdm) -> None:
        meter = Meter()
        log_every = self.config.run.log_every
        self._refresh_bank(self.step)
        first_log = min((self.step // log_every + 1) * log_every, self.total_steps)
        while self.step < self.total_steps and not self._is_stale():
            before = time.perf_counter()
            micro_batches = self._next_step(stream)
            waited = time.perf_counter() - before
            self.bad.take(micro_batches, self.step // self.order.steps_per_epoch)
            report = self._step(micro_batches)
            meter.add(waited, micro_batches, report.loss, report.scalars)
            self.step += 1
            step = self.step
            if is_told := self._is_at(step, log_every, self.order.steps_per_epoch):
                self.bad.tell(self.place.device)
            if self._is_at(step, log_every):
                self._log(meter, report.learning_rates, bar)
                meter = Meter()
            if is_told:
                self._require_few_bad_samples()
            bar.update()
            paused = time.perf_counter()
            if step == first_log and world_size() > 1 and self.config.optim.loss == "softmax":
                log.info("%s", sharing_report(self.engine.model, micro_batches[0], self.place.device))
            if step % (self.config.optim.bank_refresh or self.eval_every) == 0 or step % self.checkpoint_every == 0:
                self._refresh_bank(step)
            if step % self.eval_every == 0 or step == self.total_steps:
                self._watch_gates(step)
                is_fresh = self.bank is not None and self.bank_refreshed == step
                self.validation.run(step, self.bank.catalogues if self.bank is not None and is_fresh else None)
            elif step % self.config.run.log_every == 0:
                self.validation.take_up(wait=False)
            if step % self.checkpoint_every == 0 or step == self.total_steps:
                self.save()
            meter.start += time.perf_counter() - paused

    def _is_at(self, step: int, *intervals: int) -> bool:
        """Whether one of the intervals, or the run, ends with this step."""
        return step == self.total_steps or any(step % interval == 0 for interval in intervals)

    def _require_few_bad_samples(self) -> None:
        """Stops the run, with a checkpoint, where too many samples are bad. Collective: call on every rank."""
        try:
            self.bad.require_few()
        except UserError:
            self.save()
            raise

    def _next_step(self, stream: Iterator[UserBatch]) -> list[UserBatch]:
        """This rank's micro-batches, still on the host, where counting users does not wait for the device."""
        return [next(stream) for _ in range(self.engine.accumulation_steps)]

    def _step(self, batches: list[UserBatch]) -> StepReport:
        optim = self.config.optim
        factor = learning_rate_factor(self.step, self.total_steps, optim.decay_from, optim.final_lr)
        if self.config.optim.loss == "softmax":
            batches = [share_items(batch, self.place.device) for batch in batches]
        if self.bank is not None:
            batches = [self.bank.extended(batch, self.step) for batch in batches]
        moved = [batch.to(self.place.device, non_blocking=True) for batch in batches]
        try:
            return self.engine.train_step(moved, factor)
        except NonFiniteLoss as error:
            last = self.checkpoints.latest()
            kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
            raise UserError(f"{error}; {kept}: try a smaller --lr, or gradient_clipping in the ds_config") from error

    def _log(self, meter: Meter, learning_rates: Mapping[str, float], bar: tqdm) -> None:
        line = meter.line(self.place.device)
        if self.metrics is None:
            return
        epoch = self.step / self.order.steps_per_epoch
        values = {"lr": dict(learning_rates), **line, "bad_samples": self.bad.count}
        self.metrics.train({"step": self.step, "epoch": round(epoch, 4), **values})
        bar.set_postfix_str(
            f"loss {line['loss']:.4f}, {line['users_per_s']:.0f} users/s, data wait {line['data_wait']:.0%}",
            refresh=False,
        )

    def _refresh_bank(self, step: int) -> None:
        """Encodes the catalogues for the bank, if there is one. Collective: call on every rank."""
        if self.bank is None:
            return
        model = self.engine.model
        was_training = model.training
        model.eval()
        batch_size = self.config.run.eval_batch_size
        self.bank.catalogues = [
            # a copy, as what inference mode gives cannot be part of a loss
            encode_catalogue(model, self.validation.source(number), domain.num_items, batch_size).clone()
            for number, domain in enumerate(self.domains)
        ]
        self.bank_refreshed = step
        model.train(was_training)

    def _watch_gates(self, step: int) -> None:
        """Histograms of the fusion's gates, if it has any. Collective: call on every rank."""
        for number, domain in enumerate(self.domains):
            found = gates(self.engine.model, self.validation.source(number), domain.num_items)
            if self.metrics is not None:
                for name, values in found.items():
                    self.metrics.board.add_histogram(self.metrics.tag(domain.name, "gates", name), values, step)

    def _settings(self) -> dict[str, str | int | float]:
        batch, precision = self.order.global_batch, str(self.engine.dtype).removeprefix("torch.")
        return settings_of(self.config, {"batch": batch, "precision": precision, "zero stage": self.engine.zero_stage})

    def _test_tags(self, metrics: MetricsLog) -> list[str]:
        tags = [metrics.tag(domain.name, "test", "mmsr", "all") for domain in self.domains]
        return [f"{tag}/{metric}" for tag in tags for metric in ("HR@10", "NDCG@10")]

    def _project(self, domain: Domain, catalogue: Tensor) -> None:
        """Shows items of the best model in TensorBoard's projector."""
        if self.metrics is None:
            return
        rows = drawn_items(domain.num_items, MOST_ITEMS // len(self.domains), self.config.run.seed)
        vectors = catalogue[torch.from_numpy(rows).to(catalogue.device)]
        write_projector(self.metrics.board, domain, rows, vectors, self.validation.standing.best_step)

    def _is_stale(self) -> bool:
        is_stale = self.validation.is_stale()
        if is_stale:
            patience = self.config.run.patience
            log.info("no better validation NDCG@10 for %d evaluations: stopped at step %d", patience, self.step)
        return is_stale

    def _record(self, line: Mapping[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.evaluation(line)

    def save(self) -> None:
        """Writes a checkpoint. Collective: call on every rank."""
        self.bad.tell(self.place.device)
        standing, background = self.validation.standing, self.validation.background
        standing.under_evaluation = background.step
        state = {
            "progress": {"step": self.step, **dataclasses.asdict(standing)},
            "order": self._order_state(),
            "bad_samples": self.bad.state(),
        }
        with naming_a_full_disk(self.checkpoints.directory, self.checkpoints.how_to_go_on()):
            beside = functools.partial(self.validation.write_bundle_without_weights, step=self.step)
            self.checkpoints.save(self.engine, self.step, state, beside)
        background.checkpointed()

    def _order_state(self) -> dict[str, Any]:
        order = self.order
        return {
            "domains": [f"{domain.name} ({domain.fingerprint[:16]})" for domain in self.domains],
            "max_users": self.config.data.max_users,
            "weights": list(order.weights),
            "global_batch": order.global_batch,
            "num_lanes": order.num_lanes,
            "shuffle_buffer": order.shuffle_buffer,
            "seed": order.seed,
        }

    def test(self) -> None:
        """The run's best model and the baselines on the test targets. Collective: call on every rank."""
        self.validation.test(self._project)
        if self.metrics is not None:
            end_session(self.metrics.board)
            self.metrics.close()

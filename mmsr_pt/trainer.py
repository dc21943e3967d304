"""The training loop: steps, log lines, checkpoints; when to validate, and when to stop."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mmsr_pt.batch import UserBatch
from mmsr_pt.board import gates
from mmsr_pt.cache import ItemCache
from mmsr_pt.config import PretrainConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.order import StreamOrder
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.evaluation.evaluate import encode_catalogue
from mmsr_pt.guard import Guard
from mmsr_pt.log import UserError, naming_a_full_disk, redraw_seconds
from mmsr_pt.meter import Meter
from mmsr_pt.recorder import Recorder
from mmsr_pt.resumed_order import Shares, order_state, resumed_order
from mmsr_pt.run_dir import begin_anew
from mmsr_pt.signals import RESUME_EXIT_CODE, Stopped, Watch
from mmsr_pt.training.bad_samples import BadSamples
from mmsr_pt.training.bank import Bank
from mmsr_pt.training.checkpoint import CheckpointManager
from mmsr_pt.training.distributed import from_rank0, others_here, world_size
from mmsr_pt.training.engine import Engine, StepReport
from mmsr_pt.training.launch import DistInfo
from mmsr_pt.training.optim import learning_rate_factor
from mmsr_pt.training.sharing import share_items, sharing_report
from mmsr_pt.validation import Standing, Validation

log = logging.getLogger(__name__)


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
        watch: Watch,
        cache: ItemCache | None = None,
    ) -> None:
        self.config, self.run_dir, self.place, self.watch = config, run_dir, place, watch
        self.domains, self.engine = domains, engine
        self._take_order(order)
        self.checkpoints = CheckpointManager(run_dir, keep=config.run.keep_checkpoints)
        self.step = 0
        """Optimizer steps done."""
        self.recorder = Recorder(config, domains, run_dir, self.checkpoints)
        self.validation = Validation(
            config, domains, preprocessor, engine, run_dir, place, cache, self.checkpoints, self.recorder.evaluation
        )
        self.bank_refreshed = -1  # after which step
        num_users = sum(sum(tars) for tars in order.tar_users)
        self.bad = BadSamples(num_users, sum(domain.num_items for domain in domains), config.data.max_bad)
        self.guard = Guard(config.run, engine, self.checkpoints, domains, self.recorder.warning)

    def _take_order(self, order: StreamOrder) -> None:
        """Takes an order of users, and what follows from the number of its steps."""
        self.order = order
        run, optim = self.config.run, self.config.optim
        left = (run.epochs - order.first_epoch) * order.steps_per_epoch
        self.total_steps = run.steps or order.first_step + max(left, 0)
        self.eval_every = run.eval_every or order.steps_per_epoch
        self.checkpoint_every = run.checkpoint_every or order.steps_per_epoch
        pool_size = self.config.data.pool_size
        self.bank = Bank(self.domains, order, optim.bank_size, pool_size) if optim.bank_size else None

    def resume(self) -> None:
        """Takes up the newest checkpoint of the run directory. Collective: call on every rank.

        With `--resume_or_start` there need not be one: the run starts then.
        """
        if self.config.run.resume_or_start and from_rank0(lambda: self.checkpoints.latest() is None):
            from_rank0(lambda: begin_anew(self.run_dir))
            log.info("there is no checkpoint yet: the run starts")
            return
        state = self.checkpoints.load(self.engine)
        standing = dict(state["progress"])
        self.step = standing.pop("step")
        self.validation.standing = Standing(**standing)
        engine, allowed = self.engine, self.config.run.allow_new_batch
        shares = Shares(engine.micro_batch_size, engine.accumulation_steps, self.place.world_size)
        now = self._order_state()
        self._take_order(resumed_order(self.order, now, state["order"], self.step, shares, allowed, self.run_dir))
        self.bad.resume(state["bad_samples"])
        log.info("resumed at step %d of %d", self.step, self.total_steps)

    def _is_due(self, every: int) -> bool:
        """Whether what happens every so many steps happens now; they are counted from where epochs are."""
        return (self.step - self.order.first_step) % every == 0

    def fit(self, batches: Iterable[UserBatch], validate_first: bool = False) -> None:
        """Trains from the current step on. Collective: call on every rank.

        Args:
            batches: this rank's micro-batches from that step on.
            validate_first: judge the model before its first step too: one that has learnt elsewhere may be the best.

        Raises:
            Stopped: on every rank alike, behind a checkpoint, where one of them was asked to end.
        """
        if self.place.rank == 0:
            precision = str(self.engine.dtype).removeprefix("torch.")
            settings: dict[str, str | int] = {
                "batch": self.order.global_batch,
                "precision": precision,
                "zero stage": self.engine.zero_stage,
            }
            self.recorder.begin(self.step, self.validation.standing.under_evaluation, settings)
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
        watched = self.watch.steps(others_here(), self.config.run.hang_seconds)
        with bar, logging_redirect_tqdm(), watched:
            try:
                standing = self.validation.standing
                background.resume(standing.under_evaluation)
                if validate_first and self.step == 0:
                    self.validation.run(0, look_at=self.guard.at_validation)
                if standing.due == self.step > 0:
                    self._refresh_bank(self.step)
                    self._validate(self.step)
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
            self.bad.take(micro_batches, self.order.place(self.step)[0])
            report = self._step(micro_batches)
            if report is not None:
                meter.add(waited, micro_batches, report.loss, report.scalars)
            self.step += 1
            step = self.step
            self.watch.now(f"behind step {step}")
            is_due = step % log_every == 0 or step == self.total_steps
            if is_told := is_due or self._is_due(self.order.steps_per_epoch):
                self.bad.tell(self.place.device)
            # where a step was left out, the next line is for more steps
            if report is not None and is_due:
                self._log(meter, report, micro_batches, bar)
                meter = Meter()
            if is_told:
                self._require_few_bad_samples()
            bar.update()
            if report is not None and report.ranks_asked:
                self._stop()
            paused = time.perf_counter()
            if step == first_log and world_size() > 1 and self.config.optim.loss == "softmax":
                log.info("%s", sharing_report(self.engine.model, micro_batches[0], self.place.device))
            if self._is_due(self.config.optim.bank_refresh or self.eval_every) or self._is_due(self.checkpoint_every):
                self._refresh_bank(step)
            if self._validation_is_due():
                self._validate(step)
            elif step % self.config.run.log_every == 0:
                self.validation.take_up(wait=False)
            if self._is_due(self.checkpoint_every) or step == self.total_steps:
                self.save()
            meter.start += time.perf_counter() - paused

    def _validation_is_due(self) -> bool:
        return self._is_due(self.eval_every) or self.step == self.total_steps

    def _validate(self, step: int) -> None:
        self.watch.now(f"validating step {step}")
        self.validation.standing.due = 0
        self._watch_gates(step)
        is_fresh = self.bank is not None and self.bank_refreshed == step
        catalogues = self.bank.catalogues if self.bank is not None and is_fresh else None
        self.validation.run(step, catalogues, self.guard.at_validation)
        self.watch.now(f"behind the validation of step {step}")

    def _stop(self) -> NoReturn:
        self._save_early()
        self.recorder.flush()
        message = "asked to end: saved at step %d of %d; go on with --resume or --resume_or_start (exit code %d)"
        log.info(message, self.step, self.total_steps, RESUME_EXIT_CODE)
        raise Stopped

    def _save_early(self) -> None:
        """Saves whatever is due: a validation can be made up for, and there may be little time."""
        if self._validation_is_due():
            self.validation.standing.due = self.step
        self.save()

    def _require_few_bad_samples(self) -> None:
        """Stops the run, with a checkpoint, where too many samples are bad. Collective: call on every rank."""
        try:
            self.bad.require_few()
        except UserError:
            self._save_early()
            raise

    def _next_step(self, stream: Iterator[UserBatch]) -> list[UserBatch]:
        """This rank's micro-batches, still on the host, where counting users does not wait for the device."""
        return [next(stream) for _ in range(self.engine.accumulation_steps)]

    def _step(self, batches: list[UserBatch]) -> StepReport | None:
        """Makes a step; None where it was left out."""
        return self.guard.step(self.step + 1, batches, functools.partial(self._train, batches))

    def _train(self, batches: list[UserBatch]) -> StepReport:
        optim = self.config.optim
        factor = learning_rate_factor(self.step, self.total_steps, optim.decay_from, optim.final_lr)
        if self.config.optim.loss == "softmax":
            batches = [share_items(batch, self.place.device) for batch in batches]
        if self.bank is not None:
            batches = [self.bank.extended(batch, self.step) for batch in batches]
        moved = [batch.to(self.place.device, non_blocking=True) for batch in batches]
        return self.engine.train_step(moved, factor, is_asked=self.watch.asked is not None)

    def _log(self, meter: Meter, report: StepReport, batches: list[UserBatch], bar: tqdm) -> None:
        line = meter.line(self.place.device)
        self.guard.at_log_line(self.step, batches, line, report.learning_rates)
        order = self.order
        epoch = order.first_epoch + (self.step - order.first_step) / order.steps_per_epoch
        values = {"lr": dict(report.learning_rates), **line, "bad_samples": self.bad.count}
        self.recorder.train({"step": self.step, "epoch": round(epoch, 4), **values})
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
            self.recorder.gates(domain, found, step)

    def _is_stale(self) -> bool:
        is_stale = self.validation.is_stale()
        if is_stale:
            patience = self.config.run.patience
            log.info("no better validation NDCG@10 for %d evaluations: stopped at step %d", patience, self.step)
        return is_stale

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
        full_disk = naming_a_full_disk(self.checkpoints.directory, self.checkpoints.how_to_go_on())
        self.watch.now(f"saving step {self.step}")
        with full_disk, self.watch.saving():
            beside = functools.partial(self.validation.write_bundle_without_weights, step=self.step)
            self.checkpoints.save(self.engine, self.step, state, beside)
        background.checkpointed()
        self.watch.now(f"behind the checkpoint of step {self.step}")

    def _order_state(self) -> dict[str, Any]:
        return order_state(self.order, self.domains, self.config.data.max_users)

    def test(self) -> None:
        """The run's best model and the baselines on the test targets. Collective: call on every rank."""
        best_step = self.validation.standing.best_step
        self.validation.test(lambda domain, catalogue: self.recorder.items(domain, catalogue, best_step))
        self.recorder.end()

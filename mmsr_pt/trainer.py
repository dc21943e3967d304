"""The training loop: steps, log lines, evaluations, checkpoints, the best bundle, early stopping, the final table."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from mmsr_pt.background import BackgroundEvaluation
from mmsr_pt.batch import UserBatch
from mmsr_pt.cache import ItemCache
from mmsr_pt.card import CARD_FILE, model_card
from mmsr_pt.config import PretrainConfig
from mmsr_pt.data.catalogue import item_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.order import StreamOrder
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.evaluation.cases import EVERYONE, Split, UserSample
from mmsr_pt.evaluation.evaluate import EvalLine, ItemSource, encode_catalogue, evaluate, evaluate_baselines
from mmsr_pt.evaluation.table import results_table, wide_console
from mmsr_pt.log import UserError, naming_a_full_disk, redraw_seconds
from mmsr_pt.models.recommender import MMSRModel
from mmsr_pt.run_dir import BUNDLE, MetricsLog, write_bundle
from mmsr_pt.training.bank import Bank
from mmsr_pt.training.checkpoint import CheckpointManager
from mmsr_pt.training.distributed import barrier, sum_over_ranks, world_size
from mmsr_pt.training.engine import Engine, NonFiniteLoss, StepReport
from mmsr_pt.training.launch import DistInfo
from mmsr_pt.training.optim import learning_rate_factor
from mmsr_pt.training.sharing import share_items, sharing_report

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """What a run must remember to go on: saved with every checkpoint."""

    step: int = 0
    best_ndcg: float = -1.0
    best_step: int = 0
    evaluations_without_gain: int = 0
    under_evaluation: int = 0
    """Step whose figures are not here yet, since they are made in the background; 0: none."""


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
        self.cache = cache
        self.config, self.run_dir, self.place = config, run_dir, place
        self.domains, self.preprocessor, self.engine, self.order = domains, preprocessor, engine, order
        run = config.run
        self.total_steps = run.steps or run.epochs * order.steps_per_epoch
        self.eval_every = run.eval_every or order.steps_per_epoch
        self.checkpoint_every = run.checkpoint_every or order.steps_per_epoch
        self.checkpoints = CheckpointManager(run_dir, keep=run.keep_checkpoints)
        self.progress = Progress()
        optim = config.optim
        self.bank = Bank(domains, order, optim.bank_size, config.data.pool_size) if optim.bank_size else None
        self.bank_refreshed = -1  # after which step
        self.background = BackgroundEvaluation(run_dir, domains, run, place.device)
        self.metrics: MetricsLog | None = None  # of rank 0, once training begins

    def resume(self) -> None:
        """Takes up the newest checkpoint of the run directory. Collective: call on every rank."""
        state = self.checkpoints.load(self.engine)
        saved = state["order"]
        for name, value in self._order_state().items():
            if saved[name] != value:
                raise UserError(
                    f"{self.run_dir} was trained with {name} {saved[name]}, now it is {value}: the order of users "
                    "would change; go on with the same domains, batch, seed and buffer, or start another run"
                )
        self.progress = Progress(**state["progress"])
        log.info("resumed at step %d of %d", self.progress.step, self.total_steps)

    def fit(self, batches: Iterable[UserBatch]) -> None:
        """Trains from the current step on. Collective: call on every rank.

        Args:
            batches: this rank's micro-batches from that step on.
        """
        if self.place.rank == 0:
            self.metrics = MetricsLog(self.run_dir, self.progress.step, self.progress.under_evaluation)
        bar = tqdm(
            total=self.total_steps,
            initial=self.progress.step,
            desc="train",
            unit="step",
            disable=self.place.rank != 0,
            mininterval=redraw_seconds(),
            dynamic_ncols=True,
        )
        # whatever ends the loop, the bar's line is closed, and log lines stand above it and not behind it
        with bar, logging_redirect_tqdm():
            try:
                self.background.resume(self.progress.under_evaluation)
                self._fit(iter(batches), bar)
                self._take_up(wait=True)
                self.background.remove()
            finally:
                self.background.close()

    def _fit(self, stream: Iterator[UserBatch], bar: tqdm) -> None:
        meter = Meter()
        log_every = self.config.run.log_every
        self._refresh_bank(self.progress.step)
        first_log = min((self.progress.step // log_every + 1) * log_every, self.total_steps)
        while self.progress.step < self.total_steps and not self._is_stale():
            before = time.perf_counter()
            micro_batches = self._next_step(stream)
            waited = time.perf_counter() - before
            report = self._step(micro_batches)
            meter.add(waited, micro_batches, report.loss, report.scalars)
            self.progress.step += 1
            step = self.progress.step
            if step % log_every == 0 or step == self.total_steps:
                self._log(meter, report.learning_rates, bar)
                meter = Meter()
            bar.update()
            paused = time.perf_counter()
            if step == first_log and world_size() > 1 and self.config.optim.loss == "softmax":
                log.info("%s", sharing_report(self.engine.model, micro_batches[0], self.place.device))
            if step % (self.config.optim.bank_refresh or self.eval_every) == 0 or step % self.checkpoint_every == 0:
                self._refresh_bank(step)
            if step % self.eval_every == 0 or step == self.total_steps:
                self._validate()
            elif step % self.config.run.log_every == 0:
                self._take_up(wait=False)
            if step % self.checkpoint_every == 0 or step == self.total_steps:
                self.save()
            meter.start += time.perf_counter() - paused

    def _next_step(self, stream: Iterator[UserBatch]) -> list[UserBatch]:
        """This rank's micro-batches, still on the host, where counting users does not wait for the device."""
        return [next(stream) for _ in range(self.engine.accumulation_steps)]

    def _step(self, batches: list[UserBatch]) -> StepReport:
        optim = self.config.optim
        factor = learning_rate_factor(self.progress.step, self.total_steps, optim.decay_from, optim.final_lr)
        if self.config.optim.loss == "softmax":
            batches = [share_items(batch, self.place.device) for batch in batches]
        if self.bank is not None:
            batches = [self.bank.extended(batch, self.progress.step) for batch in batches]
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
        epoch = self.progress.step / self.order.steps_per_epoch
        self.metrics.train({"step": self.progress.step, "epoch": round(epoch, 4), "lr": dict(learning_rates), **line})
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
            encode_catalogue(model, self._source(number), domain.num_items, batch_size).clone()
            for number, domain in enumerate(self.domains)
        ]
        self.bank_refreshed = step
        model.train(was_training)

    def _source(self, number: int) -> ItemSource:
        domain = self.domains[number]
        return self.cache.source(domain, number) if self.cache else item_source(domain, self.preprocessor)

    def _validate(self) -> None:
        """Ranks the validation targets, now or in the background; the best model so far becomes the run's bundle."""
        if self.config.run.async_eval:
            self._take_up(wait=True)
            state = self.engine.state_dict_on_rank0()
            self.background.start(self.progress.step, lambda directory: self._write_snapshot(directory, state or {}))
            return
        lines: list[EvalLine] = []
        step = self.progress.step
        for number, domain in enumerate(self.domains):
            known = self.bank.catalogues[number] if self.bank is not None and self.bank_refreshed == step else None
            users = UserSample(self.config.run.eval_users, self.config.run.seed)
            lines += self._evaluate(self.engine.model, domain, "valid", self._source(number), step, users, known)
        if self._is_best(step, [line.as_dict() for line in lines]):
            self.export()

    def _take_up(self, wait: bool) -> None:
        """Does with the figures of the background what `_validate` does, once they are there. Collective."""
        found = self.background.figures(wait)
        if found is None:
            return
        for line in found.lines:
            if self.metrics is not None:
                self.metrics.evaluation(line)
        if self._is_best(found.step, found.lines):
            self._adopt(self.background.snapshot(found.step))
        self.background.done_with(found.step)

    def _is_best(self, step: int, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Takes in the figures of a step, all domains alike; whether none were better so far."""
        overall = [line["NDCG@10"] for line in lines if line["slice"] == "all"]
        ndcg = sum(overall) / len(overall)
        log.info("step %d: validation NDCG@10 %.4f", step, ndcg)
        is_best = ndcg > self.progress.best_ndcg
        if is_best:
            self.progress.best_ndcg, self.progress.best_step = ndcg, step
        self.progress.evaluations_without_gain = 0 if is_best else self.progress.evaluations_without_gain + 1
        return is_best

    def _is_stale(self) -> bool:
        patience = self.config.run.patience
        stale = bool(patience) and self.progress.evaluations_without_gain >= patience
        if stale:
            log.info(
                "no better validation NDCG@10 for %d evaluations: stopped at step %d", patience, self.progress.step
            )
        return stale

    def _evaluate(
        self,
        model: MMSRModel,
        domain: Domain,
        split: Split,
        source: ItemSource,
        step: int,
        users: UserSample = EVERYONE,
        catalogue: Tensor | None = None,
    ) -> list[EvalLine]:
        batch_size = self.config.run.eval_batch_size
        lines = evaluate(model, domain, source, [split], batch_size, step, catalogue=catalogue, users=users)
        for line in lines:
            self._record(line, domain)
        return lines

    def _record(self, line: EvalLine, domain: Domain) -> None:
        if self.metrics is not None:
            self.metrics.evaluation({**line.as_dict(), "domain": domain.name})

    def export(self) -> None:
        """Writes the model as it stands into the run's bundle. Collective: call on every rank."""
        state = self.engine.state_dict_on_rank0()
        if state is not None:
            self._replace_bundle(lambda directory: self._write_model(directory, state))
        barrier()

    def _adopt(self, snapshot: Path) -> None:
        """Makes a snapshot the run's bundle. Collective."""
        if self.place.rank == 0:
            self._replace_bundle(lambda directory: shutil.copytree(snapshot, directory, dirs_exist_ok=True))
        barrier()

    def _write_snapshot(self, directory: Path, state: Mapping[str, Tensor]) -> None:
        with naming_a_full_disk(directory, self._how_to_go_on()):
            self._write_model(directory, state)

    def _write_model(self, directory: Path, state: Mapping[str, Tensor]) -> None:
        trained_on = [{"name": domain.name, "fingerprint": domain.fingerprint} for domain in self.domains]
        self.engine.model.save_pretrained(directory, state_dict=state, trained_on=trained_on)
        self.preprocessor.save(directory)

    def _replace_bundle(self, write_model: Callable[[Path], object]) -> None:
        def write(directory: Path) -> None:
            write_model(directory)
            best = self.progress
            card = model_card(self.config.model, self.domains, best.best_step, best.best_ndcg)
            (directory / CARD_FILE).write_text(card, encoding="utf-8")

        with naming_a_full_disk(self.run_dir / BUNDLE, self._how_to_go_on()):
            write_bundle(self.run_dir, write)

    def save(self) -> None:
        """Writes a checkpoint. Collective: call on every rank."""
        self.progress.under_evaluation = self.background.step
        state = {"progress": dataclasses.asdict(self.progress), "order": self._order_state()}
        with naming_a_full_disk(self.checkpoints.directory, self._how_to_go_on()):
            self.checkpoints.save(self.engine, self.progress.step, state)
        self.background.checkpointed()

    def _how_to_go_on(self) -> str:
        last = self.checkpoints.latest()
        if last is None:
            return "free some space and start again in another --run_dir, there is no checkpoint yet"
        return f"free some space and go on with --resume, the last good checkpoint is {last}"

    def _order_state(self) -> dict[str, Any]:
        order = self.order
        return {
            "domains": [f"{domain.name} ({domain.fingerprint[:16]})" for domain in self.domains],
            "weights": list(order.weights),
            "global_batch": order.global_batch,
            "num_lanes": order.num_lanes,
            "shuffle_buffer": order.shuffle_buffer,
            "seed": order.seed,
        }

    def test(self) -> list[tuple[Domain, EvalLine]]:
        """The best bundle and the two baselines on the test targets. Collective: call on every rank."""
        model = MMSRModel.from_pretrained(self.run_dir / BUNDLE).to(self.place.device)
        found = []
        for domain in self.domains:
            lines = evaluate_baselines(domain, ["test"], self.progress.best_step)
            for line in lines:
                self._record(line, domain)
            source = item_source(domain, self.preprocessor)
            lines += self._evaluate(model, domain, "test", source, self.progress.best_step)
            found += [(domain, line) for line in lines]
        if self.metrics is not None:
            self.metrics.close()
        return found

    def print_results(self, found: list[tuple[Domain, EvalLine]]) -> None:
        """The closing table, one for each domain, on rank 0."""
        if self.place.rank != 0:
            return
        for domain in self.domains:
            lines = [line for of, line in found if of is domain]
            wide_console().print(results_table(lines, f"{domain.name}, test, whole catalogue"))
        log.info(
            "the run is in %s, its best model (step %d) in %s",
            self.run_dir,
            self.progress.best_step,
            self.run_dir / BUNDLE,
        )

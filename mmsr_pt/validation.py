"""What a run is judged by: validation, whose best model so far is the run's bundle, and the test at its end."""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from torch import Tensor

from mmsr_pt.background import BackgroundEvaluation
from mmsr_pt.cache import ItemCache
from mmsr_pt.config import PretrainConfig
from mmsr_pt.data.catalogue import item_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.evaluation.cases import Split, UserSample
from mmsr_pt.evaluation.evaluate import ItemSource, evaluate, evaluate_baselines
from mmsr_pt.evaluation.lines import EvalLine
from mmsr_pt.evaluation.table import print_results
from mmsr_pt.hub.card import CARD_FILE, domain_entry, model_card
from mmsr_pt.log import naming_a_full_disk
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.run_dir import BUNDLE, TEST_RANKS, write_bundle, write_ranks
from mmsr_pt.training.checkpoint import CheckpointManager
from mmsr_pt.training.distributed import barrier
from mmsr_pt.training.engine import Engine
from mmsr_pt.training.launch import DistInfo

log = logging.getLogger(__name__)

_AT_THE_END: Sequence[Split] = ("any", "test")
"""In this order, as a run is finished once the figures on `test` are there."""


@dataclass
class Standing:
    """How far validation has come: saved with every checkpoint."""

    best_ndcg: float = -1.0
    best_step: int = 0
    evaluations_without_gain: int = 0
    under_evaluation: int = 0
    """Step whose figures are not here yet, since they are made in the background; 0: none."""
    due: int = 0
    """Step whose validation was put off, as the run was asked to end; 0: none."""


class Validation:
    """Ranks the held-out items of a run's domains; all its methods are collective: call them on every rank."""

    def __init__(
        self,
        config: PretrainConfig,
        domains: Sequence[Domain],
        preprocessor: Preprocessor,
        engine: Engine,
        run_dir: Path,
        place: DistInfo,
        cache: ItemCache | None,
        checkpoints: CheckpointManager,
        record: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Nothing is evaluated yet.

        Args:
            config: of the run.
            domains: whose users are asked.
            preprocessor: of the model.
            engine: holds the model.
            run_dir: where the bundle goes.
            place: of this process.
            cache: of the run, if it has one.
            checkpoints: of the run, which an error about a full disk names.
            record: takes each line of figures.
        """
        self._config, self._domains, self._preprocessor, self._engine = config, domains, preprocessor, engine
        self._run_dir, self._place, self._cache = run_dir, place, cache
        self._checkpoints, self._record = checkpoints, record
        self.standing = Standing()
        self.background = BackgroundEvaluation(run_dir, domains, config.run, place.device)

    def source(self, number: int) -> ItemSource:
        """Where the catalogue of the run's domain of that number is read from."""
        domain = self._domains[number]
        return self._cache.source(domain, number) if self._cache else self._read(domain)

    def _read(self, domain: Domain) -> ItemSource:
        return item_source(domain, self._preprocessor, max_bad=self._config.data.max_bad)

    def run(
        self,
        step: int,
        catalogues: Sequence[Tensor] | None = None,
        look_at: Callable[[int, Domain, Tensor], object] | None = None,
    ) -> None:
        """Ranks the validation targets, now or in the background; the best model so far becomes the run's bundle.

        Args:
            step: optimizer steps done.
            catalogues: what `encode_catalogue` has made of each domain's with the weights of this step, if it has.
            look_at: takes the step, each domain and what `encode_catalogue` made of it; not in the background.
        """
        if self._config.run.async_eval and step > 0:  # before the first step nothing could go on meanwhile
            self.take_up(wait=True)
            state = self._engine.state_dict_on_rank0()
            self.background.start(step, lambda directory: self._write_snapshot(directory, state or {}, step))
            return
        lines: list[EvalLine] = []
        users = UserSample(self._config.run.eval_users, self._config.run.seed)
        for number, domain in enumerate(self._domains):
            known = None if catalogues is None else catalogues[number]
            model, source, batch_size = self._engine.model, self.source(number), self._config.run.eval_batch_size
            look = None if look_at is None else functools.partial(look_at, step, domain)
            found = evaluate(
                model, domain, source, ["valid"], batch_size, step, catalogue=known, users=users, keep_catalogue=look
            )
            lines += self._recorded(found, domain)
        if self._is_best(step, [line.as_dict() for line in lines]):
            self._export()

    def take_up(self, wait: bool) -> None:
        """Does with the figures of the background what `run` does, once they are there.

        Args:
            wait: until they are.
        """
        found = self.background.figures(wait)
        if found is None:
            return
        for line in found.lines:
            self._record(line)
        if self._is_best(found.step, found.lines):
            self._adopt(self.background.snapshot(found.step))
        self.background.done_with(found.step)

    def is_stale(self) -> bool:
        """Whether the run is to stop, as nothing was better for `--patience` evaluations."""
        patience = self._config.run.patience
        return bool(patience) and self.standing.evaluations_without_gain >= patience

    def test(self, keep_catalogue: Callable[[Domain, Tensor], object] | None = None) -> None:
        """The best bundle and the two baselines on test targets and cold items: recorded, and on rank 0 printed.

        Its figures stand in metrics.jsonl only once the users' ranks stand beside it, so that a run that was killed
        meanwhile is tested again.

        Args:
            keep_catalogue: takes what `encode_catalogue` made of each domain with that bundle, on every rank.
        """
        model = Recommender.load(self._run_dir / BUNDLE).to(self._place.device)
        step = self.standing.best_step
        users = UserSample(self._config.run.test_users, self._config.run.seed)
        ranks: list[pl.DataFrame] = []
        for number, domain in enumerate(self._domains):
            is_cached = self._config.run.test_from_cache
            source = self.source(number) if is_cached else self._read(domain)
            batch_size = self._config.run.eval_batch_size
            lines = evaluate_baselines(domain, _AT_THE_END, step, users)
            lines += evaluate(
                model,
                domain,
                source,
                _AT_THE_END,
                batch_size,
                step,
                users=users,
                keep_ranks=ranks.append,
                keep_catalogue=None if keep_catalogue is None else functools.partial(keep_catalogue, domain),
            )
            if self._place.rank == 0:
                write_ranks(self._run_dir / TEST_RANKS, ranks)
            self._recorded(lines, domain)
            if self._place.rank == 0:
                print_results(lines, domain.name)
        if self._place.rank == 0:
            log.info("the run is in %s, its best model (step %d) in %s", self._run_dir, step, self._run_dir / BUNDLE)

    def _is_best(self, step: int, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Takes in the figures of a step, all domains alike; whether none were better so far."""
        overall = [line["NDCG@10"] for line in lines if line["slice"] == "all"]
        ndcg = sum(overall) / len(overall)
        log.info("step %d: validation NDCG@10 %.4f", step, ndcg)
        is_best = ndcg > self.standing.best_ndcg
        if is_best:
            self.standing.best_ndcg, self.standing.best_step = ndcg, step
        self.standing.evaluations_without_gain = 0 if is_best else self.standing.evaluations_without_gain + 1
        return is_best

    def _recorded(self, lines: list[EvalLine], domain: Domain) -> list[EvalLine]:
        for line in lines:
            self._record({**line.as_dict(), "domain": domain.name})
        return lines

    def _export(self) -> None:
        """Writes the model as it stands into the run's bundle."""
        state = self._engine.state_dict_on_rank0()
        if state is not None:
            step = self.standing.best_step
            self._replace_bundle(lambda directory: self._write_model(directory, state, step))
        barrier()

    def _adopt(self, snapshot: Path) -> None:
        """Makes a snapshot the run's bundle."""
        if self._place.rank == 0:
            self._replace_bundle(lambda directory: shutil.copytree(snapshot, directory, dirs_exist_ok=True))
        barrier()

    def _write_snapshot(self, directory: Path, state: Mapping[str, Tensor], step: int) -> None:
        with naming_a_full_disk(directory, self._checkpoints.how_to_go_on()):
            self._write_model(directory, state, step)

    def _write_model(self, directory: Path, state: Mapping[str, Tensor], step: int) -> None:
        self._engine.model.save(directory, state_dict=state, trained_on=self._trained_on(), step=step)
        self._preprocessor.save(directory)

    def write_bundle_without_weights(self, directory: Path, step: int) -> None:
        """Writes what a bundle of the model at `step` has beside its weights."""
        self._engine.model.save_config(directory, trained_on=self._trained_on(), step=step)
        self._preprocessor.save(directory)

    def _trained_on(self) -> list[dict[str, Any]]:
        return [*self._trained_before(), *(domain_entry(domain) for domain in self._domains)]

    def _trained_before(self) -> list[dict[str, Any]]:
        """The domains that the model had been trained on when this run began, without the run's own."""
        own = {domain.fingerprint for domain in self._domains}
        return [entry for entry in self._engine.model.trained_on if entry["fingerprint"] not in own]

    def _replace_bundle(self, write_model: Callable[[Path], object]) -> None:
        def write(directory: Path) -> None:
            write_model(directory)
            best = self.standing
            joins_itself = self._engine.model.item_encoder.joins_itself
            own, before = [domain_entry(domain) for domain in self._domains], self._trained_before()
            card = model_card(self._config.model, own, best.best_step, best.best_ndcg, joins_itself, before)
            (directory / CARD_FILE).write_text(card, encoding="utf-8")

        with naming_a_full_disk(self._run_dir / BUNDLE, self._checkpoints.how_to_go_on()):
            write_bundle(self._run_dir, write)

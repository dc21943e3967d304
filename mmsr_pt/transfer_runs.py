"""The runs of a transfer study: which flags each gets, where it is kept, and what starts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsr_pt.child_run import FINETUNE, PRETRAIN, evaluation_command, finish_evaluation, finish_run, run_command
from mmsr_pt.data.domain import Domain
from mmsr_pt.run_dir import TEST_RANKS, figures_on_test
from mmsr_pt.study_report import row_flags
from mmsr_pt.transfer import SCRATCH
from mmsr_pt.transfer_report import EVALUATION, Model, directory_of, figures_of_evaluation
from mmsr_pt.transfer_table import size_name

_IDSR = {"item": "id", "cache": False, "naive": False, "modality_dropout": 0.0}
"""Items are numbers: there is no content to cache, or to drop."""


@dataclass(frozen=True)
class Flags:
    """Of the runs, as words of a command line."""

    common: tuple[str, ...] = ()
    """Of every run."""
    pretrain: tuple[str, ...] = ()
    """Of runs on the sources alone; they beat the common ones, as do the others."""
    finetune: tuple[str, ...] = ()
    """Of all runs on the target: scratch, transfer and IDSR alike."""
    idsr: tuple[str, ...] = ()
    """Of IDSR alone; they beat those of all runs on the target."""

    @property
    def of_pretraining(self) -> list[str]:
        """All that a run on the sources gets."""
        return [*self.common, *self.pretrain]

    @property
    def on_target(self) -> list[str]:
        """All that scratch and transfer get."""
        return [*self.common, *self.finetune]

    @property
    def of_idsr(self) -> list[str]:
        """All that IDSR gets."""
        return row_flags(_IDSR, [*self.on_target, *self.idsr])


NO_FLAGS = Flags()


@dataclass(frozen=True)
class Cell:
    """One model of the comparison, for one seed (a Job)."""

    model: Model
    seed: int
    source_users: int | None
    """Users of each source; 0: all; None: it does not learn from a source."""
    target_users: int | None
    """Users of the target; 0: all; None: it does not learn from the target."""
    flags: tuple[str, ...]
    """All but where it writes, and what is in the study's directory."""

    @property
    def row(self) -> str:
        """See Job."""
        return self.model

    @property
    def domain(self) -> str:
        """See Job: whose users, and how many, decide how long it takes."""
        if self.target_users is not None:
            return f"{size_name(self.target_users)} target users"
        return f"{size_name(self.source_users or 0)} source users"

    def directory(self, out: Path) -> Path:
        """See Job."""
        return directory_of(out, self.model, self.seed, self.source_users, self.target_users)

    def figures(self, out: Path) -> Mapping[str, Any] | None:
        """See Job."""
        return (figures_of_evaluation if self.model == "zero-shot" else figures_on_test)(self.directory(out))

    def command(self, out: Path, num_gpus: int) -> list[str]:
        """See Job."""
        if self.model == "zero-shot":
            return evaluation_command(self._all_flags(out), num_gpus)
        return run_command(self.directory(out), self._all_flags(out), num_gpus, self._script)

    def finish(self, out: Path, log_file: Path, inherited: Sequence[int], num_gpus: int) -> None:
        """See Job."""
        directory, flags = self.directory(out), self._all_flags(out)
        if self.model == "zero-shot":
            directory.mkdir(parents=True, exist_ok=True)
            finish_evaluation(flags, log_file, inherited, num_gpus)
        else:
            finish_run(directory, flags, log_file, inherited, num_gpus, self._script)

    @property
    def _script(self) -> str:
        return PRETRAIN if self.model == "source" else FINETUNE

    def _all_flags(self, out: Path) -> list[str]:
        directory, source = self.directory(out), directory_of(out, "source", self.seed, self.source_users, None)
        if self.model == "zero-shot":
            # it writes the figures last: where they stand, the ranks do
            places = ["--ranks", str(directory / TEST_RANKS), "--out", str(directory / EVALUATION)]
            return [*self.flags, "--model", str(source), *places]
        if self.model == "source":
            return list(self.flags)
        return [*self.flags, "--init", str(source) if self.model == "transfer" else SCRATCH]

    def __str__(self) -> str:
        learnt = "" if self.source_users is None else f" from {size_name(self.source_users)} source users"
        on = "" if self.target_users is None else f" on {size_name(self.target_users)} target users"
        name = "pre-training" if self.model == "source" else self.model
        return f"{name}{learnt}{on}, seed {self.seed}"


def all_cells(
    seed: int,
    source_sizes: Sequence[int],
    target_sizes: Sequence[int],
    flags: Flags,
    on_sources: Sequence[str],
    on_target: Sequence[str],
    target: Domain,
) -> list[Cell]:
    """All of one seed, each behind what it starts from."""
    cells = []
    drawn = ["--seed", str(seed)]
    for source in source_sizes:
        words = [*on_sources, *drawn, *_limit(source), *flags.of_pretraining]
        cells.append(Cell("source", seed, source, None, tuple(words)))
        asked = ("--data", str(target.path), "--split", "test", "--no_baselines")
        cells.append(Cell("zero-shot", seed, source, None, asked))
    for size in target_sizes:
        own = [*on_target, *drawn, *_limit(size)]
        cells.append(Cell("scratch", seed, None, size, (*own, *flags.on_target)))
        cells.append(Cell("idsr", seed, None, size, (*own, *flags.of_idsr)))
        for source in source_sizes:
            cells.append(Cell("transfer", seed, source, size, (*own, *flags.on_target)))
    return cells


def _limit(size: int) -> list[str]:
    return ["--max_users", str(size)] if size else []

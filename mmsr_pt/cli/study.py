"""`mmsr-pt study`: many runs, and one table or picture of them."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from mmsr_pt.studies.table_study import study
from mmsr_pt.studies.transfer_runs import Flags
from mmsr_pt.studies.transfer_study import transfer_study

TRANSFER = ("transfer", "table9", "table10", "figure7")
"""What the command calls the transfer study, of which the paper shows two tables and a figure."""
_HOLD_FLAGS = ("--pretrain_flags", "--finetune_flags", "--idsr_flags")


def study_command(
    table: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")],
    data: tuple[Path, ...] = (),
    rows: tuple[str, ...] = (),
    seeds: int = 1,
    out: Path | None = None,
    ds_config: Path = Path("ds_configs/zero2.json"),
    num_gpus: int = 0,
    dry_run: bool = False,
    flags: str = "",
) -> None:
    """Train every row of one of the paper's tables on every domain, or draw a figure (see also: study transfer -h).

    Runs are processes of pretrain/run.py, one after the other. The same command goes on where it was broken off and
    skips what is finished; further rows, domains and seeds join the same --out.

    Example: mmsr-pt study table3 --data data/hm data/mine --seeds 3 -- --tune frozen --cache

    Args:
        table: table2 to table8 or table11 to table14 (mmsr_pt/presets.py has the rows); figure4,
            figure8 or figure9, from runs of table4, or figure6, from those of table6, which are not trained twice.
            table9, table10 and figure7 are study transfer.
        data: Domain directories; each row runs on each by itself.
        rows: Some rows; none given: all.
        seeds: Runs of each row: seeds 0 to N - 1. For the spread of one row, ask again for it alone with more.
        out: Directory of the study, a figure's too; none given: runs/study-TABLE-HASH, another one for other flags.
        ds_config: The DeepSpeed configuration of every run.
        num_gpus: GPUs of each run, as of the deepspeed launcher (on a CPU machine processes); 0: one plain process.
        dry_run: Only list the runs with their commands, and how long they would take by what is finished.
        flags: Flags of pretrain/run.py for every run, such as its towers; written without this name behind a lone --.
    """
    study(table, data, rows, seeds, out, ds_config, shlex.split(flags), num_gpus, dry_run)


def transfer_command(
    source: tuple[Path, ...],
    target: Path,
    source_users: tuple[str, ...] = ("all",),
    target_users: tuple[str, ...] = ("all",),
    seeds: int = 5,
    weights: tuple[float, ...] = (),
    out: Path | None = None,
    ds_config: Path = Path("ds_configs/zero2.json"),
    num_gpus: int = 0,
    dry_run: bool = False,
    flags: str = "",
    pretrain_flags: str = "",
    finetune_flags: str = "",
    idsr_flags: str = "",
) -> None:
    """Does pre-training on other domains help on this one? Scratch, IDSR, zero-shot and transfer, with a verdict.

    Runs are processes of pretrain/run.py, finetune/run.py and mmsr-pt evaluate, one after the other. The same command
    goes on where it was broken off and skips what is finished; further sizes and seeds join the same --out.

    Example: mmsr-pt study transfer --source data/hm --target data/mine --target_users 1000 all -- --tune frozen --cache

    Args:
        source: Domain directories that pre-train, mixed where there are several.
        target: The domain directory on which all models are compared.
        source_users: Numbers of training users of each source, or all; one pre-training for each.
        target_users: Numbers of training users of the target, or all; the test asks all users every time.
        seeds: Runs of each: seeds 0 to N - 1. Of one seed a verdict is about its runs alone.
        weights: Share of each source in an epoch, relative to its users; none given: all 1.
        out: Directory of the study; none given: runs/transfer-TARGET-HASH, another one for other flags.
        ds_config: The DeepSpeed configuration of every run.
        num_gpus: GPUs of each run, as of the deepspeed launcher (on a CPU machine processes); 0: one plain process.
        dry_run: Only list the runs with their commands, and how long they would take by what is finished.
        flags: Flags of every run, such as its towers; written without this name behind a lone --.
        pretrain_flags: Flags of runs on the sources, in one word; they beat those of every run.
        finetune_flags: Flags of runs on the target: scratch, IDSR and transfer alike.
        idsr_flags: Flags of IDSR, which may want more epochs (the paper: 300 against 60).
    """
    words = Flags(*(tuple(shlex.split(given)) for given in (flags, pretrain_flags, finetune_flags, idsr_flags)))
    transfer_study(source, target, source_users, target_users, seeds, words, weights, out, ds_config, num_gpus, dry_run)


def transfer_main(words: Sequence[str]) -> None:
    """`mmsr-pt study` with the words behind it, of which the first is one of `TRANSFER`."""
    summary = inspect.cleandoc((transfer_command.__doc__ or "").partition("Args:")[0])
    prog, args = f"mmsr-pt study {words[0]}", _with_values_bound(words[1:])
    tyro.cli(transfer_command, prog=prog, description=summary, args=args, use_underscores=True)


def with_flags_bound(words: Sequence[str]) -> list[str]:
    """What stands behind a lone -- as the value of --flags."""
    if "--" not in words:
        return list(words)
    behind = words.index("--")
    return [*words[:behind], f"--flags={shlex.join(words[behind + 1 :])}"]


def _with_values_bound(words: Sequence[str]) -> list[str]:
    """Flags within a flag in one word with it, lest they be taken for flags of their own."""
    bound: list[str] = []
    for word in words:
        if bound and bound[-1] in _HOLD_FLAGS:
            bound[-1] = f"{bound[-1]}={word}"
        else:
            bound.append(word)
    return bound

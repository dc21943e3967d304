"""The transfer study: does pre-training on other domains help on this one, and for how many users of each?

    mmsr-pt study transfer --source data/hm --target data/amazon --source_users 100000 200000 500000 \
        --target_users 10000 20000 50000 --seeds 5 --finetune_flags "--steps 4000 --eval_every 100 --patience 10" \
        -- --text hf:NAME --vision timm:NAME --cache

Tables 9 and 10 and figure 7 of the paper (section 7.2, appendix E.1), with intervals and a verdict. For every seed: a
pre-training for each number of source users, and what it ranks on the target without having seen it (zero-shot); then
for each number of target users a run from scratch, one of ids (IDSR), and one from each pre-trained model (transfer).
What is compared has the same seed: the same users of the target train, in the same order, by the same flags, and all
test users are asked. Every run stops and keeps its model by its validation; nothing is chosen by test figures.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmsr_pt.assembly import build_order, open_domains
from mmsr_pt.config import FinetuneConfig, ModelConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.figures.canvas import require_drawing
from mmsr_pt.flags import fields_given, parse_flags
from mmsr_pt.log import UserError, naming_a_full_disk
from mmsr_pt.studies.child_run import FINETUNE, PRETRAIN, find_script
from mmsr_pt.studies.dry_run import describe
from mmsr_pt.studies.jobs import (
    OWN_FLAGS,
    RESULTS,
    alone_in,
    carry_out,
    check_place,
    default_place,
    open_distinct,
    print_plainly,
    require_counts,
)
from mmsr_pt.studies.transfer_report import PICTURE, TransferReport
from mmsr_pt.studies.transfer_runs import NO_FLAGS, Cell, Flags, all_cells
from mmsr_pt.training.ds_config import read_ds_config

log = logging.getLogger(__name__)

_OWN = {
    **OWN_FLAGS,
    "weights": "--weights before the --",
    "max_users": "--source_users and --target_users before the --",
    "init": "nothing: transfer starts from each pre-trained model, scratch from none",
    "item": "nothing: IDSR is a row of its own",
    "test_users": "nothing: models are compared on all test users",
}


def transfer_study(
    sources: Sequence[Path],
    target: Path,
    source_users: Sequence[str] = ("all",),
    target_users: Sequence[str] = ("all",),
    seeds: int = 5,
    flags: Flags = NO_FLAGS,
    weights: Sequence[float] = (),
    out: Path | None = None,
    ds_config: Path = Path("ds_configs/zero2.json"),
    num_gpus: int = 0,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Runs what is not finished yet, one after the other, and prints the tables.

    Args:
        sources: domain directories, mixed in each pre-training.
        target: domain directory.
        source_users: numbers of training users of each source, or `all`.
        target_users: numbers of training users of the target, or `all`.
        seeds: runs of each kind: seeds 0 to seeds - 1.
        flags: of the runs.
        weights: of the sources, see DataConfig.
        out: directory of the study; none given: runs/transfer-<target>-<hash of what all runs share>.
        ds_config: of every run.
        num_gpus: of the deepspeed launcher, for each run; 0: runs are one plain process.
        dry_run: only tell what would be run.

    Returns: what stands in results.json.

    Raises:
        UserError: something that was asked for cannot be; or a run failed, what was finished before stays.
    """
    require_counts(seeds, num_gpus)
    for script in (PRETRAIN, FINETUNE):
        find_script(script)
    require_drawing()
    domains = open_distinct(sources, "--source")
    aim = Domain.load(target)
    if aim.fingerprint in [domain.fingerprint for domain in domains]:
        raise UserError(f"--target {target} is one of the sources: name a domain that pre-training does not see")
    if aim.name in [domain.name for domain in domains]:
        raise UserError(f"--source and --target both name a domain called {aim.name}: build one under another name")
    _check_flags(flags)
    source_sizes = _sizes("--source_users", source_users, max(domain.num_users for domain in domains))
    target_sizes = _sizes("--target_users", target_users, aim.num_users)
    mixed = ["--weights", *map(str, weights)] if weights else []
    on_sources = ["--ds_config", str(ds_config), "--data", *(str(domain.path) for domain in domains), *mixed]
    on_target = ["--ds_config", str(ds_config), "--data", str(aim.path)]
    ds_settings = read_ds_config(ds_config, max(num_gpus, 1))
    shared = {
        "study": "transfer",
        "sources": [domain.name for domain in domains],
        "weights": list(weights),
        "target": aim.name,
        **{f"{name}_flags": list(words) for name, words in dataclasses.asdict(flags).items()},
        "ds_config": ds_settings,
    }
    out = out or default_place(f"transfer-{aim.name}", shared)
    runs = [
        cell
        for seed in range(seeds)
        for cell in all_cells(seed, source_sizes, target_sizes, flags, on_sources, on_target, aim)
    ]
    for cell in runs:
        if cell.seed == 0 and cell.model != "zero-shot":  # refused before the first run, not after hours
            _check_run(cell, ds_settings["train_batch_size"], max(num_gpus, 1))
    if dry_run:
        check_place(out)
        found = TransferReport(out, shared, domains, aim).as_dict()
        print_plainly(describe(runs, out, num_gpus))
        return found
    with alone_in(out) as lock, naming_a_full_disk(out, "free some space; the same command goes on"):
        report = TransferReport(out, shared, domains, aim)
        carry_out(runs, out, report, lock, num_gpus)
        print_plainly(report.markdown())
    log.info("the study is in %s: table.md, %s, %s and the runs", out, RESULTS, PICTURE)
    return report.as_dict()


def _sizes(flag: str, given: Sequence[str], num_users: int) -> list[int]:
    """The numbers of users that were asked for, in order; 0 stands for all."""
    sizes = []
    for word in given:
        if word != "all" and not (word.isdigit() and 0 < int(word) <= num_users):
            raise UserError(f"{flag} {word}: give numbers from 1 to {num_users}, which is how many there are, or all")
        size = 0 if word == "all" or int(word) == num_users else int(word)
        if size in sizes:
            raise UserError(f"{flag} names {word} twice: give each number once")
        sizes.append(size)
    if not sizes:
        raise UserError(f"{flag} names no number: give numbers from 1 to {num_users}, or all")
    return sorted(sizes, key=lambda size: size or num_users)


def _check_flags(flags: Flags) -> None:
    """Refuses flags that a study gives, and such by which scratch and transfer would not be the same model."""
    places = {"common": "behind the --", **{name: f"in --{name}_flags" for name in ("pretrain", "finetune", "idsr")}}
    for name, place in places.items():
        for field in fields_given(getattr(flags, name), FinetuneConfig):
            if field in _OWN:
                raise UserError(f"--{field} {place}: a transfer study gives it to each run, type {_OWN[field]}")
    of_model = {"preset", *(field.name for field in dataclasses.fields(ModelConfig))}
    for field in fields_given(flags.pretrain, FinetuneConfig):
        if field in of_model and field not in fields_given(flags.on_target, FinetuneConfig):
            raise UserError(
                f"--{field} in --pretrain_flags alone: transfer would take it from there and scratch would not; say it "
                "behind the --, or in --finetune_flags too"
            )


def _check_run(cell: Cell, global_batch: int, world_size: int) -> None:
    config = parse_flags(list(cell.flags), FinetuneConfig)
    if cell.model == "idsr" and config.data.cache:
        raise UserError(
            f"--preset {config.run.preset} caches content, which IDSR has not: give its other flags instead"
        )
    build_order(config, open_domains(config), global_batch, world_size)

"""The command `mmsr-pt`: what one does with a trained model, before training one, and to train many.

    mmsr-pt evaluate  --model runs/first --data data/hm
    mmsr-pt recommend --model runs/first --data data/hm --history 0108775015,0110065001
    mmsr-pt cache     --data data/hm --text hf:roberta-base --vision timm:swin_base_patch4_window7_224
    mmsr-pt study     table3 --data data/hm data/mine -- --text hf:roberta-base --vision timm:resnet50
    mmsr-pt study     transfer --source data/hm --target data/mine --target_users 1000 all -- --text hf:roberta-base

The first three run under plain python, `torchrun -m mmsr_pt.cli ...` and `accelerate launch -m mmsr_pt.cli ...`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
import torch
import tyro
from rich import box
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from mmsr_pt.assembly import build_cache, build_model, open_domains
from mmsr_pt.batch import ItemInputs
from mmsr_pt.config import PretrainConfig
from mmsr_pt.data.catalogue import item_source
from mmsr_pt.data.domain import COLD_BELOW, Domain
from mmsr_pt.evaluation.cases import ProtocolName, Split, UserSample, questions
from mmsr_pt.evaluation.evaluate import ItemSource, catalogue_scorer, encode_catalogue, evaluate, evaluate_baselines
from mmsr_pt.evaluation.lines import EvalLine
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.evaluation.table import print_results, wide_console
from mmsr_pt.flags import parse_flags
from mmsr_pt.hub import find_bundle, load_model, short_names
from mmsr_pt.log import UserError, redraw_seconds, setup_logging, user_facing
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.recommend import Recommendation, history_of_user, recommend, rows_of_items
from mmsr_pt.run_dir import write_ranks, write_text
from mmsr_pt.studies.table_study import study
from mmsr_pt.studies.transfer_runs import Flags
from mmsr_pt.studies.transfer_study import transfer_study
from mmsr_pt.training.ds_config import read_ds_config
from mmsr_pt.training.launch import init_distributed

log = logging.getLogger(__name__)

_TRANSFER = ("transfer", "table9", "table10", "figure7")
"""What `mmsr-pt study` calls the transfer study, of which the paper shows two tables and a figure."""
_HOLD_FLAGS = ("--pretrain_flags", "--finetune_flags", "--idsr_flags")

app = tyro.extras.SubcommandApp()


@app.command(name="evaluate")
def evaluate_command(
    model: tuple[str, ...],
    data: Path,
    protocol: ProtocolName = "leave-one-out",
    split: Literal["test", "valid", "both"] = "test",
    out: Path | None = None,
    batch_size: int = 256,
    eval_users: int = 0,
    max_users: int = 0,
    seed: int = 0,
    baselines: bool = True,
    ranks: Path | None = None,
) -> None:
    """Rank the whole catalogue for every user's held-out item, beside popularity and last-item transitions.

    Slices under leave-one-out, by the target: cold (fewer than 10 training occurrences), warm (10 or more), new (none),
    head (of the items with any, the 20 % with the most), tail (all others).
    Slices under cold: held-out (valid and test items, on which nothing was trained as targets), new.

    Args:
        model: Run directories, bundle directories or hub ids; several are shown beside each other by their short names.
        data: The domain directory to evaluate on; what is cold, new, head and tail is counted in it.
        protocol: Whether every user is asked for a held-out item, or for each cold item of the whole sequence that has
            another before it, as in the paper's table 8. Most of the latter stand in training parts, so that a model
            trained there remembers them: read the slice held-out.
        split: Which held-out item to look for; the catalogue is encoded once for both.
        out: JSON file for the figures, as fractions; none given: they are only printed, in percent.
        batch_size: Items encoded at once.
        eval_users: How many users are asked; 0: all.
        max_users: As in the run that trained the model: how many users trained and validate, from whom popularity and
            what is cold follow; 0: all.
        seed: Draws these users; the same seed draws the same ones.
        baselines: Popularity and transitions too.
        ranks: Parquet file for the model's rank of every asked user's held-out item: domain, split, user, target, rank.
    """
    _require(batch_size >= 1, f"--batch_size {batch_size} must be at least 1")
    _require(eval_users >= 0, f"--eval_users {eval_users} must not be negative")
    _require(max_users >= 0, f"--max_users {max_users} must not be negative")
    _require(bool(model), "--model names no model: give run directories, bundles or hub ids")
    _require(ranks is None or len(model) == 1, f"--ranks {ranks} takes those of one model: name one --model")
    _require(
        protocol != "cold" or split == "test",
        f"--split {split} is for --protocol leave-one-out: leave it out, cold items are asked for wherever they stand",
    )
    for flag, file in (("--out", out), ("--ranks", ranks)):
        if file is not None:
            _require(not file.is_dir(), f"{flag} {file} is a directory: name a file")
            _require(file.parent.is_dir(), f"{flag} {file}: there is no directory {file.parent}; make it first")
    names = short_names(model)
    state = processes()
    domain = Domain.load(data, max_users, seed)
    users = UserSample(eval_users, seed)
    splits = _splits(protocol, split)
    _require(
        len(questions(domain, splits[0], 1, users)) > 0,
        f"--protocol cold: nobody asked in {domain.name} has a cold item (under {COLD_BELOW} training occurrences) "
        "behind another one: use --protocol leave-one-out",
    )
    # all of them before the first is asked: the mistake in the last name shows at once
    opened = {name: _open(reference, domain) for name, reference in zip(names, model)}
    described = {
        name: {"model": reference, **_training_of(opened[name][0], domain)} for name, reference in zip(names, model)
    }
    lines = evaluate_baselines(domain, splits, users=users) if baselines else []
    kept: list[pl.DataFrame] = []
    for name in names:
        recommender, source = opened.pop(name)
        recommender = recommender.to(state.device)
        lines += evaluate(
            recommender, domain, source, splits, batch_size, name=name, users=users, keep_ranks=kept.append
        )
        del recommender
    if state.is_main_process:
        print_results(lines, domain.name)
        for name, about in described.items():
            if about["zero_shot"] is not False:
                said = _of_zero_shot(name, about, domain)
                wide_console().print(said, markup=False, highlight=False, soft_wrap=True)
        if ranks is not None:
            write_ranks(ranks, kept)
        if out is not None:
            _write_lines(out, described, domain, lines)


def _splits(protocol: ProtocolName, split: Literal["test", "valid", "both"]) -> list[Split]:
    if protocol == "cold":
        return ["any"]
    return ["valid", "test"] if split == "both" else [split]


def _training_of(model: Recommender, domain: Domain) -> dict[str, Any]:
    """What a model was trained on, and whether it never saw this domain; None: that cannot be told."""
    names = [entry["name"] for entry in model.trained_on]
    has_seen = domain.fingerprint in {entry["fingerprint"] for entry in model.trained_on}
    # another build of the same data has another fingerprint
    return {"trained_on": names, "zero_shot": None if domain.name in names and not has_seen else not has_seen}


def _of_zero_shot(name: str, about: Mapping[str, Any], domain: Domain) -> str:
    if about["zero_shot"] is None:
        return f"{name} was trained on another build of {domain.name}, or on another domain of that name"
    trained_on = ", ".join(about["trained_on"]) or "nothing"
    return f"zero-shot: {name} has never seen {domain.name}, it was trained on {trained_on}"


@app.command(name="recommend")
def recommend_command(
    model: str, data: Path, user: str | None = None, history: str | None = None, top_k: int = 10, batch_size: int = 256
) -> None:
    """Show the items that the model ranks highest behind a history; seen items are left out.

    Args:
        model: A run directory, a bundle directory or a hub id.
        data: The domain directory whose items are recommended.
        user: A user id of the domain: all that is known of this user is the history, held-out items included.
        history: Item ids, oldest first, separated by commas.
        top_k: How many items to show.
        batch_size: Items encoded at once.
    """
    _require((user is None) != (history is None), "give one of --user U and --history ID,ID,...")
    _require(top_k >= 1, f"--top_k {top_k} must be at least 1")
    _require(batch_size >= 1, f"--batch_size {batch_size} must be at least 1")
    state = processes()
    # the request is checked before the model is loaded: a mistyped id shows at once
    domain = Domain.load(data)
    if user is not None:
        rows = history_of_user(domain, user)
    else:
        item_ids = [item_id.strip() for item_id in (history or "").split(",") if item_id.strip()]
        _require(bool(item_ids), "--history names no item: give item ids separated by commas")
        rows = rows_of_items(domain, item_ids)
    recommender, source = _open(model, domain)
    recommender = recommender.to(state.device)
    scorer = catalogue_scorer(recommender, encode_catalogue(recommender, source, domain.num_items, batch_size))
    found = recommend(scorer, domain, rows, top_k, recommender.config.max_history, recommender.score_scale)
    if state.is_main_process:
        behind = f"user {user}" if user is not None else f"{len(rows)} items"
        wide_console().print(_recommendations_table(found, f"{domain.name}, behind {behind}"))


@app.command(name="cache")
def cache_command(config: tyro.conf.OmitArgPrefixes[PretrainConfig]) -> None:
    """Compute what the frozen blocks of a model make of its domains, for runs with --cache, and stop there.

    Takes the flags of pretrain/run.py, of which --data, --text, --vision, --tune, --title_tokens, --cache_dtype and the
    precision of --ds_config decide what is computed; a run with the same ones finds it.

    Args:
        config: As in pretrain/run.py.
    """
    place = init_distributed()
    setup_logging(place.rank)
    ds_config = read_ds_config(config.run.ds_config, place.world_size)
    domains = open_domains(config)
    model, preprocessor = build_model(config.model, domains)
    cache = build_cache(config, model, preprocessor, domains, ds_config, place)
    assert cache is not None
    for domain, store in zip(domains, cache.stores):
        log.info("%s: %.2f GB in %s", domain.name, store.layout.num_bytes / 1e9, store.directory)


@app.command(name="study")
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


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UserError(sentence)


def _with_values_bound(words: Sequence[str]) -> list[str]:
    """Flags within a flag in one word with it, lest they be taken for flags of their own."""
    bound: list[str] = []
    for word in words:
        if bound and bound[-1] in _HOLD_FLAGS:
            bound[-1] = f"{bound[-1]}={word}"
        else:
            bound.append(word)
    return bound


def _open(reference: str, domain: Domain) -> tuple[Recommender, ItemSource]:
    """The model on the CPU, and where it reads the domain's items from."""
    state = processes()
    # one process downloads, the others find the files in the cache
    with state.local_main_process_first():
        bundle = find_bundle(reference)
    model, preprocessor = load_model(bundle, domain)
    return model, _with_progress(item_source(domain, preprocessor))


def _with_progress(source: ItemSource) -> ItemSource:
    """The same source with a progress bar on the main process."""

    def shown(rows: range, batch_size: int) -> Iterator[ItemInputs]:
        yield from tqdm(
            source(rows, batch_size),
            desc="encoding the catalogue",
            total=math.ceil(len(rows) / batch_size),
            unit="batch",
            disable=not processes().is_main_process,
            mininterval=redraw_seconds(),
        )

    return shown


def _write_lines(out: Path, models: Mapping[str, Any], domain: Domain, lines: Sequence[EvalLine]) -> None:
    report = {
        "models": models,
        "domain": domain.name,
        "fingerprint": domain.fingerprint,
        "lines": [line.as_dict() for line in lines],
    }
    write_text(out, json.dumps(report, indent=2) + "\n")


def _recommendations_table(found: Sequence[Recommendation], title: str) -> Table:
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("rank", justify="right")
    table.add_column("item", no_wrap=True)
    table.add_column("title")
    table.add_column("score", justify="right")
    for item in found:
        # titles are people's text: brackets in them are no markup
        table.add_row(str(item.rank), escape(item.item_id), escape(item.title), f"{item.score:.3f}")
    return table


@user_facing
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `mmsr-pt`."""
    setup_logging(int(os.environ.get("RANK", "0")))
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["cache"] and not {"-h", "--help"} & set(words):
            # presets and the one sentence for a wrong flag, as in pretrain/run.py
            cache_command(parse_flags(["--cache", *words[1:]]))
            return
        if words[:1] == ["study"] and "--" in words:
            behind = words.index("--")
            words[behind:] = [f"--flags={shlex.join(words[behind + 1 :])}"]
        if words[:1] == ["study"] and words[1:2] and words[1] in _TRANSFER:
            summary = (transfer_command.__doc__ or "").partition("Args:")[0]
            tyro.cli(
                transfer_command,
                prog=f"mmsr-pt study {words[1]}",
                description=summary,
                args=_with_values_bound(words[2:]),
                use_underscores=True,
            )
            return
        app.cli(prog="mmsr-pt", description=(__doc__ or "").splitlines()[0], args=words, use_underscores=True)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

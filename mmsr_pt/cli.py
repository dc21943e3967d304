"""The command `mmsr-pt`: what one does with a trained model, before training one, and to train many.

    mmsr-pt evaluate  --model runs/first --data data/hm
    mmsr-pt recommend --model runs/first --data data/hm --history 0108775015,0110065001
    mmsr-pt cache     --data data/hm --text hf:roberta-base --vision timm:swin_base_patch4_window7_224
    mmsr-pt study     table3 --data data/hm data/mine -- --text hf:roberta-base --vision timm:resnet50

The first three run under plain python, `torchrun -m mmsr_pt.cli ...` and `accelerate launch -m mmsr_pt.cli ...`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich import box
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from mmsr_pt.assembly import build_cache, build_model, open_domains
from mmsr_pt.batch import ItemInputs
from mmsr_pt.config import PretrainConfig, parse_flags
from mmsr_pt.data.catalogue import item_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.cases import Split, UserSample
from mmsr_pt.evaluation.evaluate import (
    EvalLine,
    ItemSource,
    catalogue_scorer,
    encode_catalogue,
    evaluate,
    evaluate_baselines,
)
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.evaluation.table import results_table, wide_console
from mmsr_pt.hub import find_bundle, load_model
from mmsr_pt.log import UserError, redraw_seconds, setup_logging, user_facing
from mmsr_pt.models.recommender import MMSRModel
from mmsr_pt.recommend import Recommendation, history_of_user, recommend, rows_of_items
from mmsr_pt.study import study
from mmsr_pt.training.ds_config import read_ds_config
from mmsr_pt.training.launch import init_distributed

log = logging.getLogger(__name__)

app = tyro.extras.SubcommandApp()


@app.command(name="evaluate")
def evaluate_command(
    model: str,
    data: Path,
    split: Literal["test", "valid", "both"] = "test",
    out: Path | None = None,
    batch_size: int = 256,
    eval_users: int = 0,
    seed: int = 0,
    baselines: bool = True,
) -> None:
    """Rank the whole catalogue for every user's held-out item, beside popularity and last-item transitions.

    Args:
        model: A run directory, a bundle directory or a hub id.
        data: The domain directory to evaluate on.
        split: Which held-out item to look for; the catalogue is encoded once for both.
        out: JSON file for the figures, as fractions; none given: they are only printed, in percent.
        batch_size: Items encoded at once.
        eval_users: How many users are asked; 0: all.
        seed: Draws these users; the same seed draws the same ones.
        baselines: Popularity and transitions too.
    """
    _require(batch_size >= 1, f"--batch_size {batch_size} must be at least 1")
    _require(eval_users >= 0, f"--eval_users {eval_users} must not be negative")
    if out is not None:
        _require(not out.is_dir(), f"--out {out} is a directory: name a file")
        _require(out.parent.is_dir(), f"--out {out}: there is no directory {out.parent}; make it first")
    state = processes()
    domain = Domain.load(data)
    recommender, source = _open(model, domain)
    splits: list[Split] = ["valid", "test"] if split == "both" else [split]
    users = UserSample(eval_users, seed)
    lines = evaluate_baselines(domain, splits, users=users) if baselines else []
    lines += evaluate(recommender, domain, source, splits, batch_size, users=users)
    if state.is_main_process:
        for name in splits:
            wide_console().print(
                results_table([line for line in lines if line.split == name], f"{domain.name}, {name}")
            )
        if out is not None:
            _write_lines(out, model, domain, lines)


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
    flags: str = "",
) -> None:
    """Train every row of one of the paper's tables on every domain, and print the table.

    Runs are processes of pretrain/run.py, one after the other. The same command goes on where it was broken off and
    skips what is finished; further rows, domains and seeds join the same --out.

    Args:
        table: table2 to table7 or table11 to table14 (mmsr_pt/presets.py has the rows).
        data: Domain directories; each row runs on each by itself.
        rows: Some rows; none given: all.
        seeds: Runs of each row: seeds 0 to N - 1. For the spread of one row, ask again for it alone with more.
        out: Directory of the study; none given: runs/study-TABLE-HASH, another one for other flags.
        ds_config: The DeepSpeed configuration of every run.
        num_gpus: GPUs of each run, as of the deepspeed launcher (on a CPU machine processes); 0: one plain process.
        flags: Flags of pretrain/run.py for every run, such as its towers; written without this name behind a lone --.
    """
    study(table, data, rows, seeds, out, ds_config, shlex.split(flags), num_gpus)


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise UserError(sentence)


def _open(reference: str, domain: Domain) -> tuple[MMSRModel, ItemSource]:
    """The model on this process's device, and where it reads the domain's items from."""
    state = processes()
    # one process downloads, the others find the files in the cache
    with state.local_main_process_first():
        bundle = find_bundle(reference)
    model, preprocessor = load_model(bundle, domain)
    return model.to(state.device), _with_progress(item_source(domain, preprocessor))


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


def _write_lines(out: Path, reference: str, domain: Domain, lines: Sequence[EvalLine]) -> None:
    report = {
        "model": reference,
        "domain": domain.name,
        "fingerprint": domain.fingerprint,
        "lines": [line.as_dict() for line in lines],
    }
    fresh = out.with_name(f".{out.name}.new")
    fresh.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    fresh.replace(out)


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
        app.cli(prog="mmsr-pt", description=(__doc__ or "").splitlines()[0], args=words, use_underscores=True)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

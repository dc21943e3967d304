"""`mmsr-pt evaluate`: a model beside the lines it must beat."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from mmsr_pt.cli.common import open_model, require, require_file, shown_source
from mmsr_pt.data.domain import COLD_BELOW, Domain
from mmsr_pt.evaluation.cases import ProtocolName, Split, UserSample, questions
from mmsr_pt.evaluation.evaluate import evaluate, evaluate_baselines
from mmsr_pt.evaluation.lines import EvalLine
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.evaluation.table import print_results, wide_console
from mmsr_pt.hub.find import short_names
from mmsr_pt.model import MMSRModel
from mmsr_pt.run_dir import write_ranks, write_text


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

    Example: mmsr-pt evaluate --model runs/mine runs/ids --data data/mine --protocol cold

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
    require(batch_size >= 1, f"--batch_size {batch_size} must be at least 1")
    require(eval_users >= 0, f"--eval_users {eval_users} must not be negative")
    require(max_users >= 0, f"--max_users {max_users} must not be negative")
    require(bool(model), "--model names no model: give run directories, bundles or hub ids")
    require(ranks is None or len(model) == 1, f"--ranks {ranks} takes those of one model: name one --model")
    require(
        protocol != "cold" or split == "test",
        f"--split {split} is for --protocol leave-one-out: leave it out, cold items are asked for wherever they stand",
    )
    require_file(out, "--out")
    require_file(ranks, "--ranks")
    names = short_names(model)
    state = processes()
    domain = Domain.load(data, max_users, seed)
    users = UserSample(eval_users, seed)
    splits = _splits(protocol, split)
    require(
        len(questions(domain, splits[0], 1, users)) > 0,
        f"--protocol cold: nobody asked in {domain.name} has a cold item (under {COLD_BELOW} training occurrences) "
        "behind another one: use --protocol leave-one-out",
    )
    # all of them before the first is asked: the mistake in the last name shows at once
    opened = {name: open_model(reference, domain) for name, reference in zip(names, model)}
    described = {
        name: {"model": reference, **_training_of(opened[name], domain)} for name, reference in zip(names, model)
    }
    lines = evaluate_baselines(domain, splits, users=users) if baselines else []
    kept: list[pl.DataFrame] = []
    for name in names:
        one = opened.pop(name).to(state.device)
        lines += evaluate(
            one.recommender,
            domain,
            shown_source(one, domain),
            splits,
            batch_size,
            name=name,
            users=users,
            keep_ranks=kept.append,
        )
        del one
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


def _training_of(model: MMSRModel, domain: Domain) -> dict[str, Any]:
    """What a model was trained on, and whether it never saw this domain; None: that cannot be told."""
    names = [entry["name"] for entry in model.recommender.trained_on]
    has_seen = domain.fingerprint in {entry["fingerprint"] for entry in model.recommender.trained_on}
    # another build of the same data has another fingerprint
    return {"trained_on": names, "zero_shot": None if domain.name in names and not has_seen else not has_seen}


def _of_zero_shot(name: str, about: Mapping[str, Any], domain: Domain) -> str:
    if about["zero_shot"] is None:
        return f"{name} was trained on another build of {domain.name}, or on another domain of that name"
    trained_on = ", ".join(about["trained_on"]) or "nothing"
    return f"zero-shot: {name} has never seen {domain.name}, it was trained on {trained_on}"


def _write_lines(out: Path, models: Mapping[str, Any], domain: Domain, lines: Sequence[EvalLine]) -> None:
    report = {
        "models": models,
        "domain": domain.name,
        "fingerprint": domain.fingerprint,
        "lines": [line.as_dict() for line in lines],
    }
    write_text(out, json.dumps(report, indent=2) + "\n")

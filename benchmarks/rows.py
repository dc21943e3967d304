"""The rows of the table: what is measured against what, and what must come out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks.harness import Comparison, Entrant, Row
from benchmarks.parts import WORK_DIR, Parts
from mmsr_pt.data.domain import Domain
from mmsr_pt.log import UserError

_TRAINING = "benchmarks.training:Training"


class Unavailable(UserError):  # noqa: N818
    """A row that cannot be measured here; the message says what it lacks."""


def threads() -> int:
    """Threads that every contestant's products use."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def train_small(parts: Parts) -> Row:
    """MiniLM and EfficientNet-Lite0."""
    domain, model = str(parts.domain), {"text": parts.text, "vision": parts.vision}

    def entrant(batch: int, bf16: bool, steps: int, **others: object) -> Entrant:
        settings = {"domain": domain, "model": model, "batch": batch, "bf16": bf16, "steps": steps, **others}
        return Entrant(_TRAINING, settings)

    return Row(
        name="train-small",
        work="training, MiniLM + EfficientNet-Lite0",
        figure="users_per_s",
        unit="users/s",
        entrants={
            "naive": entrant(8, False, 2, naive=True, num_workers=0),
            "plain": entrant(64, True, 2, settle=1),
            "cached": entrant(64, True, 4, settle=1, cache="built", num_workers=0),
            "cached-softmax": entrant(64, True, 3, settle=1, cache="built", num_workers=0, loss="softmax"),
        },
        comparisons=[
            Comparison("cached", "naive", 12, 25, "with the prefix cache, bce"),
            Comparison("plain", "naive", 5, 8, "without, bce"),
            Comparison("cached-softmax", "naive", None, None, "with the cache, softmax (the default loss)"),
        ],
    )


def train_base(parts: Parts) -> Row:
    """RoBERTa-base and Swin-B."""
    domain, model = str(parts.domain), {"text": parts.base_text, "vision": parts.base_vision}

    def entrant(batch: int, bf16: bool, steps: int, **others: object) -> Entrant:
        settings = {"domain": domain, "model": model, "batch": batch, "bf16": bf16, "steps": steps, "num_workers": 0}
        return Entrant(_TRAINING, {**settings, **others})

    return Row(
        name="train-base",
        work="training, RoBERTa-base + Swin-B",
        figure="users_per_s",
        unit="users/s",
        entrants={
            "naive": entrant(1, False, 1, naive=True),
            # two negatives a user to draw from, as at batch 64 by default
            "plain": entrant(16, True, 1, pool_size=32),
            "cached": entrant(16, True, 2, cache="stand-in", pool_size=32),
        },
        comparisons=[
            Comparison("cached", "naive", 20, 40, "with the prefix cache, bce"),
            Comparison("plain", "naive", 8, 12, "without, bce"),
        ],
    )


def encode(parts: Parts) -> Row:
    """The catalogue, by the large towers."""
    towers = {"domain": str(parts.domain), "text": parts.base_text, "vision": parts.base_vision}
    return Row(
        name="encode",
        work="catalogue encoding, RoBERTa-base + Swin-B",
        figure="items_per_s",
        unit="items/s",
        entrants={
            "plain": Entrant("benchmarks.encoding:Plain", {**towers, "num_items": 32, "batch": 32}),
            "ours": Entrant("benchmarks.encoding:Ours", {**towers, "num_items": 128, "batch": 128, "bf16": True}),
        },
        comparisons=[Comparison("ours", "plain", 4, 6, "bf16 against float32")],
    )


def ranking(parts: Parts) -> Row:
    """Full ranking."""
    _require_module("benchmarks.ranking", "ranking")
    return Row(
        name="ranking",
        work="full ranking, 768-d, 80,000 items",
        figure="users_per_s",
        unit="users/s",
        entrants={
            name: Entrant("benchmarks.adapters:Ranking", {"contestant": name, "num_users": 1024})
            for name in ("argsort_per_user", "scores_per_user", "ours", "bare_product")
        },
        comparisons=[
            Comparison("ours", "argsort_per_user", 6, None, "ranking"),
            Comparison("bare_product", "scores_per_user", 15, None, "scoring alone: in blocks, bf16"),
            Comparison("ours", "bare_product", None, 0.9, "ranking against the bare matrix product"),
        ],
    )


def pipeline(parts: Parts) -> Row:
    """JPEG to model-ready tensor."""
    _require_module("benchmarks.pipeline", "pipeline")
    bare, plain = "bare loop, same decoder and resize", "bare loop, Pillow"
    alone, loader = "stream, one process", "stream, one loader process"
    settings = {"domain": str(parts.domain), "num_batches": 6}
    return Row(
        name="pipeline",
        work="data pipeline, JPEG to model-ready tensor",
        figure="images_per_s",
        unit="images/s",
        # where a process's memory happens to lie decides a fifth
        fresh=True,
        entrants={
            name: Entrant("benchmarks.adapters:Pipeline", {"contestant": name, **settings})
            for name in (bare, plain, alone, loader)
        },
        comparisons=[
            Comparison(loader, bare, 0.85, 0.95, "one loader process"),
            Comparison(alone, bare, None, None, "the training process itself"),
            Comparison(loader, plain, None, None, "one loader process, against Pillow's resize"),
        ],
    )


def idsr(parts: Parts) -> Row:
    """ID-SASRec against RecBole's, both on the domain's training sequences."""
    if parts.recbole is None:
        raise Unavailable(
            "idsr needs RecBole 1.2.1, which wants other versions: python -m venv V && V/bin/pip install "
            "recbole==1.2.1, then --recbole V/bin/python"
        )
    batch, window = 256, 20
    ours = {"domain": str(parts.domain), "batch": batch, "window": window, "epochs": 3}
    recbole = {
        "sequences": str(write_sequences(parts.domain)),
        "batch": batch,
        "window": window,
        "width": 128,
        "threads": threads(),
    }
    return Row(
        name="idsr",
        work="ID-SASRec, width 128, 2 layers, 2 heads, cross-entropy over all items",
        figure="epoch_s",
        unit="s/epoch",
        less_is_better=True,
        entrants={
            "recbole": Entrant("benchmarks.recbole_sasrec:SASRec", recbole, python=str(parts.recbole)),
            "ours": Entrant("benchmarks.training:IdTraining", {**ours, "bf16": False}),
            "ours-bf16": Entrant("benchmarks.training:IdTraining", {**ours, "bf16": True}),
        },
        comparisons=[
            Comparison("ours", "recbole", 8, 20, "float32 both, against RecBole 1.2.1"),
            Comparison("ours-bf16", "recbole", None, None, "bf16 against float32"),
        ],
    )


def shards(parts: Parts) -> Row:
    """Bytes of the train tars."""
    settings = {"domain": str(parts.domain)}
    return Row(
        name="shards",
        work="train tars",
        figure="bytes",
        unit="bytes",
        less_is_better=True,
        fresh=True,
        repetitions=1,
        entrants={
            "per occurrence": Entrant("benchmarks.shards:PerOccurrence", settings),
            "ours": Entrant("benchmarks.shards:Stored", settings),
        },
        comparisons=[Comparison("ours", "per occurrence", 5, None, "against one copy of picture and title each time")],
    )


def memory(parts: Parts) -> Row:
    """Growth of the process during steps, at one batch."""
    small = train_small(parts).entrants
    same = {"batch": 8, "num_workers": 0, "settle": 0, "steps": 3}
    cached = small["cached"].settings
    small["recomputed"] = Entrant(_TRAINING, {**cached, "model": {**cached["model"], "recompute": True}})
    return Row(
        name="memory",
        work="peak memory of training steps beyond the set-up, batch 8, MiniLM + EfficientNet-Lite0",
        figure="rss_growth",
        unit="bytes",
        less_is_better=True,
        fresh=True,
        entrants={
            name: replace(small[name], settings={**small[name].settings, **same})
            for name in ("naive", "plain", "cached", "recomputed")
        },
        comparisons=[
            Comparison("cached", "naive", 4, None, "with the prefix cache"),
            Comparison("plain", "naive", 4, None, "without"),
            Comparison("recomputed", "naive", 4, None, "with the cache and --recompute"),
        ],
    )


ROWS: dict[str, Callable[[Parts], Row]] = {
    "train-small": train_small,
    "train-base": train_base,
    "encode": encode,
    "ranking": ranking,
    "pipeline": pipeline,
    "idsr": idsr,
    "shards": shards,
    "memory": memory,
}


_TINY = {"batch": 4, "steps": 1, "settle": 0, "epochs": 1, "num_items": 4, "num_users": 8, "num_batches": 1}


def tiny(row: Row) -> Row:
    """The row with little work for each contestant: shows that it runs, and measures nothing."""
    entrants = {
        name: replace(
            entrant, settings={**entrant.settings, **{k: v for k, v in _TINY.items() if k in entrant.settings}}
        )
        for name, entrant in row.entrants.items()
    }
    return replace(row, entrants=entrants, repetitions=1)


def write_sequences(domain: Path) -> Path:
    """The users' interactions of a domain as JSON, the two held-out ones at the end, for RecBole's own split."""
    users = Domain.load(domain).eval.select("history", "valid", "test").iter_rows()
    file = (WORK_DIR / "sequences.json").resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([[*history, valid, test] for history, valid, test in users]))
    return file


def _require_module(name: str, row: str) -> None:
    if find_spec(name) is None:
        raise Unavailable(f"{row} cannot be measured: there is no {name} in this checkout")

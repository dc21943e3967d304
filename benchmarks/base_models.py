"""Memory of one training step of models of base size, from their public configurations with random weights.

    python -m benchmarks.base_models

Full histories of distinct items, titles of 50 tokens, pictures of 224 px, the default tuning (top-2; of FLAVA its
multimodal encoder too), bf16. Each model in a process of its own, whose peak is the kernel's count (VmHWM).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
import tyro
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, FlavaConfig, PretrainedConfig, RobertaConfig

from benchmarks.parts import WORK_DIR, random_vision, write_ds_config
from mmsr_pt.batch import ItemInputs, UserBatch
from mmsr_pt.config import ModelConfig, OptimConfig
from mmsr_pt.log import UserError, setup_logging, user_facing
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.registry import unknown_name
from mmsr_pt.training.ds_config import read_ds_config
from mmsr_pt.training.engine import Engine
from mmsr_pt.training.launch import init_distributed
from mmsr_pt.training.optim import param_groups
from mmsr_pt.training.task import NextItemTask

_TOKENS, _POOL = 50, 128


@dataclass(frozen=True)
class Settings:
    """Which step."""

    models: tuple[str, ...] = ("roberta+swin", "flava")
    """Of MODELS."""
    users: int = 8
    """Users of the step; each has 21 items, and 128 more are drawn as negatives."""
    tokens: int = _TOKENS
    """Of every title."""
    vocab_size: int = 30_000
    """Of the made-up titles."""
    recompute: bool = False
    """As --recompute."""
    in_this_process: bool = False
    """Measure the one model that is named here and print the figures as JSON."""


def _random_tower(name: str, config: PretrainedConfig) -> str:
    """A directory with a transformers model of random weights."""
    directory = (WORK_DIR / "towers" / f"{name}-random").resolve()
    if not (directory / "model.safetensors").is_file():
        transformers.utils.logging.disable_progress_bar()
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(directory)
    return f"hf:{directory}"


def _roberta_swin() -> ModelConfig:
    text = _random_tower("roberta-base", RobertaConfig(vocab_size=50265, max_position_embeddings=514))
    return ModelConfig(text=text, vision=random_vision("swin_base_patch4_window7_224"))


def _flava() -> ModelConfig:
    return ModelConfig(vlp=_random_tower("flava-full", FlavaConfig()))


MODELS: dict[str, Callable[[], ModelConfig]] = {"roberta+swin": _roberta_swin, "flava": _flava}


def made_up_batch(users: int, length: int, tokens: int, height: int, width: int, vocab_size: int) -> UserBatch:
    """`users` full histories without a common item, and the pool."""
    count = users * length + _POOL
    return UserBatch(
        items=ItemInputs(
            ids=torch.arange(count),
            title_ids=torch.randint(5, vocab_size, (count, tokens)),
            title_mask=torch.ones(count, tokens, dtype=torch.bool),
            images=torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8),
        ),
        sequence=torch.arange(users * length).view(users, length),
        mask=torch.ones(users, length, dtype=torch.bool),
        users=torch.arange(users),
        occurrence_rate=torch.full((count,), 1 / count),
        pool_rate=torch.full((count,), _POOL / count),
        domain=torch.zeros(count, dtype=torch.int64),
    )


def measure(settings: Settings) -> dict[str, float]:
    """One step of the first of the models in this process."""
    config = replace(MODELS[settings.models[0]](), recompute=settings.recompute, title_tokens=settings.tokens)
    place = init_distributed()
    with tempfile.TemporaryDirectory() as scratch:
        file = write_ds_config(Path(scratch) / "ds_config.json", settings.users, bf16=True)
        ds_config = read_ds_config(file, place.world_size)
    torch.manual_seed(0)
    model = Recommender.build(config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    spec = model.image_spec
    assert spec is not None
    engine = Engine(NextItemTask(model, "softmax", 1), param_groups(model, OptimConfig()), ds_config, place)
    batch = made_up_batch(
        settings.users, config.max_history + 1, settings.tokens, spec.height, spec.width, settings.vocab_size
    )
    start = time.perf_counter()
    report = engine.train_step([batch.to(place.device)], 1.0)
    return {
        "parameters": total,
        "trained": trained,
        "items": len(batch.items),
        "seconds": time.perf_counter() - start,
        "loss": report.loss,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def print_table(found: dict[str, dict[str, float]], settings: Settings) -> None:
    """A row for each model."""
    kept = "recomputed" if settings.recompute else "kept"
    title = f"one step, {settings.users} users, titles of {settings.tokens} tokens, bf16, activations {kept}"
    table = Table(title=title, title_justify="left")
    for column in ("", "parameters", "trained", "items", "seconds", "peak GB"):
        table.add_column(column, justify="right")
    for name, figures in found.items():
        counts = (f"{figures[key]:,.0f}" for key in ("parameters", "trained", "items", "seconds"))
        table.add_row(name, *counts, f"{figures['peak_bytes'] / 1e9:.1f}")
    Console(width=120).print(table)


@user_facing
def main(argv: list[str] | None = None) -> None:
    """Measures each model and prints a table."""
    settings = tyro.cli(Settings, args=argv, use_underscores=True)
    setup_logging()
    for name in settings.models:
        if name not in MODELS:
            raise unknown_name("model", name, MODELS)
    if settings.in_this_process:
        Console(soft_wrap=True).print(json.dumps(measure(settings)))
        return
    found = {}
    for name in settings.models:
        command = [sys.executable, "-m", "benchmarks.base_models", "--models", name, "--in_this_process"]
        command += ["--users", str(settings.users), "--tokens", str(settings.tokens)]
        command += ["--recompute"] if settings.recompute else []
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if ended.returncode:
            raise UserError(f"{name} ended with exit code {ended.returncode}: see above")
        found[name] = json.loads(ended.stdout.strip().splitlines()[-1])
    print_table(found, settings)


if __name__ == "__main__":
    main()

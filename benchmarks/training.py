"""Contestants that train: real steps of the real engine on the real stream."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.parts import write_ds_config
from benchmarks.work import FlopCounter
from mmsr_pt.assembly import build_cache, build_model, build_order, build_stream, open_domains
from mmsr_pt.batch import UserBatch
from mmsr_pt.cache import ItemCache
from mmsr_pt.config import DataConfig, ModelConfig, OptimConfig, PretrainConfig
from mmsr_pt.data.activations import ActivationStore, Layout
from mmsr_pt.data.catalogue import item_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.training.ds_config import precision, read_ds_config
from mmsr_pt.training.engine import Engine
from mmsr_pt.training.launch import init_distributed
from mmsr_pt.training.optim import param_groups
from mmsr_pt.training.task import NextItemTask

_STAND_INS = 32
"""Items whose activations fill a stand-in for a cache."""


class Training:
    """Takes steps and says how many users, items and bytes they took."""

    def __init__(
        self,
        domain: str,
        batch: int,
        bf16: bool,
        steps: int,
        model: dict[str, Any],
        cache: Literal["", "built", "stand-in"] = "",
        naive: bool = False,
        loss: Literal["softmax", "bce"] = "bce",
        settle: int = 0,
        num_workers: int = -1,
        pool_size: int = 128,
    ) -> None:
        """Sets up a run.

        Args:
            domain: directory.
            batch: users a step.
            bf16: else float32.
            steps: of a repetition.
            model: settings of ModelConfig that differ from its defaults.
            cache: built: as --cache does; stand-in: the same files filled with the activations of a few items.
            naive: as --naive does.
            loss: as --loss.
            settle: steps before those of a repetition, untimed, in which the loader comes to its pace.
            num_workers: loader processes.
            pool_size: as --pool_size.
        """
        self._steps, self._settle = steps, settle
        self.place = init_distributed()
        self._scratch = tempfile.TemporaryDirectory()
        scratch = Path(self._scratch.name)
        ds_config = read_ds_config(write_ds_config(scratch / "ds_config.json", batch, bf16), self.place.world_size)
        config = PretrainConfig(
            data=DataConfig(
                data=(Path(domain),),
                num_workers=num_workers,
                cache=cache == "built",
                naive=naive,
                pool_size=pool_size,
            ),
            model=ModelConfig(**model),
            optim=OptimConfig(loss=loss),
        )
        domains = open_domains(config)
        order = build_order(config, domains, ds_config["train_batch_size"], self.place.world_size)
        self.steps_per_epoch = order.steps_per_epoch
        torch.manual_seed(0)
        recommender, preprocessor = build_model(config.model, domains)
        items = build_cache(config, recommender, preprocessor, domains, ds_config, self.place)
        if cache == "stand-in":
            items = stand_in_cache(recommender, preprocessor, domains[0], precision(ds_config), scratch / "cache")
        task = NextItemTask(recommender, loss, num_domains=1)
        self.engine = Engine(task, param_groups(recommender, config.optim), ds_config, self.place)
        self._stream: Iterator[UserBatch] = iter(
            build_stream(config, domains, order, preprocessor, self.place, ds_config, 0, items)
        )

    def run(self) -> dict[str, float]:
        """Takes the steps of a repetition.

        Returns: users_per_s, items_per_s (encoded), step_s, data_wait (share of the time), users, items and loss of a
            step, rss_growth (bytes by which the process was at most larger during the steps than before them).
        """
        for _ in range(self._settle):
            self._step()
        before = _restart_peak()
        start = time.perf_counter()
        waited = users = items = loss = 0.0
        for _ in range(self._steps):
            step_waited, batch, step_loss = self._step()
            waited += step_waited
            users += int((batch.users >= 0).sum())
            items += len(batch.items)
            loss += step_loss
        seconds = time.perf_counter() - start
        return {
            "users_per_s": users / seconds,
            "items_per_s": items / seconds,
            "step_s": seconds / self._steps,
            "data_wait": waited / seconds,
            "users": users / self._steps,
            "items": items / self._steps,
            "loss": loss / self._steps,
            "rss_growth": float(_memory("VmHWM") - before),
        }

    def work(self) -> dict[str, Any]:
        """Operations of a step, and its users."""
        with FlopCounter() as counter:
            batch = self._step()[1]
        return {"units": int((batch.users >= 0).sum()), "flops": dict(counter.flops)}

    def _step(self) -> tuple[float, UserBatch, float]:
        start = time.perf_counter()
        batch = next(self._stream).to(self.place.device)
        waited = time.perf_counter() - start
        return waited, batch, self.engine.train_step([batch], 1.0).loss


class IdTraining(Training):
    """ID-SASRec under a softmax over the whole catalogue; a repetition is some epochs."""

    def __init__(self, domain: str, batch: int, window: int, epochs: int, bf16: bool) -> None:
        """Sets up a run; `window` is the longest history."""
        settings = {"item": "id", "text": "none", "vision": "none", "width": 128, "max_history": window}
        self._epochs = epochs
        num_items = Domain.load(domain).num_items
        super().__init__(domain, batch, bf16, 1, settings, loss="softmax", num_workers=0, pool_size=num_items)
        self._steps = epochs * self.steps_per_epoch

    def run(self) -> dict[str, float]:
        """As Training, with epoch_s besides."""
        figures = super().run()
        return {**figures, "epoch_s": figures["step_s"] * self.steps_per_epoch}

    def work(self) -> dict[str, Any]:
        """Operations of an epoch."""
        step = super().work()["flops"]
        return {"units": 1, "flops": {kind: flops * self.steps_per_epoch for kind, flops in step.items()}}


def stand_in_cache(
    model: Recommender, preprocessor: Preprocessor, domain: Domain, dtype: torch.dtype, directory: Path
) -> ItemCache:
    """A cache of the right shape in which a few items' activations stand for all.

    Large towers take many minutes to fill a real one, and what a step costs does not depend on the values.
    """
    few = range(min(_STAND_INS, domain.num_items))
    items = next(item_source(domain, preprocessor)(few, len(few)))
    with torch.no_grad():
        made = model.item_encoder.prefix(items)
    assert made.text is not None
    assert made.text.mask is not None
    assert made.vision is not None
    lengths = torch.tensor([len(title) for title in preprocessor.encode_titles(domain.titles())])
    tokens, pictures = made.text.hidden[made.text.mask], made.vision.hidden
    layout = Layout(
        num_items=domain.num_items,
        dtype=str(dtype).removeprefix("torch."),
        text_width=tokens.shape[1],
        num_tokens=int(lengths.sum()),
        vision_shape=tuple(pictures.shape[1:]),
    )
    directory.mkdir()
    store = ActivationStore.create(directory, layout, lengths)
    for rows in torch.arange(domain.num_items).split(256):
        mask = torch.arange(int(lengths[rows].max())) < lengths[rows][:, None]
        text = torch.zeros(*mask.shape, tokens.shape[1])
        text[mask] = tokens[torch.arange(int(mask.sum())) % len(tokens)].float()
        store.write(rows, text, mask, pictures[rows % len(pictures)])
    return ItemCache(Preprocessor(None, None, preprocessor.title_tokens), [store], [0])


def _restart_peak() -> int:
    """Makes the kernel forget the process's peak of memory; returns what it holds now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    """VmRSS (held now) or VmHWM (held at most since `_restart_peak`) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{os.getpid()}/status has no {name}")

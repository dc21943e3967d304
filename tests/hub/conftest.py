"""A stand-in hub that the real client talks to, and a finished run to publish."""

import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from mmsr_pt.assembly import build_model
from mmsr_pt.config import DataConfig, ModelConfig, PretrainConfig, RunConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.hub.card import domain_entry
from mmsr_pt.run_dir import MetricsLog, record
from tests.hub.repos import TOKEN
from tests.hub.server import StandIn, running

SMALL = ModelConfig(width=16, sequence_heads=2, fusion_heads=2, max_history=5)
STEP = 40
METRICS = ("HR@10", "HR@20", "HR@50", "NDCG@10", "NDCG@20", "NDCG@50", "MRR")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """The client of this process is led to a hub on loopback, logged in there, with a cache of its own."""
    with running() as stand_in:
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
        template = stand_in.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        # Xet is another protocol, of another server; without it the client sends large files as git-lfs does
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # the client waits before it tries again
        waitless = types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
        monkeypatch.setattr("huggingface_hub.utils._http.time", waitless)
        monkeypatch.setattr("huggingface_hub.file_download.time", waitless)
        yield stand_in


def eval_line(domain: Domain, step: int, split: str, model: str, part: str, value: float, cases: int) -> dict:
    protocol = "cold" if split == "any" else "leave-one-out"
    asked = {"step": step, "protocol": protocol, "split": split, "model": model, "slice": part}
    figures = {name: value + 0.01 * place for place, name in enumerate(METRICS)}
    return {"event": "eval", **asked, "users": cases, "cases": cases, **figures, "seconds": 0.1, "domain": domain.name}


@pytest.fixture
def run(small_domain: Domain, tmp_path: Path) -> Path:
    """A run directory as a finished training leaves it, of a model that has learnt nothing."""
    torch.manual_seed(0)
    path = tmp_path / "secret place" / "first"
    model, preprocessor = build_model(SMALL, [small_domain])
    ds_config = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 3, "nvme_path": "/local/nvme"}}
    config = PretrainConfig(RunConfig(run_dir=path, steps=60), DataConfig(data=(small_domain.path,)), SMALL)
    record(path, config, ds_config)
    model.save(path / "model", trained_on=[domain_entry(small_domain)], step=STEP)
    preprocessor.save(path / "model")
    metrics = MetricsLog(path)
    metrics.train({"step": 10, "loss": 1.5, "lr": {"rest": 0.1}})
    for step, split, name, part, value, cases in (
        (20, "valid", "mmsr", "all", 0.1, 150),
        (STEP, "valid", "mmsr", "all", 0.2, 150),
        (60, "valid", "mmsr", "all", 0.15, 150),
        (STEP, "any", "mmsr", "held-out", 0.3, 33),
        (STEP, "test", "popularity", "all", 0.05, 150),
        (STEP, "test", "mmsr", "all", 0.25, 150),
        (STEP, "test", "mmsr", "cold", 0.35, 44),
    ):
        metrics.evaluation(eval_line(small_domain, step, split, name, part, value, cases))
    metrics.close()
    return path

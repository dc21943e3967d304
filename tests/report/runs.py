"""Run directories as trainings leave them, without the training: of an untrained model."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import torch

from mmsr_pt.assembly import build_model
from mmsr_pt.config import DataConfig, ModelConfig, PretrainConfig, RunConfig
from mmsr_pt.data.catalogue import item_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.evaluate import evaluate, evaluate_baselines
from mmsr_pt.model import MMSRModel
from mmsr_pt.run_dir import TEST_RANKS, MetricsLog, record, write_ranks

SMALL = ModelConfig(width=16, max_history=6)


def begun(run_dir: Path, *domains: Domain, model: ModelConfig = SMALL) -> Path:
    """A run that has logged no step."""
    data = DataConfig(data=tuple(domain.path for domain in domains), max_users=domains[0].max_users)
    record(run_dir, PretrainConfig(run=RunConfig(run_dir=run_dir), data=data, model=model), {"train_batch_size": 8})
    return run_dir


def validated(run_dir: Path, *domains: Domain, model: ModelConfig = SMALL) -> Path:
    """A run of two logged steps, each of which has been validated; the second was the better one."""
    begun(run_dir, *domains, model=model)
    torch.manual_seed(0)
    recommender, preprocessor = build_model(model, domains)
    trained_on = [{"name": domain.name, "fingerprint": domain.fingerprint} for domain in domains]
    recommender.save(run_dir / "model", trained_on=trained_on)
    preprocessor.save(run_dir / "model")
    log = MetricsLog(run_dir)
    for step in (1, 2):
        rates = {"users_per_s": 10.0 * step, "items_encoded_per_s": 70.0, "data_wait": 0.25, "encoder_calls_saved": 0.5}
        log.train({"step": step, "epoch": step / 2, "lr": {"rest": 1e-3}, "loss": 3.0 / step, **rates})
        for domain in domains:
            found = {"HR@10": 0.01 * step, "NDCG@10": 0.005 * step, "seconds": 0.1}
            where = {"split": "valid", "model": "mmsr", "slice": "all", "domain": domain.name}
            log.evaluation({"event": "eval", "step": step, **where, **found})
    log.close()
    return run_dir


def finished(run_dir: Path, *domains: Domain, model: ModelConfig = SMALL) -> Path:
    """A validated run whose model and baselines have been tested on both protocols."""
    validated(run_dir, *domains, model=model)
    opened = MMSRModel.from_pretrained(run_dir)
    ranks: list[pl.DataFrame] = []
    lines: list[dict[str, Any]] = []
    for domain in domains:
        source = item_source(domain, opened.preprocessor)
        found = evaluate_baselines(domain, ["any", "test"], step=2)
        found += evaluate(opened.recommender, domain, source, ["any", "test"], 64, step=2, keep_ranks=ranks.append)
        lines += [{**line.as_dict(), "domain": domain.name} for line in found]
    write_ranks(run_dir / TEST_RANKS, ranks)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in lines)
    return run_dir

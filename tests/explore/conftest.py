"""Small untrained models of every kind on the drawn domain, and what the explorer shows of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmsr_pt.assembly import build_model
from mmsr_pt.config import ModelConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.explore.exhibit import Exhibit, Shown, gather
from mmsr_pt.hub.card import domain_entry
from mmsr_pt.model import MMSRModel

KINDS = {
    "MMSR": ModelConfig(width=16, max_history=4),
    "MMSR-T": ModelConfig(width=16, max_history=4, vision="none"),
    "IDSR": ModelConfig(width=16, max_history=4, item="id"),
}


def built(domain: Domain, config: ModelConfig, seed: int = 0) -> MMSRModel:
    torch.manual_seed(seed)
    recommender, preprocessor = build_model(config, [domain])
    recommender.trained_on = [domain_entry(domain)]
    return MMSRModel(recommender, preprocessor)


@pytest.fixture(scope="session")
def exhibit(small_domain: Domain) -> Exhibit:
    models = {name: built(small_domain, config) for name, config in KINDS.items()}
    shown = {name: Shown(model, model.index(small_domain)) for name, model in models.items()}
    return gather(small_domain, shown, num_users=12)


@pytest.fixture(scope="session")
def bundles(small_domain: Domain, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same models on disk."""
    root = tmp_path_factory.mktemp("bundles")
    for name, config in KINDS.items():
        built(small_domain, config).save_pretrained(root / name)
    return {name: root / name for name in KINDS}

"""The bank: with the whole catalogue in it the loss is the full softmax; what it draws; how items come in."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from mmsr_pt.assembly import build_model, build_order, build_stream
from mmsr_pt.batch import UserBatch
from mmsr_pt.config import DataConfig, ModelConfig, PretrainConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.order import StreamOrder, pool_generator
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.training.bank import Bank
from mmsr_pt.training.launch import DistInfo
from mmsr_pt.training.losses import inclusion_probability
from mmsr_pt.training.task import NextItemTask

POOL = 16
BATCH = 8


@pytest.fixture
def config() -> PretrainConfig:
    model = ModelConfig(item="id", width=8, max_history=6, dropout=0.0, fusion_heads=2)
    return PretrainConfig(model=model, data=DataConfig(num_workers=0, pool_size=POOL))


def batches_of(config: PretrainConfig, domains: list[Domain], order: StreamOrder) -> Iterator[UserBatch]:
    _, preprocessor = build_model(config.model, domains[:1])
    place = DistInfo(0, 0, 1, torch.device("cpu"))
    return iter(build_stream(config, domains, order, preprocessor, place, {"gradient_accumulation_steps": 1}, 0))


def filled(domains: list[Domain], order: StreamOrder, size: int, table: Tensor) -> Bank:
    bank = Bank(domains, order, size, POOL)
    bank.catalogues = list(table.split([domain.num_items for domain in domains]))
    return bank


def full_softmax(model: Recommender, batch: UserBatch, table: Tensor, num_items: int) -> float:
    """Cross-entropy over the user's domain without the user's other items, position by position, in float64."""
    total = 0.0
    for row, mask in zip(batch.sequence, batch.mask):
        items = batch.items.ids[row[mask]]
        if len(items) < 2:
            continue
        users = model.encode_users(table[items[:-1]][None], torch.ones(1, len(items) - 1, dtype=torch.bool))[0]
        first = int(items[0]) // num_items * num_items
        for user, target in zip(users, items[1:]):
            scores = model.score_scale * (table.double() @ user.double())
            others = [i for i in range(first, first + num_items) if i not in items]
            total += (torch.logsumexp(scores[[*others, int(target)]], dim=0) - scores[target]).item()
    return total


@pytest.mark.parametrize("num_domains", [1, 2])
def test_with_the_whole_catalogue_fresh_in_the_bank_it_is_the_full_softmax(
    small_domain: Domain, config: PretrainConfig, num_domains: int
) -> None:
    domains = [small_domain] * num_domains
    order = build_order(config, domains, BATCH, 1)
    num_items = small_domain.num_items
    torch.manual_seed(0)
    model = Recommender.build(config.model, num_items=num_domains * num_items)
    table = torch.nn.functional.normalize(model.item_encoder.items.weight.detach(), dim=1)  # type: ignore[union-attr]
    bank = filled(domains, order, 10 * num_items, table)
    batch = bank.extended(next(batches_of(config, domains, order)), step=0)
    assert batch.bank is not None
    assert len(batch.items) + len(batch.bank.domain) == num_domains * num_items
    assert len(set(batch.domain[batch.sequence[:, 0]].tolist())) == num_domains  # type: ignore[index]
    loss, _, report = NextItemTask(model, "softmax", num_domains)(batch)
    with torch.no_grad():
        assert loss.item() == pytest.approx(full_softmax(model, batch, table, num_items), rel=1e-5)
    assert report["items_encoded"] == len(batch.items), "the bank is not encoded"


def test_bank_items_are_no_candidates_yet_and_their_vectors_the_tables(
    small_domain: Domain, config: PretrainConfig
) -> None:
    """Two domains; a table whose vectors are the item numbers."""
    domains = [small_domain, small_domain]
    order, num_items = build_order(config, domains, BATCH, 1), small_domain.num_items
    bank = filled(domains, order, 100, torch.arange(2.0 * num_items)[:, None])
    stream = batches_of(config, domains, order)
    first, second = (bank.extended(next(stream), step) for step in (0, 1))
    for batch in (first, second):
        assert batch.bank is not None
        ids = batch.bank.vectors[:, 0].long()
        assert not set(ids.tolist()) & set(batch.items.ids.tolist())
        assert len(set(ids.tolist())) == len(ids)
        assert 150 < len(ids) < 200, "100 of each domain, those gone that are in the batch"
        assert torch.equal(batch.bank.domain, ids // num_items)
        counts = small_domain.items["train_count"].to_numpy()
        np.testing.assert_allclose(batch.bank.occurrence_rate, counts[ids % num_items] / counts.sum(), rtol=1e-6)
    assert not torch.equal(first.bank.vectors[:50], second.bank.vectors[:50])  # type: ignore[union-attr]
    again = bank.extended(next(batches_of(config, domains, order)), step=0)
    assert torch.equal(again.bank.vectors, first.bank.vectors)  # type: ignore[union-attr]


def test_an_items_chance_to_be_a_candidate_counts_all_three_ways_in(
    small_domain: Domain, config: PretrainConfig
) -> None:
    """Simulated: a batch of independent interactions, and the pool and the bank as they are drawn in training."""
    order, num_items = build_order(config, [small_domain], BATCH, 1), small_domain.num_items
    counts = small_domain.items["train_count"].to_numpy()
    bank = filled([small_domain], order, 60, torch.arange(float(num_items))[:, None])
    template = next(batches_of(config, [small_domain], order))
    rng, num_steps, num_interactions = np.random.default_rng(0), 3000, 40
    met = np.zeros(num_items)
    rates = torch.zeros(num_items)
    for step in range(num_steps):
        in_batch = rng.choice(num_items, num_interactions, p=counts / counts.sum())
        epoch, of_epoch = divmod(step, order.steps_per_epoch)
        pool = pool_generator(order.seed, epoch, of_epoch, 0).choice(num_items, POOL, replace=False)
        template.items.ids = torch.from_numpy(np.unique([*in_batch, *pool]))
        template.domain = torch.zeros_like(template.items.ids)
        batch = bank.extended(template, step)
        assert batch.bank is not None
        assert batch.pool_rate is not None
        candidates = torch.cat([batch.items.ids, batch.bank.vectors[:, 0].long()])
        met[candidates] += 1
        rates[candidates] = torch.cat([batch.pool_rate, batch.bank.pool_rate])
    expected = inclusion_probability(
        torch.from_numpy(counts / counts.sum()), torch.full((num_items,), float(num_interactions)), rates
    ).numpy()
    deviation = (met / num_steps - expected) / np.sqrt(expected * (1 - expected) / num_steps)
    assert abs(deviation.mean()) < 4 / np.sqrt(num_items)
    assert np.abs(deviation).max() < 4.5
    assert expected.min() == pytest.approx(1 - (1 - POOL / num_items) * (1 - 60 / num_items), abs=1e-6)

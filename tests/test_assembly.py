"""The parts of a run, made from its configuration."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mmsr_pt import assembly
from mmsr_pt.assembly import build_model, build_order, build_stream, check_together, num_workers, open_domains
from mmsr_pt.config import DataConfig, ModelConfig, OptimConfig, PretrainConfig, RunConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.log import UserError
from mmsr_pt.training.launch import DistInfo

ALONE = DistInfo(0, 0, 1, torch.device("cpu"))
IDS = ModelConfig(item="id", text="none", vision="none", max_history=5)


def copy(domain: Domain, path: Path, **changes: object) -> Domain:
    """The domain under another path, with these entries of its manifest."""
    shutil.copytree(domain.path, path)
    (path / "domain.json").write_text(json.dumps({**domain.meta, **changes}))
    return Domain.load(path)


@pytest.mark.parametrize(
    ("cores", "ranks_here", "asked", "item", "expected"),
    [
        (2, 1, -1, "content", 1),  # a core for the rank, one for a reader
        (2, 2, -1, "content", 0),
        (8, 2, -1, "content", 2),  # 8 / 2 - 1 = 3, and 2 is the power of two below
        (64, 2, -1, "content", 4),  # never more than 4
        (1, 1, -1, "content", 0),
        (64, 1, -1, "id", 0),  # nothing to decode
        (64, 1, 8, "id", 8),  # what is asked for is done
        (64, 1, 0, "content", 0),
    ],
)
def test_loader_processes_leave_each_rank_a_core(
    monkeypatch: pytest.MonkeyPatch, cores: int, ranks_here: int, asked: int, item: str, expected: int
) -> None:
    monkeypatch.setattr(assembly.os, "cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks_here))
    config = PretrainConfig(data=DataConfig(num_workers=asked), model=ModelConfig(item=item))  # type: ignore[arg-type]
    assert num_workers(config, world_size=16) == expected


def test_domains_must_hold_what_the_towers_read(small_domain: Domain, tmp_path: Path) -> None:
    titles = copy(small_domain, tmp_path / "titles", modalities=["text"])
    data = DataConfig(data=(titles.path,))
    with pytest.raises(UserError, match="was built without image: use --vision none, or build it again with it"):
        open_domains(PretrainConfig(data=data))
    for model in (ModelConfig(vision="none"), ModelConfig(item="id")):
        assert [domain.path for domain in open_domains(PretrainConfig(data=data, model=model))] == [titles.path]


def test_an_id_model_takes_one_domain(small_domain: Domain) -> None:
    data = DataConfig(data=(small_domain.path, small_domain.path))
    with pytest.raises(UserError, match="--item id learns one domain's items, 2 domains were given: name one --data"):
        open_domains(PretrainConfig(data=data, model=IDS))


def test_without_data_the_drawn_domain_is_built(small_domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "ensure_drawn_domain", lambda variant: small_domain.path)
    assert [domain.path for domain in open_domains(PretrainConfig())] == [small_domain.path]


def test_weights_are_1_where_none_are_given(small_domain: Domain) -> None:
    domains = [small_domain, small_domain]
    order = build_order(PretrainConfig(), domains, global_batch=16, world_size=2)
    assert order.weights == (1.0, 1.0)
    assert order.num_users == 2 * small_domain.num_users
    halved = PretrainConfig(data=DataConfig(data=(Path("a"), Path("b")), weights=(1.0, 0.5)), run=RunConfig(seed=7))
    order = build_order(halved, domains, global_batch=16, world_size=2)
    assert order.num_users == small_domain.num_users + round(0.5 * small_domain.num_users)
    assert order.seed == 7


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_epoch_over_two_domains_holds_every_user_once(small_domain: Domain, ranks: int) -> None:
    domains, batch, accumulation = [small_domain, small_domain], 16, 2
    data = DataConfig(num_workers=0, pool_size=4)
    config = PretrainConfig(model=IDS, optim=OptimConfig(loss="softmax"), data=data)
    order = build_order(config, domains, batch, ranks)
    _, preprocessor = build_model(IDS, domains)
    ds_config = {"gradient_accumulation_steps": accumulation}
    users: list[int] = []
    for rank in range(ranks):
        place = DistInfo(rank, rank, ranks, torch.device("cpu"))
        batches = iter(build_stream(config, domains, order, preprocessor, place, ds_config, first_step=0))
        for _ in range(order.steps_per_epoch * accumulation):
            micro_batch = next(batches)
            assert micro_batch.sequence.shape == (batch // ranks // accumulation, IDS.max_history + 1)
            assert micro_batch.domain is not None
            of_user = micro_batch.domain[micro_batch.sequence[:, 0]]
            real = micro_batch.users >= 0
            assert torch.equal(of_user[real], micro_batch.users[real] // small_domain.num_users)
            assert torch.equal(micro_batch.items.ids // small_domain.num_items, micro_batch.domain)
            users += micro_batch.users[real].tolist()
    assert sorted(users) == list(range(2 * small_domain.num_users))


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_only_the_papers_loss_draws_a_negative_for_each_position(small_domain: Domain, loss: str) -> None:
    config = PretrainConfig(model=IDS, optim=OptimConfig(loss=loss), data=DataConfig(num_workers=0))  # type: ignore[arg-type]
    order = build_order(config, [small_domain], 8, 1)
    _, preprocessor = build_model(IDS, [small_domain])
    stream = build_stream(config, [small_domain], order, preprocessor, ALONE, {"gradient_accumulation_steps": 1}, 0)
    batch = next(iter(stream))
    if loss == "softmax":
        assert batch.negatives is None
    else:
        assert batch.negatives is not None
        assert batch.negatives.shape == (8, IDS.max_history)


def test_the_same_seed_makes_the_same_model(small_domain: Domain) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build_model(IDS, [small_domain])[0].state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert any(300 in tensor.shape for tensor in states[0].values()), "a vector for each of the domain's items"


@pytest.mark.parametrize("name", ["bert", "roberta-base", "user/model", "hf:/no/where", "tiny:3", ""])
def test_nothing_is_looked_up_under_a_name_that_is_none(
    small_domain: Domain, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(assembly, "tokenizer_for", lambda *_: pytest.fail("looked for a tokenizer"))
    with pytest.raises(UserError, match=r"--text|unknown text tower"):
        build_model(ModelConfig(text=name), [small_domain])


def test_recompute_is_refused_at_stage_3() -> None:
    config = PretrainConfig(model=ModelConfig(recompute=True))
    check_together(config, {"zero_optimization": {"stage": 2}})
    check_together(PretrainConfig(), {"zero_optimization": {"stage": 3}})
    with pytest.raises(UserError, match="--recompute .* use a --ds_config of stage 2"):
        check_together(config, {"zero_optimization": {"stage": 3}})

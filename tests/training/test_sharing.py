"""Two real ranks that share out their items: each encoded once, and the loss and gradients of one process."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from mmsr_pt.batch import ItemInputs, UserBatch
from mmsr_pt.config import ModelConfig
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.training.sharing import owners, share_items, sharing_report
from mmsr_pt.training.task import NextItemTask

CPU = torch.device("cpu")
LENGTH = 4
DOMAIN_OF = [0] * 7 + [1] * 5
"""Items 0 to 6 are of the first domain."""
RANKS = [
    # items 3 and 5 stand in both batches; 6 and 9 are of the pool
    {"sequences": [[3, 5, 1], [8, 7]], "pool": [6, 9]},
    {"sequences": [[5, 3, 0, 4]], "pool": [2]},
]
NOTHING_OF_ITS_OWN = [{"sequences": [[3, 5, 1]], "pool": []}, {"sequences": [[5, 3]], "pool": []}]
NOTHING_LEFT = [{"sequences": [[3, 5]], "pool": []}, {"sequences": [[5]], "pool": []}]


def model() -> Recommender:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 16, "max_history": LENGTH - 1, "title_tokens": 3, "fusion_heads": 2}
    config = ModelConfig(text="tiny", vision="none", dropout=0.0, **sizes)
    return Recommender.build(config, vocab_size=40)


def batch_of(sequences: list[list[int]], pool: list[int]) -> UserBatch:
    """An item's title is made of its number."""
    ids = torch.tensor(sorted({item for sequence in sequences for item in sequence} | set(pool)))
    index, mask = torch.zeros(len(sequences), LENGTH, dtype=torch.int64), torch.zeros(len(sequences), LENGTH).bool()
    for row, sequence in enumerate(sequences):
        index[row, : len(sequence)] = torch.searchsorted(ids, torch.tensor(sequence))
        mask[row, : len(sequence)] = True
    return UserBatch(
        items=ItemInputs(ids, torch.stack([ids + 5, ids * 2 + 7, ids + 9], dim=1), torch.ones(len(ids), 3).bool()),
        sequence=index,
        mask=mask,
        users=torch.arange(len(sequences)),
        occurrence_rate=(ids + 1) / 100,
        pool_rate=(ids + 1) / 20,
        domain=torch.tensor(DOMAIN_OF)[ids],
    )


def trained(batch: UserBatch) -> dict[str, Any]:
    task = NextItemTask(model(), "softmax", num_domains=2)
    calls: list[int] = []
    task.model.item_encoder.register_forward_hook(lambda _, args, out: calls.append(len(out)))
    loss, _, report = task(batch)
    loss.backward()
    gradients = {name: p.grad for name, p in task.model.named_parameters()}
    return {"loss": loss.detach(), "gradients": gradients, "calls": calls, "report": report}


def _rank(rank: int, store: str, out: str, batches: list[dict[str, Any]]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    batch = batch_of(**batches[rank])
    shared = share_items(batch, CPU)
    assert shared.shared is not None
    told = {
        "items": shared.items.ids,
        "titles": shared.items.title_ids,
        "candidates": shared.shared.ids,
        "sequence": shared.sequence,
        "rates": [rate.clone() for rate in (shared.occurrence_rate, shared.pool_rate, shared.domain)],
    }
    measured = model()
    state = torch.get_rng_state()
    said = sharing_report(measured, batch, CPU)
    assert measured.training
    assert torch.equal(torch.get_rng_state(), state), "measuring draws nothing"
    torch.save({**told, **trained(shared), "said": said}, f"{out}{rank}.pt")
    dist.destroy_process_group()


def two_ranks(tmp_path: Path, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    mp.spawn(_rank, args=(str(tmp_path / "store"), str(tmp_path / "rank"), batches), nprocs=2)
    return [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(
    "batches",
    [
        RANKS,
        pytest.param(NOTHING_OF_ITS_OWN, marks=pytest.mark.slow),
        pytest.param(NOTHING_LEFT, marks=pytest.mark.slow),
    ],
)
def test_ranks_learn_what_one_process_learns_from_all_users(tmp_path: Path, batches: list[dict[str, Any]]) -> None:
    """The sum of the ranks' losses and gradients, which the engine averages."""
    seen = two_ranks(tmp_path, batches)
    together = batch_of(
        [sequence for batch in batches for sequence in batch["sequences"]],
        [item for batch in batches for item in batch["pool"]],
    )
    expected = trained(together)
    assert sum(rank["loss"] for rank in seen).item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    for name, gradient in expected["gradients"].items():
        parts: list[Tensor] = [rank["gradients"][name] for rank in seen]
        torch.testing.assert_close(
            sum(parts), gradient, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    for rank in seen:
        assert torch.equal(rank["candidates"], together.items.ids)
        for found, rates in zip(rank["rates"], [together.occurrence_rate, together.pool_rate, together.domain]):
            assert torch.equal(found, rates)


def test_each_item_is_encoded_once_in_the_job_and_by_one_call(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, RANKS)
    # 7 items and 5, of which 3 and 5 go to the second rank, which has fewer of its own
    assert first["items"].tolist() == [1, 6, 7, 8, 9]
    assert second["items"].tolist() == [0, 2, 3, 4, 5]
    assert second["titles"][:, 0].tolist() == [5, 7, 8, 9, 10]
    assert first["sequence"].tolist() == [[3, 5, 1, 0], [8, 7, 0, 0]], "all ten items are candidates"
    for rank in (first, second):
        assert rank["calls"] == [5]
        assert rank["report"]["items_encoded"] == 5
        assert "2 ranks encode 10 items of a micro-batch, each once, instead of 12" in rank["said"]
        # vectors of 5 + 5 items, 16 floats each; three words of 8 bytes for each of 12 items
        assert f"{(10 * 16 * 4 + 12 * 24) / 1e6:.2f} MB" in rank["said"]


@pytest.mark.slow
def test_a_rank_that_is_left_without_items_still_calls_its_encoder(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path, NOTHING_LEFT)
    assert [rank["items"].tolist() for rank in (first, second)] == [[3], [5]]
    held_by_all = [{"sequences": [[4]], "pool": []}] * 2
    (tmp_path / "again").mkdir()
    assert [rank["items"].tolist() for rank in two_ranks(tmp_path / "again", held_by_all)] == [[4], [4]]


def test_owners_hold_what_they_own_and_are_as_even_as_can_be() -> None:
    """Whatever the order in which the items are told."""
    rng = np.random.default_rng(0)
    held = [rng.choice(200, size, replace=False) for size in (60, 80, 100)]
    ids, ranks = np.concatenate(held), np.repeat(np.arange(3), [60, 80, 100])
    owner = owners(ids, ranks, 3)
    distinct = np.unique(ids)
    assert all(item in held[rank] for item, rank in zip(distinct, owner))
    shuffled = rng.permutation(len(ids))
    assert np.array_equal(owners(ids[shuffled], ranks[shuffled], 3), owner)
    load = np.bincount(owner, minlength=3)
    alone = [sum(item not in np.concatenate(held[:r] + held[r + 1 :]) for item in held[r]) for r in range(3)]
    for r in range(3):
        given = load[r] - alone[r]
        assert given == 0 or load[r] <= load.min() + 3, "nobody is given more while another holder has fewer"


def test_a_lone_rank_keeps_its_batch() -> None:
    batch = batch_of([[3, 5]], [1])
    assert share_items(batch, CPU) is batch

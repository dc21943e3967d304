"""Model and loss together: what a micro-batch costs, and that nothing in it makes the host wait."""

import dataclasses

import pytest
import torch

from mmsr_pt.batch import ItemInputs, UserBatch
from mmsr_pt.config import ModelConfig
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.training.task import NextItemTask
from tests.training.watch import Watch

NUM_ITEMS = 12
SEQUENCES = [[3, 7, 3, 9], [0, 4], [11, 10, 9]]
LENGTH = 4


def id_model() -> Recommender:
    torch.manual_seed(0)
    config = ModelConfig(item="id", width=8, max_history=LENGTH - 1, dropout=0.0, fusion_heads=2, score="dot")
    return Recommender.build(config, num_items=NUM_ITEMS)


def batch_of(sequences: list[list[int]], pool: list[int]) -> UserBatch:
    """Users of one domain; occurrences in proportion to the item number, 2 items drawn into each pool."""
    ids = sorted({item for sequence in sequences for item in sequence} | set(pool))
    index, mask = torch.zeros(len(sequences), LENGTH, dtype=torch.int64), torch.zeros(len(sequences), LENGTH).bool()
    for row, sequence in enumerate(sequences):
        index[row, : len(sequence)] = torch.tensor([ids.index(item) for item in sequence])
        mask[row, : len(sequence)] = True
    return UserBatch(
        items=ItemInputs(torch.tensor(ids)),
        sequence=index,
        mask=mask,
        users=torch.arange(len(sequences)),
        occurrence_rate=torch.tensor(ids) / sum(range(NUM_ITEMS)),
        pool_rate=torch.full((len(ids),), 2 / NUM_ITEMS),
        domain=torch.zeros(len(ids), dtype=torch.int64),
    )


def by_hand(model: Recommender, candidates: dict[int, float]) -> float:
    """The loss position by position, from each candidate's chance to be one."""
    table = model.item_encoder.items.weight.detach()  # type: ignore[union-attr]
    total = 0.0
    for sequence in SEQUENCES:
        history = table[torch.tensor(sequence[:-1])][None]
        users = model.encode_users(history, torch.ones(1, len(sequence) - 1, dtype=torch.bool))[0].double()
        for user, target in zip(users, sequence[1:]):
            partition = (user @ table[target].double()).exp()
            for item, inclusion in candidates.items():
                if item not in sequence:
                    partition += (user @ table[item].double()).exp() / inclusion
            total += (partition.log() - user @ table[target].double()).item()
    return total


def test_softmax_by_hand() -> None:
    """9 interactions of 9 positions; the chance to be missed by all and by the pool."""
    model, batch = id_model(), batch_of(SEQUENCES, pool=[1, 5])
    loss, count, report = NextItemTask(model, "softmax", num_domains=1)(batch)
    num_interactions = sum(map(len, SEQUENCES))
    inclusion = {
        item: 1 - (1 - item / sum(range(NUM_ITEMS))) ** num_interactions * (1 - 2 / NUM_ITEMS)
        for item in batch.items.ids.tolist()
    }
    assert loss.item() == pytest.approx(by_hand(model, inclusion), rel=1e-5)
    assert count.item() == 3 + 1 + 2
    assert report == {
        "items_encoded": len(batch.items),
        "slots": 2 * 3 * LENGTH,
        "negatives": sum((len(batch.items) - len(set(one))) * (len(one) - 1) for one in SEQUENCES),
        "positions": 6,
        "positions_without_negatives": 0,
    }


def test_positions_without_a_negative_are_counted() -> None:
    """The batch holds nothing but the first user's items; the second has bought one of them only, twice."""
    batch = batch_of([[1, 2, 3], [2, 2]], pool=[])
    _, _, report = NextItemTask(id_model(), "softmax", num_domains=1)(batch)
    assert (report["negatives"], report["positions"], report["positions_without_negatives"]) == (2, 3, 2)


def test_hidden_items_by_hand() -> None:
    """A history's hidden items are what is asked for, each by the vector where it stands, among unseen negatives."""
    torch.manual_seed(0)
    config = ModelConfig(item="id", width=8, max_history=LENGTH - 1, fusion_heads=2, score="dot", sequence="bert4rec")
    model = Recommender.build(config, num_items=NUM_ITEMS).eval()
    batch = batch_of(SEQUENCES, pool=[1, 5])
    hidden = torch.tensor([[True, False, True], [True, False, False], [False, True, False]])
    batch = dataclasses.replace(batch, hidden=hidden, positions=None)
    loss, count, _ = NextItemTask(model, "softmax", num_domains=1)(batch)
    table = model.item_encoder.items.weight.detach()  # type: ignore[union-attr]
    total = 0.0
    for sequence, asked in zip(SEQUENCES, [[1, 3], [1], [2]], strict=True):
        unseen = torch.zeros(1, len(sequence), dtype=torch.bool)
        unseen[0, asked] = True
        states = model.sequence_encoder.fill(table[torch.tensor(sequence)][None], torch.ones_like(unseen), unseen)[0]
        for position in asked:
            state, target = states[position].double(), sequence[position]
            partition = (state @ table[target].double()).exp()
            for item in batch.items.ids.tolist():
                inclusion = 1 - (1 - item / sum(range(NUM_ITEMS))) ** 9 * (1 - 2 / NUM_ITEMS)
                if item not in sequence:
                    partition += (state @ table[item].double()).exp() / inclusion
            total += (partition.log() - state @ table[target].double()).item()
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert count.item() == 4


def attending_model() -> Recommender:
    """CARCA over learned vectors and titles."""
    torch.manual_seed(0)
    config = ModelConfig(
        item="both", sequence="carca", vision="none", width=8, max_history=LENGTH - 1, dropout=0.0, fusion_heads=2
    )
    return Recommender.build(config, vocab_size=30, num_items=NUM_ITEMS)


def with_titles(batch: UserBatch) -> UserBatch:
    ids = batch.items.ids
    items = ItemInputs(ids, 5 + ids[:, None], torch.ones(len(ids), 1, dtype=torch.bool))
    return dataclasses.replace(batch, items=items)


@pytest.mark.parametrize("kind", ["softmax", "bce"])
def test_scores_by_attention_by_hand(kind: str) -> None:
    """Each position's formula from the table of all its scores; negatives of bce are items 2 and 1 of the batch."""
    model, batch = attending_model(), with_titles(batch_of(SEQUENCES, pool=[1, 5]))
    batch.negatives = torch.tensor([[2, 1, 2], [1, 0, 0], [2, 2, 0]])
    loss, count, _ = NextItemTask(model, kind, num_domains=1)(batch)  # type: ignore[arg-type]
    vectors = model.encode_items(batch.items)
    scores = model.score(model.encode_users(vectors[batch.sequence[:, :-1]], batch.targets), vectors).double()
    numbers, total = batch.items.ids.tolist(), 0.0
    for user, sequence in enumerate(SEQUENCES):
        for position, target in enumerate(sequence[1:]):
            found = scores[user, position]
            positive = found[numbers.index(target)]
            if kind == "bce":
                negative = found[batch.negatives[user, position]]
                total -= (positive.sigmoid().log() + (1 - negative.sigmoid()).log()).item()
                continue
            partition = positive.exp()
            for item, score in zip(numbers, found):
                if item not in sequence:
                    missed = (1 - item / sum(range(NUM_ITEMS))) ** 9 * (1 - 2 / NUM_ITEMS)
                    partition = partition + score.exp() / (1 - missed)
            total += (partition.log() - positive).item()
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert count.item() == 6


@pytest.mark.parametrize("loss", ["softmax", "bce"])
def test_nothing_in_a_micro_batch_makes_the_host_wait(loss: str) -> None:
    batch = batch_of(SEQUENCES, pool=[1, 5])
    batch.negatives = torch.zeros(len(SEQUENCES), LENGTH - 1, dtype=torch.int64)
    for model in (id_model(), attending_model()):
        task = NextItemTask(model, loss, num_domains=1)  # type: ignore[arg-type]
        with Watch() as watch:
            task(with_titles(batch))[0].backward()
        assert "aten.mm" in watch.seen or "aten.addmm" in watch.seen
        assert not watch.waited

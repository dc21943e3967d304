"""The evaluation as a whole, on a domain small enough to follow, on one process and on several."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from mmsr_pt.config import ModelConfig
from mmsr_pt.evaluation import ranking
from mmsr_pt.evaluation.cases import Cases, UserSample, questions, training_parts
from mmsr_pt.evaluation.evaluate import (
    CatalogueScorer,
    catalogue_ranker,
    catalogue_scorer,
    encode_catalogue,
    evaluate,
    evaluate_baselines,
    without_gradients,
)
from mmsr_pt.evaluation.metrics import METRICS
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.evaluation.ranking import rank_targets, target_ranks
from mmsr_pt.models.recommender import Recommender
from tests.evaluation.fakes import FakeModel, domain_of, id_source, random_domain

NUM_USERS, NUM_ITEMS, BATCH_SIZE = 23, 31, 4
SPLITS = ["valid", "test", "any"]


def brute_force_ranks(model, domain, split):
    """One user at a time, one item at a time, by the definition."""
    ranks = []
    for user in domain.eval.iter_rows(named=True):
        known = user["history"] + ([user["valid"]] if split == "test" else [])
        vector = sum(model.items.detach().float()[row] for row in known[-model.config.max_history :])
        score = [float(vector @ item) for item in model.items.detach().float()]
        target = user[split]
        rivals = [row for row in range(domain.num_items) if row != target and row not in known]
        ranks.append(1 + sum(score[row] >= score[target] for row in rivals))
    return ranks


def test_a_test_case_reads_and_masks_the_valid_item_too():
    domain = domain_of([[0, 1, 2, 3, 4], [5, 5, 6, 7]], num_items=8)
    valid, test = (questions(domain, split, 2).of(range(2)) for split in ("valid", "test"))
    assert valid.history.tolist() == [[1, 2], [5, 5]]
    assert valid.targets.tolist() == [3, 6]
    assert valid.seen.tolist() == [[0, 1, 2], [5, 5, -1]]
    assert test.history.tolist() == [[2, 3], [5, 6]]
    assert test.targets.tolist() == [4, 7]
    assert test.seen.tolist() == [[0, 1, 2, 3], [5, 5, 6, -1]]


def test_where_some_users_train_they_are_asked_in_validation_and_all_in_the_test():
    domain = domain_of([[0, 1, 2, 3, 4], [5, 5, 6, 7], [1, 2, 3, 4]], num_items=8)
    domain.training_users = domain.eval[[0, 2]]
    assert questions(domain, "valid", 2).targets.tolist() == [3, 3]
    assert questions(domain, "test", 2).targets.tolist() == [4, 7, 4]


def test_transitions_are_learnt_from_those_who_train():
    domain = domain_of([[0, 1, 5, 2, 3], [2, 3, 6, 7, 8]], num_items=9)
    everyone = {line.model: line.metrics["MRR"] for line in evaluate_baselines(domain, ["test"])}
    domain.training_users = domain.eval[:1]
    some = {line.model: line.metrics["MRR"] for line in evaluate_baselines(domain, ["test"])}
    # that 3 follows 2 is known from the second user: without, 6 is as popular as 3, and first becomes second place
    assert everyone["transitions"] - some["transitions"] == pytest.approx((1 - 1 / 2) / 2)


def test_short_histories_stand_left_and_are_masked_right():
    cases = questions(domain_of([[0, 1, 2, 3, 4], [5, 6, 7]], num_items=8), "valid", 20).of(range(2))
    assert cases.history.tolist() == [[0, 1, 2], [5, 0, 0]]
    assert cases.mask.tolist() == [[True, True, True], [True, False, False]]


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("max_history", [1, 5, 20])
def test_the_lines_are_the_means_of_brute_force_ranks(split, max_history):
    domain, model = random_domain(NUM_USERS, NUM_ITEMS), FakeModel(NUM_ITEMS, max_history=max_history)
    lines = {line.slice: line for line in evaluate(model, domain, id_source, [split], BATCH_SIZE, step=7)}
    ranks = brute_force_ranks(model, domain, split)
    cold = [domain.items["train_count"][row] < 10 for row in domain.eval[split]]
    of_slice = {
        "all": ranks,
        "cold": [rank for rank, is_cold in zip(ranks, cold) if is_cold],
        "warm": [rank for rank, is_cold in zip(ranks, cold) if not is_cold],
    }
    for name, expected in of_slice.items():
        if not expected:
            assert name not in lines
            continue
        assert lines[name].users == len(expected)
        assert lines[name].metrics["MRR"] == pytest.approx(sum(1 / rank for rank in expected) / len(expected))
        assert lines[name].metrics["HR@10"] == pytest.approx(sum(rank <= 10 for rank in expected) / len(expected))


def test_a_catalogue_that_is_encoded_already_is_not_encoded_again():
    domain, model = random_domain(NUM_USERS, NUM_ITEMS), FakeModel(NUM_ITEMS)
    expected = evaluate(model, domain, id_source, ["valid"], BATCH_SIZE)
    catalogue = encode_catalogue(model, id_source, NUM_ITEMS, BATCH_SIZE)
    lines = evaluate(model, domain, lambda *_: pytest.fail("encoded"), ["valid"], BATCH_SIZE, catalogue=catalogue)
    assert [line.metrics for line in lines] == [line.metrics for line in expected]


def test_a_line_is_json_with_the_fields_of_the_run_directory():
    domain = random_domain(NUM_USERS, NUM_ITEMS)
    lines = evaluate(FakeModel(NUM_ITEMS), domain, id_source, ["test"], BATCH_SIZE, step=3)
    for line in lines + evaluate_baselines(domain, ["test"], step=3):
        read = json.loads(json.dumps(line.as_dict(), allow_nan=False))
        described = ["event", "step", "protocol", "split", "model", "slice", "users", "cases"]
        assert list(read) == [*described, *METRICS, "seconds"]
        assert (read["event"], read["step"], read["protocol"], read["split"]) == ("eval", 3, "leave-one-out", "test")
        assert read["cases"] == read["users"]
        assert all(0 <= read[name] <= 1 for name in METRICS)


def test_the_catalogue_is_encoded_once_for_both_splits_in_evaluation_mode():
    domain, model = random_domain(NUM_USERS, NUM_ITEMS), FakeModel(NUM_ITEMS)
    model.train()
    evaluate(model, domain, id_source, ["valid", "test"], BATCH_SIZE)
    assert [row for batch in model.batches for row in batch] == list(range(NUM_ITEMS))
    assert model.modes == {False}
    assert model.training, "evaluation must give the model back in the mode it came in"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("on_cpu", [True, False], ids=["products", "scores"])
def test_ranks_are_those_of_exact_scores_in_any_precision(monkeypatch, dtype, on_cpu):
    """With and without the way that products have on the CPU only."""
    if not on_cpu:
        monkeypatch.setattr("mmsr_pt.evaluation.evaluate.can_rank", lambda catalogue: False)
    domain, model = random_domain(NUM_USERS, NUM_ITEMS), FakeModel(NUM_ITEMS, dtype=dtype)
    catalogue = encode_catalogue(model, id_source, NUM_ITEMS, BATCH_SIZE)
    assert catalogue.dtype == dtype
    cases = questions(domain, "test", 20)
    found = rank_targets(CatalogueScorer(model, catalogue), cases)
    asked = cases.of(range(NUM_USERS))
    users = model.encode_last(catalogue[asked.history], asked.mask)
    expected = target_ranks(users.double() @ catalogue.double().T, asked.targets, asked.seen)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("block", [1, 700, 10**6])
def test_scores_by_attention_are_the_same_in_blocks_of_any_size(monkeypatch, block):
    """The last block overlaps the one before it, where blocks do not divide the catalogue."""
    monkeypatch.setattr("mmsr_pt.evaluation.evaluate.ATTENDED_SCORES", block)
    torch.manual_seed(0)
    config = ModelConfig(
        item="both", sequence="carca", width=8, max_history=5, sequence_heads=2, fusion_heads=1, vision="none"
    )
    model = Recommender.build(config, vocab_size=9, num_items=NUM_ITEMS).eval()
    domain, catalogue = random_domain(NUM_USERS, NUM_ITEMS), torch.randn(NUM_ITEMS, 16)
    cases = questions(domain, "test", 5)
    asked = cases.of(range(NUM_USERS))
    with torch.no_grad():
        users = model.encode_users(catalogue[asked.history], asked.mask)
        expected = model.score(users, catalogue)[torch.arange(NUM_USERS), asked.mask.sum(dim=1) - 1]
        found = catalogue_scorer(model, catalogue)(asked.history, asked.mask)
    torch.testing.assert_close(found, expected)
    ranks = rank_targets(catalogue_ranker(model, catalogue), cases)
    assert ranks.tolist() == target_ranks(found, asked.targets, asked.seen).tolist()
    lines = evaluate(model, domain, id_source, ["test"], BATCH_SIZE, catalogue=catalogue)
    assert lines[0].metrics["MRR"] == pytest.approx((1 / ranks.double()).mean().item())


def test_users_are_read_in_slices_that_put_together_are_the_whole():
    domain = random_domain(NUM_USERS, NUM_ITEMS)
    for split in ("valid", "test"):
        cases = questions(domain, split, 5)
        whole = cases.of(range(NUM_USERS))
        assert whole.targets.tolist() == cases.targets.tolist() == domain.eval[split].to_list()
        for first in range(0, NUM_USERS, 4):
            rows = range(first, min(first + 4, NUM_USERS))
            part, same = cases.of(rows), whole.of(rows)
            assert in_plain(part) == in_plain(same)
            assert part.seen.shape[1] == max(len(seen) for _, _, seen in in_plain(part)), "no wider than it must be"


def test_training_parts_come_a_few_users_at_a_time_and_complete(monkeypatch):
    monkeypatch.setattr("mmsr_pt.evaluation.cases.USERS_AT_ONCE", 2)
    domain = domain_of([[0, 1, 2, 3], [4, 5], [6, 6, 7, 7, 8], [5, 5, 5], [1, 2]], num_items=9)
    parts = [(items.tolist(), lengths.tolist()) for items, lengths in training_parts(domain.eval["history"], "cpu")]
    assert parts == [([0, 1], [2, 0]), ([6, 6, 7, 5], [3, 1]), ([], [0])]
    for split in ("valid", "test"):
        asked = questions(random_domain(NUM_USERS, NUM_ITEMS), split, 1)
        assert asked.last_items().tolist() == asked.of(range(NUM_USERS)).history[:, 0].tolist()


def in_plain(cases: Cases) -> list[tuple[list[int], int, list[int]]]:
    """History, target and seen items of each user, without padding."""
    histories = [history[mask].tolist() for history, mask in zip(cases.history, cases.mask)]
    return list(zip(histories, cases.targets.tolist(), [seen[seen >= 0].tolist() for seen in cases.seen]))


def test_a_sample_asks_some_users_what_all_are_asked():
    domain, model = random_domain(NUM_USERS, NUM_ITEMS), FakeModel(NUM_ITEMS)
    sample = UserSample(size=7, seed=3)
    cases = questions(domain, "test", 20, sample)
    users = sample.of(domain.eval)["user"].to_list()
    assert len(set(users)) == 7
    assert users == sorted(users) == sample.of(domain.eval)["user"].to_list()
    assert users != UserSample(size=7, seed=4).of(domain.eval)["user"].to_list()
    scorer = CatalogueScorer(model, encode_catalogue(model, id_source, NUM_ITEMS, BATCH_SIZE))
    ranks = rank_targets(scorer, questions(domain, "test", 20))
    assert rank_targets(scorer, cases).tolist() == ranks[users].tolist()
    (line, *_) = evaluate(model, domain, id_source, ["test"], BATCH_SIZE, users=sample)
    assert (line.slice, line.users) == ("all", 7)
    assert line.metrics["MRR"] == pytest.approx((1 / ranks[users].double()).mean().item())
    popularity, *_ = evaluate_baselines(domain, ["test"], users=sample)
    assert popularity.users == 7


@pytest.mark.parametrize("size", [0, NUM_USERS, NUM_USERS + 1])
def test_a_sample_of_all_or_more_is_everyone(size):
    frame = random_domain(NUM_USERS, NUM_ITEMS).eval
    assert UserSample(size).of(frame)["user"].to_list() == list(range(NUM_USERS))


def test_inference_mode_is_for_weights_that_are_not_split_over_ranks(monkeypatch):
    model = FakeModel(NUM_ITEMS)
    with without_gradients(model):
        assert torch.is_inference_mode_enabled()
    model.items.ds_id = 0
    with without_gradients(model):
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("is_split", [False, True])
def test_a_model_trains_on_after_its_evaluation(is_split):
    domain, model = random_domain(NUM_USERS, NUM_ITEMS), FakeModel(NUM_ITEMS)
    if is_split:
        model.items.ds_id = 0
    modes = []
    plain = model.encode_items
    model.encode_items = lambda items: modes.append(torch.is_inference_mode_enabled()) or plain(items)
    evaluate(model, domain, id_source, ["valid"], BATCH_SIZE)
    assert set(modes) == {not is_split}
    plain(next(id_source(range(3), 3))).square().sum().backward()
    assert model.items.grad is not None


def test_a_model_that_gives_nan_ranks_last_and_not_first():
    domain, model = random_domain(NUM_USERS, 60), FakeModel(60)
    with torch.no_grad():
        model.items.fill_(torch.nan)
    (line, *_) = evaluate(model, domain, id_source, ["test"], BATCH_SIZE)
    assert line.metrics["HR@10"] == 0


def test_baselines_count_the_training_part_only():
    # in every training part 1 follows 0; 2 follows 1 in held-out items only
    domain = domain_of([[0, 1, 3, 1, 2], [0, 1, 4, 1, 2], [0, 3, 4, 1, 2]], num_items=5)
    lines = {(line.model, line.slice): line for line in evaluate_baselines(domain, ["test"])}
    # 2 never occurs in training: nothing scores below it, and it has no rival left but unseen items
    unseen_rivals = [1, 1, 0]
    assert lines["popularity", "all"].metrics["MRR"] == pytest.approx(sum(1 / (1 + n) for n in unseen_rivals) / 3)
    assert lines["transitions", "all"].metrics["MRR"] == lines["popularity", "all"].metrics["MRR"]
    assert ("popularity", "warm") not in lines, "every target occurs less than 10 times"


def _on_one_rank(rank: int, world_size: int, port: int, out: Path, started_by_other: bool) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    if started_by_other:
        torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    assert processes().num_processes == world_size
    assert torch.get_num_threads() == 1, "accelerate must not change the threads of a training that is under way"
    ranking.CHUNK_USERS = CatalogueScorer.chunk_users = 5
    domain, model = random_domain(NUM_USERS, NUM_ITEMS), FakeModel(NUM_ITEMS)
    catalogue = encode_catalogue(model, id_source, NUM_ITEMS, BATCH_SIZE)
    assert torch.equal(catalogue, model.items)
    lines = evaluate(model, domain, id_source, SPLITS, BATCH_SIZE) + evaluate_baselines(domain, ["test", "any"])
    report = {
        "lines": [{**line.as_dict(), "seconds": 0} for line in lines],
        "item_calls": len(model.batches),
        "user_calls": model.user_calls,
        "rows": sorted({row for batch in model.batches for row in batch}),
    }
    (out / f"{world_size}_{rank}.json").write_text(json.dumps(report))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(("world_size", "started_by_other"), [(2, False), (3, True)])
def test_any_number_of_processes_gives_the_same_lines(tmp_path, monkeypatch, world_size, started_by_other):
    torch.multiprocessing.spawn(
        _on_one_rank, args=(world_size, _free_port(), tmp_path, started_by_other), nprocs=world_size
    )
    reports = [json.loads((tmp_path / f"{world_size}_{rank}.json").read_text()) for rank in range(world_size)]

    monkeypatch.setattr(ranking, "CHUNK_USERS", 5)
    monkeypatch.setattr(CatalogueScorer, "chunk_users", 5)
    domain, model = random_domain(NUM_USERS, NUM_ITEMS), FakeModel(NUM_ITEMS)
    alone = evaluate(model, domain, id_source, SPLITS, BATCH_SIZE) + evaluate_baselines(domain, ["test", "any"])
    for report in reports:
        assert report["lines"] == [{**line.as_dict(), "seconds": 0} for line in alone]
    assert len({(report["item_calls"], report["user_calls"]) for report in reports}) == 1, "unequal calls hang ZeRO-3"
    # 31 items are 8 batches of 4; every process encodes its own share only, twice in this test
    assert all(report["item_calls"] == 2 * -(-8 // world_size) for report in reports)


def test_more_processes_than_batches_still_call_equally(tmp_path):
    torch.multiprocessing.spawn(_few_things, args=(2, _free_port(), tmp_path), nprocs=2)
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == "1 1"


def _few_things(rank: int, world_size: int, port: int, out: Path) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    model = FakeModel(2)
    catalogue = encode_catalogue(model, id_source, 2, batch_size=10)
    assert torch.equal(catalogue, model.items)
    evaluate(model, domain_of([[0, 1, 0, 1, 1]], 2), id_source, ["test"], 10)
    (out / str(rank)).write_text(f"{len(model.batches) - 1} {model.user_calls}")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()

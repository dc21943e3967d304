"""The cold protocol: its cases by hand and by a slow reference, on every kind of domain."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr_pt.data.domain import Domain
from mmsr_pt.data.shards.build import BuildOptions, build_domain
from mmsr_pt.data.sources.hm import HM
from mmsr_pt.data.sources.table import Table
from mmsr_pt.evaluation import ranking
from mmsr_pt.evaluation.cases import UserSample, questions
from mmsr_pt.evaluation.evaluate import CatalogueScorer, encode_catalogue, evaluate, evaluate_baselines
from mmsr_pt.evaluation.ranking import rank_targets
from tests.conftest import real_data
from tests.evaluation.fakes import FakeModel, domain_of, id_source, random_domain

# in training parts 0 and 1 occur 10 times and more, 5 once, 6 twice, the others never
WARM = [[0, 1, 0, 1]] * 10
BY_HAND = [[0, 5, 0, 1, 6, 5, 0], *WARM, [6, 0, 1, 7]]


def naive_cases(domain):
    """(user, what stands before, target, whether it is held out) of every case, one place at a time."""
    count = domain.items["train_count"].to_list()
    for number, user in enumerate(domain.eval.iter_rows(named=True)):
        sequence = [*user["history"], user["valid"], user["test"]]
        for place in range(1, len(sequence)):
            if count[sequence[place]] < 10:
                yield number, sequence[:place], sequence[place], place >= len(sequence) - 2


def found_cases(asked, numbers):
    cases = asked.of(numbers)
    seen = [[row for row in rows if row >= 0] for rows in cases.seen.tolist()]
    read = [rows[mask].tolist() for rows, mask in zip(cases.history, cases.mask)]
    return list(zip(seen, read, cases.targets.tolist()))


def test_every_cold_item_behind_another_is_a_case():
    asked = questions(domain_of(BY_HAND, num_items=9), "any", max_history=2)
    assert found_cases(asked, range(len(asked))) == [
        ([0], [0], 5),
        ([0, 5, 0, 1], [0, 1], 6),
        ([0, 5, 0, 1, 6], [1, 6], 5),
        ([6, 0, 1], [0, 1], 7),
    ]
    assert asked.users.tolist() == [0, 0, 0, 11]
    assert asked.targets.tolist() == [5, 6, 5, 7]
    assert asked.held_out.tolist() == [False, False, True, True]
    assert asked.last_items().tolist() == [0, 1, 6, 1]


def test_the_lines_tell_how_many_cases_and_users_there_are():
    domain = domain_of(BY_HAND, num_items=9)
    lines = {line.slice: line for line in evaluate(FakeModel(9), domain, id_source, ["any"], 4)}
    counts = {name: (line.cases, line.users, line.protocol, line.split) for name, line in lines.items()}
    assert counts == {
        "held-out": (2, 2, "cold", "any"),
        "new": (1, 1, "cold", "any"),
        "all": (4, 2, "cold", "any"),
    }


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=9), min_size=1, max_size=30),
    st.integers(1, 4),
    st.integers(1, 9),
)
def test_cases_are_those_of_the_slow_reference_and_read_nothing_later(sequences, max_history, at_once):
    domain = domain_of(sequences, num_items=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmsr_pt.evaluation.cases.USERS_AT_ONCE", at_once)
        asked = questions(domain, "any", max_history)
        expected = list(naive_cases(domain))
        assert len(asked) == len(expected)
        for first in range(0, len(asked), at_once):
            numbers = range(first, min(first + at_once, len(asked)))
            wanted = [(seen, seen[-max_history:], target) for _, seen, target, _ in expected[first : numbers.stop]]
            assert found_cases(asked, numbers) == wanted
    assert asked.users.tolist() == [user for user, _, _, _ in expected]
    assert asked.targets.tolist() == [target for _, _, target, _ in expected]
    assert asked.held_out.tolist() == [is_held_out for _, _, _, is_held_out in expected]
    assert asked.last_items().tolist() == [seen[-1] for _, seen, _, _ in expected]


def brute_force_rank(model, num_items, seen, target):
    items = model.items.detach().double()
    score = (items @ items[seen[-model.config.max_history :]].sum(dim=0)).tolist()
    return 1 + sum(score[row] >= score[target] for row in range(num_items) if row != target and row not in seen)


@pytest.mark.parametrize("max_history", [1, 5, 20])
def test_ranks_are_those_of_brute_force(monkeypatch, max_history):
    monkeypatch.setattr(ranking, "CHUNK_USERS", 7)
    monkeypatch.setattr(CatalogueScorer, "chunk_users", 7)
    domain, model = random_domain(23, 40, seed=1), FakeModel(40, max_history)
    expected = [brute_force_rank(model, 40, seen, target) for _, seen, target, _ in naive_cases(domain)]
    assert len(expected) > 23, "users have several cases"
    scorer = CatalogueScorer(model, encode_catalogue(model, id_source, 40, 4))
    asked = questions(domain, "any", max_history)
    assert rank_targets(scorer, asked).tolist() == expected
    lines = {line.slice: line for line in evaluate(model, domain, id_source, ["any"], 4)}
    of_held_out = [rank for rank, (*_, is_held_out) in zip(expected, naive_cases(domain)) if is_held_out]
    assert lines["all"].metrics["MRR"] == pytest.approx(np.mean([1 / rank for rank in expected]))
    assert lines["held-out"].metrics["MRR"] == pytest.approx(np.mean([1 / rank for rank in of_held_out]))
    assert lines["held-out"].metrics["HR@10"] == pytest.approx(np.mean([rank <= 10 for rank in of_held_out]))


def test_transitions_start_at_the_item_before_the_case():
    lines = {(line.model, line.slice): line for line in evaluate_baselines(domain_of(BY_HAND, num_items=9), ["any"])}
    # behind 0, 1 came eleven times and 5 once: 5 is second
    # behind 1, only 6 ever came: first
    # behind 6, only 0 ever came, which is seen: 5, which occurs once, is before 2, 3, 4, 7, 8, which never do
    # behind 1, 6 is seen: 5 is before 7, and so are 2, 3, 4, 8, which are level with it
    ranks = {"held-out": [1, 6], "all": [2, 1, 1, 6]}
    for name, expected in ranks.items():
        mrr = sum(1 / rank for rank in expected) / len(expected)
        assert lines["transitions", name].metrics["MRR"] == pytest.approx(mrr)


def test_a_sample_of_users_is_asked_for_all_of_their_cold_items():
    domain = random_domain(23, 40)
    sample = UserSample(size=6, seed=2)
    users = set(sample.of(domain.eval)["user"].to_list())
    expected = [(seen, target) for user, seen, target, _ in naive_cases(domain) if user in users]
    asked = questions(domain, "any", 20, sample)
    assert [(seen, target) for seen, _, target in found_cases(asked, range(len(asked)))] == expected
    popularity, *_ = evaluate_baselines(domain, ["any"], users=sample)
    assert popularity.users <= 6


def test_where_nothing_is_cold_there_are_no_lines():
    domain = domain_of(WARM, num_items=2)
    assert len(questions(domain, "any", 20)) == 0
    assert evaluate(FakeModel(2), domain, id_source, ["any"], 4) == []
    assert {line.split for line in evaluate_baselines(domain, ["any", "test"])} == {"test"}


def test_what_is_cold_follows_from_the_users_who_train(small_domain: Domain) -> None:
    everyone, few = (questions(Domain.load(small_domain.path, max_users), "any", 20) for max_users in (0, 40))
    places = small_domain.eval["cold_cases"].explode().drop_nulls()
    assert everyone._cases["place"].to_list() == places.to_list(), "the domain directory has the same cases"
    histories = Domain.load(small_domain.path, 40).training_users["history"].explode()
    count = np.bincount(histories.to_numpy(), minlength=small_domain.num_items)
    sequences = small_domain.eval.select(pl.concat_list("history", "valid", "test")).to_series().to_list()
    assert len(few) == sum(count[row] < 10 for sequence in sequences for row in sequence[1:]) > len(everyone)


@pytest.mark.parametrize(("name", "num_cold"), [("hm", 539), ("movies_classic", 395), ("movies_modern", 307)])
def test_real_domains_have_the_known_number_of_cold_test_targets(tmp_path, name, num_cold):
    root = real_data(name)
    raw = (HM(root) if name == "hm" else Table(root)).read(root, with_images=False)
    domain = build_domain(raw, tmp_path / name, BuildOptions(modalities=("text",), num_workers=1))
    asked = questions(domain, "any", 20)
    assert asked._cases["place"].to_list() == domain.eval["cold_cases"].explode().drop_nulls().to_list()
    length = domain.eval["history"].list.len().to_numpy() + 2
    cases = asked._cases
    is_test = cases["place"].to_numpy() == length[cases["user"].to_numpy()] - 1
    assert is_test.sum() == num_cold
    popularity = {line.slice: line for line in evaluate_baselines(domain, ["test"]) if line.model == "popularity"}
    assert popularity["cold"].cases == num_cold

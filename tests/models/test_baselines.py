"""Popularity and transitions against counting with dictionaries."""

from collections import Counter
from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsr_pt.models.baselines.popularity import Popularity
from mmsr_pt.models.baselines.transitions import Transitions

NUM_ITEMS = 6
sequences_of = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=6), min_size=1, max_size=12)


def padded(lists):
    width = max(map(len, lists))
    rows = torch.tensor([row + [0] * (width - len(row)) for row in lists])
    return rows, torch.arange(width) < torch.tensor([[len(row)] for row in lists])


def flat(lists):
    return torch.tensor([item for row in lists for item in row]), torch.tensor([len(row) for row in lists])


def counts(sequences):
    seen = Counter(item for sequence in sequences for item in sequence)
    return torch.tensor([seen[item] for item in range(NUM_ITEMS)])


def test_a_user_without_items_joins_no_neighbours():
    popularity = torch.ones(NUM_ITEMS, dtype=torch.int64)
    sequences = [[], [0, 1], [], [], [2], []]
    assert Transitions([flat(sequences)], popularity)(*padded([[1], [2]])).tolist() == [[1] * NUM_ITEMS] * 2
    assert Transitions([flat(sequences)], popularity)(*padded([[0]]))[0].argmax() == 1


@given(sequences_of, sequences_of)
def test_transitions_order_by_count_after_the_last_item_then_by_popularity(training, histories):
    followed = Counter((a, b) for sequence in training for a, b in pairwise(sequence))
    popularity = counts(training)
    scores = Transitions([flat(training)], popularity)(*padded(histories))
    assert scores.shape == (len(histories), NUM_ITEMS)
    for history, row in zip(histories, scores.tolist()):
        key = [(followed[history[-1], item], popularity[item].item()) for item in range(NUM_ITEMS)]
        # the same order and the same ties as the pair (transitions, popularity)
        for a in range(NUM_ITEMS):
            for b in range(NUM_ITEMS):
                assert (row[a] < row[b]) == (key[a] < key[b])


@given(sequences_of, sequences_of)
def test_neither_slices_nor_what_is_asked_change_a_score(training, histories):
    popularity = counts(training)
    last_items = torch.tensor([history[-1] for history in histories])
    sliced = Transitions([flat(training[:2]), flat(training[2:])], popularity, last_items) if training[2:] else None
    whole = Transitions([flat(training)], popularity)(*padded(histories))
    for other in (sliced, Transitions([flat(training)], popularity, last_items)):
        assert other is None or torch.equal(other(*padded(histories)), whole)


@given(sequences_of)
def test_popularity_offers_everyone_the_training_counts(histories):
    popularity = counts(histories)
    scores = Popularity(popularity)(*padded(histories))
    assert scores.tolist() == [popularity.tolist()] * len(histories)


def test_one_transition_outweighs_any_popularity():
    popularity = torch.tensor([2_000_000_000, 1, 1, 0, 0, 0])
    scores = Transitions([flat([[1, 2]])], popularity)(torch.tensor([[1]]), torch.ones(1, 1, dtype=torch.bool))
    assert scores.argmax().item() == 2


def test_a_history_whose_last_item_nothing_followed_falls_back_to_popularity():
    popularity = torch.tensor([3, 1, 2, 0, 0, 0])
    model = Transitions([flat([[1, 2]])], popularity)
    assert model(torch.tensor([[1, 4]]), torch.ones(1, 2, dtype=torch.bool)).tolist() == [popularity.tolist()]

"""Who is in which slice, by arithmetic."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmsr_pt.evaluation.cases import questions
from mmsr_pt.evaluation.evaluate import evaluate
from mmsr_pt.evaluation.slices import OF_PROTOCOL, SLICES, head_items
from tests.evaluation.fakes import FakeModel, domain_of, id_source

COUNTS = torch.tensor([12, 0, 3, 3, 9, 10, 0, 1])


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([5, 9, 1, 1, 1], [1]),  # 5 items occur: 1 of them
        ([5, 9, 1, 1, 1, 7], [1, 5]),  # of 6, 1.2 is rounded up
        ([5, 9, 1, 1, 1, 0, 0, 0, 0, 0, 0], [1]),  # items that never occur do not count
        ([4, 4, 4, 4, 4, 4], [0, 1]),  # level: the lower rows
        ([0, 0, 3], [2]),
        ([0, 0], []),
    ],
)
def test_head_is_a_fifth_of_the_items_that_occur(counts, expected):
    assert head_items(torch.tensor(counts)).nonzero()[:, 0].tolist() == expected


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_no_item_outside_the_head_occurs_more_often_than_one_in_it(counts):
    is_head = head_items(torch.tensor(counts)).tolist()
    inside = [count for count, chosen in zip(counts, is_head) if chosen]
    outside = [count for count, chosen in zip(counts, is_head) if not chosen]
    occurring = sum(count > 0 for count in counts)
    assert occurring / 5 <= len(inside) < occurring / 5 + 1
    assert min(inside, default=1) > 0
    assert max(outside, default=0) <= min(inside, default=7)


def test_slices_are_by_the_targets_count():
    # the targets of these users are all items in turn
    asked = questions(domain_of([[0, 0, row] for row in range(len(COUNTS))], len(COUNTS)), "test", 20)
    chosen = {name: SLICES[name](asked, COUNTS).nonzero()[:, 0].tolist() for name in SLICES}
    assert chosen == {
        "all": [0, 1, 2, 3, 4, 5, 6, 7],
        "cold": [1, 2, 3, 4, 6, 7],
        "warm": [0, 5],
        "new": [1, 6],
        "head": [0, 5],  # 6 items occur, a fifth of which is 1.2
        "tail": [1, 2, 3, 4, 6, 7],
        "held-out": [0, 1, 2, 3, 4, 5, 6, 7],
    }


def test_every_slice_belongs_to_a_protocol_and_lines_come_in_its_order():
    assert {name for names in OF_PROTOCOL.values() for name in names} == set(SLICES)
    # one of each: 0 ten times and more in training, 1 less often, 2 never
    domain = domain_of([*[[0, 0, 0]] * 11, [0, 1, 0, 1], [0, 0, 2]], 3)
    for split, protocol in (("test", "leave-one-out"), ("any", "cold")):
        lines = evaluate(FakeModel(3), domain, id_source, [split], 4)
        assert tuple(line.slice for line in lines) == OF_PROTOCOL[protocol]

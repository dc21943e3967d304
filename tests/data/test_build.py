"""Who is trained on and who is held out, against the raw table read a second time in plain Python."""

import hashlib
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from mmsr_pt.data.domain import Domain
from mmsr_pt.data.shards.build import BuildOptions
from mmsr_pt.data.shards.interactions import SplitRule
from mmsr_pt.data.sources.synthetic import Synthetic
from mmsr_pt.log import UserError
from tests.data.raw import Interaction, build_table, random_interactions, write_table
from tests.data.tars import Event, held_out, trained_events

ROOT = Path(__file__).resolve().parent.parent.parent


def reference_split(
    rows: list[Interaction], min_interactions: int = 5, keep_last: int = 23
) -> dict[str, tuple[list[Event], Event, Event]]:
    """By user: training part, validation target, test target; by the rule, one row at a time."""
    events: dict[str, list[Event]] = defaultdict(list)
    for user, item, time in rows:
        event = (item, int(str(time)))
        if event not in events[user]:
            events[user].append(event)
    split = {}
    for user, own in events.items():
        if len(own) >= min_interactions:
            own.sort(key=lambda event: event[1])  # stable: rows of one time stay in their order
            newest = own[-keep_last:]
            split[user] = (newest[:-2], newest[-2], newest[-1])
    return split


def reference_rows() -> list[Interaction]:
    """60 users with 1 to 40 interactions at 6 different times with 30 items: ties, repeats, short and long users."""
    return random_interactions(num_users=60, num_items=30, longest=40)


@pytest.fixture(scope="module")
def raw_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    titles = {f"{item:03d}": f"thing number {item}" for item in range(30)}
    return write_table(tmp_path_factory.mktemp("raw") / "raw", reference_rows(), titles)


@pytest.fixture(scope="module")
def built(raw_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Domain:
    return build_table(raw_root, tmp_path_factory.mktemp("built") / "built")


def check_against(domain: Domain, expected: dict[str, tuple[list[Event], Event, Event]]) -> None:
    assert trained_events(domain) == {user: train for user, (train, _, _) in expected.items()}
    assert held_out(domain) == {user: (valid[0], test[0]) for user, (_, valid, test) in expected.items()}
    ids = domain.items["item_id"].to_list()
    histories = {
        user: [ids[row] for row in rows] for user, rows in domain.eval.select("user_id", "history").iter_rows()
    }
    assert histories == {user: [item for item, _ in train] for user, (train, _, _) in expected.items()}


# ---- the split


def test_tars_and_held_out_items_are_those_of_a_second_reading(built: Domain) -> None:
    expected = reference_split(reference_rows())
    assert 0 < len(expected) < 60  # some users are too short
    check_against(built, expected)
    lengths = {len(train) for train, _, _ in expected.values()}
    assert {min(lengths), max(lengths)} <= set(range(3, 22))
    assert max(lengths) == 21


def test_no_held_out_interaction_is_in_any_train_tar(built: Domain) -> None:
    in_tars = {(user, *event) for user, events in trained_events(built).items() for event in events}
    targets = {
        (user, *event)
        for user, (_, valid, test) in reference_split(reference_rows()).items()
        for event in (valid, test)
    }
    assert len(targets) == 2 * built.num_users
    assert not targets & in_tars
    assert in_tars < {(user, item, time) for user, item, time in reference_rows()}


def test_no_held_out_interaction_of_the_drawn_domain_is_in_any_train_tar(small_domain: Domain) -> None:
    source = Synthetic(num_users=150, items_per_cell=3)
    walks = source.world(source.generator()).walks
    trained = trained_events(small_domain)
    assert len(trained) == len(walks)
    for user, walk in enumerate(walks):  # no item twice in a walk, so the item names the interaction
        ids = [f"source-{item:05d}" for item in walk]
        assert [item for item, _ in trained[f"user-{user:05d}"]] == ids[:-2]
        assert held_out(small_domain)[f"user-{user:05d}"] == (ids[-2], ids[-1])


def test_the_last_23_are_kept_and_users_under_5_dropped(tmp_path: Path) -> None:
    rows = [(f"u{count}", f"{i:02d}", i) for count in (4, 5, 23, 24, 30) for i in range(1, count + 1)]
    domain = build_table(write_table(tmp_path / "raw", rows, {f"{i:02d}": "t" for i in range(1, 31)}), tmp_path / "out")
    trained = trained_events(domain)
    assert {user: (events[0][1], events[-1][1]) for user, events in trained.items()} == {
        "u5": (1, 3),
        "u23": (1, 21),
        "u24": (2, 22),
        "u30": (8, 28),
    }
    assert held_out(domain) == {"u5": ("04", "05"), "u23": ("22", "23"), "u24": ("23", "24"), "u30": ("29", "30")}


def test_both_numbers_of_the_split_rule_are_options(raw_root: Path, tmp_path: Path) -> None:
    options = BuildOptions(SplitRule(min_interactions=9, keep_last=6), num_workers=1)
    domain = build_table(raw_root, tmp_path / "out", options)
    check_against(domain, reference_split(reference_rows(), min_interactions=9, keep_last=6))
    assert domain.meta["split"]["min_interactions"] == 9
    assert domain.meta["split"]["keep_last"] == 6
    for wrong in ({"min_interactions": 2}, {"keep_last": 2}, {"keep_last": 256}):
        with pytest.raises(UserError, match=f"--{next(iter(wrong))} .* must lie in 3"):
            SplitRule(**wrong)


def test_the_manifest_says_what_was_read(built: Domain) -> None:
    counts = built.meta["counts"]
    assert counts["interactions_read"] == len(reference_rows())
    assert counts["users_read"] == 60
    assert counts["items_read"] == 30
    assert built.meta["source"] == "table"
    repeated = len(reference_rows()) - len(set(reference_rows()))
    assert built.meta["problems"]["duplicate_interaction"]["count"] == repeated > 0


def test_train_tars_differ_by_one_user_at_most_and_none_is_empty(raw_root: Path, built: Domain, tmp_path: Path) -> None:
    assert [tar.num_users for tar in built.train_tars] == [built.num_users]
    eight = build_table(raw_root, tmp_path / "eight", BuildOptions(num_shards=8, num_workers=1))
    assert len(eight.train_tars) == 8
    sizes = [tar.num_users for tar in eight.train_tars]
    assert max(sizes) - min(sizes) <= 1
    domain = build_table(raw_root, tmp_path / "out", BuildOptions(num_shards=1000, num_workers=1))
    assert [tar.num_users for tar in domain.train_tars] == [1] * built.num_users


# ---- the same input gives the same bytes


def test_any_number_of_writers_gives_the_same_bytes(raw_root: Path, built: Domain, tmp_path: Path) -> None:
    """The whole program, as other processes with other hash seeds; the name of the directory is part of domain.json."""
    for workers in ("1", "2"):
        flags = ["--root", str(raw_root), "--out", str(tmp_path / workers / "built"), "--num_workers", workers]
        subprocess.run([sys.executable, ROOT / "shards" / "build.py", "table", *flags], check=True, capture_output=True)
    digests = [
        {p.relative_to(base).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in base.rglob("*.*")}
        for base in (built.path, tmp_path / "1" / "built", tmp_path / "2" / "built")
    ]
    assert {"domain.json", "items.parquet", "eval.parquet", "tokenizer.model", "train/train-00000.tar"} <= set(
        digests[0]
    )
    assert digests[0] == digests[1] == digests[2]


def test_the_seed_changes_the_order_of_users_and_nothing_else(raw_root: Path, built: Domain, tmp_path: Path) -> None:
    other = build_table(raw_root, tmp_path / "other", BuildOptions(seed=1, num_workers=1))
    assert trained_events(other) == trained_events(built)
    assert other.eval.drop("place").equals(built.eval.drop("place"))
    assert sorted(other.eval["place"]) == sorted(built.eval["place"]) == list(range(built.num_users))
    assert other.items.equals(built.items)
    assert list(trained_events(other)) != list(trained_events(built))
    assert other.fingerprint != built.fingerprint


def test_the_fingerprint_covers_what_is_held_out_and_not_the_name(tmp_path: Path) -> None:
    rows: list[Interaction] = [(user, str(i), i) for user in "ab" for i in range(6)]
    titles = {str(i): f"t{i}" for i in range(7)}
    other_target: list[Interaction] = [*rows[:-1], ("b", "6", 5)]
    prints = []
    for name, table in (("one", rows), ("two", rows), ("three", other_target)):
        prints.append(build_table(write_table(tmp_path / "raw" / name, table, titles), tmp_path / name).fingerprint)
    assert prints[0] == prints[1] != prints[2]

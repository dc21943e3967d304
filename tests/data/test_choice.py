"""The part of a raw dataset that is asked for: categories, dates, users by lot, met items, and all of it together."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr_pt.data.domain import Domain
from mmsr_pt.data.shards.build import BuildOptions, build_domain
from mmsr_pt.data.shards.choice import Choice, drawn_users
from mmsr_pt.data.shards.interactions import SplitRule
from mmsr_pt.data.sources.base import RawDomain
from mmsr_pt.data.sources.hm import HM
from mmsr_pt.data.sources.table import Table
from mmsr_pt.log import UserError
from shards.build import main
from tests.data.raw import Interaction, random_interactions, write_table
from tests.data.tars import held_out, members, trained_events
from tests.data.test_build import check_against, reference_split

DAY = 86_400
START = 18_262 * DAY  # 2020-01-01
NUM_ITEMS = 30
CATEGORIES = ("Red|Cup", "Blue|cup", "Blue|Chair", "", "Chair")


def rows_of(num_users: int = 60, seed: int = 0) -> list[Interaction]:
    """Users with 1 to 40 interactions on the first six days of 2020, in random order."""
    drawn = random_interactions(num_users, NUM_ITEMS, longest=40, seed=seed)
    return [(user, item, START + int(str(day)) * DAY) for user, item, day in drawn]


def categories_of(item: str) -> list[str]:
    return CATEGORIES[int(item) % len(CATEGORIES)].split("|")


def write_raw(root: Path, rows: list[Interaction], pictures: list[str] | None = None) -> Path:
    titles = {f"{item:03d}": f"thing {item}" for item in range(NUM_ITEMS)}
    write_table(root, rows, titles, [] if pictures is None else pictures)
    items = ["item_id,title,category", *(f"{i},{t},{CATEGORIES[int(i) % len(CATEGORIES)]}" for i, t in titles.items())]
    (root / "items.csv").write_text("\n".join(items) + "\n")
    return root


@pytest.fixture(scope="module")
def raw_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(tmp_path_factory.mktemp("raw") / "raw", rows_of())


def build(root: Path, out: Path, choice: Choice, **options: object) -> Domain:
    asked = BuildOptions(**{"modalities": ("text",), "num_workers": 1, **options}, choice=choice)  # type: ignore[arg-type]
    return build_domain(Table(root).read(root, "image" in asked.modalities), out, asked)


def users_of(domain: Domain) -> list[str]:
    return domain.eval["user_id"].to_list()


# ---- users by lot


def as_users(ids: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"user_id": ids}, schema={"user_id": pl.String}).with_row_index("user")


def drawn(ids: list[str], count: int, seed: int) -> list[str]:
    found = drawn_users(as_users(ids), count, seed)
    assert found["user"].to_list() == list(range(found.height))
    assert found["user_id"].to_list() == [user for user in ids if user in set(found["user_id"])]  # in their order
    return found["user_id"].to_list()


ids = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=1, max_size=40, unique=True)


@settings(deadline=None)
@given(ids, st.integers(1, 45), st.integers(1, 45), st.integers(0, 5), st.randoms())
def test_fewer_users_are_among_more_in_any_order(
    users: list[str], one: int, two: int, seed: int, chance: Random
) -> None:
    few, many = sorted((one, two))
    smaller, larger = drawn(users, few, seed), drawn(users, many, seed)
    assert len(smaller) == min(few, len(users))
    assert set(smaller) <= set(larger) <= set(users)
    shuffled = users.copy()
    chance.shuffle(shuffled)
    assert set(drawn(shuffled, few, seed)) == set(smaller)


@settings(deadline=None)
@given(ids, st.integers(1, 20), st.integers(1, 20), st.integers(0, 5))
def test_who_leaves_when_data_grow_leaves_for_a_new_user(users: list[str], known: int, count: int, seed: int) -> None:
    before, after = drawn(users[:known], count, seed), drawn(users, count, seed)
    assert set(after) & set(users[:known]) <= set(before)


def test_every_user_is_drawn_equally_often() -> None:
    """20 of 100 users by 2,000 seeds: each is in 400 draws on average, with a standard deviation of sqrt(320) < 18."""
    users = [f"{number:064x}" for number in range(100)]
    counts = Counter(user for seed in range(2000) for user in drawn(users, 20, seed))
    assert sum(counts.values()) == 40_000
    assert min(counts[user] for user in users) > 400 - 5 * 18
    assert max(counts.values()) < 400 + 5 * 18


def test_a_build_draws_of_those_who_qualify(raw_root: Path, tmp_path: Path) -> None:
    qualified = set(reference_split(rows_of()))
    domains = {count: build(raw_root, tmp_path / str(count), Choice(max_users=count)) for count in (1, 9, 25)}
    for count, domain in domains.items():
        assert domain.num_users == count
        split = {user: part for user, part in reference_split(rows_of()).items() if user in users_of(domain)}
        check_against(domain, split)
        assert domain.eval["user"].to_list() == list(range(count))
        assert domain.num_items == NUM_ITEMS
        assert domain.meta["counts"]["users_not_drawn"] == len(qualified) - count
        assert domain.meta["choice"]["max_users"] == count
    chosen = [set(users_of(domains[count])) for count in (1, 9, 25)]
    assert chosen[0] < chosen[1] < chosen[2] < qualified
    other = build(raw_root, tmp_path / "other", Choice(max_users=9), seed=1)
    assert set(users_of(other)) != chosen[1]


def test_neither_order_of_rows_nor_writers_change_who_is_drawn(raw_root: Path, tmp_path: Path) -> None:
    choice = Choice(max_users=9, only_met_items=True)
    one = build(raw_root, tmp_path / "one", choice)
    # users the other way round; the rows of one stay in their order, which decides between equal times
    turned = sorted(rows_of(), key=lambda row: row[0], reverse=True)
    assert [row[0] for row in turned] != [row[0] for row in rows_of()]
    other = build(write_raw(tmp_path / "raw", turned), tmp_path / "other", choice, num_workers=2)
    assert other.fingerprint == one.fingerprint


def test_more_users_than_there_are_is_said(raw_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    domain = build(raw_root, tmp_path / "out", Choice(max_users=1000))
    assert users_of(domain) == sorted(reference_split(rows_of()))
    assert f"--max_users 1000 is more than the {domain.num_users} users: all" in caplog.text
    assert domain.meta["counts"]["users_not_drawn"] == 0


# ---- categories


@pytest.mark.parametrize(("asked", "meant"), [(("CUP",), ["cup"]), ((" blue ", "Red"), ["blue", "red"])])
def test_only_items_of_the_categories_count(
    raw_root: Path, tmp_path: Path, asked: tuple[str, ...], meant: list[str]
) -> None:
    chosen = [f"{i:03d}" for i in range(NUM_ITEMS) if {name.lower() for name in categories_of(f"{i:03d}")} & set(meant)]
    rows = [row for row in rows_of() if row[1] in chosen]
    domain = build(raw_root, tmp_path / "out", Choice(categories=asked))
    # users who have enough interactions only with the other items are not there
    assert len(reference_split(rows)) < len(reference_split(rows_of()))
    check_against(domain, reference_split(rows))
    assert domain.items["item_id"].to_list() == chosen
    counts = domain.meta["counts"]
    assert counts["interactions_not_chosen"] == len(rows_of()) - len(rows)
    assert counts["items_not_chosen"] == NUM_ITEMS - len(chosen)
    assert set(domain.meta["problems"]) == {"duplicate_interaction"}
    assert domain.meta["choice"]["categories"] == list(asked)


def test_what_is_not_chosen_can_have_no_fault(tmp_path: Path) -> None:
    """Only chairs have pictures; what no table lists is a fault all the same."""
    chairs = [f"{i:03d}" for i in range(NUM_ITEMS) if "Chair" in categories_of(f"{i:03d}")]
    rows = list(dict.fromkeys(rows_of()))
    root = write_raw(tmp_path / "raw", rows, chairs)
    choice = Choice(categories=("chair",))
    domain = build(root, tmp_path / "out", choice, modalities=("text", "image"), strict=True)
    check_against(domain, reference_split([row for row in rows if row[1] in chairs]))
    write_raw(root, [*rows, ("u0", "999", START)], chairs)
    with pytest.raises(UserError, match="unknown_item: row .*: user u0, item 999"):
        build(root, tmp_path / "other", choice, modalities=("text", "image"), strict=True)


def test_an_unknown_category_gets_the_nearest_and_the_most_common(raw_root: Path, tmp_path: Path) -> None:
    # 30 items, a fifth each: Red Cup, Blue cup, Blue Chair, none, Chair
    expected = r"unknown category 'Chairs'; known: 'Blue', 'Chair', 'Cup', 'Red', 'cup'\. Did you mean 'Chair'\?$"
    with pytest.raises(UserError, match=expected):
        build(raw_root, tmp_path / "out", Choice(categories=("Blue", "Chairs")))
    root = write_raw(tmp_path / "many", rows_of())
    items = [f"{i:03d},title,{'|'.join(f'kind {k}' for k in range(i + 1))}" for i in range(NUM_ITEMS)]
    (root / "items.csv").write_text("\n".join(["item_id,title,category", *items]) + "\n")
    with pytest.raises(UserError, match=r"known: 'kind 0', 'kind 1', .* 'kind 9' and 20 more\.$"):
        build(root, tmp_path / "out", Choice(categories=("zzz",)))
    (root / "items.csv").write_text("item_id,title\n000,title\n")
    with pytest.raises(UserError, match="--categories Cup: the items in .*many have no categories: leave it out"):
        build(root, tmp_path / "out", Choice(categories=("Cup",)))
    assert not (tmp_path / "out").exists()


# ---- dates


@pytest.mark.parametrize(
    ("since", "until", "days"),
    [("2020-01-03", None, range(2, 6)), (None, "2020-01-05", range(4)), ("2020-01-02", "2020-01-05", range(1, 4))],
)
def test_since_is_taken_and_until_is_not(
    raw_root: Path, tmp_path: Path, since: str | None, until: str | None, days: range
) -> None:
    times = [START + day * DAY for day in days]
    rows = [row for row in rows_of() if row[2] in times]
    domain = build(raw_root, tmp_path / "out", Choice(since=since, until=until))
    check_against(domain, reference_split(rows))
    assert domain.meta["counts"]["interactions_not_chosen"] == len(rows_of()) - len(rows)
    assert domain.num_items == NUM_ITEMS
    assert (domain.meta["choice"]["since"], domain.meta["choice"]["until"]) == (since, until)


def test_the_last_second_before_a_day_is_not_of_that_day(tmp_path: Path) -> None:
    midnight = START + DAY
    rows: list[Interaction] = [("u", "000", midnight - 1), *(("u", f"{i:03d}", midnight + i) for i in range(5))]
    domain = build(write_raw(tmp_path / "raw", rows), tmp_path / "out", Choice(since="2020-01-02"))
    assert trained_events(domain) == {"u": [("000", midnight), ("001", midnight + 1), ("002", midnight + 2)]}


def write_hm(root: Path, days: list[str]) -> HM:
    root.mkdir()
    header = "article_id,prod_name,product_type_name,colour_group_name,index_name,index_group_name,detail_desc"
    articles = [f"01{i},name,type,colour,index,{'Baby' if i else 'Men'},words" for i in range(2)]
    (root / "articles.csv").write_text("\n".join([header, *articles]) + "\n")
    bought = [f"{day},c,01{i % 2}" for i, day in enumerate(days)]
    (root / "transactions_train.csv").write_text("\n".join(["t_dat,customer_id,article_id", *bought]) + "\n")
    return HM(root)


def test_dates_and_categories_of_hm(tmp_path: Path) -> None:
    days = [f"2020-02-{day:02d}" for day in range(1, 21)]
    source = write_hm(tmp_path / "hm", days)
    choice = Choice(since="2020-02-03", until="2020-02-13", categories=("baby",))
    options = BuildOptions(modalities=("text",), num_workers=1, choice=choice)
    domain = build_domain(source.read(tmp_path, with_images=False), tmp_path / "out", options)
    # the even days from the 4th to the 12th; 2020-02-01 is day 18293
    assert trained_events(domain) == {"c": [("011", 18293 + day - 1) for day in (4, 6, 8)]}
    assert domain.meta["counts"]["interactions_not_chosen"] == 15


def raw_with(times: list[object], seconds_per_unit: float | None = 1.0) -> RawDomain:
    frame = pl.DataFrame({"user_id": "u", "item_id": "1", "time": times}, schema_overrides={"time": pl.Float64})
    items = pl.LazyFrame({"item_id": ["1"], "title": ["t"], "image": [None], "categories": [[]]})
    return RawDomain("table", Path("here"), "", frame.lazy(), items, seconds_per_unit)


def test_times_that_are_no_dates_are_refused(tmp_path: Path) -> None:
    choice = Choice(since="2020-01-01")
    options = BuildOptions(modalities=("text",), num_workers=1, choice=choice)
    with pytest.raises(UserError, match="--since and --until want dates, and the times in here are none: leave both"):
        build_domain(raw_with([1, 2, 3, 4, 5], None), tmp_path / "out", options)
    for latest, year in ((1_600_000_000_000, 52671), (18_500, 1970), (1.6e15, r"507\d{5}")):
        with pytest.raises(UserError, match=f"the latest time in here would lie in the year {year}: give times as"):
            build_domain(raw_with([0.0, latest, None, 2.0, 3.0, 4.0]), tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"since": "yesterday"}, "--since yesterday is no date: write it as 2020-08-23"),
        ({"until": "2020-02-30"}, "--until 2020-02-30 is no date"),
        ({"since": "2020-03-01", "until": "2020-03-01"}, "--since 2020-03-01 must lie before --until 2020-03-01"),
        ({"max_users": -1}, "--max_users -1 must be 0"),
    ],
)
def test_what_cannot_be_asked_for(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Choice(**wrong)  # type: ignore[arg-type]


def test_nothing_left_says_which_flags_left_it_out(raw_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of the 0 usable .* ask for more with --categories, --since and --until"):
        build(raw_root, tmp_path / "out", Choice(since="2021-01-01"))


# ---- met items


def test_only_met_items_leaves_out_what_no_kept_sequence_has(tmp_path: Path) -> None:
    """Against the rule written out: items in train tars and held-out ones; pictures and titles stay theirs."""
    ids = [f"{item:03d}" for item in range(NUM_ITEMS)]
    root = write_raw(tmp_path / "raw", rows_of(), ids)
    broken = ("004", "017")
    for item in broken:
        (root / "images" / f"{item}.jpg").write_text("<html>")
    both = {"modalities": ("text", "image"), "split": SplitRule(min_interactions=9, keep_last=6)}
    every = build(root, tmp_path / "every", Choice(max_users=3), **both)
    domain = build(root, tmp_path / "met", Choice(max_users=3, only_met_items=True), **both)
    rows = [row for row in rows_of() if row[1] not in broken]
    split = reference_split(rows, min_interactions=9, keep_last=6)
    check_against(domain, {user: split[user] for user in users_of(every)})
    met = {item for events in trained_events(domain).values() for item, _ in events}
    met |= {item for pair in held_out(domain).values() for item in pair}
    assert domain.items["item_id"].to_list() == sorted(met)
    assert len(met) < every.num_items == NUM_ITEMS - len(broken)
    places = {item: row for row, item in enumerate(every.items["item_id"].to_list())}
    for row, item in enumerate(domain.items["item_id"].to_list()):
        assert domain.read_image(row) == every.read_image(places[item])
        assert domain.titles()[row] == every.titles()[places[item]]
    assert sorted(p.name for p in domain.path.iterdir()) == sorted(p.name for p in every.path.iterdir())
    in_tars = dict(part for tar in (domain.path / "items").iterdir() for part in members(tar))
    assert len(in_tars) == 2 * domain.num_items


def test_only_met_items_changes_nothing_where_all_are_met(raw_root: Path, tmp_path: Path) -> None:
    every, met = (build(raw_root, tmp_path / str(i), Choice(only_met_items=bool(i))) for i in (0, 1))
    assert every.fingerprint == met.fingerprint
    assert met.meta["choice"] == {**every.meta["choice"], "only_met_items": True}


# ---- together


def test_all_at_once_from_the_command_line(raw_root: Path, tmp_path: Path) -> None:
    """Categories and dates come first, then the least number, then the lot, then the met items."""
    flags = ["--categories", "cup", "Chair", "--since", "2020-01-02", "--until", "2020-01-06", "--max_users", "6"]
    flags += ["--only_met_items", "--min_interactions", "4", "--keep_last", "5", "--seed", "3", "--modalities", "text"]
    main(["table", "--root", str(raw_root), "--out", str(tmp_path / "out"), "--num_workers", "1", *flags])
    domain = Domain.load(tmp_path / "out")
    times = [START + day * DAY for day in range(1, 5)]
    rows = [row for row in rows_of() if row[2] in times and categories_of(row[1]) != [""]]
    split = reference_split(rows, min_interactions=4, keep_last=5)
    chosen = drawn(sorted(split), 6, seed=3)
    assert 6 < len(split) < len(reference_split(rows_of(), min_interactions=4))
    check_against(domain, {user: split[user] for user in chosen})
    met = {event[0] for user in chosen for event in (*split[user][0], *split[user][1:])}
    assert domain.items["item_id"].to_list() == sorted(met)
    assert domain.meta["choice"] == {
        "max_users": 6,
        "categories": ["cup", "Chair"],
        "since": "2020-01-02",
        "until": "2020-01-06",
        "only_met_items": True,
    }


def test_each_choice_that_changes_the_content_changes_the_fingerprint(raw_root: Path, tmp_path: Path) -> None:
    choices = [
        Choice(),
        Choice(max_users=9),
        Choice(max_users=10),
        Choice(max_users=9, only_met_items=True, since="2020-01-05"),
        Choice(categories=("Cup",)),
        Choice(since="2020-01-02"),
        Choice(until="2020-01-06"),
    ]
    prints = [build(raw_root, tmp_path / str(i), choice).fingerprint for i, choice in enumerate(choices)]
    assert len(set(prints)) == len(choices)
    same = build(raw_root, tmp_path / "same", replace(choices[0], since="2020-01-01", until="2020-01-07"))
    assert same.fingerprint == prints[0]
    assert np.isin(["since", "until"], list(same.meta["choice"])).all()

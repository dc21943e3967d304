"""Public datasets as their owners hand them out: small copies of each layout, with the faults of the real ones."""

import logging
from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pytest

from mmsr_pt.data.domain import Domain
from mmsr_pt.data.shards.build import BuildOptions, build_domain
from mmsr_pt.data.sources import RawDomain, Source
from mmsr_pt.data.sources.microlens import MicroLens, read_titles
from mmsr_pt.data.sources.movielens import MovieLens
from mmsr_pt.data.sources.ninerec import NineRec
from mmsr_pt.data.sources.pixelrec import PixelRec
from mmsr_pt.log import UserError
from shards.build import main
from tests.data.raw import write_picture

NUM_USERS, NUM_ITEMS, LENGTH = 8, 10, 6
HISTORIES = {f"u{user}": [(user + step) % NUM_ITEMS for step in range(LENGTH)] for user in range(NUM_USERS)}
"""Items by number of each user, in order."""


def write(path: Path, lines: Iterable[str], encoding: str = "utf-8", end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode(encoding))


def shuffled_events() -> list[tuple[str, int, int]]:
    """(user, item, seconds) of HISTORIES, latest first, a second a step and all users at once."""
    return [
        (user, HISTORIES[user][step], 1_600_000_000 + step) for step in reversed(range(LENGTH)) for user in HISTORIES
    ]


def write_pictures(folder: Path, ids: Iterable[str]) -> None:
    for seed, name in enumerate(ids):
        write_picture(folder / f"{name}.jpg", seed)


def read(source: Source, scratch: Path, with_images: bool = True) -> RawDomain:
    scratch.mkdir(exist_ok=True)
    return source.read(scratch, with_images)


def build(source: Source, tmp_path: Path) -> Domain:
    return build_domain(read(source, tmp_path / "scratch"), tmp_path / "out", BuildOptions(num_workers=1))


def item_sequences(domain: Domain) -> dict[str, list[str]]:
    """Of each user, the ids of all items in order."""
    ids = domain.items["item_id"].to_list()
    columns = domain.eval.select("user_id", "history", "valid", "test").iter_rows()
    return {user: [ids[row] for row in (*history, valid, test)] for user, history, valid, test in columns}


def expected_sequences(name: str) -> dict[str, list[str]]:
    return {user: [name.format(item) for item in items] for user, items in HISTORIES.items()}


# ---- NineRec


def write_ninerec(root: Path, name: str = "DY") -> Path:
    write(root / f"{name}_pair.csv", (f"v{item:03d},{user},{time}" for user, item, time in shuffled_events()))
    titles = [f'v{item:03d},搞笑视频{item},"Funny video, {item}"' for item in range(NUM_ITEMS)]
    write(root / f"{name}_item.csv", titles)
    write(root / f"{name}_url.csv", ["v001,http://example.org/1"])
    write_pictures(root / f"{name}_cover", (f"v{item:03d}" for item in range(NUM_ITEMS)))
    return root


def test_ninerec_builds_a_domain_in_order_of_time_with_chinese_or_english_titles(tmp_path: Path) -> None:
    root = write_ninerec(tmp_path / "DY")
    domain = build(NineRec(root), tmp_path)
    assert item_sequences(domain) == expected_sequences("v{:03d}")
    assert list(domain.titles()) == [f"搞笑视频{item}" for item in range(NUM_ITEMS)]
    assert domain.meta["problems"] == {}
    english = read(NineRec(root, language="english"), tmp_path / "s").items.collect()
    assert english["title"].to_list() == [f"Funny video, {item}" for item in range(NUM_ITEMS)]
    assert english["categories"].dtype == pl.List(pl.String)
    assert read(NineRec(root), tmp_path / "s").seconds_per_unit == 1


def test_ninerec_finds_the_items_by_the_items_table_whichever_column_they_stand_in(tmp_path: Path) -> None:
    root = write_ninerec(tmp_path / "DY")
    item_first = read(NineRec(root), tmp_path / "s").interactions.collect()
    assert item_first.rows()[0] == ("u0", "v005", 1_600_000_005)
    write(root / "DY_pair.csv", (f"{user},v{item:03d},{time}" for user, item, time in shuffled_events()))
    assert read(NineRec(root), tmp_path / "s").interactions.collect().equals(item_first)


def test_ninerec_asks_where_ids_do_not_tell_users_from_items(tmp_path: Path) -> None:
    root = write_ninerec(tmp_path / "KU", "KU")
    write(root / "KU_pair.csv", ["1,2,9", "2,1,8", "1,1,7"])
    write(root / "KU_item.csv", ["1,一", "2,二"])
    with pytest.raises(UserError, match="which column has the items, as the ids of both .*--first_column item"):
        read(NineRec(root), tmp_path / "s")
    found = read(NineRec(root, first_column="item"), tmp_path / "s").interactions.collect()
    assert found.rows() == [("2", "1", 9), ("1", "2", 8), ("1", "1", 7)]
    assert read(NineRec(root, first_column="user"), tmp_path / "s").interactions.collect()["user_id"][0] == "1"
    write(root / "KU_item.csv", ["v1,一"])
    with pytest.raises(UserError, match="as no id of either column is in the items table"):
        read(NineRec(root), tmp_path / "s")


@pytest.mark.parametrize("pairs", [True, False])
def test_ninerec_without_timestamps_takes_the_order_of_the_sequences(tmp_path: Path, pairs: bool) -> None:
    """QB and TN."""
    root = write_ninerec(tmp_path / "QB", "QB")
    if pairs:
        write(root / "QB_pair.csv", (f"v{item:03d},{user}" for user, item, _ in shuffled_events()))
    else:
        (root / "QB_pair.csv").unlink()
    lines = (f"{user}\t{' '.join(f'v{item:03d}' for item in items)}" for user, items in HISTORIES.items())
    write(root / "QB_behaviour.tsv", lines, end="\r\n")
    assert item_sequences(build(NineRec(root), tmp_path)) == expected_sequences("v{:03d}")
    assert read(NineRec(root), tmp_path / "s").seconds_per_unit is None


def test_ninerec_pairs_without_timestamps_and_sequences_are_taken_in_order_of_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_ninerec(tmp_path / "TN", "TN")
    rows = [f"v{item:03d},{user}," for user, items in HISTORIES.items() for item in (*items, items[0])]
    write(root / "TN_pair.csv", rows)
    domain = build(NineRec(root), tmp_path)
    # the item that comes twice is no repeated row: nothing says that it was at the same time
    assert item_sequences(domain) == {u: [*items, items[0]] for u, items in expected_sequences("v{:03d}").items()}
    assert "has no timestamps" in caplog.text


def test_ninerec_in_gbk_with_a_header_crlf_and_faults(tmp_path: Path) -> None:
    root = write_ninerec(tmp_path / "TN", "TN")
    titles = ["Item_ID,Title,Title_EN", *(f'v{item:03d},"搞笑""视频""\n{item}",' for item in range(NUM_ITEMS))]
    write(root / "TN_item.csv", [*titles, "v003,again", "v010", "v011,,"], "gbk", "\r\n")
    rows = [f"v{item:03d},{user},{time}" for user, item, time in shuffled_events()]
    more = [rows[0], "v999,u0,5", "v001,u0", ",u0,7", "v002,,7", "v001,u0,soon"]
    write(root / "TN_pair.csv", ["item_id,user_id,timestamp", *rows, *more], end="\r\n")
    (root / "TN_cover" / "v009.jpg").unlink()
    domain = build(NineRec(root), tmp_path)
    assert list(domain.titles())[:2] == ['搞笑"视频" 0', '搞笑"视频" 1']
    counts = {kind: found["count"] for kind, found in domain.meta["problems"].items()}
    # v009: of u4 to u7, once each of the histories that reach it
    of_v009 = sum(items.count(9) for items in HISTORIES.values())
    assert counts == {
        "missing_id": 2,
        "unparsable_time": 2,
        "unknown_item": 1,
        "duplicate_interaction": 1,
        "duplicate_item": 1,
        "empty_title": 2,
        "missing_image": 1,
        "item_dropped": of_v009,
    }


def test_ninerec_names_what_is_missing_what_lies_there_and_where_it_is(tmp_path: Path) -> None:
    above = tmp_path / "Downstream"
    root = write_ninerec(above / "DY")
    write_ninerec(above / "KU", "KU")
    with pytest.raises(UserError) as caught:
        read(NineRec(above), tmp_path / "s")
    assert str(caught.value) == (
        f"no file *_pair.csv or *_behaviour.tsv: {above} holds: DY, KU; {root} has one: was --root {root} meant?; "
        "name the file with --interactions"
    )
    (root / "DY_cover").rename(root / "pictures")
    with pytest.raises(UserError, match=r"no folder \*_cover: .* holds: .*pictures; .*--images, or build with --mod"):
        read(NineRec(root), tmp_path / "s")
    assert read(NineRec(root), tmp_path / "s", with_images=False).items.collect()["image"].null_count() == NUM_ITEMS
    chosen = NineRec(root, images=root / "pictures")
    assert read(chosen, tmp_path / "s").items.collect()["image"].null_count() == 0
    with pytest.raises(UserError, match=f"--images {above}/none is no folder; {above} holds: DY, KU"):
        read(NineRec(root, images=above / "none"), tmp_path / "s")


def test_ninerec_asks_which_of_two_datasets_in_one_folder(tmp_path: Path) -> None:
    root = write_ninerec(write_ninerec(tmp_path / "Source", "Bili_2M"), "Bili_500K")
    with pytest.raises(UserError, match=r"holds Bili_2M_pair\.csv and Bili_500K_pair\.csv: choose one.*--interactions"):
        read(NineRec(root), tmp_path / "s")
    chosen = NineRec(
        root,
        interactions=root / "Bili_500K_pair.csv",
        items=root / "Bili_500K_item.csv",
        images=root / "Bili_2M_cover",
    )
    assert read(chosen, tmp_path / "s").interactions.collect().height == NUM_USERS * LENGTH


# ---- PixelRec

ITEM_INFO = "item_id,view_number,comment_number,thumbup_number,title,tag,description"


def write_pixelrec(root: Path) -> Path:
    events = (f"i{item},{user},{time}" for user, item, time in shuffled_events())
    write(root / "dataset" / "Pixel200K.csv", ["item_id,user_id,timestamp", *events])
    rows = (f'i{item},799668.0,7.0,80.0,"My turtle, no. {item}",Pet Reptiles,"A\nB"' for item in range(NUM_ITEMS))
    write(root / "information" / "Pixel200K.csv", [ITEM_INFO, *rows])
    write_pictures(root / "cover" / "cover", (f"i{item}" for item in range(NUM_ITEMS)))
    return root


def test_pixelrec_builds_a_domain_from_two_tables_of_one_name(tmp_path: Path) -> None:
    root = write_pixelrec(tmp_path / "raw")
    domain = build(PixelRec(root), tmp_path)
    assert item_sequences(domain) == expected_sequences("i{}")
    assert list(domain.titles()) == [f"My turtle, no. {item}, Pet Reptiles" for item in range(NUM_ITEMS)]
    assert domain.meta["problems"] == {}
    raw = read(PixelRec(root, ("title", "description")), tmp_path / "s").items.collect()
    assert raw["title"][1] == "My turtle, no. 1, A\nB"
    assert raw["categories"].to_list() == [["Pet Reptiles"]] * NUM_ITEMS


def test_pixelrec_rows_with_missing_fields_and_a_header_in_capitals(tmp_path: Path) -> None:
    """Some rows of item_info.csv have a title alone, some a tag alone."""
    root = write_pixelrec(tmp_path / "raw")
    rows = ["i0,,,,Only a title,,", "i1,1.0,1.0,1.0,,Daily Life,", "i2,,,,,,", "i3", "i4,1,1,1,Café,Comedy,x"]
    write(root / "information" / "Pixel200K.csv", [ITEM_INFO.upper(), *rows], "latin-1", "\r\n")
    events = [f"i0,u{number},9" for number in range(3)]
    write(root / "dataset" / "Pixel200K.csv", ["Item_ID,User_ID,Timestamp", *events], end="\r\n")
    raw = read(PixelRec(root), tmp_path / "s")
    items = raw.items.collect()
    assert items["title"].to_list() == ["Only a title", "Daily Life", "", "", "Café, Comedy"]
    assert items["categories"].to_list() == [[], ["Daily Life"], [], [], ["Comedy"]]
    assert raw.interactions.collect().rows() == [(f"u{number}", "i0", 9) for number in range(3)]


def test_pixelrec_names_what_is_missing_and_asks_which_of_several(tmp_path: Path) -> None:
    root = write_pixelrec(tmp_path / "raw")
    write(root / "dataset" / "Pixel1M.csv", ["item_id,user_id,timestamp", "i1,u1,1"])
    with pytest.raises(UserError, match=r"Pixel1M\.csv and .*Pixel200K\.csv would both do: choose one with --inter"):
        read(PixelRec(root), tmp_path / "s")
    chosen = PixelRec(root, interactions=root / "dataset" / "Pixel1M.csv")
    assert read(chosen, tmp_path / "s").interactions.collect().rows() == [("u1", "i1", 1)]
    with pytest.raises(UserError, match=r"--images, or build with --modalities text"):
        read(PixelRec(root / "dataset", interactions=root / "dataset" / "Pixel1M.csv", items=root / "x.csv"), tmp_path)
    with pytest.raises(UserError, match=r"x\.csv is missing; .*raw holds: cover, dataset, information"):
        read(PixelRec(root, interactions=root / "dataset" / "Pixel1M.csv", items=root / "x.csv"), tmp_path)
    with pytest.raises(
        UserError, match=r"no CSV with the columns item_id, title, tag here: .* holds: Pixel1M\.csv, Pi"
    ):
        read(PixelRec(root / "dataset", interactions=root / "dataset" / "Pixel1M.csv"), tmp_path)


# ---- MicroLens


def write_microlens(root: Path) -> Path:
    events = (f"{user[1:]},{item},{1000 * time + 552}" for user, item, time in shuffled_events())
    write(root / "MicroLens-100k_pairs.csv", ["user,item,timestamp", *events])
    write(root / "MicroLens-100k_title_en.csv", (f"{item},A video, no. {item}" for item in range(NUM_ITEMS)))
    write(root / "tags_to_summary.csv", (f"{item},Comedy" for item in range(0, NUM_ITEMS, 2)))
    write_pictures(root / "MicroLens-100k_covers", map(str, range(NUM_ITEMS)))
    return root


def by_number(sequences: dict[str, list[str]]) -> dict[str, list[str]]:
    return {user[1:]: items for user, items in sequences.items()}


def test_microlens_builds_a_domain_with_times_in_seconds(tmp_path: Path) -> None:
    root = write_microlens(tmp_path / "raw")
    domain = build(MicroLens(root), tmp_path)
    assert item_sequences(domain) == by_number(expected_sequences("{}"))
    assert list(domain.titles()) == [f"A video, no. {item}" for item in range(NUM_ITEMS)]
    raw = read(MicroLens(root), tmp_path / "s")
    assert raw.seconds_per_unit == 1
    assert raw.interactions.collect().rows()[0] == ("0", "5", 1_600_000_005.552)
    assert raw.items.collect()["categories"].to_list()[:3] == [["Comedy"], None, ["Comedy"]]


def test_microlens_times_keep_their_order_to_the_millisecond(tmp_path: Path) -> None:
    root = write_microlens(tmp_path / "raw")
    times = [1_583_378_629_552 + step for step in range(3000)]
    write(root / "MicroLens-100k_pairs.csv", ["user,item,timestamp", *(f"1,2,{time}" for time in times)])
    seconds = read(MicroLens(root), tmp_path / "s").interactions.collect()["time"]
    assert seconds.is_sorted()
    assert seconds.n_unique() == len(times)


def test_microlens_without_times_takes_the_order_in_the_line(tmp_path: Path) -> None:
    root = write_microlens(tmp_path / "raw")
    (root / "MicroLens-100k_pairs.csv").unlink()
    lines = (f"{user[1:]}\t{' '.join(map(str, items))}" for user, items in HISTORIES.items())
    write(root / "MicroLens-100k_pairs.tsv", [*lines, "99"], end="\r\n")
    domain = build(MicroLens(root), tmp_path)
    assert item_sequences(domain) == by_number(expected_sequences("{}"))
    assert read(MicroLens(root), tmp_path / "s").seconds_per_unit is None
    assert {kind: found["count"] for kind, found in domain.meta["problems"].items()} == {"missing_id": 1}


@pytest.mark.parametrize(
    ("lines", "titles"),
    [
        (["item,title", '1,"Plain, quoted"', "2,plain, not quoted"], ["Plain, quoted", "plain, not quoted"]),
        (["1,first,", "2,second"], ["first,", "second"]),  # no header
        (['1,"two', 'lines ""here"""', "2,x"], ['two\nlines "here"', "x"]),
        (['1,"never closed', "2,x"], ['"never closed', "x"]),  # MicroLens-1M
        (['1,"a" and "b"', "2,x"], ['"a" and "b"', "x"]),
        (['1,he said "hi"', '"2",""'], ['he said "hi"', ""]),
        (["007,seven", "7,", "", " 8 , eight "], ["seven", "", "eight"]),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_microlens_titles_are_read_by_line_not_by_quote(
    tmp_path: Path, lines: list[str], titles: list[str], end: str
) -> None:
    path = tmp_path / "MicroLens-1M_title.csv"
    write(path, lines, end=end)
    found = read_titles(path, tmp_path)["title"].to_list()
    assert [title.replace("\r\n", "\n") for title in found] == titles


def test_microlens_titles_keep_leading_zeros_and_any_encoding(tmp_path: Path) -> None:
    path = tmp_path / "MicroLens-1M_title.csv"
    write(path, ["007,搞笑视频", "7,第二个视频"], "gbk")
    assert read_titles(path, tmp_path).rows() == [("007", "搞笑视频"), ("7", "第二个视频")]
    write(path, ["\ufeff007,é"])
    assert read_titles(path, tmp_path).rows() == [("007", "é")]
    write(path, ["item,title", "abc"])
    with pytest.raises(UserError, match=r"title\.csv has no line that begins with an item's number and a comma"):
        read_titles(path, tmp_path)


def test_microlens_names_what_is_missing_and_asks_which_of_several(tmp_path: Path) -> None:
    root = write_microlens(tmp_path / "above" / "raw")
    with pytest.raises(UserError, match=f"{tmp_path}/above holds: raw; {root} has one: was --root {root} meant"):
        read(MicroLens(root.parent), tmp_path / "s")
    write(root / "MicroLens-50k_titles.csv", ["item,title", "1,x"])
    with pytest.raises(UserError, match=r"title_en\.csv and MicroLens-50k_titles\.csv: choose one, as by --titles"):
        read(MicroLens(root), tmp_path / "s")
    chosen = MicroLens(root, titles=root / "MicroLens-50k_titles.csv")
    assert read(chosen, tmp_path / "s").items.collect().height == 1
    write(root / "MicroLens-100k_pairs.csv", ["user,video,timestamp", "1,2,3"])
    with pytest.raises(UserError, match=r"pairs\.csv has no column item; its columns are: user, video, timestamp"):
        read(chosen, tmp_path / "s")


# ---- MovieLens

TITLES = ["Toy Story (1995)", "Star Wars: Episode IV :: A New Hope (1977)", "Amélie (2001)", "Cité, La (1998)"]
GENRES = ["Adventure|Animation", "Sci-Fi", "(no genres listed)", "Drama|Romance"]


def movies() -> list[tuple[int, str, str]]:
    return [(item, TITLES[item % 4] + f" {item // 4}", GENRES[item % 4]) for item in range(NUM_ITEMS)]


def write_movielens(root: Path, kind: str) -> Path:
    if kind == "csv":
        write(
            root / "movies.csv", ["movieId,title,genres", *(f'{m},"{title}",{genres}' for m, title, genres in movies())]
        )
        events = (f"{user[1:]},{item},{item / 2:.1f},{time}" for user, item, time in shuffled_events())
        write(root / "ratings.csv", ["userId,movieId,rating,timestamp", *events])
    else:
        write(root / "movies.dat", ("::".join(map(str, movie)) for movie in movies()), "latin-1", "\r\n")
        events = (f"{user[1:]}::{item}::{item / 2:.1f}::{time}" for user, item, time in shuffled_events())
        write(root / "ratings.dat", events, end="\r\n")
    write_pictures(root / "images", map(str, range(NUM_ITEMS)))
    return root


@pytest.mark.parametrize("kind", ["csv", "dat"])
def test_movielens_builds_a_domain_from_csv_and_from_dat(tmp_path: Path, kind: str) -> None:
    root = write_movielens(tmp_path / "raw", kind)
    domain = build(MovieLens(root), tmp_path)
    assert item_sequences(domain) == by_number(expected_sequences("{}"))
    assert list(domain.titles())[:4] == [
        "Toy Story (1995) 0, Adventure, Animation",
        "Star Wars: Episode IV :: A New Hope (1977) 0, Sci-Fi",
        "Amélie (2001) 0",
        "Cité, La (1998) 0, Drama, Romance",
    ]
    assert domain.meta["problems"] == {}
    raw = read(MovieLens(root), tmp_path / "s")
    assert raw.items.collect()["categories"].to_list()[:3] == [["Adventure", "Animation"], ["Sci-Fi"], []]
    assert raw.interactions.collect().rows()[0] == ("0", "5", 1_600_000_005)


@pytest.mark.parametrize("kind", ["csv", "dat"])
def test_movielens_min_rating_leaves_lower_ratings_out(tmp_path: Path, kind: str) -> None:
    root = write_movielens(tmp_path / "raw", kind)
    kept = read(MovieLens(root, min_rating=3.5), tmp_path / "s").interactions.collect()["item_id"]
    every = [item for _, item, _ in shuffled_events()]
    assert sorted(kept) == sorted(str(item) for item in every if item / 2 >= 3.5)
    with pytest.raises(UserError, match=r"--min_rating 5\.5 must lie in 0 \(all\) \.\.\. 5"):
        MovieLens(root, min_rating=5.5)


def test_movielens_posters_lie_anywhere_and_some_are_missing(tmp_path: Path) -> None:
    root = write_movielens(tmp_path / "raw", "csv")
    (root / "images").rename(tmp_path / "posters")
    (tmp_path / "posters" / "3.jpg").unlink()
    with pytest.raises(UserError, match=r"images is missing.*--modalities text"):
        read(MovieLens(root), tmp_path / "s")
    domain = build(MovieLens(root, images=tmp_path / "posters"), tmp_path)
    assert domain.meta["problems"]["missing_image"]["examples"] == ["item 3"]


def test_movielens_names_what_is_missing_and_refuses_both_kinds_at_once(tmp_path: Path) -> None:
    root = write_movielens(tmp_path / "above" / "ml-1m", "dat")
    with pytest.raises(UserError, match=rf"no file ratings\.csv or ratings\.dat: .*ml-1m; .*was --root {root} meant"):
        read(MovieLens(root.parent), tmp_path / "s")
    (root / "movies.dat").rename(root / "movies.csv")
    with pytest.raises(UserError, match=r"no file movies\.dat: .* holds: images, movies\.csv, ratings\.dat"):
        read(MovieLens(root), tmp_path / "s")
    write(root / "ratings.csv", ["userId,movieId,rating,timestamp"])
    with pytest.raises(UserError, match=r"ratings\.csv and ratings\.dat: take one away"):
        read(MovieLens(root), tmp_path / "s")


# ---- the command


def test_the_command_builds_each_of_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    roots = {
        "ninerec": write_ninerec(tmp_path / "ninerec"),
        "pixelrec": write_pixelrec(tmp_path / "pixelrec"),
        "microlens": write_microlens(tmp_path / "microlens"),
        "movielens": write_movielens(tmp_path / "movielens", "csv"),
    }
    more = {
        "ninerec": ["--language", "english", "--first_column", "item"],
        "pixelrec": ["--title_columns", "title", "description"],
        "microlens": ["--images", str(roots["microlens"] / "MicroLens-100k_covers")],
        "movielens": ["--min_rating", "0.5"],
    }
    for name, root in roots.items():
        out = tmp_path / "out" / name
        with caplog.at_level(logging.INFO):
            main([name, "--root", str(root), "--out", str(out), "--num_workers", "1", *more[name]])
        domain = Domain.load(out)
        assert domain.meta["source"] == name
        assert domain.num_users == NUM_USERS

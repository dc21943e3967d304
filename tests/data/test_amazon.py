"""Amazon reviews: the three layouts with their quirks, from the owners' files to a domain."""

import gzip
import json
import logging
from pathlib import Path

import polars as pl
import pytest

from mmsr_pt.data.shards.build import BuildOptions, build_domain
from mmsr_pt.data.shards.interactions import SplitRule
from mmsr_pt.data.sources import json_lines
from mmsr_pt.data.sources.amazon import Amazon
from mmsr_pt.data.sources.amazon_meta import category_paths, picture_url, title_with_categories
from mmsr_pt.data.sources.base import RawDomain
from mmsr_pt.log import UserError
from tests.data.raw_amazon import (
    CATEGORY,
    ITEMS,
    USERS,
    expected_events,
    file_names,
    meta_lines,
    old_review,
    reviews,
    write_amazon,
    write_lines,
)
from tests.data.tars import held_out, trained_events

VERSIONS = ("2014", "2018", "2023")

TITLES = {
    "2014": [
        'The "Girls\'" Tutu & Shoes, Girls, Novelty',
        "Cup\twith\nnewline, Books",
        "A cable, Cables",
        "No picture",
        "C:\\dir \\d",
        "Last",
    ],
    "2018": ["Dress & Belt, Women, Dresses", None, "Plain   shirt", "It's, Women", None, "Last"],
    "2023": ["Comb, Hair Care, Combs", "Brush", "Soap", "Oil, Beauty & Personal Care", "Wax", "Last"],
}
CATEGORIES = {
    "2014": [["Clothing, Shoes & Jewelry", "Girls", "Novelty"], ["Books"], ["Electronics", "Cables"], [], [], []],
    "2018": [["Clothing, Shoes & Jewelry", "Women", "Dresses"], [], [], ["Women"], ["Women"], []],
    "2023": [["Beauty & Personal Care", "Hair Care", "Combs"], [], [], ["Beauty & Personal Care"], [], []],
}
URLS = {
    "2014": ["http://a/0007.jpg", None, None, None, "http://a/B03.jpg", None],
    "2018": ["https://m/I/51.jpg", None, "https://m/I/51._US40_.jpg", "https://m/I/2._SS40_.jpg", None, None],
    "2023": ["https://m/b-large.jpg", "https://m/l1.jpg", "https://m/c-hi_res.jpg", None, None, None],
}


def read(root: Path, scratch: Path, with_images: bool = True, **flags: str) -> RawDomain:
    scratch.mkdir(exist_ok=True)
    return Amazon(root, **flags).read(scratch, with_images)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_is_recognised_and_read(tmp_path: Path, version: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    root = write_amazon(tmp_path / "raw", version)
    raw = read(root, tmp_path / "scratch")
    items = raw.items.collect()
    assert items["item_id"].to_list() == ITEMS
    assert items["title"].to_list() == TITLES[version]
    assert items["categories"].to_list() == CATEGORIES[version]
    assert items["image"].to_list() == [f"{root}/images/{item[-1]}/{item}.jpg" for item in ITEMS]
    assert items.columns == ["item_id", "title", "categories", "image"]
    assert raw.interactions.collect().rows() == reviews()
    assert version in raw.licence
    assert f"Amazon reviews of {version}, by their fields: {CATEGORY}" in caplog.text


@pytest.mark.parametrize("version", VERSIONS)
def test_the_main_picture_of_each_item_is_the_one_to_fetch(version: str) -> None:
    lines = [json_lines.parse_line(line.encode()) for line in meta_lines(version)]
    assert [picture_url(line) for line in lines if line is not None] == URLS[version]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_whole_domain_of_each_version(tmp_path: Path, version: str) -> None:
    raw = read(write_amazon(tmp_path / "raw", version), tmp_path / "scratch")
    domain = build_domain(raw, tmp_path / "out", BuildOptions(SplitRule(3), num_workers=1))
    without = [item for item, title in zip(ITEMS, TITLES[version]) if title is None]
    events = expected_events(without)
    assert trained_events(domain) == {user: own[:-2] for user, own in events.items()}
    assert held_out(domain) == {user: (own[-2][0], own[-1][0]) for user, own in events.items()}
    assert list(domain.titles()) == [" ".join(title.split()) for title in TITLES[version] if title]
    assert domain.meta["source"] == "amazon"
    kinds = {kind: found["count"] for kind, found in domain.meta["problems"].items()}
    assert kinds == ({"empty_title": len(without), "item_dropped": 4 * len(without)} if without else {})


def test_several_categories_unpacked_files_and_subdirectories_make_one_domain(tmp_path: Path) -> None:
    root = write_amazon(tmp_path / "raw", "2018", "Zoo")
    write_lines(root / "more" / "Art_5.json", [old_review("A0", "C1", 7), old_review("A0", "B04", 8)])
    write_lines(
        root / "more" / "meta_Art.json", ['{"asin": "C1", "title": "C", "category": []}', meta_lines("2018")[5]]
    )
    raw = read(root, tmp_path / "scratch")
    assert raw.items.collect()["item_id"].to_list() == ["C1", "B04", *ITEMS]  # Art comes before Zoo
    assert raw.interactions.collect().rows() == [("A0", "C1", 7), ("A0", "B04", 8), *reviews()]
    domain = build_domain(raw, tmp_path / "out", BuildOptions(SplitRule(3), modalities=("text",), num_workers=1))
    assert domain.meta["problems"]["duplicate_item"] == {"count": 1, "examples": ["item B04"]}


def test_faults_are_counted_and_named_and_the_rest_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_amazon(tmp_path / "raw", "2014")
    of_reviews, of_meta = file_names("2014")
    good = [old_review(*row) for row in reviews()]
    bad = [
        '{"reviewerID": "A0", "asin": "0007", "unixRev',
        "",
        '{"reviewerID": "A0", "unixReviewTime": 5}',
        '{"reviewerID": "A0", "asin": "", "unixReviewTime": 5}',
        '{"reviewerID": "A0", "asin": "007", "unixReviewTime": "soon"}',
        old_review(*reviews()[0]),
        '{"reviewerID": "A0", "asin": "none", "unixReviewTime": 5}',
        "[1, 2]",
    ]
    write_lines(root / of_reviews, [*good, *bad])
    write_lines(root / of_meta, [*meta_lines("2014"), "{'asin': 'B05', 'title': 'cut", "{'title': 'nameless'}"])
    domain = build_domain(read(root, tmp_path / "scratch"), tmp_path / "out", BuildOptions(num_workers=1))
    problems = domain.meta["problems"]
    assert {kind: found["count"] for kind, found in problems.items()} == {
        "missing_id": 6,
        "unparsable_time": 1,
        "unknown_item": 1,
        "duplicate_interaction": 1,
    }
    assert problems["missing_id"]["examples"][:3] == [
        f"item with title 'line 7 of {of_meta}'",
        "item with title 'nameless'",
        f"row 25: user None, item line 25 of {of_reviews}, time None",
    ]
    assert f"{of_reviews}: 2 lines cannot be read, the first is line 25" in caplog.text
    assert f"{of_meta}: 1 lines cannot be read, the first is line 7" in caplog.text
    assert trained_events(domain) == {user: own[:-2] for user, own in expected_events().items()}


def test_pieces_of_a_large_file_give_what_the_whole_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines cut by the ends of pieces, and a bad one: numbers of lines and their order stay."""
    file = tmp_path / "reviews.json.gz"
    lines = [old_review(*row) for row in reviews()]
    lines[10] = "{cut"
    expected = [(user, str(seconds), item) for user, item, seconds in reviews()]
    expected[10] = (None, None, "line 11 of reviews.json.gz")  # type: ignore[assignment]
    for last in ("\n", ""):
        file.write_bytes(gzip.compress(("\n".join(lines) + last).encode()))
        for size in (50, 333, 10**6):
            monkeypatch.setattr(json_lines, "_PIECE_BYTES", size)
            frames = list(json_lines.read_columns(file, ("reviewerID", "unixReviewTime", "asin")))
            assert pl.concat(frames).rows() == expected
            assert len(frames) == 1 + (not last) or size < 1000


def test_reviews_that_are_literals_of_python_are_read_too(tmp_path: Path) -> None:
    root = write_amazon(tmp_path / "raw", "2014")
    write_lines(root / file_names("2014")[0], [repr(json.loads(old_review(*row))) for row in reviews()])
    assert read(root, tmp_path / "scratch").interactions.collect().rows() == reviews()


def test_a_line_is_never_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    for line in (
        f"{{'asin': open({str(target)!r}, 'w')}}",
        "{'a': __import__('os')}",
        "[" * 5000,
        "{'a': 1",
        "\0",
        "{'a'}",
    ):
        assert json_lines.parse_line(line.encode()) is None
    assert not target.exists()
    assert json_lines.parse_line(b"\xff{}") is None
    assert json_lines.parse_line(rb"{'a': None, 'b': True, 'c': '\'\d\u00e9'}") == {"a": None, "b": True, "c": "'\\dé"}


# ---- mistakes


def test_a_gzip_file_that_is_cut_off_or_damaged_is_named(tmp_path: Path) -> None:
    root = write_amazon(tmp_path / "raw", "2014")
    for name in file_names("2014"):
        file = root / name
        whole = file.read_bytes()
        for data, says in (
            (whole[: len(whole) // 2], f"{name} is cut off"),
            (whole[:40] + b"\0" * 20 + whole[60:], f"{name} is damaged"),
            (b'{"asin": 1}\n', f"{name} is damaged or no gzip file"),
        ):
            file.write_bytes(data)
            with pytest.raises(UserError, match=says):
                read(root, tmp_path / "scratch")
        file.write_bytes(whole)


def test_files_that_are_missing_or_twice_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere has no files of Amazon reviews: .*meta_All_Beauty\.jsonl\.gz"):
        read(tmp_path / "nowhere", tmp_path)
    root = write_amazon(tmp_path / "raw", "2018")
    of_reviews, of_meta = (root / name for name in file_names("2018"))
    twin = root / f"{CATEGORY}_5.json"
    twin.write_text("")
    with pytest.raises(
        UserError, match=f"{CATEGORY}.json.gz and .*{CATEGORY}_5.json are both reviews of {CATEGORY}: take"
    ):
        read(root, tmp_path)
    twin.unlink()
    for there, gone, kind in ((of_reviews, of_meta, "metadata"), (of_meta, of_reviews, "reviews")):
        gone.rename(root / "away")
        with pytest.raises(
            UserError, match=f"{there.name} has no {kind} beside it: put the {kind} of {CATEGORY} there"
        ):
            read(root, tmp_path)
        (root / "away").rename(gone)
    for picture in (root / "images").rglob("*.jpg"):
        picture.unlink()
    assert set(read(root, tmp_path).items.collect()["image"]) == {None}
    (root / "images").rename(root / "pictures")
    with pytest.raises(UserError, match="images is missing"):
        read(root, tmp_path)
    assert set(read(root, tmp_path, with_images=False).items.collect()["image"]) == {None}


def test_fields_that_fit_no_version_or_two_ask_for_the_version(tmp_path: Path) -> None:
    root = write_amazon(tmp_path / "raw", "2018")
    of_reviews, of_meta = (root / name for name in file_names("2018"))
    write_lines(of_meta, ['{"asin": "007", "title": "Cup", "imUrl": "http://a", "category": ["Kitchen"]}'])
    with pytest.raises(UserError, match=r"look like each of 2014 and 2018: say which with --version"):
        read(root, tmp_path)
    assert "2014" in read(root, tmp_path, version="2014").licence
    write_lines(of_meta, ['{"asin": "007", "title": "Cup"}'])
    with pytest.raises(UserError, match=r"look like no version .* --version 2014, 2018, 2023; .* and asin, title"):
        read(root, tmp_path)
    assert read(root, tmp_path, version="2018").items.collect()["title"].to_list() == ["Cup"]
    with pytest.raises(
        UserError, match=r"json\.gz lacks user_id, timestamp, parent_asin, which the version of 2023 has"
    ):
        read(root, tmp_path, version="2023")
    write_lines(of_reviews, ["user,item,time"])
    with pytest.raises(UserError, match="the fields of their first lines are none and asin"):
        read(root, tmp_path)


def test_versions_do_not_mix(tmp_path: Path) -> None:
    root = write_amazon(tmp_path / "raw", "2014", "A")
    write_amazon(root, "2023", "B")
    with pytest.raises(UserError, match=r"meta_A\.json\.gz is of 2014, .*meta_B\.jsonl\.gz is of 2023"):
        read(root, tmp_path / "scratch")


# ---- lines of metadata


@pytest.mark.parametrize(
    ("title", "paths", "expected"),
    [
        ("Cup", [], "Cup"),
        ("Cup", [["Kitchen"]], "Cup, Kitchen"),
        ("Cup", [["Kitchen", "Cups"]], "Cup, Cups"),
        ("Cup", [["Kitchen", "Cups"], ["Gifts"], ["Kitchen", "Cups", "Tea"]], "Cup, Cups, Tea"),
        ("Cup", [["Kitchen"], ["Gifts"], ["Kitchen"]], "Cup, Kitchen, Gifts"),
        ("Cups", [["Kitchen", "Cups"]], "Cups"),
        ("", [["Kitchen"]], None),
        (None, [["Kitchen"]], None),
        (["Cup"], [["Kitchen"]], None),
        ("<script>x</script>", [], None),
        ("P.when(function(A) {", [], None),
        ("a < b and c > d, A&B <Large>", [], "a < b and c > d, A&B <Large>"),
        ("half \ud83d", [], "half ?"),
    ],
)
def test_titles_get_the_names_below_the_top_category(
    title: object, paths: list[list[str]], expected: str | None
) -> None:
    assert title_with_categories(title, paths) == expected


@pytest.mark.parametrize(
    "line", [{}, {"categories": None}, {"categories": "x"}, {"category": {"a": 1}}, {"categories": [None, 5, [[]]]}]
)
def test_odd_categories_and_pictures_are_none(line: dict[str, object]) -> None:
    assert category_paths(line) == ([["x"]] if line == {"categories": "x"} else [])
    for images in (None, 5, "x", [5], [{}], {}, {"large": None}, {"large": [], "thumb": [None]}):
        assert picture_url({**line, "images": images, "imUrl": images if images != "x" else 7}) is None


def test_ids_that_are_numbers_become_text(tmp_path: Path) -> None:
    root = write_amazon(tmp_path / "raw", "2018")
    write_lines(root / file_names("2018")[0], [f'{{"reviewerID": "{USERS[0]}", "asin": 7, "unixReviewTime": 5.5}}'])
    write_lines(root / file_names("2018")[1], ['{"asin": 7, "title": "Cup", "category": []}'])
    raw = read(root, tmp_path)
    assert raw.interactions.collect().rows() == [(USERS[0], "7", 5.5)]
    assert raw.items.collect()["item_id"].to_list() == ["7"]

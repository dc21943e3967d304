"""What real tables do: the layouts of hm and table with the faults that Kaggle's files and one's own have."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from mmsr_pt.data.shards.build import BuildOptions, build_domain
from mmsr_pt.data.sources.hm import HM
from mmsr_pt.data.sources.table import Table
from mmsr_pt.log import UserError
from tests.data.raw import build_table, write_picture, write_plain_table, write_table
from tests.data.tars import held_out, trained_events

ARTICLES = "article_id,prod_name,product_type_name,colour_group_name,index_name,garment_group_name,detail_desc"
PURCHASES = "t_dat,customer_id,article_id,price,sales_channel_id"
NUM_ARTICLES = 6


def article(number: int) -> str:
    return f"010877501{number}"


def write_hm(root: Path, rows: Iterable[str], purchases: Iterable[str], end: str = "\n") -> Path:
    root.mkdir(parents=True)
    (root / "articles.csv").write_bytes("".join(row + end for row in (ARTICLES, *rows)).encode())
    (root / "transactions_train.csv").write_bytes("".join(row + end for row in (PURCHASES, *purchases)).encode())
    for number in range(NUM_ARTICLES):
        write_picture(root / "images" / "010" / f"{article(number)}.jpg", number)
    return root


def plain_articles() -> list[str]:
    return [f"{article(n)},Top {n},Vest top,Black,Ladieswear,Jersey,A top." for n in range(NUM_ARTICLES)]


def plain_purchases() -> list[str]:
    """Of two customers all articles in order, a day apart, the last one first in the file."""
    days = [(day, customer) for customer in ("00ff", "0a") for day in reversed(range(NUM_ARTICLES))]
    return [f"2020-09-{day + 1:02d},{customer},{article(day)},0.1,1" for day, customer in days]


def test_hm_as_kaggle_has_it_unsorted_repeated_and_with_gaps_builds_a_domain(tmp_path: Path) -> None:
    rows = plain_articles()
    rows[1] = f'{article(1)},Top 1,Vest top,Black,"Divided, sport",Jersey,"Soft, ribbed.\nSecond ""line""."'
    rows[2] = f"{article(2)},Top 2,Vest top,Black,Ladieswear,Jersey,"
    purchases = [*plain_purchases(), plain_purchases()[3], "2020-09-02,00ff,0999999999,0.1,2"]
    root = write_hm(tmp_path / "hm", rows, purchases, "\r\n")
    (root / "images" / "010" / f"{article(5)}.jpg").unlink()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    domain = build_domain(HM(root).read(scratch, True), tmp_path / "out", BuildOptions(num_workers=1))
    assert list(domain.titles())[1:3] == [
        'Top 1, Vest top, Black, Divided, sport. Soft, ribbed. Second "line".',
        "Top 2, Vest top, Black, Ladieswear",
    ]
    assert domain.items["item_id"].to_list() == [article(n) for n in range(5)]
    # of each customer the five articles with a picture, by day: three to train, two held out
    first_day = 18_506  # 2020-09-01, in days since 1970-01-01
    trained = [(article(day), first_day + day) for day in range(3)]
    assert trained_events(domain) == {"00ff": trained, "0a": trained}
    assert held_out(domain) == dict.fromkeys(("00ff", "0a"), (article(3), article(4)))
    assert {kind: found["count"] for kind, found in domain.meta["problems"].items()} == {
        "unknown_item": 1,
        "duplicate_interaction": 1,
        "missing_image": 1,
        "item_dropped": 2,
    }


def test_hm_finds_its_columns_whatever_their_case(tmp_path: Path) -> None:
    root = write_hm(tmp_path / "hm", plain_articles(), plain_purchases())
    raw = HM(root).read(tmp_path, True)
    items, interactions = raw.items.collect(), raw.interactions.collect()
    for name, header in (("articles.csv", ARTICLES), ("transactions_train.csv", PURCHASES)):
        file = root / name
        file.write_text("\ufeff" + file.read_text().replace(header, header.title().replace(",", ", ")))
    raw = HM(root).read(tmp_path, True)
    assert raw.items.collect().equals(items)
    assert raw.interactions.collect().equals(interactions)
    assert items["categories"][0].to_list() == ["Ladieswear", "Jersey", "Vest top"]


def test_a_root_one_folder_too_high_is_told_from_the_right_one(tmp_path: Path) -> None:
    root = write_hm(tmp_path / "raw" / "h-and-m", [], [])
    with pytest.raises(
        UserError, match=rf"raw/articles\.csv is missing; .*raw holds: h-and-m; {root} has one: was --root {root} meant"
    ):
        HM(root.parent).read(tmp_path, True)
    with pytest.raises(UserError, match=r"articles\.csv is missing; .*images holds: 010$"):
        HM(root / "images").read(tmp_path, True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"articles\.csv is missing; .*empty is empty$"):
        HM(tmp_path / "empty").read(tmp_path, True)
    for number in range(12):
        (tmp_path / "empty" / f"{number:02d}.csv.zip").touch()
    with pytest.raises(UserError, match=r"holds: 00\.csv\.zip, .*, 09\.csv\.zip and 2 more$"):
        HM(tmp_path / "empty").read(tmp_path, True)


@pytest.mark.parametrize("encoding", ["gbk", "utf-8-sig"])
def test_table_is_read_in_other_encodings_ids_too(tmp_path: Path, encoding: str) -> None:
    root = write_plain_table(tmp_path / "raw")
    plain = build_table(root, tmp_path / "plain")
    for name, header in (("items.csv", "Item_ID,TITLE"), ("interactions.csv", "USER_ID,Item_Id,TimeStamp")):
        rows = (root / name).read_text().splitlines()[1:]
        text = "\r\n".join([header, *rows, ""]).replace("title", "标题商品").replace("u1", "用户一")
        (root / name).write_bytes(text.encode(encoding))
    domain = build_table(root, tmp_path / "out")
    assert list(domain.titles()) == [title.replace("title", "标题商品") for title in plain.titles()]
    assert set(domain.eval["user_id"]) == {user.replace("u1", "用户一") for user in plain.eval["user_id"]}
    assert domain.meta["problems"] == {}


def test_columns_that_differ_in_case_alone_are_not_guessed_at(tmp_path: Path) -> None:
    root = write_table(tmp_path / "raw", [("u", "1", 1)], {})
    (root / "items.csv").write_text("item_id,Title,TITLE\n1,a,b\n")
    with pytest.raises(UserError, match=r"no column title; its columns are: item_id, Title, TITLE"):
        Table(root).read(tmp_path, True)
    (root / "items.csv").write_text("item_id,Title,title\n1,a,b\n")
    assert Table(root).read(tmp_path, True).items.collect()["title"].to_list() == ["b"]

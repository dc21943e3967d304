"""Small hand-made copies of the three layouts of the Amazon reviews, with their quirks."""

import gzip
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tests.data.raw import write_picture

CATEGORY = "Arts_Crafts"
CLOTHES = "Clothing, Shoes & Jewelry"
USERS = [f"A{user}" for user in range(4)]
ITEMS = ["0007", "007", "B01", "B02", "B03", "B04"]
DAY = 86_400
START = 1_252_800_000


def reviews() -> list[tuple[str, str, int]]:
    """(user, item, seconds), not in the order of time: every user reviews every item, a day apart."""
    rows = [(user, ITEMS[(u + i) % 6], START + i * DAY) for u, user in enumerate(USERS) for i in range(6)]
    return sorted(rows, key=lambda row: row[1])


def expected_events(without: Collection[str] = ()) -> dict[str, list[tuple[str, int]]]:
    """By user: item and seconds in order, some items left out."""
    return {
        user: [(item, START + i * DAY) for i in range(6) if (item := ITEMS[(u + i) % 6]) not in without]
        for u, user in enumerate(USERS)
    }


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def old_review(user: str, item: str, seconds: int) -> str:
    """As of 2014 and 2018: the text holds quotes, an escaped newline and half a surrogate pair."""
    text = 'Says "great",\nand {is}: \ud83d'
    return json.dumps({"reviewerID": user, "asin": item, "reviewText": text, "overall": 5.0, "unixReviewTime": seconds})


def new_review(user: str, item: str, seconds: int) -> str:
    variant = {"asin": f"variant-{item}", "parent_asin": item}
    return json.dumps(
        {"rating": 1.0, "title": "Meh", "images": [], **variant, "user_id": user, "timestamp": seconds * 1000}
    )


def meta_2014() -> list[dict[str, Any]]:
    return [
        {"asin": "0007", "title": 'The "Girls\'" Tutu &amp; Shoes', "imUrl": "http://a/0007.jpg", "price": 3.17,
         "categories": [[CLOTHES, "Girls"], [CLOTHES, "Novelty", "Girls"]], "related": {"also_bought": ["B01"]}},
        {"asin": "007", "title": "Cup\twith\nnewline", "categories": [["Books"]], "used": True, "brand": None},
        {"asin": "B01", "title": "A cable", "categories": [["Electronics"], ["Electronics", "Cables"]]},
        {"asin": "B02", "title": "No picture", "imUrl": "http://g/x-site/icons/no-img-sm._CB1_.gif", "categories": []},
        {"asin": "B03", "title": "C:\\dir \\d", "imUrl": "http://a/B03.jpg"},
        {"asin": "B04", "title": "Last", "salesRank": {"Toys & Games": 211836}},
    ]  # fmt: skip


def meta_2018() -> list[dict[str, Any]]:
    high, low = "https://m/I/51.jpg", "https://m/I/51._US40_.jpg"
    path = ["Clothing, Shoes &amp; Jewelry", "Women", "</span></span>", "Dresses"]
    return [
        {
            "asin": "0007",
            "title": "Dress &amp;amp; Belt",
            "category": path,
            "imageURL": [low],
            "imageURLHighRes": [high],
        },
        {"asin": "007", "title": "var aPageStart = (new Date()).getTime();\nvar x;", "category": [], "imageURL": []},
        {"asin": "B01", "title": '<span id="t">Plain</span>  shirt', "category": [], "imageURL": [low]},
        {"asin": "B02", "title": "It&#39;s", "category": ["Women"], "image": ["https://m/I/2._SS40_.jpg"]},
        {"asin": "B03", "title": "", "category": ["Women"], "description": [], "main_cat": "<img alt='FASHION'/>"},
        {"asin": "B04", "title": "Last", "also_buy": ["B01"], "tech1": "", "brand": "x"},
    ]


def meta_2023() -> list[dict[str, Any]]:
    def picture(name: str, variant: str, *sizes: str) -> dict[str, str | None]:
        urls = {
            size: f"https://m/{name}-{size}.jpg" if size in sizes else None for size in ("thumb", "large", "hi_res")
        }
        return {**urls, "variant": variant}

    lists = {"hi_res": [None, "https://m/h.jpg"], "large": ["https://m/l0.jpg", "https://m/l1.jpg"],
             "thumb": [None, None], "variant": ["PT01", "MAIN"]}  # fmt: skip
    path = ["Beauty & Personal Care", "Hair Care", "Combs"]
    return [
        {"parent_asin": "0007", "title": "Comb", "categories": path, "main_category": "All Beauty",
         "images": [picture("a", "PT01", "large"), picture("b", "MAIN", "thumb", "large", "hi_res")]},
        {"parent_asin": "007", "title": "Brush", "categories": [], "images": lists},
        {"parent_asin": "B01", "title": "Soap", "categories": None, "images": [picture("c", "", "thumb", "hi_res")]},
        {"parent_asin": "B02", "title": "Oil", "categories": ["Beauty & Personal Care"], "images": []},
        {"parent_asin": "B03", "title": "Wax", "categories": [], "images": [picture("d", "MAIN")]},
        {"parent_asin": "B04", "title": "Last", "categories": [], "images": None, "price": None},
    ]  # fmt: skip


def file_names(version: str, category: str = CATEGORY) -> tuple[str, str]:
    """Of the reviews and of the metadata."""
    return {
        "2014": (f"reviews_{category}_5.json.gz", f"meta_{category}.json.gz"),
        "2018": (f"{category}.json.gz", f"meta_{category}.json.gz"),
        "2023": (f"{category}.jsonl", f"meta_{category}.jsonl.gz"),
    }[version]


def meta_lines(version: str) -> list[str]:
    """2014's are literals of Python, with single quotes, None and True."""
    records = {"2014": meta_2014, "2018": meta_2018, "2023": meta_2023}[version]()
    return [repr(record) if version == "2014" else json.dumps(record) for record in records]


def write_amazon(root: Path, version: str, category: str = CATEGORY, pictures: bool = True) -> Path:
    """One category in the layout of a version, without any fault."""
    of_reviews, of_meta = file_names(version, category)
    review = new_review if version == "2023" else old_review
    write_lines(root / of_reviews, [review(*row) for row in reviews()])
    write_lines(root / of_meta, meta_lines(version))
    if pictures:
        for seed, item in enumerate(ITEMS):
            write_picture(root / "images" / item[-1] / f"{item}.jpg", seed)
    return root

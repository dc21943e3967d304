"""H&M purchases as Kaggle's "H&M Personalized Fashion Recommendations" hands them out.

ROOT/articles.csv  ROOT/transactions_train.csv  ROOT/images/010/0108775015.jpg
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mmsr_pt.data.sources.base import SOURCES, RawDomain, add_images, distinct_names, join_text, scan_table

# the paper adds categorical tags to names, as names alone are shared by many articles
_TITLE_COLUMNS = ("prod_name", "product_type_name", "colour_group_name", "index_name")
# from the widest (5 names) to the narrowest (131); a copy of the data without some of them will do
_CATEGORY_COLUMNS = ("index_group_name", "index_name", "garment_group_name", "product_group_name", "product_type_name")
_DAY = 86_400.0


@SOURCES.register("hm")
@dataclass(frozen=True)
class HM:
    """H&M purchases in Kaggle's layout; the unit of time is a day."""

    root: Path
    """Directory with articles.csv, transactions_train.csv and images/."""

    def read(self, scratch: Path, with_images: bool) -> RawDomain:
        """See Source."""
        required = ("article_id", *_TITLE_COLUMNS, "detail_desc")
        articles = scan_table(self.root / "articles.csv", required, scratch, optional=_CATEGORY_COLUMNS)
        purchases = scan_table(self.root / "transactions_train.csv", ("t_dat", "customer_id", "article_id"), scratch)
        description = pl.col("detail_desc").str.strip_chars()
        tags = join_text([pl.col(name) for name in _TITLE_COLUMNS])
        title = pl.concat_str([tags, pl.when(description != "").then(description)], separator=". ", ignore_nulls=True)
        found = articles.collect_schema().names()
        categories = pl.concat_list([name for name in _CATEGORY_COLUMNS if name in found])
        items = articles.select(item_id="article_id", title=title, categories=distinct_names(categories))
        day = pl.col("t_dat").str.to_date("%Y-%m-%d", strict=False).cast(pl.Int32).cast(pl.Int64)
        return RawDomain(
            source="hm",
            root=self.root,
            licence="Kaggle H&M Personalized Fashion Recommendations, competition terms, not redistributable",
            interactions=purchases.select(user_id="customer_id", item_id="article_id", time=day),
            items=add_images(items, self.root / "images", with_images),
            seconds_per_unit=_DAY,
        )

"""The benchmark of a conversion, small: what is drawn, and that the domain made of it is the right one."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.conversion import Settings, draw, draw_lengths, main
from mmsr_pt.log import UserError

SMALL = Settings(transactions=60_000, customers=2_500, articles=900)
KAGGLES = (
    "article_id product_code prod_name product_type_no product_type_name product_group_name graphical_appearance_no "
    "graphical_appearance_name colour_group_code colour_group_name perceived_colour_value_id "
    "perceived_colour_value_name perceived_colour_master_id perceived_colour_master_name department_no department_name "
    "index_code index_name index_group_no index_group_name section_no section_name garment_group_no garment_group_name "
    "detail_desc"
)


def read(path: Path) -> pl.DataFrame:
    return pl.read_csv(path, infer_schema=False)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    draw(root, SMALL)
    return root


def test_files_are_in_kaggles_layout_and_the_same_each_time(raw: Path, tmp_path: Path) -> None:
    draw(tmp_path, SMALL)
    for name in ("articles.csv", "transactions_train.csv"):
        assert (raw / name).read_bytes() == (tmp_path / name).read_bytes()
    articles, bought = read(raw / "articles.csv"), read(raw / "transactions_train.csv")
    assert " ".join(articles.columns) == KAGGLES
    assert articles.width == 25
    assert articles["article_id"].n_unique() == articles.height == 900
    assert articles["article_id"].str.contains(r"^0\d{9}$").all()
    assert articles.null_count().sum_horizontal().item() == 0
    assert bought.columns == ["t_dat", "customer_id", "article_id", "price", "sales_channel_id"]
    assert bought.height == 60_000
    assert bought["customer_id"].n_unique() == 2_500
    assert bought["customer_id"].str.contains(r"^[0-9a-f]{64}$").all()
    assert set(bought["sales_channel_id"]) == {"1", "2"}


def test_customers_and_articles_are_long_tailed(raw: Path) -> None:
    """Log-normal with median 9 and mean 23.3, rounded: P(x < 3.5) = Phi(ln(3.5 / 9) / sqrt(2 ln(23.3 / 9))) = 0.247."""
    lengths = draw_lengths(Settings(), np.random.default_rng(1))
    assert lengths.sum() == 31_788_324
    assert len(lengths) == 1_362_281
    assert lengths.min() == 1
    assert 8 <= np.median(lengths) <= 10
    assert abs((lengths < 4).mean() - 0.247) < 0.01
    assert 0.01 < (lengths > 150).mean() < 0.05
    counts = read(raw / "transactions_train.csv")["article_id"].value_counts(sort=True)["count"].to_numpy()
    expected = np.arange(1, 901) ** -0.7
    np.testing.assert_allclose(counts[:10] / counts.sum(), expected[:10] / expected.sum(), rtol=0.2)


def test_rows_stand_by_day_but_for_late_ones_and_some_repeat(tmp_path: Path) -> None:
    draw(tmp_path, Settings(transactions=600_000, customers=25_000, articles=900))
    bought = read(tmp_path / "transactions_train.csv")
    days = bought["t_dat"].str.to_date().to_physical().to_numpy()
    (back,) = np.flatnonzero(np.diff(days) < 0)[:1]
    assert 1 <= bought.height - (back + 1) <= 600_000 / 100_003 + 1
    repeated = bought.select("t_dat", "customer_id", "article_id").is_duplicated().mean()
    assert 0.05 < repeated < 0.12
    unknown = ~bought["article_id"].is_in(read(tmp_path / "articles.csv")["article_id"].implode())
    assert unknown.sum() == 1  # of row 500,001 as drawn


def test_it_draws_builds_and_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--transactions", "60000", "--customers", "2500", "--articles", "900", "--directory", str(tmp_path)]
    usage, domain = main(flags)
    assert usage.processor_seconds > 0.5
    assert usage.peak_bytes > 50e6
    counts = domain.meta["counts"]
    assert (counts["interactions_read"], counts["users_read"], counts["items"]) == (60_000, 2_500, 900)
    bought = read(tmp_path / "raw" / "transactions_train.csv")
    distinct = bought.unique(["t_dat", "customer_id", "article_id"])
    assert domain.meta["problems"]["duplicate_interaction"]["count"] == bought.height - distinct.height
    lengths = distinct["customer_id"].value_counts().filter(pl.col("count") >= 5)
    assert domain.num_users == lengths.height
    assert counts["interactions"] == lengths["count"].clip(upper_bound=23).sum()
    shown = capsys.readouterr().out
    assert "processor time" in shown
    drawn = (tmp_path / "raw" / "articles.csv").stat().st_mtime_ns
    assert main(flags)[1].fingerprint == domain.fingerprint
    assert (tmp_path / "raw" / "articles.csv").stat().st_mtime_ns == drawn


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="--customers 10 must lie in 1"):
        Settings(transactions=5, customers=10)
    with pytest.raises(UserError, match="--articles 0 must lie in 1"):
        Settings(articles=0)

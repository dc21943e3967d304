"""Baselines on the real development data against figures measured independently of this package."""

from pathlib import Path

import polars as pl
import pytest

from mmsr_pt.evaluation.evaluate import evaluate_baselines
from tests.evaluation.fakes import domain_of

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
KNOWN = {
    # domain: file, its columns, {model: (HR@10, NDCG@10)}, users, cold targets
    "hm": (
        "transactions_train.csv",
        ("customer_id", "article_id", "t_dat"),
        {"popularity": (0.0532, 0.0255), "transitions": (0.0626, 0.0328)},
        639,
        539,
    ),
    "movies_classic": (
        "interactions.csv",
        ("user_id", "item_id", "timestamp"),
        {"popularity": (0.0627, 0.0306), "transitions": (0.0849, 0.0470)},
        1260,
        395,
    ),
    "movies_modern": (
        "interactions.csv",
        ("user_id", "item_id", "timestamp"),
        {"popularity": (0.0655, 0.0327), "transitions": (0.0963, 0.0513)},
        779,
        307,
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_baselines_reach_the_known_figures(name):
    file, (user, item, time), figures, num_users, num_cold = KNOWN[name]
    if not (DATA / name / file).is_file():
        pytest.skip(f"the real data set {name} is not at {DATA}")
    rows = pl.read_csv(DATA / name / file, infer_schema=False).sort(
        pl.col(time).cast(pl.Int64, strict=False), time, maintain_order=True
    )
    rows = rows.with_columns(row=pl.col(item).rank("dense") - 1)
    sequences = rows.group_by(user, maintain_order=True).agg("row").filter(pl.col("row").list.len() >= 5)
    domain = domain_of(sequences["row"].list.tail(23).to_list(), rows["row"].max() + 1)

    lines = {(line.model, line.slice): line for line in evaluate_baselines(domain, ["test"])}
    for model, (hr, ndcg) in figures.items():
        assert lines[model, "all"].users == num_users
        assert lines[model, "cold"].users == num_cold
        assert lines[model, "all"].metrics["HR@10"] == pytest.approx(hr, abs=5e-5)
        assert lines[model, "all"].metrics["NDCG@10"] == pytest.approx(ndcg, abs=5e-5)

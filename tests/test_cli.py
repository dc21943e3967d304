"""The command line on a domain and a model in memory: what it prints, writes and refuses."""

import json

import polars as pl
import pytest
import torch

from mmsr_pt import cli
from mmsr_pt.evaluation.cases import UserSample
from mmsr_pt.evaluation.evaluate import evaluate, evaluate_baselines
from mmsr_pt.evaluation.metrics import METRICS
from mmsr_pt.run_dir import TEST_RANKS, read_ranks
from tests.evaluation.fakes import FakeModel, id_source, random_domain

NUM_ITEMS = 31


@pytest.fixture
def domain(monkeypatch):
    domain = random_domain(23, NUM_ITEMS)
    monkeypatch.setattr(cli.Domain, "load", lambda path, max_users=0, seed=0: domain)
    return domain


@pytest.fixture
def model(monkeypatch, domain):
    model = FakeModel(NUM_ITEMS)
    monkeypatch.setattr(cli, "find_bundle", lambda reference: reference)
    monkeypatch.setattr(cli, "load_model", lambda bundle, domain: (model, None))
    monkeypatch.setattr(cli, "item_source", lambda domain, preprocessor: id_source)
    return model


def refused(capsys, *argv):
    """The sentence on stderr of a call that must end with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(argv))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize("split", ["test", "valid"])
def test_evaluate_writes_fractions_and_prints_percent(tmp_path, capsys, domain, model, split):
    out = tmp_path / "figures.json"
    cli.main(["evaluate", "--model", "m", "--data", "d", "--split", split, "--out", str(out)])
    expected = evaluate_baselines(domain, [split]) + evaluate(model, domain, id_source, [split], 256)
    written = json.loads(out.read_text())
    assert written["domain"] == domain.name
    keys = ("model", "slice", "split", "users", *METRICS)
    assert [[line[k] for k in keys] for line in written["lines"]] == [
        [line.as_dict()[k] for k in keys] for line in expected
    ]
    printed = capsys.readouterr().out
    for name in ("popularity", "transitions", "mmsr", "cold", "warm", "HR@10", "NDCG@50", "percent"):
        assert name in printed
    assert f"{100 * expected[-1].metrics['HR@10']:.2f}" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_evaluate_takes_both_splits_with_one_encoding(tmp_path, capsys, domain, model):
    out = tmp_path / "figures.json"
    cli.main(["evaluate", "--model", "m", "--data", "d", "--split", "both", "--out", str(out)])
    assert [row for batch in model.batches for row in batch] == list(range(NUM_ITEMS))
    written = json.loads(out.read_text())["lines"]
    assert [(line["model"], line["split"]) for line in written if line["slice"] == "all"] == [
        (name, split) for name in ("popularity", "transitions", "mmsr") for split in ("valid", "test")
    ]
    printed = capsys.readouterr().out
    assert printed.index("made up, valid") < printed.index("made up, test")


def test_evaluate_keeps_the_ranks_that_its_figures_are_means_of(tmp_path, domain, model):
    out, ranks = tmp_path / "figures.json", tmp_path / TEST_RANKS
    cli.main(["evaluate", "--model", "m", "--data", "d", "--split", "both", "--out", str(out), "--ranks", str(ranks)])
    table = pl.read_parquet(ranks)
    assert table.columns == ["domain", "split", "user", "target", "rank"]
    assert set(table["domain"]) == {domain.name}
    for line in json.loads(out.read_text())["lines"]:
        if line["model"] == "mmsr" and line["slice"] == "all":
            found = table.filter(pl.col("split") == line["split"])
            assert found["user"].to_list() == domain.eval["user"].to_list()
            assert found["target"].to_list() == domain.eval[line["split"]].to_list()
            assert (found["rank"] <= 10).mean() == pytest.approx(line["HR@10"])
            assert (1 / found["rank"]).mean() == pytest.approx(line["MRR"])
    assert read_ranks(tmp_path, domain.name).equals(
        table.filter(pl.col("split") == "test").select("user", "target", "rank")
    )


def test_evaluate_asks_a_sample_of_the_users(tmp_path, domain, model):
    out = tmp_path / "figures.json"
    flags = ["--eval_users", "7", "--seed", "3", "--no_baselines", "--out", str(out)]
    cli.main(["evaluate", "--model", "m", "--data", "d", *flags])
    written = json.loads(out.read_text())["lines"]
    assert {line["model"] for line in written} == {"mmsr"}
    assert written[0]["users"] == 7
    expected = evaluate(model, domain, id_source, ["test"], 256, users=UserSample(7, 3))
    assert written[0]["MRR"] == expected[0].metrics["MRR"]


def test_recommend_for_a_history_leaves_seen_items_out(capsys, domain, model):
    cli.main(["recommend", "--model", "m", "--data", "d", "--history", "id003, id004", "--top_k", "5"])
    printed = capsys.readouterr().out
    vectors = model.items.detach()
    score = (vectors[3] + vectors[4]) @ vectors.T
    score[[3, 4]] = -torch.inf
    best = score.argsort(descending=True)[:5].tolist()
    shown = [line.split()[1] for line in printed.splitlines() if "Title" in line]
    assert shown == [f"id{row:03}" for row in best]
    assert f"{model.score_scale * score[best[0]]:.3f}" in printed


def test_recommend_for_a_user_leaves_out_all_that_is_known_of_them(capsys, domain, model):
    cli.main(["recommend", "--model", "m", "--data", "d", "--user", "user5", "--top_k", str(NUM_ITEMS)])
    shown = {line.split()[1] for line in capsys.readouterr().out.splitlines() if "Title" in line}
    user = domain.eval.row(5, named=True)
    known = {f"id{row:03}" for row in [*user["history"], user["valid"], user["test"]]}
    assert shown == {f"id{row:03}" for row in range(NUM_ITEMS)} - known


def test_brackets_in_a_title_are_shown_and_not_read_as_markup(capsys, domain, model):
    domain.items = domain.items.with_columns(title="item_id").with_columns(
        title="[bold]red[/] " + domain.items["item_id"]
    )
    cli.main(["recommend", "--model", "m", "--data", "d", "--history", "id003", "--top_k", "1"])
    assert "[bold]red[/]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["evaluate", "--out", "no/such/dir/f.json"], "there is no directory no/such/dir"),
        (["evaluate", "--out", "."], "is a directory"),
        (["evaluate", "--batch_size", "0"], "--batch_size 0 must be at least 1"),
        (["evaluate", "--eval_users", "-1"], "--eval_users -1 must not be negative"),
        (["recommend"], "give one of --user U and --history"),
        (["recommend", "--user", "user1", "--history", "id001"], "give one of --user U and --history"),
        (["recommend", "--user", "user1", "--top_k", "0"], "--top_k 0 must be at least 1"),
        (["recommend", "--user", "user99"], "did you mean"),
        (["recommend", "--history", "id001,id999"], "unknown item 'id999'"),
        (["recommend", "--history", " , "], "names no item"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(capsys, domain, model, arguments, sentence):
    error = refused(capsys, *arguments, "--model", "m", "--data", "d")
    assert sentence in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("command", ["evaluate", "recommend"])
def test_a_missing_domain_is_one_sentence(capsys, tmp_path, command):
    argv = ["--model", "m", "--data", str(tmp_path / "nowhere")] + ["--user", "u"] * (command == "recommend")
    assert "there is no domain directory" in refused(capsys, command, *argv)


def test_a_missing_model_is_one_sentence(capsys, domain):
    assert "there is no directory" in refused(capsys, "evaluate", "--model", "/no/run", "--data", "d")


@pytest.mark.parametrize(
    "argv", [["evaluate"], ["evaluat"], [], ["evaluate", "--model", "m", "--data", "d", "--split", "x"]]
)
def test_a_wrong_command_line_ends_with_exit_code_2(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2


def test_the_command_that_fills_the_cache_needs_no_flag_for_it(monkeypatch):
    called = []
    monkeypatch.setattr(cli, "cache_command", called.append)
    for flags in (["--vision", "region"], ["--vision", "region", "--cache"]):
        cli.main(["cache", *flags])
        assert called.pop().data.cache

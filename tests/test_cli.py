"""The command line on a domain and a model in memory: what it prints, writes and refuses."""

import base64
import html
import io
import json
import re
from pathlib import Path

import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmsr_pt import cli
from mmsr_pt.assembly import build_model
from mmsr_pt.cli import common
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.evaluation.cases import UserSample
from mmsr_pt.evaluation.evaluate import evaluate, evaluate_baselines
from mmsr_pt.evaluation.metrics import METRICS
from mmsr_pt.flags import parse_flags
from mmsr_pt.log import UserError
from mmsr_pt.model import MMSRModel
from mmsr_pt.run_dir import TEST_RANKS, read_ranks
from tests.conftest import build_drawn
from tests.data.raw import build_table, write_table
from tests.evaluation.fakes import FakeModel, domain_of, id_source, random_domain

NUM_ITEMS = 31
NOTHING_READ = Preprocessor(tokenizer=None, image=None)


@pytest.fixture
def domain(monkeypatch):
    domain = random_domain(23, NUM_ITEMS)
    monkeypatch.setattr(Domain, "load", lambda path, max_users=0, seed=0: domain)
    return domain


@pytest.fixture
def model(monkeypatch, domain):
    model = FakeModel(NUM_ITEMS)
    monkeypatch.setattr(common, "find_bundle", lambda reference: reference)
    monkeypatch.setattr(common.MMSRModel, "from_pretrained", lambda bundle: MMSRModel(model, NOTHING_READ))
    monkeypatch.setattr(common, "item_source", lambda domain, preprocessor: id_source)
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
    keys = ("model", "slice", "protocol", "split", "users", "cases", *METRICS)
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


def test_evaluate_by_the_cold_protocol(tmp_path, capsys, domain, model):
    out = tmp_path / "figures.json"
    cli.main(["evaluate", "--model", "m", "--data", "d", "--protocol", "cold", "--out", str(out)])
    expected = evaluate_baselines(domain, ["any"]) + evaluate(model, domain, id_source, ["any"], 256)
    written = json.loads(out.read_text())["lines"]
    assert [{**line, "seconds": 0} for line in written] == [{**line.as_dict(), "seconds": 0} for line in expected]
    assert {(line["protocol"], line["split"]) for line in written} == {("cold", "any")}
    printed = capsys.readouterr().out
    assert "made up, cold items" in printed
    assert f"{expected[-1].cases:,}" in printed


def test_evaluate_shows_several_models_beside_each_other(tmp_path, capsys, domain, model, monkeypatch):
    """One of them was trained elsewhere."""
    other = FakeModel(NUM_ITEMS, max_history=2)
    other.trained_on = [{"name": "shop", "fingerprint": "beef"}, {"name": "market", "fingerprint": "cafe"}]
    models = {str(tmp_path / "ids"): model, str(tmp_path / "mmsr" / "model"): other}
    monkeypatch.setattr(common.MMSRModel, "from_pretrained", lambda bundle: MMSRModel(models[bundle], NOTHING_READ))
    for directory in models:
        Path(directory).mkdir(parents=True)
    out = tmp_path / "figures.json"
    cli.main(["evaluate", "--model", *models, "--data", "d", "--out", str(out)])
    written = json.loads(out.read_text())
    first, second = models
    assert written["models"] == {
        "ids": {"model": first, "trained_on": ["made up"], "zero_shot": False},
        "mmsr": {"model": second, "trained_on": ["shop", "market"], "zero_shot": True},
    }
    overall = {line["model"]: line["MRR"] for line in written["lines"] if line["slice"] == "all"}
    assert list(overall) == ["popularity", "transitions", "ids", "mmsr"]
    for name, one in (("ids", model), ("mmsr", other)):
        assert overall[name] == evaluate(one, domain, id_source, ["test"], 256)[0].metrics["MRR"]
    printed = capsys.readouterr().out
    assert "zero-shot: mmsr has never seen made up, it was trained on shop, market" in printed
    assert "zero-shot: ids" not in printed


def test_another_build_of_the_same_domain_is_no_zero_shot(tmp_path, capsys, domain, model):
    model.trained_on = [{"name": "made up", "fingerprint": "beef"}]
    out = tmp_path / "figures.json"
    cli.main(["evaluate", "--model", "m", "--data", "d", "--no_baselines", "--out", str(out)])
    about = {"model": "m", "trained_on": ["made up"], "zero_shot": None}
    assert json.loads(out.read_text())["models"] == {"mmsr": about}
    printed = capsys.readouterr().out
    assert "mmsr was trained on another build of made up, or on another domain of that name" in printed
    assert "zero-shot" not in printed


def test_all_models_are_opened_before_the_first_is_asked(tmp_path, capsys, domain, model, monkeypatch):
    def find(reference):
        if reference == "missing":
            raise UserError("there is no directory missing")
        return reference

    monkeypatch.setattr(common, "find_bundle", find)
    error = refused(capsys, "evaluate", "--model", "m", "missing", "--data", "d")
    assert error == "error: there is no directory missing\n"
    assert model.batches == []


def bundle_for(domain, directory):
    """An untrained model of tiny towers that says it was trained on `domain`, in a bundle."""
    config = parse_flags(["--data", str(domain.path), "--width", "32", "--max_history", "8"])
    model, preprocessor = build_model(config.model, [domain])
    trained_on = [{"name": domain.name, "fingerprint": domain.fingerprint}]
    model.save(directory, trained_on=trained_on)
    preprocessor.save(directory)
    return directory


def test_a_model_ranks_a_domain_that_it_has_never_seen(tmp_path, capsys, small_domain):
    """Nothing is replaced here: a bundle on disk, another domain with items of its own."""
    target = build_drawn(tmp_path / "small_target", "target", num_users=60, items_per_cell=1)
    bundle = bundle_for(small_domain, tmp_path / "bundle")
    found = {}
    for data in (small_domain.path, target.path):
        for protocol in ("leave-one-out", "cold"):
            out = tmp_path / "figures.json"
            flags = ["--protocol", protocol, "--no_baselines", "--out", str(out)]
            cli.main(["evaluate", "--model", str(bundle), "--data", str(data), *flags])
            found[data, protocol] = json.loads(out.read_text()), capsys.readouterr().out
    for (data, _), (written, printed) in found.items():
        is_target = data == target.path
        about = {"model": str(bundle), "trained_on": [small_domain.name], "zero_shot": is_target}
        assert written["models"] == {"mmsr": about}
        said = f"zero-shot: mmsr has never seen small_target, it was trained on {small_domain.name}"
        assert (said in printed) == is_target
    overall = [line for line in found[target.path, "leave-one-out"][0]["lines"] if line["slice"] == "all"]
    assert [line["users"] for line in overall] == [target.num_users]
    # what is cold is counted in the domain that is evaluated
    cold = {line["slice"]: line["cases"] for line in found[target.path, "cold"][0]["lines"]}
    assert cold["all"] == target.eval["cold_cases"].list.len().sum()


@pytest.fixture(scope="module")
def bundle(small_domain, tmp_path_factory):
    return bundle_for(small_domain, tmp_path_factory.mktemp("bundle"))


def shown_ids(printed, domain):
    known = set(domain.items["item_id"])
    return [words[1] for words in map(str.split, printed.splitlines()) if len(words) > 1 and words[1] in known]


def test_recommend_for_a_history_leaves_seen_items_out(capsys, small_domain, bundle):
    item_ids = small_domain.items["item_id"][[3, 4]].to_list()
    where = ["--model", str(bundle), "--data", str(small_domain.path)]
    cli.main(["recommend", *where, "--history", ", ".join(item_ids), "--top_k", "5"])
    printed = capsys.readouterr().out
    model = MMSRModel.from_pretrained(bundle)
    expected = model.recommend(item_ids, model.index(small_domain, 256), top_k=5)
    assert shown_ids(printed, small_domain) == [item.item_id for item in expected]
    assert f"{expected[0].score:.3f}" in printed


def test_recommend_for_a_user_leaves_out_all_that_is_known_of_them(capsys, small_domain, bundle):
    user = small_domain.eval.row(5, named=True)
    where = ["--model", str(bundle), "--data", str(small_domain.path), "--top_k", str(small_domain.num_items)]
    cli.main(["recommend", *where, "--user", user["user_id"]])
    rows = {*user["history"], user["valid"], user["test"]}
    unseen = set(small_domain.items["item_id"]) - set(small_domain.items["item_id"][list(rows)])
    assert set(shown_ids(capsys.readouterr().out, small_domain)) == unseen


def test_brackets_in_a_title_are_shown_and_not_read_as_markup(capsys, tmp_path):
    rows = [(f"u{u}", f"{(u + i) % 9}", i) for u in range(9) for i in range(6)]
    domain = build_table(
        write_table(tmp_path / "raw", rows, {f"{i}": "[bold]red[/]" for i in range(9)}), tmp_path / "d"
    )
    bundle = bundle_for(domain, tmp_path / "bundle")
    cli.main(["recommend", "--model", str(bundle), "--data", str(domain.path), "--history", "3", "--top_k", "1"])
    assert "[bold]red[/]" in capsys.readouterr().out


def test_a_contact_sheet_shows_history_and_recommendations(capsys, small_domain, bundle, tmp_path):
    user = small_domain.eval.row(5, named=True)
    ids = small_domain.items["item_id"]
    known = [ids[row] for row in [*user["history"], user["valid"], user["test"]]]
    where = ["--model", str(bundle), "--data", str(small_domain.path), "--user", user["user_id"]]
    cli.main(["recommend", *where, "--top_k", "4", "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    shown = shown_ids(capsys.readouterr().out, small_domain)
    titles = dict(zip(ids, small_domain.items["title"]))
    before, _, behind = page.partition("Recommended, best first")
    assert all(html.escape(titles[item_id]) in behind for item_id in shown)
    assert all(html.escape(titles[item_id]) in before for item_id in known[-8:]), "those that the model reads"
    assert (f"{len(known) - 8} older items" in page) == (len(known) > 8)
    pictures = [base64.b64decode(found) for found in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)]
    assert len(pictures) == min(len(known), 8) + 4
    for picture in pictures:
        with Image.open(io.BytesIO(picture)) as image:
            image.load()
    assert not re.findall(r"https?://|<script|<link", page), "it stands in one file"


def test_a_contact_sheet_without_pictures_at_hand(bundle, tmp_path):
    root = write_table(tmp_path / "shop", [], {"0a": "red <b>scarf</b>", "0b": "blue hat"})
    cli.main(["encode", "--model", str(bundle), "--items", str(root), "--out", str(tmp_path / "index")])
    where = ["--model", str(bundle), "--index", str(tmp_path / "index"), "--history", "0a"]
    cli.main(["recommend", *where, "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert "red &lt;b&gt;scarf" in page
    assert "blue hat" in page
    assert page.count("no picture") >= 2


def test_a_catalogue_is_encoded_once_and_recommended_from(capsys, small_domain, bundle, tmp_path, monkeypatch):
    where, index = ["--model", str(bundle)], str(tmp_path / "index")
    history = ["--history", small_domain.items["item_id"][7]]
    cli.main(["encode", *where, "--data", str(small_domain.path), "--out", index])
    assert "300 items, vectors of 32" in capsys.readouterr().out
    cli.main(["recommend", *where, "--data", str(small_domain.path), *history])
    expected = capsys.readouterr().out
    monkeypatch.setattr(MMSRModel, "index", None)
    for data in ([], ["--data", str(small_domain.path)]):
        cli.main(["recommend", *where, "--index", index, *data, *history])
        assert capsys.readouterr().out == expected
    assert "unknown item 'x'" in refused(capsys, "recommend", *where, "--index", index, "--history", "x")


def test_vectors_are_written_for_other_programs(small_domain, bundle, tmp_path):
    model = MMSRModel.from_pretrained(bundle)
    expected = model.index(small_domain, 256)
    where = ["--model", str(bundle), "--data", str(small_domain.path)]
    for name in ("v.parquet", "v.safetensors"):
        cli.main(["encode", *where, "--out", str(tmp_path / name)])
    table = pl.read_parquet(tmp_path / "v.parquet")
    assert table.select("item_id", "title").equals(expected.items)
    assert torch.equal(torch.from_numpy(table["vector"].to_numpy().copy()), expected.vectors)
    assert torch.equal(load_file(tmp_path / "v.safetensors")["vectors"], expected.vectors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.parquet", "v.safetensors"]


def test_items_without_interactions_make_a_catalogue(capsys, bundle, tmp_path):
    root = write_table(tmp_path / "shop", [], {"0a": "red scarf", "0b": "blue hat", "0c": "hat"})
    (root / "interactions.csv").unlink()
    cli.main(["encode", "--model", str(bundle), "--items", str(root), "--out", str(tmp_path / "index")])
    capsys.readouterr()
    cli.main(["recommend", "--model", str(bundle), "--index", str(tmp_path / "index"), "--history", "0a"])
    printed = capsys.readouterr().out
    assert "0b" in printed
    assert "blue hat" in printed
    assert "0a" not in printed
    (root / "images" / "0b.jpg").unlink()
    error = refused(capsys, "encode", "--model", str(bundle), "--items", str(root), "--out", str(tmp_path / "other"))
    assert "1 of 3 items have no picture" in error
    assert not (tmp_path / "other").exists()


def test_the_index_of_another_domain_is_refused(capsys, bundle, small_domain, tmp_path):
    root = write_table(tmp_path / "shop", [], {"0a": "red scarf", "0b": "blue hat"})
    cli.main(["encode", "--model", str(bundle), "--items", str(root), "--out", str(tmp_path / "index")])
    capsys.readouterr()
    where = ["--model", str(bundle), "--data", str(small_domain.path), "--index", str(tmp_path / "index")]
    history = ["--history", small_domain.items["item_id"][7]]
    assert "is not of the domain that --data names" in refused(capsys, "recommend", *where, *history)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["evaluate", "--out", "no/such/dir/f.json"], "there is no directory no/such/dir"),
        (["evaluate", "--out", "."], "is a directory"),
        (["evaluate", "--batch_size", "0"], "--batch_size 0 must be at least 1"),
        (["evaluate", "--eval_users", "-1"], "--eval_users -1 must not be negative"),
        (["evaluate", "--protocol", "cold", "--split", "valid"], "--split valid is for --protocol leave-one-out"),
        (["encode", "--out", "x", "--items", "y"], "give one of --data DOMAIN and --items"),
        (["encode", "--out", "no/such/index"], "there is no directory no/such"),
        (["encode", "--out", "x", "--batch_size", "0"], "--batch_size 0 must be at least 1"),
        (["recommend"], "give one of --user U and --history"),
        (["recommend", "--user", "user1", "--history", "id001"], "give one of --user U and --history"),
        (["recommend", "--user", "user1", "--out", "no/such/page.html"], "there is no directory no/such"),
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


def test_a_domain_without_cold_items_is_one_sentence(capsys, monkeypatch, model):
    warm = domain_of([[0, 1, 0, 1]] * 10, num_items=2)
    monkeypatch.setattr(Domain, "load", lambda path, max_users=0, seed=0: warm)
    error = refused(capsys, "evaluate", "--model", "m", "--data", "d", "--protocol", "cold")
    assert "nobody asked in made up has a cold item (under 10 training occurrences)" in error


def test_no_model_is_one_sentence(capsys, domain):
    assert "--model names no model" in refused(capsys, "evaluate", "--data", "d", "--model")


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

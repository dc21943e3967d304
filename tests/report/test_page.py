"""The page of a run: what stands in it, that it needs nothing else, and what it says where there is nothing yet."""

import base64
import io
import json
import re
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from mmsr_pt import cli
from mmsr_pt.config import ModelConfig
from mmsr_pt.data.catalogue import item_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.shards.build import BuildOptions, build_domain
from mmsr_pt.data.sources.synthetic import Synthetic
from mmsr_pt.pages.cards import Card
from mmsr_pt.pages.render import render
from mmsr_pt.report.opened import open_run
from mmsr_pt.report.page import Page, describe
from mmsr_pt.run_dir import metric_lines, read_ranks
from tests.report.runs import SMALL, begun, finished, validated

VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Elements with their attributes, and the text; all of them must be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.said: list[str] = []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.said.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.said))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(run_dir: Path) -> Page:
    return describe(open_run(run_dir), lambda model, domain: item_source(domain, model.preprocessor), 64)


@pytest.fixture(scope="module")
def finished_page(tmp_path_factory: pytest.TempPathFactory, small_domain: Domain) -> tuple[Path, Page, str]:
    run_dir = finished(tmp_path_factory.mktemp("finished") / "run", small_domain)
    page = page_of(run_dir)
    return run_dir, page, render("report.html", page)


def test_the_page_needs_nothing_but_itself(finished_page: tuple[Path, Page, str]) -> None:
    read = Reader(finished_page[2])
    assert not read.all("script")
    assert not read.all("link")
    assert "url(" not in finished_page[2]
    for attributes in read.all("img"):
        kind, _, content = (attributes["src"] or "").partition(";base64,")
        picture = base64.b64decode(content, validate=True)
        if kind == "data:image/svg+xml":
            assert 'href="http' not in picture.decode()
            assert ElementTree.fromstring(picture).tag.endswith("svg")
        else:
            assert kind == "data:image/jpeg"
            assert max(Image.open(io.BytesIO(picture)).size) <= 160
        assert attributes["alt"], "words for those who cannot see it"
    anchors = {attributes["href"] for attributes in read.all("a")}
    assert anchors == {f"#{attributes['id']}" for attributes in read.all("section")}


def test_the_figures_are_those_of_the_test(finished_page: tuple[Path, Page, str], small_domain: Domain) -> None:
    run_dir, page, html = finished_page
    lines = [line for line in metric_lines(run_dir) if line.get("split") in ("test", "any")]
    rows = page.sections[0].rows
    assert sum(len(of_split) for of_split in rows.values()) == len(lines)
    assert [row.model for row in rows["test"][:3]] == ["mmsr", "popularity", "transitions"]
    text = Reader(html).text
    for line in lines:
        (row,) = (r for r in rows[line["split"]] if (r.model, r.slice) == (line["model"], line["slice"]))
        assert (row.users, row.cases) == (line["users"], line["cases"])
        for metric, figure in row.figures.items():
            assert figure.value == line[metric]
            assert figure.interval is not None
            low, high = figure.interval
            assert low - 1e-6 <= figure.value <= high + 1e-6
        assert f"{100 * line['NDCG@50']:.2f}" in text
    hits = (read_ranks(run_dir, small_domain.name)["rank"] <= 10).sum()
    assert page.sections[0].num_hits == hits


def test_users_are_shown_with_what_the_test_asked(finished_page: tuple[Path, Page, str], small_domain: Domain) -> None:
    run_dir, page, html = finished_page
    users = page.sections[0].users
    ranks = dict(read_ranks(run_dir, small_domain.name).select("user", "rank").iter_rows())
    numbers = dict(small_domain.eval.select("user_id", "user").iter_rows())
    ids = small_domain.items["item_id"].to_list()
    assert len(users) == 6
    for user in users:
        (row,) = small_domain.eval.filter(small_domain.eval["user_id"] == user.user_id).to_dicts()
        before = [*row["history"], row["valid"]]
        assert [card.item_id for card in user.history] == [ids[item] for item in before[-SMALL.max_history :]]
        assert user.num_older == len(before) - len(user.history)
        assert user.target.item_id == ids[row["test"]]
        assert user.model.rank == ranks[numbers[user.user_id]]
        for offer in (user.model, user.popularity):
            assert len(offer.cards) == 10
            assert [card.is_hit for card in offer.cards] == [c.item_id == user.target.item_id for c in offer.cards]
            assert not {c.item_id for c in offer.cards} & ({ids[item] for item in before} - {user.target.item_id})
            if offer.rank <= 10:
                assert offer.cards[offer.rank - 1].is_hit or any(card.is_hit for card in offer.cards)
    num_shown = sum(user.model.rank <= 10 for user in users)
    assert num_shown == min(3, page.sections[0].num_hits or 0), "half of them are hits, if so many are known"
    assert Reader(html).text.count(" hit ") == sum(
        card.is_hit for user in users for offer in (user.model, user.popularity) for card in offer.cards
    )


def test_what_people_wrote_stays_text(finished_page: tuple[Path, Page, str]) -> None:
    page, evil = finished_page[1], "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
    section = page.sections[0]
    card = Card(evil, evil, None, evil, True)
    user = replace(section.users[0], user_id=evil, history=[card], target=card)
    hostile = replace(page, title=evil, run_dir=evil, sections=[replace(section, name=evil, about=evil, users=[user])])
    read = Reader(render("report.html", hostile))
    assert not read.all("script")
    assert len(read.all("img")) == sum(
        len(charts)
        for charts in (page.training, page.validation, page.throughput, section.slice_charts, section.vector_charts)
    ) + sum(len(offer.cards) for offer in (user.model, user.popularity))
    assert not [attributes for _, attributes in read.elements if "onerror" in attributes]
    assert read.text.count("<script>alert('x')</script>") >= 8


def test_a_run_under_way_says_what_is_missing(tmp_path: Path, small_domain: Domain) -> None:
    text = Reader(render("report.html", page_of(begun(tmp_path / "begun", small_domain)))).text
    for sentence in (
        "No step has been logged yet.",
        "The model has not been validated yet.",
        "The test at the end of the run has not been done yet",
        "There is no model yet",
    ):
        assert sentence in text
    page = page_of(validated(tmp_path / "validated", small_domain))
    assert (len(page.training), len(page.validation), len(page.throughput)) == (2, 2, 3)
    assert page.sections[0].users
    assert page.sections[0].vector_charts
    assert ("training", "15 users/s", "median over the run") in page.tiles
    text = Reader(render("report.html", page)).text
    assert "The test at the end of the run has not been done yet" in text
    assert "kept: the model of step 2" in text
    assert "Drawn by chance. " in text, "nobody's hits are known"


def drawn(out: Path, modality: str) -> Domain:
    with tempfile.TemporaryDirectory() as scratch:
        raw = Synthetic(num_users=40, items_per_cell=1).read(Path(scratch), with_images=modality == "image")
        return build_domain(raw, out, BuildOptions(modalities=(modality,)))  # type: ignore[arg-type]


@pytest.mark.parametrize("modality", ["text", "image"])
def test_items_without_picture_or_title(tmp_path: Path, modality: str) -> None:
    domain = drawn(tmp_path / "domain", modality)
    parts = {"text": {"vision": "none"}, "image": {"text": "none"}}[modality]
    page = page_of(finished(tmp_path / "run", domain, model=replace(SMALL, **parts)))
    read = Reader(render("report.html", page))
    assert ("no picture" in read.text) == (modality == "text")
    assert page.title == {"text": "MMSR-T on domain", "image": "MMSR-V on domain"}[modality]
    section = page.sections[0]
    user = section.users[0]
    assert bool(user.target.picture) == (modality == "image")
    assert user.target.title in read.text
    assert user.target.item_id not in read.text
    user = replace(user, target=replace(user.target, title=""))
    untitled = replace(page, sections=[replace(section, users=[user])])
    assert user.target.item_id in Reader(render("report.html", untitled)).text, "the id stands where there is no title"


def test_an_id_model_and_two_domains(tmp_path: Path, small_domain: Domain) -> None:
    ids = page_of(finished(tmp_path / "ids", small_domain, model=ModelConfig(item="id", width=16)))
    assert ids.title == f"IDSR on {small_domain.name}"
    assert ids.sections[0].users[0].target.picture, "the domain has pictures, though the model does not read them"
    other = drawn(tmp_path / "other", "text")
    config = replace(SMALL, vision="none")
    page = page_of(finished(tmp_path / "both", small_domain, other, model=config))
    assert [section.name for section in page.sections] == [small_domain.name, "other"]
    assert all(section.rows["test"] and section.users and section.vector_charts for section in page.sections)
    assert {what for what, *_ in page.tiles} >= {"HR@10 on other, test", f"HR@10 on {small_domain.name}, test"}
    assert "other" in page.validation[0].said


def test_the_command_writes_one_file(tmp_path: Path, small_domain: Domain, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = begun(tmp_path / "run", small_domain)
    cli.main(["report", str(run_dir)])
    assert str(run_dir / "report.html") in capsys.readouterr().out
    cli.main(["report", str(run_dir), "--out", str(tmp_path / "page.html")])
    assert (tmp_path / "page.html").read_text() == (run_dir / "report.html").read_text()
    moved = small_domain.path.rename(tmp_path / small_domain.name)
    try:
        cli.main(["report", str(run_dir), "--data", str(moved), "--out", str(tmp_path / "moved.html")])
        assert (tmp_path / "moved.html").read_text() == (tmp_path / "page.html").read_text()
        assert "start in the directory" in refused(capsys, str(run_dir))
    finally:
        moved.rename(small_domain.path)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The sentence on stderr of a report that must end with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", *words])
    assert ended.value.code == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error:"))
    return error


def test_mistakes_are_one_sentence(tmp_path: Path, small_domain: Domain, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no directory" in refused(capsys, str(tmp_path / "nothing"))
    assert "is no run directory (it has no config.json)" in refused(capsys, str(tmp_path))
    run_dir = begun(tmp_path / "run", small_domain)
    data = ["--data", str(small_domain.path), str(small_domain.path)]
    assert "names 2 domains, the run" in refused(capsys, str(run_dir), *data)
    assert "--batch_size 0 must be at least 1" in refused(capsys, str(run_dir), "--batch_size", "0")
    assert "is a directory: name a file" in refused(capsys, str(run_dir), "--out", str(tmp_path))
    assert "make it first" in refused(capsys, str(run_dir), "--out", str(tmp_path / "no" / "page.html"))
    (run_dir / "ds_config.json").write_text("{")
    assert "ds_config.json cannot be read" in refused(capsys, str(run_dir))
    assert not list(tmp_path.rglob("*.html")), "nothing is written"


def test_another_build_of_the_domain_is_refused(
    tmp_path: Path, small_domain: Domain, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = validated(tmp_path / "run", small_domain)
    config = json.loads((run_dir / "model" / "config.json").read_text())
    config["trained_on"][0]["fingerprint"] = "another"
    (run_dir / "model" / "config.json").write_text(json.dumps(config))
    assert "was not trained on" in refused(capsys, str(run_dir))

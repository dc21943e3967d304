"""The page in a real headless Chromium: what it shows is what the models say, and it asks nobody else."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import urlsplit

import polars as pl
import pytest

from mmsr_pt.explore.exhibit import Exhibit
from mmsr_pt.explore.questions import cold_places, found_by_title, recommended, scores_of, similar

pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'mmsr_pt[explore]'")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")

from mmsr_pt.explore.app import PAGE_SIZE, launch  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path: apt-get install chromium"),
]


@contextmanager
def running(exhibit: Exhibit) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = launch(exhibit, "127.0.0.1", port, wait=False)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        app.close(verbose=False)


@pytest.fixture(scope="module")
def address(exhibit: Exhibit) -> Iterator[str]:
    with running(exhibit) as address:
        yield address


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


class Page:
    """The explorer as somebody sees it."""

    def __init__(self, browser: playwright.Browser, address: str, width: int = 1400, scheme: str = "light") -> None:
        self.hosts: set[str] = set()
        self.said: list[str] = []
        self.own = urlsplit(address).netloc
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = context.new_page()
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(address)
        self.page.wait_for_selector("#recommended li")
        self.page.wait_for_selector("#catalogue li")

    def rows(self, within: str) -> list[int]:
        return [
            int(row) for row in self.page.eval_on_selector_all(f"{within} li", "all => all.map(i => i.dataset.row)")
        ]

    def column(self, part: str, model: str) -> list[int]:
        return self.rows(f'#{part} section[data-model="{model}"]')

    def shows(self, within: str, rows: list[int]) -> None:
        """Waits until these items stand there, in this order."""
        self.page.wait_for_function(
            "([within, rows]) => JSON.stringify(rows) === "
            "JSON.stringify([...document.querySelectorAll(within + ' li')].map(i => Number(i.dataset.row)))",
            arg=[within, rows],
        )

    def click(self, within: str, place: int, button: str = "take") -> None:
        self.page.locator(f"{within} li").nth(place).locator(f"button.{button}").click()

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()


@pytest.fixture
def page(browser: playwright.Browser, address: str) -> Iterator[Page]:
    opened = Page(browser, address)
    yield opened
    assert opened.said == []
    assert opened.hosts - {""} == {opened.own}, "the page asks others than itself"
    opened.page.context.close()


def best(exhibit: Exhibit, history: list[int]) -> dict[str, list[int]]:
    found = recommended(exhibit, scores_of(exhibit, history), history, 10)
    return {name: [item.row for item in items] for name, items in found.items()}


HISTORY, CATALOGUE = "#history ol.row:not(.next)", "#catalogue"


def test_a_user_is_chosen_and_every_model_recommends(page: Page, exhibit: Exhibit) -> None:
    assert page.page.input_value("#user input") == exhibit.users["user_id"][0]
    for number in (0, 5):
        user = exhibit.users.row(number, named=True)
        if number:
            page.page.click("#user input")
            page.page.get_by_role("option", name=user["user_id"]).click()
        page.shows(HISTORY, user["history"][::-1])
        page.shows("#history ol.next", [user["test"]])
        ids = exhibit.items["item_id"]
        for name, shown in exhibit.models.items():
            found = shown.model.recommend([ids[row] for row in user["history"]], shown.catalogue, 10)
            page.shows(f'#recommended section[data-model="{name}"]', [item.row for item in found])
        rows = best(exhibit, user["history"])
        assert page.column("recommended", "Popularity") == rows["Popularity"]
        hits = page.page.locator("#recommended li.hit").count()
        assert hits == sum(user["test"] in of_one for of_one in rows.values())
        marked = page.page.locator("#recommended .mark.cold").count()
        assert marked == sum(bool(exhibit.is_cold[row]) for of_one in rows.values() for row in of_one)


def test_a_history_is_clicked_together_and_taken_apart(page: Page, exhibit: Exhibit) -> None:
    page.page.click("#clear")
    page.page.wait_for_selector("text=The history is empty")
    assert page.page.input_value("#user input") == ""
    page.click(CATALOGUE, 3)
    page.shows(HISTORY, [3])
    page.page.click("#on")
    page.shows(CATALOGUE, list(range(PAGE_SIZE, 2 * PAGE_SIZE)))
    page.click(CATALOGUE, 1)
    page.shows(HISTORY, [PAGE_SIZE + 1, 3])
    assert page.page.locator("#history ol.next").count() == 0
    rows = best(exhibit, [3, PAGE_SIZE + 1])
    for name, of_one in rows.items():
        page.shows(f'#recommended section[data-model="{name}"]', of_one)
    # what is recommended can be taken too
    taken = rows["MMSR"][2]
    page.click('#recommended section[data-model="MMSR"]', 2)
    page.shows(HISTORY, [taken, PAGE_SIZE + 1, 3])
    page.click(HISTORY, 1)
    page.shows(HISTORY, [taken, 3])
    page.shows('#recommended section[data-model="MMSR"]', best(exhibit, [3, taken])["MMSR"])
    page.page.click("#back")
    page.shows(CATALOGUE, list(range(PAGE_SIZE)))


def test_titles_are_searched_while_one_types(page: Page, exhibit: Exhibit) -> None:
    word = exhibit.titles[40].split()[0]
    rows = found_by_title(exhibit, word)
    page.page.fill("#words textarea", word)
    page.shows(CATALOGUE, rows[:PAGE_SIZE])
    assert page.page.inner_text("#bounds").strip() == f"1 to {min(PAGE_SIZE, len(rows))} of {len(rows)}"
    page.page.fill("#words textarea", "no such thing")
    page.page.wait_for_selector("text=No title has all of these words")


def test_similar_items_lead_from_one_to_the_next(page: Page, exhibit: Exhibit) -> None:
    page.click(CATALOGUE, 6, "near")
    for name, found in similar(exhibit, 6, 10).items():
        page.shows(f'#similar section[data-model="{name}"]', [item.row for item in found])
    assert page.page.get_by_role("tab", name="Similar").get_attribute("aria-selected") == "true"
    assert page.rows("#similar ol.row") == [6]
    following = similar(exhibit, 6, 10)["MMSR"][0].row
    page.click('#similar section[data-model="MMSR"]', 0)
    page.shows("#similar ol.row", [following])
    page.shows('#similar section[data-model="IDSR"]', [item.row for item in similar(exhibit, following, 10)["IDSR"]])


def test_cold_items_stand_where_they_land(page: Page, exhibit: Exhibit) -> None:
    page.tab("Cold items")
    history = exhibit.users["history"][0].to_list()
    for name, places in cold_places(exhibit, scores_of(exhibit, history), history, 10).items():
        within = f'#cold section[data-model="{name}"]'
        page.shows(within, [item.row for item in places.best])
        ranks = page.page.locator(f"{within} .rank").all_inner_texts()
        assert ranks == [f"{item.rank:,}" for item in places.best]
        cells = page.page.locator(f'#cold tr[data-model="{name}"] td').all_inner_texts()
        assert cells[1:] == [f"{places.median:,.0f}", *(f"{share:.1%}" for share in places.shares.values())]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_shows_all_of_it(browser: playwright.Browser, address: str, scheme: str) -> None:
    page = Page(browser, address, 390, scheme)
    assert page.page.evaluate("document.documentElement.scrollWidth") == 390, "the page is wider than the screen"
    for name in ("Similar", "Cold items", "Recommended"):
        page.tab(name)
        assert page.page.get_by_role("tab", name=name).get_attribute("aria-selected") == "true"
    shade = page.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)[0]")
    assert (shade < 100) == (scheme == "dark")
    assert page.said == []
    page.page.context.close()


def test_titles_are_text_and_nothing_else(browser: playwright.Browser, exhibit: Exhibit) -> None:
    evil = "<img src=x onerror=document.title='taken'> {{#each value}} ${document.title='taken'} `\\` & \"quoted\""
    row = int(exhibit.users["history"][0][0])
    items = exhibit.items.with_columns(
        title=pl.when(pl.int_range(pl.len()) == row).then(pl.lit(evil)).otherwise(pl.col("title"))
    )
    with running(replace(exhibit, items=items)) as address:
        page = Page(browser, address)
        assert page.page.locator(f"{HISTORY} li .name").last.inner_text() == evil
        assert page.page.title() == f"Explore {exhibit.domain['name']}"
        page.page.context.close()

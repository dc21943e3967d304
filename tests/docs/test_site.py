"""The site builds without a warning, stands by itself, and its links lead somewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import ROOT

pytest.importorskip("mkdocs", reason="the site needs pip install --editable '.[docs]'")


class Page(HTMLParser):
    """What a page of the site loads, links to, and can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: set[str] = set()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a":
            self.links.add(given.get("href", ""))
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.add(given.get("href", ""))
        self.loads |= {given[name] for name in ("src", "srcset", "data", "poster") if name in given and tag != "a"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    # any host but this one would be unreachable: nothing may be fetched while it is built
    environment = {
        **os.environ,
        "NO_MKDOCS_2_WARNING": "1",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "PYTHONPATH": str(ROOT),
    }
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "WARNING" not in built.stdout + built.stderr
    return out


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 10
    for path in pages:
        foreign = [address for address in Page(path).loads if urlsplit(address).netloc]
        assert foreign == [], f"{path.name} loads {foreign}"
        # what the theme would fetch a program from another host for
        assert 'class="mermaid"' not in path.read_text()
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//[^)]*", style.read_text()) == []


def test_links_within_the_site_lead_somewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for address in page.links | page.loads:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            is_missing_there = target in pages and parts.fragment not in pages[target].anchors
            if not target.is_file() or (parts.fragment and is_missing_there):
                broken.append(f"{path.name}: {address}")
    assert broken == []


def test_every_public_class_of_the_reference_has_its_text(site: Path) -> None:
    text = (site / "reference.html").read_text()
    for name in re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE):
        assert f'id="{name}"' in text, name


def test_links_from_the_readme_lead_to_files_and_headings() -> None:
    for page in ("README.md", "shards/README.md"):
        text = (ROOT / page).read_text()
        for address in re.findall(r"\]\(([^)#]+)(?:#[\w-]*)?\)", text):
            if not urlsplit(address).scheme:
                assert ((ROOT / page).parent / address).exists(), address
        headings = {
            re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        }
        assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= headings

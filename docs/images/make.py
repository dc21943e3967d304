"""Makes the pictures of this documentation, of the drawn domain: explorer, report and contact sheet in a real browser.

    make demo
    for MODEL in "mmsr" "mmsr-t --vision none" "mmsr-v --text none"; do
      set -- $MODEL
      deepspeed pretrain/run.py --ds_config ds_configs/zero2.json --data data/drawn_source --run_dir runs/$MODEL
    done
    python docs/images/make.py --data data/drawn_source --models runs/mmsr runs/mmsr-t runs/mmsr-v

Needs Chromium (apt-get install chromium) and `pip install --editable '.[dev]'`.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from mmsr_pt.data.domain import Domain

WIDE = {"width": 1280, "height": 900}


@dataclass
class Flags:
    """What is shown, and where pictures go."""

    data: Path
    """The drawn domain."""
    models: tuple[Path, ...]
    """Run directories, the first of them for report and contact sheet."""
    out: Path = Path(__file__).parent


def main(flags: Flags) -> None:
    """Writes explorer.png, report.png, report_items.png, report_users.png and contact_sheet.png."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("there is no chromium here: apt-get install chromium")
    user = Domain.load(flags.data).eval["user_id"][0]
    with TemporaryDirectory() as scratch, sync_playwright() as playwright:
        report, sheet = Path(scratch) / "report.html", Path(scratch) / "sheet.html"
        _mmsr_pt("report", flags.models[0], "--data", flags.data, "--out", report)
        _mmsr_pt("recommend", "--model", flags.models[0], "--data", flags.data, "--user", user, "--out", sheet)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        _shoot(browser, report.as_uri(), flags.out / "report.png")
        _shoot(browser, report.as_uri() + "#vectors", flags.out / "report_items.png")
        _shoot(browser, report.as_uri() + "#users", flags.out / "report_users.png")
        _shoot(browser, sheet.as_uri(), flags.out / "contact_sheet.png")
        with _explorer(flags) as address:
            _shoot(browser, address, flags.out / "explorer.png", settled=5000)
        browser.close()


def _mmsr_pt(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "mmsr_pt.cli", *map(str, words)], check=True)


def _shoot(browser: Browser, address: str, file: Path, settled: int = 500) -> None:
    page = browser.new_page(viewport=WIDE, color_scheme="light")  # type: ignore[arg-type]
    page.goto(address, wait_until="load")
    # milliseconds: pictures and fonts
    page.wait_for_timeout(settled)
    page.screenshot(path=file)
    page.close()
    with Image.open(file) as picture:
        few = picture.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT)
    # a third of the bytes
    few.save(file, optimize=True)


@contextmanager
def _explorer(flags: Flags) -> Iterator[str]:
    """A running explorer's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mmsr_pt.cli", "explore", "--model", *flags.models, "--data", flags.data]
    process = subprocess.Popen([*map(str, command), "--port", str(port)])
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(address)
                break
            except urllib.error.URLError:
                if process.poll() is not None:
                    sys.exit("the explorer ended by itself")
                time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main(tyro.cli(Flags, description=(__doc__ or "").splitlines()[0]))

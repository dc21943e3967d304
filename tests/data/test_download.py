"""Pictures from the web: every way in which a host can misbehave, politeness as the host sees it, and going on."""

import errno
import itertools
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from mmsr_pt.data.domain import Domain
from mmsr_pt.data.sources.download import FAILURES_FILE, Downloaded, DownloadOptions, download_pictures
from mmsr_pt.data.sources.hosts import Limits
from mmsr_pt.log import UserError
from shards.build import main
from tests.data.picture_server import PICTURE, PictureServer, serving
from tests.data.raw_amazon import ITEMS, file_names, write_amazon, write_lines

ROOT = Path(__file__).resolve().parent.parent.parent
FAST = Limits(
    tries=3,
    first_wait=0.01,
    longest_wait=2,
    silence=0.5,
    longest_request=1,
    max_bytes=50_000,
    max_pixels=20_000,
    max_redirects=3,
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PictureServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as running:
        yield running


def wanted(urls: dict[str, str]) -> pl.DataFrame:
    return pl.DataFrame({"item_id": list(urls), "url": list(urls.values())}, schema_overrides={"url": pl.String})


def download(
    urls: dict[str, str], folder: Path, connections: int = 8, rate: float = 1000, limits: Limits = FAST
) -> Downloaded:
    return download_pictures(wanted(urls), folder, DownloadOptions(True, connections, rate), limits)


def pictures(folder: Path) -> dict[str, bytes]:
    """By name: all files in the subdirectories, whatever their names."""
    return {path.name: path.read_bytes() for path in folder.glob("*/*")}


def failures(folder: Path) -> dict[str, dict[str, object]]:
    lines = [json.loads(line) for line in (folder / FAILURES_FILE).read_text().splitlines()]
    assert len({line["item_id"] for line in lines}) == len(lines)
    return {line["item_id"]: line for line in lines}


# ---- one picture


@pytest.mark.parametrize(
    ("path", "times"),
    [
        ("plain", 1),
        ("busy", 2),
        ("busy_until", 2),
        ("failing_twice", 3),
        ("cut_once", 2),
        ("slow_once", 2),
        ("drip_once", 2),
    ],
)
def test_a_picture_comes_in_spite_of_passing_trouble(
    tmp_path: Path, server: PictureServer, path: str, times: int
) -> None:
    assert download({"B01": server.url(path)}, tmp_path) == Downloaded(1, 0, 0)
    assert pictures(tmp_path) == {"B01.jpg": PICTURE}
    assert server.times(path) == times
    assert failures(tmp_path) == {}


@pytest.mark.parametrize(
    ("path", "reason", "times"),
    [
        ("missing", "HTTP 404 Not Found", 1),
        ("gone", "HTTP 410 Gone", 1),
        ("forbidden", "HTTP 403 Forbidden", 1),
        ("failing", "HTTP 500 Internal Server Error", 3),
        ("cut", "RemoteProtocolError: .*", 3),
        ("too_much", "[0-9,]+ bytes of image/jpeg are no picture: .*truncated.*", 1),
        ("half", "[0-9,]+ bytes of image/jpeg are no picture: .*", 1),
        ("html", "306 bytes of text/html are no picture: .*", 1),
        ("bmp", "[0-9,]+ bytes of image/jpeg are no picture: .*", 1),
        ("endless", "larger than 50,000 bytes", 1),
        ("huge", "larger than 50,000 bytes", 1),
        ("dot", "1 x 1 pixels: at least 16 a side, 20,000 in all are taken", 1),
        ("wide", "300 x 100 pixels: at least 16 a side, 20,000 in all are taken", 1),
        ("to_a_file", "'file:///etc/hostname' is no address of http or https", 1),
        ("to_nowhere", "'http://.* is no address: .*", 1),
        ("in_circles", "more than 3 redirects", 4),
    ],
)
def test_a_picture_that_cannot_be_had_is_listed_with_the_reason(
    tmp_path: Path, server: PictureServer, path: str, reason: str, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    urls = {"bad": server.url(path), "good": server.url("plain")}
    assert download(urls, tmp_path) == Downloaded(1, 1, 0)
    assert pictures(tmp_path) == {"good.jpg": PICTURE}
    (line,) = failures(tmp_path).values()
    assert (line["item_id"], line["url"]) == ("bad", urls["bad"])
    assert pl.Series([line["reason"]]).str.contains(f"^{reason}$").to_list() == [True], line["reason"]
    assert line["gone"] == (path in ("missing", "gone"))
    assert server.times(path) == times
    assert server.bytes_sent < 50_000 + 10_000_000  # of the endless one: what fits into the buffers of the system
    assert "1 fetched, 1 could not be had, 0 known to be gone" in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/hostname",
        "ftp://127.0.0.1/a.jpg",
        "a.jpg",
        "//127.0.0.1/a",
        "http://",
        "",
        "http://[::1",
        "http://127.0.0.1:99999/a",
        "http://a\0b/",
        f"http://{'a' * 70}.invalid/",
    ],
)
def test_odd_addresses_are_failures_and_end_nothing(tmp_path: Path, server: PictureServer, url: str) -> None:
    assert download({"bad": url, "good": server.url("plain")}, tmp_path) == Downloaded(1, 1, 0)
    assert failures(tmp_path)["bad"]["gone"] is False


def test_a_redirect_is_followed_and_the_suffix_tells_the_format(tmp_path: Path, server: PictureServer) -> None:
    download({name: server.url(name) for name in ("moved", "webp", "gif")}, tmp_path)
    assert sorted(pictures(tmp_path)) == ["gif.png", "moved.png", "webp.webp"]
    for path in tmp_path.glob("*/*"):
        with Image.open(path) as picture:
            assert picture.format == path.suffix[1:].upper()
            assert picture.size == (40, 30)


def test_an_id_that_is_no_file_name_writes_nothing_anywhere(tmp_path: Path, server: PictureServer) -> None:
    odd = ["../../B01", "/B01", "a/b", ".B01", "..", "B" * 300, "a\0b"]
    folder = tmp_path / "images"
    assert download({item: server.url("plain") for item in odd}, folder) == Downloaded(0, len(odd), 0)
    assert set(failures(folder)) == set(odd)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".download.lock", FAILURES_FILE, "images"]
    assert server.asked == []


# ---- politeness


def test_no_more_connections_than_allowed_are_open(tmp_path: Path, server: PictureServer) -> None:
    server.pause = 0.05
    download({f"B{i}": server.url(f"plain/{i}") for i in range(24)}, tmp_path, connections=3)
    assert len(pictures(tmp_path)) == 24
    assert server.most_at_once == 3


def test_a_host_is_asked_at_the_rate_allowed(tmp_path: Path, server: PictureServer) -> None:
    download({f"B{i}": server.url(f"plain/{i}") for i in range(13)}, tmp_path, connections=8, rate=20)
    times = sorted(at for _, at in server.asked)
    assert len(times) == 13
    assert times[-1] - times[0] > 11.5 / 20  # 12 intervals, less what the first request was late


def test_a_busy_host_is_left_alone_by_all_for_as_long_as_it_asks(tmp_path: Path, server: PictureServer) -> None:
    urls = {"busy": server.url("busy"), **{f"B{i}": server.url(f"plain/{i}") for i in range(250)}}
    assert download(urls, tmp_path, connections=2, rate=100) == Downloaded(251, 0, 0)
    times = sorted(at for _, at in server.asked)
    # 2 seconds are asked for; if one thread alone waited, the other would go on a hundred times a second
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) > 1.5
    asked_again = [at for path, at in server.asked if path == "busy"]
    assert asked_again[1] - asked_again[0] > 1.95


def test_a_wait_is_bounded_whatever_the_host_asks(tmp_path: Path, server: PictureServer) -> None:
    limits = Limits(first_wait=0.01, longest_wait=0.3)
    started = time.monotonic()
    assert download({"B01": server.url("busy_for_a_day")}, tmp_path, limits=limits) == Downloaded(1, 0, 0)
    assert 0.3 < time.monotonic() - started < 20


def test_waits_between_tries_grow(tmp_path: Path, server: PictureServer) -> None:
    limits = Limits(tries=4, first_wait=0.1)
    download({"B01": server.url("failing")}, tmp_path, limits=limits)
    at = [time for _, time in server.asked]
    waits = [later - earlier for earlier, later in itertools.pairwise(at)]
    assert [wait > least for wait, least in zip(waits, (0.09, 0.19, 0.39))] == [True] * 3


def test_a_host_that_never_answers_is_given_up(tmp_path: Path, server: PictureServer) -> None:
    dead = PictureServer()
    dead.server_close()  # its port refuses connections from now on
    urls = {f"D{i}": dead.url(f"{i}") for i in range(100)}
    limits = Limits(tries=2, first_wait=0.01, max_unanswered=10)
    assert download({**urls, "B01": server.url("plain")}, tmp_path, 2, limits=limits) == Downloaded(1, 100, 0)
    reasons = [str(line["reason"]) for line in failures(tmp_path).values()]
    given_up = [
        reason
        for reason in reasons
        if reason == f"127.0.0.1:{dead.server_address[1]} gave no answer 10 times in a row and was given up"
    ]
    assert len(given_up) >= 90


# ---- going on


def test_what_is_gone_is_remembered_until_its_line_is_removed(tmp_path: Path, server: PictureServer) -> None:
    urls = {"a": server.url("missing"), "b": server.url("forbidden"), "c": server.url("gone")}
    assert download(urls, tmp_path) == Downloaded(0, 3, 0)
    with (tmp_path / FAILURES_FILE).open("a") as file:
        file.write('{"item_id": "cut o')  # as a killed run leaves it
    assert download(urls, tmp_path) == Downloaded(0, 1, 2)
    assert [server.times(path) for path in ("missing", "forbidden", "gone")] == [1, 2, 1]
    assert set(failures(tmp_path)) == {"a", "b", "c"}
    # another address of the same item is another question
    assert download({"a": server.url("plain")}, tmp_path) == Downloaded(1, 0, 0)
    (tmp_path / FAILURES_FILE).unlink()
    assert download({"c": urls["c"]}, tmp_path) == Downloaded(0, 1, 0)
    assert server.times("gone") == 2


def test_a_killed_download_leaves_whole_pictures_and_the_next_fetches_the_rest(
    tmp_path: Path, server: PictureServer
) -> None:
    server.only_first = 7
    urls = {f"B{i:02d}": server.url(f"plain/{i:02d}") for i in range(12)}
    program = f"""
import polars as pl
from mmsr_pt.data.sources.download import DownloadOptions, download_pictures
from pathlib import Path
wanted = pl.DataFrame({{"item_id": {list(urls)}, "url": {list(urls.values())}}})
download_pictures(wanted, Path({str(tmp_path)!r}), DownloadOptions(True, 3, 1000))
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(server.asked) < 8 or len(list(tmp_path.glob("*/*.jpg"))) < 7:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(UserError, match="another download into .* is at work"):
        download(urls, tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / "00").mkdir(exist_ok=True)
    (tmp_path / "00" / "B11.jpg.part").write_bytes(PICTURE[:100])  # as a kill in the middle of writing leaves it
    there = {path.stem for path in tmp_path.glob("*/*.jpg")}
    assert all(data == PICTURE for name, data in pictures(tmp_path).items() if name.endswith(".jpg"))
    server.only_first = 10**9
    server.released.set()
    num_asked = len(server.asked)
    rest = {item: url for item, url in urls.items() if item not in there}
    assert download(rest, tmp_path) == Downloaded(len(rest), 0, 0)
    assert len(server.asked) == num_asked + len(rest)
    assert {path.stem for path in tmp_path.glob("*/*.jpg")} == set(urls)


def test_ctrl_c_ends_the_command_though_the_host_is_silent(tmp_path: Path, server: PictureServer) -> None:
    server.only_first = 0
    root = write_amazon(tmp_path / "raw", "2014", pictures=False)
    write_lines(root / file_names("2014")[1], [repr({"asin": "007", "title": "a", "imUrl": server.url("plain")})])
    command = [sys.executable, ROOT / "shards" / "build.py", "amazon", "--root", root, "--out", tmp_path / "out"]
    process = subprocess.Popen([*map(str, command), "--download"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not server.asked:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=Limits().silence / 2)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_full_disk_ends_the_download_at_once(
    tmp_path: Path, server: PictureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    urls = {f"B{i}": server.url(f"plain/{i}") for i in range(200)}
    with pytest.raises(UserError, match="the disk is full while writing .*: free some space and start again"):
        download(urls, tmp_path, connections=2)
    assert len(server.asked) < 20
    assert not list(tmp_path.glob("*/*.jpg"))


def test_options_out_of_range_are_named() -> None:
    for number in (0, 257):
        with pytest.raises(UserError, match=f"--connections {number} must lie in 1 ... 256"):
            DownloadOptions(connections=number)
    for rate in (0.0, -1.0, 1001.0, float("nan")):
        with pytest.raises(UserError, match="--requests_per_second .* must lie above 0"):
            DownloadOptions(requests_per_second=rate)


# ---- as part of a build


def test_the_amazon_command_fetches_what_reviewed_items_lack_and_only_once(
    tmp_path: Path, server: PictureServer, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_amazon(tmp_path / "raw", "2014")
    own = {item: next((root / "images").rglob(f"{item}.jpg")) for item in ITEMS}
    for item in ("0007", "B03", "B04"):
        own[item].unlink()
    records = [
        {"asin": item, "title": f"title {item}", "imUrl": server.url("missing" if item == "B04" else f"plain/{item}")}
        for item in [*ITEMS, "unreviewed", "B03"]
    ]
    write_lines(root / file_names("2014")[1], [repr(record) for record in records])
    flags = ["--num_workers", "1", "--requests_per_second", "1000", "--min_interactions", "3"]
    command = ["amazon", "--root", str(root), "--download", *flags]
    main([*command, "--out", str(tmp_path / "out")])
    assert sorted(path for path, _ in server.asked) == ["missing", "plain/0007", "plain/B03"]
    domain = Domain.load(tmp_path / "out")
    assert domain.items["item_id"].to_list() == ["0007", "007", "B01", "B02", "B03"]
    assert domain.meta["problems"]["missing_image"]["count"] == 2  # B04, and the item that nobody reviewed
    main([*command, "--out", str(tmp_path / "again")])
    assert len(server.asked) == 3
    main([*command, "--out", str(tmp_path / "titles"), "--modalities", "text"])
    assert len(server.asked) == 3
    assert "--download is ignored" in capsys.readouterr().err


def test_the_folder_of_pictures_is_made_where_there_is_none(tmp_path: Path, server: PictureServer) -> None:
    root = write_amazon(tmp_path / "raw", "2014", pictures=False)
    records = [{"asin": item, "title": "a title", "imUrl": server.url(f"plain/{item}")} for item in ITEMS]
    write_lines(root / file_names("2014")[1], [repr(record) for record in records])
    main(["amazon", "--root", str(root), "--download", "--out", str(tmp_path / "out"), "--num_workers", "1"])
    assert Domain.load(tmp_path / "out").num_items == len(ITEMS)

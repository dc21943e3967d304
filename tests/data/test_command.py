"""The real command: one sentence and exit code 2 for each mistake, on a full disk too, and its help."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsr_pt.data.shards import build as build_module
from mmsr_pt.data.sources import SOURCES
from shards.build import main
from tests.data.raw import write_plain_table

ROOT = Path(__file__).resolve().parent.parent.parent


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, (ROOT / "shards" / "build.py", *arguments))]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def the_error(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a command that failed as it should."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stderr
    return errors[0]


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def test_the_command_says_what_is_wrong_with_its_input(tmp_path: Path) -> None:
    out = tmp_path / "out"
    root = write_plain_table(tmp_path / "raw")
    sentence = the_error(run("tabel", "--root", root, "--out", out))
    assert sentence == f"error: unknown source 'tabel'; known: {', '.join(SOURCES)}. Did you mean 'table'?"
    sentence = the_error(run("table", "--root", tmp_path / "nowhere", "--out", out))
    assert f"{tmp_path / 'nowhere' / 'interactions.csv'} is missing" in sentence
    items = root / "items.csv"
    items.write_text(items.read_text().replace("title", "name", 1))
    sentence = the_error(run("table", "--root", root, "--out", out))
    assert sentence == f"error: {items} has no column title; its columns are: item_id, name"
    sentence = the_error(run("hm", "--root", root, "--out", out))
    assert f"{root / 'articles.csv'} is missing; {root} holds: images, interactions.csv, items.csv" in sentence
    assert names(tmp_path) == ["raw"]


def test_a_flag_out_of_range_or_unknown_exits_with_2_and_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in (["--keep_last", "2"], ["--num_workers", "0"], ["--num_shards", "-1"], ["--keep_lost", "9"]):
        with pytest.raises(SystemExit) as caught:
            main(["table", "--root", str(tmp_path), "--out", str(tmp_path / "out"), *flags])
        assert caught.value.code == 2
        assert flags[0] in capsys.readouterr().err
    assert names(tmp_path) == []


def test_help_tells_the_sources_apart(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for words in (
        "Amazon reviews of 2014",
        "H&M purchases",
        "interactions.csv, items.csv",
        "Small drawn domains",
        "*_behaviour.tsv",
        "of any size",
        "and posters",
    ):
        assert words in shown


# ---- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 160 kB, where this machine lets us have one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_real_full_disk_ends_the_command_cleanly(tmp_path: Path, small_disk: Path) -> None:
    """The estimate says that the titles fit; the vocabulary, which takes more, is what the disk has no room for."""
    root = write_plain_table(tmp_path / "raw")
    flags = ["--root", root, "--out", small_disk / "out", "--modalities", "text", "--num_shards", 1]
    sentence = the_error(run("table", *flags))
    assert "the disk is full while writing" in sentence
    assert names(small_disk) == []


def test_a_disk_that_fills_in_a_writer_process_ends_the_command_cleanly(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_module, "check_space", lambda *_: None)
    root = write_plain_table(tmp_path / "raw", num_users=80)  # its 8 train tars hold nearly all items each
    with pytest.raises(SystemExit) as caught:
        main(
            ["table", "--root", str(root), "--out", str(small_disk / "out"), "--num_workers", "2", "--num_shards", "8"]
        )
    assert caught.value.code == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "the disk is full while writing" in sentence
    assert "train-0000" in sentence
    assert names(small_disk) == []

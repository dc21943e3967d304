"""The output directory: complete or not there, whatever happens."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mmsr_pt.data.domain import MANIFEST_FILE, Domain
from mmsr_pt.data.shards import build as build_module
from mmsr_pt.data.shards import tars
from mmsr_pt.data.shards.build import BuildOptions
from mmsr_pt.log import UserError
from shards.build import main
from tests.data.raw import build_table, write_plain_table


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


# ---- a build that fails midway


def fail_at(monkeypatch: pytest.MonkeyPatch, part: str, error: BaseException) -> None:
    """Raises `error` when the tar called `part`... is half written."""
    copy = tars.TarWriter.copy

    def failing(self: tars.TarWriter, blocks: bytes) -> None:
        if self.path.name.startswith(part) and self.position > 4096:
            raise error
        copy(self, blocks)

    monkeypatch.setattr(tars.TarWriter, "copy", failing)


@pytest.mark.parametrize("part", ["items-00000", "train-00000"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_build_that_fails_midway_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, error: BaseException
) -> None:
    root = write_plain_table(tmp_path / "raw")
    fail_at(monkeypatch, part, error)
    with pytest.raises(type(error)):
        build_table(root, tmp_path / "below" / "out")
    assert names(tmp_path / "below") == []


def test_a_build_that_fails_leaves_the_domain_it_was_to_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_plain_table(tmp_path / "raw")
    before = build_table(root, tmp_path / "out").fingerprint
    write_plain_table(root, num_users=50)
    replace = BuildOptions(overwrite=True, num_workers=1)
    with monkeypatch.context() as patched:
        fail_at(patched, "train-00000", OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OSError, match="No space left"):
            build_table(root, tmp_path / "out", replace)
    assert names(tmp_path) == ["out", "raw"]
    assert Domain.load(tmp_path / "out").fingerprint == before
    assert build_table(root, tmp_path / "out", replace).num_users == 50
    assert names(tmp_path) == ["out", "raw"]


def test_a_full_disk_is_one_sentence_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class FullFile:
        """A file on a disk without room."""

        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    begin = tars.TarWriter.__init__

    def begin_on_full_disk(self: tars.TarWriter, path: Path) -> None:
        begin(self, path)
        if path.name == "train-00000.tar":
            self._file.close()
            self._file = FullFile()  # type: ignore[assignment]

    monkeypatch.setattr(tars.TarWriter, "__init__", begin_on_full_disk)
    root = write_plain_table(tmp_path / "raw")
    with pytest.raises(SystemExit) as caught:
        main(["table", "--root", str(root), "--out", str(tmp_path / "out"), "--num_workers", "1"])
    assert caught.value.code == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "the disk is full while writing" in sentence
    assert "train-00000.tar" in sentence
    assert names(tmp_path) == ["raw"]


def test_a_disk_that_fills_up_while_it_is_built(
    tmp_path: Path,
    full_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A real one; whoever else writes there has taken the room that was there at the start."""
    root, disk = write_plain_table(tmp_path / "raw"), full_disk(64)
    before = build_table(root, tmp_path / "fits")
    size = sum(path.stat().st_size for path in before.path.rglob("*") if path.is_file())
    assert size > 64 * 1024, "else it would fit"
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**9})())
    with pytest.raises(SystemExit) as caught:
        main(["table", "--root", str(root), "--out", str(disk / "out"), "--num_workers", "1"])
    assert caught.value.code == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "the disk is full while writing" in sentence
    assert str(disk) in sentence
    assert names(disk) == []


def test_too_little_space_is_known_before_the_first_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5_000})())
    monkeypatch.setattr(build_module, "write_items", lambda *_: pytest.fail("began to write"))
    with pytest.raises(UserError, match=r"needs about \d+ MB, the disk of .* has 0 MB free: free some space or choose"):
        build_table(write_plain_table(tmp_path / "raw"), tmp_path / "out")
    assert names(tmp_path) == ["raw"]


# ---- where it may be written


def test_what_is_no_domain_is_never_replaced(tmp_path: Path) -> None:
    root = write_plain_table(tmp_path / "raw")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / MANIFEST_FILE).write_text('{"of": "somebody else"}')
    for name in ("taken", "file", "json"):
        for overwrite in (False, True):
            with pytest.raises(UserError, match=f"{name} exists and is no domain: choose another --out"):
                build_table(root, tmp_path / name, BuildOptions(overwrite=overwrite, num_workers=1))
    assert (tmp_path / "taken" / "thesis.tex").read_text() == "years of work"
    assert names(tmp_path) == ["file", "json", "raw", "taken"]


def test_a_domain_is_replaced_only_when_asked_to(tmp_path: Path) -> None:
    root = write_plain_table(tmp_path / "raw")
    build_table(root, tmp_path / "out")
    with pytest.raises(UserError, match="already holds a domain: .* replace it with --overwrite"):
        build_table(root, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert build_table(root, tmp_path / "empty").num_users == 40


def test_below_a_file_no_directory_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make .*file/out: .*file is not a directory that you may write to"):
        build_table(write_plain_table(tmp_path / "raw"), tmp_path / "file" / "out")


def test_somebody_who_built_there_in_the_meantime_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = build_module.train_vocabulary

    def meanwhile(titles: list[str], seed: int) -> bytes:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")
        return vocabulary(titles, seed)

    monkeypatch.setattr(build_module, "train_vocabulary", meanwhile)
    with pytest.raises(UserError, match="out exists and is no domain"):
        build_table(write_plain_table(tmp_path / "raw"), tmp_path / "out")
    assert names(tmp_path / "out") == ["mine"]

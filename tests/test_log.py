"""One mistake, one sentence: what the wrapper around every script makes of exceptions."""

import errno
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader, IterableDataset

from mmsr_pt import log
from mmsr_pt.log import UserError, is_disk_full, naming_a_full_disk, setup_logging, user_facing

FULL = Path("/dev/full")
needs_full_device = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")


def raising(error: BaseException) -> Callable[[], None]:
    @user_facing
    def main() -> None:
        raise error

    return main


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def of_two_ranks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Makes this process rank 1 of 2; returns the seconds it waited. It ends with SystemExit instead of at once."""

    def leave(code: int) -> NoReturn:
        raise SystemExit(code)

    waited: list[float] = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(log.time, "sleep", waited.append)
    monkeypatch.setattr(log.os, "_exit", leave)
    return waited


def ended(main: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """(exit code, stderr)."""
    with pytest.raises(SystemExit) as end:
        main()
    shown = capsys.readouterr()
    assert shown.out == ""
    return end.value.code, shown.err


def test_a_mistake_is_one_line_and_exit_code_2(alone: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(UserError("give\n  a name")), capsys) == (2, "error: give a name\n")


def test_what_is_not_the_users_mistake_keeps_its_traceback(alone: None) -> None:
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())()
    with pytest.raises(OSError, match="no such thing"):
        raising(OSError(errno.ENOENT, "no such thing"))()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_the_users_matter(alone: None, capsys: pytest.CaptureFixture[str], number: int) -> None:
    code, said = ended(raising(OSError(number, os.strerror(number), "runs/a/x.json")), capsys)
    assert code == 2
    assert said.startswith("error: the disk is full while writing runs/a/x.json: free some space")
    assert said.count("\n") == 1


def error_of(write: Callable[[], object]) -> BaseException:
    try:
        write()
    except Exception as error:
        return error
    raise AssertionError("a full device took everything")


@needs_full_device
def test_full_disks_are_recognised_behind_the_libraries_that_meet_them() -> None:
    # safetensors is not let near a device: it renames a new file over its target
    found = [
        error_of(lambda: torch.save(torch.zeros(100_000), FULL)),
        error_of(lambda: FULL.write_text("x" * 100_000)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ]
    assert [is_disk_full(error) for error in found] == [True, True, True], found


def test_a_thread_that_meets_a_full_disk_leaves_it_to_the_main_thread_to_tell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As TensorBoard's writer, whose failure is raised again where the next figure is handed to it."""
    monkeypatch.setattr(threading, "excepthook", log.end_of_thread)

    def fail(error: Exception) -> None:
        raise error

    for error, is_told in ((OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), False), (ValueError("of ours"), True)):
        thread = threading.Thread(target=fail, args=(error,))
        thread.start()
        thread.join()
        assert ("Traceback" in capsys.readouterr().err) == is_told


def test_other_failures_are_no_full_disk(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"PK no zip")
    torch.save(torch.zeros(1000), tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:500])
    for error in (
        None,
        ValueError("x"),
        error_of(lambda: torch.load(tmp_path / "weights.pt")),
        error_of(lambda: torch.load(tmp_path / "cut.pt")),
        error_of(lambda: torch.save(1, tmp_path / "no" / "where")),
    ):
        assert not is_disk_full(error), error


def test_a_full_disk_behind_another_exception_is_found_and_named() -> None:
    def write() -> None:
        with naming_a_full_disk(Path("runs/a"), "free some space"):
            try:
                raise OSError(errno.ENOSPC, "full")
            except OSError as error:
                raise RuntimeError("could not save") from error

    with pytest.raises(UserError, match="the disk is full while writing runs/a: free some space"):
        write()
    with pytest.raises(KeyError), naming_a_full_disk(Path("runs/a"), "free some space"):
        raise KeyError


def test_later_ranks_wait_for_the_first_to_say_it(
    of_two_ranks: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended(raising(UserError("give a name")), capsys) == (2, "error: give a name\n")
    assert of_two_ranks == [5]
    monkeypatch.setenv("RANK", "0")
    assert ended(raising(UserError("give a name")), capsys) == (2, "error: give a name\n")
    assert of_two_ranks == [5], "rank 0 speaks at once"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_echo_of_another_ranks_end_waits_to_be_ended(
    of_two_ranks: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    code, said = ended(raising(RuntimeError("Connection closed by peer")), capsys)
    assert code == 1
    assert of_two_ranks == [5]
    assert said.startswith(f"[rank {rank}] Traceback")
    assert "Connection closed by peer" in said


class Broken(IterableDataset):
    def __iter__(self) -> NoReturn:
        raise UserError("train-00000.tar is cut short")


def test_a_mistake_met_by_a_loader_process_is_as_plain(alone: None, capsys: pytest.CaptureFixture[str]) -> None:
    @user_facing
    def main() -> None:
        next(iter(DataLoader(Broken(), num_workers=1, batch_size=None)))

    assert ended(main, capsys) == (2, "error: train-00000.tar is cut short\n")


def test_ctrl_c_ends_at_once_and_says_how_to_go_on(
    alone: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(log.os, "_exit", codes.append)
    raising(KeyboardInterrupt())()
    assert codes == [130]
    assert "--resume" in caplog.text


def test_only_rank_0_tells_what_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        for rank in (0, 1):
            setup_logging(rank)
            logging.getLogger("mmsr_pt.x").info("from %d", rank)
            logging.getLogger("mmsr_pt.x").warning("beware %d", rank)
    finally:
        root.handlers[:], root.level = handlers, level
    said = capsys.readouterr().err
    assert "from 0" in said
    assert "from 1" not in said
    assert "[rank 1] beware 1" in said
    assert "[rank" not in said.partition("beware 0")[0]

"""`mmsr-pt explore`: what it refuses before it works, and that it answers until it is told to stop."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from mmsr_pt import explore
from mmsr_pt.cli import main
from mmsr_pt.data.domain import Domain


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["explore", *words])
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--port", "0"), "--port 0 must be between 1 and 65535"),
        (("--port", "65536"), "--port 65536 must be between 1 and 65535"),
        (("--users", "-1"), "--users -1 must not be negative"),
        (("--batch_size", "0"), "--batch_size 0 must be at least 1"),
    ],
)
def test_flags_are_checked_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    assert said in refused(capsys, "--model", "nowhere", "--data", "nowhere", *flags)


def test_a_model_that_is_named_twice_and_a_missing_one_are_told(
    capsys: pytest.CaptureFixture[str], small_domain: Domain, bundles: dict[str, Path]
) -> None:
    pytest.importorskip("gradio")
    one = str(bundles["MMSR"])
    assert "twice: leave one out" in refused(capsys, "--model", one, one, "--data", str(small_domain.path))
    assert "there is no directory nowhere" in refused(
        capsys, "--model", one, "nowhere", "--data", str(small_domain.path)
    )


def test_without_gradio_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "mmsr_pt.explore.app", raising=False)
    monkeypatch.delattr(explore, "app", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    said = refused(capsys, "--model", "nowhere", "--data", "nowhere")
    assert "exploring needs gradio: pip install 'mmsr_pt[explore]'" in said


def test_a_port_that_is_taken_is_told(
    capsys: pytest.CaptureFixture[str], small_domain: Domain, bundles: dict[str, Path]
) -> None:
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = ("--model", str(bundles["IDSR"]), "--data", str(small_domain.path), "--port", port, "--users", "0")
        assert f"--port {port} cannot be listened at" in refused(capsys, *words)


@pytest.mark.slow
def test_the_command_answers_until_it_is_told_to_stop(small_domain: Domain, bundles: dict[str, Path]) -> None:
    pytest.importorskip("gradio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    models = [str(path) for path in bundles.values()]
    words = ["--model", *models, "--data", str(small_domain.path), "--port", str(port), "--users", "3"]
    process = subprocess.Popen([sys.executable, "-m", "mmsr_pt.cli", "explore", *words], env=os.environ)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                shown = httpx2.get(f"http://127.0.0.1:{port}/config").text
                break
            except httpx2.HTTPError:
                assert process.poll() is None, "it ended before it answered"
                assert time.monotonic() < deadline, "it never answered"
                time.sleep(0.1)
        assert f"Explore {small_domain.name}" in shown
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130)
    finally:
        process.kill()
        process.wait()

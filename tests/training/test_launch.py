"""How a process finds the others: what it says when their meeting place is taken; forks of an older Python."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from mmsr_pt.training.launch import _let_threads_pass_before_a_fork
from tests.pretrain.launching import LAUNCHERS_VARIABLES, ROOT

JOIN = """
from mmsr_pt.log import user_facing
from mmsr_pt.training.launch import init_distributed
user_facing(lambda: init_distributed())()
"""


def test_a_second_run_on_a_host_is_told_which_port_to_name() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        kept = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_VARIABLES}
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "PYTHONPATH": str(ROOT)}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ended = subprocess.run(
            [sys.executable, "-c", JOIN], env={**kept, **place}, capture_output=True, text=True, timeout=120
        )
    assert ended.returncode == 2
    (error,) = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert f"port {port}" in error
    assert f"deepspeed --master_port {port + 1}" in error


@pytest.mark.parametrize(("version", "waits"), [((3, 11, 0), True), ((3, 11, 9), True), ((3, 11, 10), False)])
def test_a_python_whose_forks_can_hang_waits_before_them(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], waits: bool
) -> None:
    """3.11.10 was the first of 3.11 with the mended fork."""
    found: list[Callable[[], None]] = []
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(os, "register_at_fork", lambda before: found.append(before))
    _let_threads_pass_before_a_fork()
    assert len(found) == waits
    for wait in found:
        wait()

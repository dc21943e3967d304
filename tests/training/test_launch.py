"""How a process finds the others: what it says when their meeting place is taken."""

import os
import socket
import subprocess
import sys

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

"""Two network namespaces as two hosts: each its own interfaces and addresses, one cable between them, one file system.

What runs in one reaches the other through the cable only, so addresses, ports and a cut cable are as real as between
machines; needs root and `ip` of iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.pretrain.launching import LAUNCHERS_VARIABLES, ROOT, Ended

PORT = 29_517
_INTERFACE = "cable"
_BIN = Path(sys.executable).parent


@dataclass
class Host:
    """A namespace; `address` is its end of the cable."""

    name: str
    address: str
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *words: object) -> subprocess.Popen[str]:
        """Starts a command there, in a process group of its own."""
        environment = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_VARIABLES}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        # both hosts have one name, which is no address of the cable
        environment |= {"GLOO_SOCKET_IFNAME": _INTERFACE, "NCCL_SOCKET_IFNAME": _INTERFACE}
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.name, *map(str, words)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def kill(self) -> None:
        """All that runs there: ranks are in process groups of their own, and outlive a launcher that is killed."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        for number in found.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)
        for process in self.started:
            process.wait()

    def cut_off(self) -> None:
        """Pulls the cable out: nothing arrives any more, and nobody is told."""
        _ip("-n", self.name, "link", "set", _INTERFACE, "down")

    def connect(self) -> None:
        """Puts it in again."""
        _ip("-n", self.name, "link", "set", _INTERFACE, "up")


def why_not() -> str:
    """Why there can be no namespaces here; empty where there can."""
    if shutil.which("ip") is None:
        return "two hosts need `ip` of iproute2"
    made = subprocess.run(["ip", "netns", "add", f"mmsr-try-{os.getpid()}"], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
    _ip("netns", "delete", f"mmsr-try-{os.getpid()}")
    return ""


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Both hosts; all that was started in them is killed at the end."""
    hosts = tuple(Host(f"mmsr-{number}-{os.getpid()}", f"10.77.0.{number}") for number in (1, 2))
    ends = [f"mmsr{number}-{os.getpid() % 100_000}" for number in (1, 2)]
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for host, end in zip(hosts, ends):
            _ip("link", "set", end, "netns", host.name)
            _ip("-n", host.name, "link", "set", end, "name", _INTERFACE)
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", _INTERFACE)
            for interface in ("lo", _INTERFACE):
                _ip("-n", host.name, "link", "set", interface, "up")
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            host.kill()
            subprocess.run(["ip", "netns", "delete", host.name], check=False, capture_output=True)


def torchrun(host: Host, node: int, master: str, script: Path, flags: Sequence[object]) -> subprocess.Popen[str]:
    """One rank on a host, by torchrun."""
    where = ("--nnodes", 2, "--node_rank", node, "--nproc_per_node", 1, "--master_addr", master, "--master_port", PORT)
    return host.start(_BIN / "torchrun", *where, script, *flags)


def deepspeed(
    host: Host, node: int, master: str, script: Path, flags: Sequence[object], hostfile: Path
) -> subprocess.Popen[str]:
    """One rank on a host, by the deepspeed launcher started there by hand."""
    where = ("--hostfile", hostfile, "--no_ssh", "--node_rank", node, "--master_addr", master, "--master_port", PORT)
    return host.start(_BIN / "deepspeed", *where, script, *flags)


def both_end(hosts: Sequence[Host], timeout: float) -> list[Ended]:
    """Waits for what each host has started last, and all its ranks; what takes longer is killed and fails the test."""
    until = time.monotonic() + timeout
    ended = []
    for host in hosts:
        process = host.started[-1]
        try:
            out, err = process.communicate(timeout=max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            host.kill()
            out, err = process.communicate()
            raise AssertionError(f"not done after {timeout} s:\n{out[-2000:]}\n{err[-4000:]}") from None
        ended.append(Ended(process.returncode, out, err))
    return ended


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)

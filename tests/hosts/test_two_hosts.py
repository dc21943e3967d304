"""One run on two hosts, by both launchers; one host cut off in the middle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsr_pt.data.domain import Domain
from tests.hosts.two_hosts import Host, both_end, deepspeed, torchrun, two_hosts, why_not
from tests.pretrain.launching import SCRIPT, finish, losses, metrics, small_run

pytestmark = pytest.mark.slow


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with two_hosts() as pair:
        yield pair


def by_torchrun(hosts: tuple[Host, Host], flags: list[object]) -> list:
    return [torchrun(host, node, hosts[0].address, SCRIPT, flags) for node, host in enumerate(hosts)]


def by_deepspeed(hosts: tuple[Host, Host], flags: list[object], tmp_path: Path) -> list:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"{host.address} slots=1\n" for host in hosts))
    return [deepspeed(host, node, hosts[0].address, SCRIPT, flags, hostfile) for node, host in enumerate(hosts)]


def good(processes: list, timeout: float = 300) -> None:
    for ended in both_end(processes, timeout):
        assert ended.code == 0, f"exit code {ended.code}:\n{ended.out[-2000:]}\n{ended.err[-4000:]}"


def test_both_launchers_train_and_resume_across_hosts_as_two_ranks_of_one_do(
    hosts: tuple[Host, Host], small_domain: Domain, tmp_path: Path
) -> None:
    flags = ("--steps", 6, "--checkpoint_every", 3, "--eval_every", 6)
    finish(*small_run(tmp_path, small_domain, *flags, name="one"), num_ranks=2)
    across = small_run(tmp_path, small_domain, "--steps", 3, "--checkpoint_every", 3, "--eval_every", 3, name="two")
    good(by_deepspeed(hosts, across, tmp_path))
    good(by_torchrun(hosts, [*small_run(tmp_path, small_domain, *flags, name="two"), "--resume"]))
    assert losses(tmp_path / "two") == losses(tmp_path / "one")


def test_a_host_that_is_cut_off_ends_the_run_on_both_and_it_goes_on_later(
    hosts: tuple[Host, Host], small_domain: Domain, tmp_path: Path
) -> None:
    flags = small_run(tmp_path, small_domain, "--steps", 100_000, "--checkpoint_every", 5, "--eval_every", 100_000)
    running = by_torchrun(hosts, flags)
    until = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "latest").is_file():
        assert time.monotonic() < until
        assert all(process.poll() is None for process in running)
        time.sleep(0.2)
    hosts[1].cut_off()
    began = time.monotonic()
    ended = both_end(running, 180)
    print("ended after", time.monotonic() - began, [one.code for one in ended])
    print([one.err[-3000:] for one in ended])
    assert all(one.code != 0 for one in ended)
    hosts[1].connect()
    done = int((tmp_path / "run" / "checkpoints" / "latest").read_text().removeprefix("step_"))
    more = small_run(tmp_path, small_domain, "--steps", done + 2, "--eval_every", done + 2, "--resume")
    good(by_torchrun(hosts, more))
    assert metrics(tmp_path / "run", "train")[-1]["step"] == done + 2

"""One run on two hosts, by both launchers; one host cut off in the middle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsr_pt.data.domain import Domain
from mmsr_pt.training.liveness import LOST_SECONDS
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


def by_torchrun(hosts: tuple[Host, Host], flags: list[object]) -> None:
    for node, host in enumerate(hosts):
        torchrun(host, node, hosts[0].address, SCRIPT, flags)


def by_deepspeed(hosts: tuple[Host, Host], flags: list[object], tmp_path: Path) -> None:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"{host.address} slots=1\n" for host in hosts))
    for node, host in enumerate(hosts):
        deepspeed(host, node, hosts[0].address, SCRIPT, flags, hostfile)


def end_well(hosts: tuple[Host, Host], timeout: float = 300) -> None:
    for ended in both_end(hosts, timeout):
        assert ended.code == 0, f"exit code {ended.code}:\n{ended.out[-2000:]}\n{ended.err[-4000:]}"


def test_both_launchers_train_and_resume_across_hosts_as_two_ranks_of_one_do(
    hosts: tuple[Host, Host], small_domain: Domain, tmp_path: Path
) -> None:
    flags = ("--steps", 6, "--checkpoint_every", 3, "--eval_every", 6)
    finish(*small_run(tmp_path, small_domain, *flags, name="one"), num_ranks=2)
    across = small_run(tmp_path, small_domain, "--steps", 3, "--checkpoint_every", 3, "--eval_every", 3, name="two")
    by_deepspeed(hosts, across, tmp_path)
    end_well(hosts)
    by_torchrun(hosts, [*small_run(tmp_path, small_domain, *flags, name="two"), "--resume"])
    end_well(hosts)
    assert losses(tmp_path / "two") == losses(tmp_path / "one")


def test_a_host_that_is_cut_off_ends_the_run_on_both_and_it_goes_on_later(
    hosts: tuple[Host, Host], small_domain: Domain, tmp_path: Path
) -> None:
    flags = small_run(tmp_path, small_domain, "--steps", 100_000, "--checkpoint_every", 5, "--eval_every", 100_000)
    by_torchrun(hosts, flags)
    until = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "latest").is_file():
        assert time.monotonic() < until
        time.sleep(0.2)
    hosts[1].cut_off()
    ended = both_end(hosts, 4 * LOST_SECONDS)
    assert all(one.code != 0 for one in ended)
    assert "nothing was heard of rank 1" in ended[0].err
    assert "rank 1 has not reached rank 0" in ended[1].err
    hosts[1].connect()
    done = int((tmp_path / "run" / "checkpoints" / "latest").read_text().removeprefix("step_"))
    more = small_run(tmp_path, small_domain, "--steps", done + 2, "--eval_every", done + 2, "--resume")
    by_torchrun(hosts, more)
    end_well(hosts)
    assert metrics(tmp_path / "run", "train")[-1]["step"] == done + 2

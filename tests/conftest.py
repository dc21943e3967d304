"""What the whole suite shares: a small drawn domain, built once for all workers, and the skips for real data."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# small tensors, one process for each core: more threads would only wait for each other, here and in launched programs
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from mmsr_pt.data.domain import Domain
from mmsr_pt.data.shards.build import BuildOptions, build_domain
from mmsr_pt.data.sources.synthetic import Synthetic

# a machine that is busy with something else is no failure
settings.register_profile("without deadlines", deadline=None)
settings.register_profile("often", deadline=None, max_examples=20_000)
settings.load_profile("without deadlines")

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


def build_drawn(out: Path, variant: str, num_users: int, items_per_cell: int, num_shards: int = 8) -> Domain:
    source = Synthetic(variant=variant, num_users=num_users, items_per_cell=items_per_cell)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as scratch:
        return build_domain(source.read(Path(scratch), with_images=True), out, BuildOptions(num_shards=num_shards))


@pytest.fixture(scope="session")
def small_domain(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Domain:
    """About 150 users and 300 items, drawn; 8 train tars."""
    root = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        root = root.parent  # the directory that all xdist workers share
    out = root / "small_domain"
    with (root / "small_domain.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            build_drawn(out, "source", num_users=150, items_per_cell=3)
    return Domain.load(out)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many kB, where that is permitted."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def make(size: int) -> Path:
        if shutil.which("mount") is None:
            pytest.skip("no mount command here")
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        if mounted.returncode:
            pytest.skip(f"mounting a small disk is not permitted here: {mounted.stderr.strip()}")
        return disk

    yield make
    subprocess.run(["umount", str(disk)], capture_output=True, check=False)


def real_data(name: str) -> Path:
    """A real dataset beside the project, for tests that can use one."""
    path = SHARED / "data" / name
    if not path.is_dir():
        pytest.skip(f"real data {name} is not there (looked in {path})")
    return path


def real_weights(name: str) -> Path:
    """Real pretrained weights beside the project, for tests that can use them."""
    path = SHARED / "weights" / name
    if not path.is_dir():
        pytest.skip(f"real weights {name} are not there (looked in {path})")
    return path

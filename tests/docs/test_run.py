"""Every command of README and documentation, run: page by page, block by block in order, as bash reads it.

Sizes, names of towers, hosts and the hub are small and local ones: `substitutions.py` has all of these changes, and
what is not run at all. What a page takes for granted (raw data, a trained run) is made by `stage.py`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
import timm
import torch
from safetensors.torch import save_file

from mmsr_pt.run_dir import write_text
from tests.conftest import build_drawn
from tests.docs.pages import ROOT, blocks, page_names
from tests.docs.read_commands import AT_A_PATH, PROGRAMS
from tests.docs.stage import REAL, VARIABLES, prepare, run_block, write_programs
from tests.docs.substitutions import in_text
from tests.hub.repos import TOKEN
from tests.hub.server import running
from tests.models.towers.vlps import publish
from tests.pretrain.launching import LAUNCHERS_VARIABLES

CLIENT = Path(__file__).with_name("client.py")
SLURM = {
    "sbatch": "#!/bin/bash\nbash -n \"$1\"\nexport SLURM_JOB_NODELIST=127.0.0.1 SLURM_NNODES=1 SLURM_GPUS_ON_NODE=2\n"
    "SLURM_JOB_ID=1 exec bash \"$1\"\n",
    "srun": "#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec \"$@\"\n",
    "scontrol": "#!/bin/bash\n[[ $1 == show && $2 == hostnames ]] && echo \"$3\"\n",
}  # fmt: skip
"""A SLURM of one host: a job is run where it is submitted, tasks where the job is."""
BUILT = ("mine", "hm", "other", "target", "shop_a", "shop_b")


@dataclass(frozen=True)
class World:
    """What all pages share."""

    programs: Path
    built: Path
    """data/ and runs/ that pages take for granted."""
    variables: dict[str, str]
    log: Path
    """The commands that were run, as they were."""
    item: str
    user: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    towers = root / "towers"
    for kind in ("bert", "clip"):
        publish(kind, towers / kind)
    _write_small_vit(towers / "vit")
    asks = f'#!/bin/sh\nexec {sys.executable} -I -S {CLIENT} {{name}} "$@"\n'
    scripts = {name: asks.format(name=name) for name in PROGRAMS} | SLURM
    programs = write_programs(root / "bin", scripts, REAL)
    log = root / "log"
    with ExitStack() as stack:
        hub = stack.enter_context(running())
        # a socket's path may have a hundred characters, which pytest's directories can exceed
        place = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "warm"
        variables = {
            **VARIABLES,
            "DOCS_SOCKET": str(place),
            "DOCS_PORT": "0",
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(root / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
            "NO_PROXY": "*",
            "OMP_NUM_THREADS": "1",
            # DeepSpeed's Adam for offload, which takes minutes to compile
            "TORCH_EXTENSIONS_DIR": os.environ.get(
                "TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "torch_extensions")
            ),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "120",
        }
        kept = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_VARIABLES}
        warm = subprocess.Popen(
            [sys.executable, "-m", "tests.docs.warm", str(place), str(towers), str(log)],
            env={**kept, **variables},
            cwd=ROOT,
            start_new_session=True,
        )
        stack.callback(lambda: os.killpg(warm.pid, signal.SIGKILL))
        until = time.monotonic() + 120
        while not place.exists():
            assert warm.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        built = root / "built"
        item, user = _build(built, programs, variables)
        yield World(programs, built, variables, log, item, user)


def _write_small_vit(directory: Path) -> None:
    directory.mkdir()
    model = timm.create_model("test_vit", num_classes=0)
    save_file(model.state_dict(), directory / "model.safetensors")
    write_text(directory / "config.json", '{"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": {}}')


def _build(built: Path, programs: Path, variables: dict[str, str]) -> tuple[str, str]:
    """Domains, a run of content and one of ids; an item and a user of data/mine, and of data/other."""
    for number, name in enumerate(BUILT):
        (built / "data").mkdir(parents=True, exist_ok=True)
        build_drawn(built / "data" / name, ("source", "target")[number % 2], num_users=40, items_per_cell=1)
    for name in ("pretrain", "ds_configs"):
        (built / name).symlink_to(ROOT / name)
    train = "python pretrain/run.py --ds_config ds_configs/zero2.json --data data/mine --run_dir runs/"
    done = run_block(f"{train}mine\n{train}ids --item id\n", built, programs, variables, 300)
    assert done.returncode == 0, done.stderr[-5000:]
    return _first(built / "data" / "mine")


def _first(domain: Path) -> tuple[str, str]:
    return (
        pl.read_parquet(domain / "items.parquet")["item_id"][0],
        pl.read_parquet(domain / "eval.parquet")["user_id"][0],
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _said_by_services(log: Path) -> str:
    said = log.with_name("services")
    return said.read_text()[-3000:] if said.exists() else ""


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in page_names() if blocks(page, "bash") or blocks(page, "python")])
def test_the_commands_of_a_page_run(page: str, world: World, tmp_path: Path) -> None:
    prepare(page, tmp_path, world.built)
    asks = (world.programs / "pip").read_text()
    write_programs(tmp_path, {path: asks.replace(" pip ", f" {path} ") for path in AT_A_PATH}, [])
    port = _free_port()
    variables = {**world.variables, "DOCS_PORT": str(port)}
    for block in blocks(page):
        if block.language not in ("bash", "python"):
            continue
        item, user = world.item, world.user
        if "data/other" in block.text and "ITEM_ID" in block.text:
            item, user = _first(world.built / "data" / "other")
        text = in_text(block.text, item, user, port)
        if block.language == "python":
            write_text(tmp_path / "block.py", text)
            text = "python block.py"
        done = run_block(text, tmp_path, world.programs, variables, 400)
        assert done.returncode == 0, (
            f"{block}:\n{block.text}\nran at last:\n{world.log.read_text().splitlines()[-1]}\n"
            f"{done.stdout[-1500:]}\n{done.stderr[-5000:]}\n{_said_by_services(world.log)}"
        )
    assert page != "docs/using.md" or (tmp_path / "exported" / "export.json").is_file()

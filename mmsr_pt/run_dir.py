"""What a run leaves on disk: configuration, metrics, TensorBoard, the bundle (checkpoints: training/checkpoint.py)."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmsr_pt.config import PretrainConfig, to_json
from mmsr_pt.log import UserError

BUNDLE = "model"
_OWN_FILES = {"config.json", "ds_config.json", "metrics.jsonl", "tensorboard", "checkpoints", BUNDLE}


def choose(config: PretrainConfig, domain_name: str) -> Path:
    """The run directory asked for, else runs/<date>-<domain>."""
    return config.run.run_dir or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{domain_name}"


def prepare(run_dir: Path, config: PretrainConfig, ds_config: Mapping[str, Any]) -> Path:
    """Makes `run_dir`, returns it, and writes the resolved configuration, before the first step; call on rank 0.

    Raises:
        UserError: the directory holds something else, or a run that `--resume` was not given for.
    """
    if run_dir.exists():
        if not run_dir.is_dir():
            raise UserError(f"--run_dir {run_dir} is a file: name a directory")
        found = {path.name for path in run_dir.iterdir() if not path.name.startswith(".")}
        foreign = sorted(found - _OWN_FILES)
        if foreign and "config.json" not in found:
            raise UserError(f"--run_dir {run_dir} holds something else ({foreign[0]}): name an empty or new directory")
        if found and not config.run.resume:
            raise UserError(
                f"--run_dir {run_dir} already holds a run: add --resume to go on with it, or name another directory"
            )
    elif config.run.resume:
        raise UserError(f"--resume: there is no run at {run_dir}: leave out --resume to start one")
    run_dir.mkdir(parents=True, exist_ok=True)
    _write(run_dir / "config.json", to_json(config))
    _write(run_dir / "ds_config.json", json.dumps(ds_config, indent=2))
    return run_dir


def write_bundle(run_dir: Path, write: Callable[[Path], None]) -> None:
    """Replaces the run's bundle by what `write` puts into the directory it is given; never half of it."""
    fresh, final, old = run_dir / f".{BUNDLE}.new", run_dir / BUNDLE, run_dir / f".{BUNDLE}.old"
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        write(fresh)
        if final.exists():
            final.rename(old)
        fresh.rename(final)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not final.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


class MetricsLog:
    """metrics.jsonl and TensorBoard, with the same numbers; use on rank 0."""

    def __init__(self, run_dir: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._file = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run_dir / "tensorboard"))

    def train(self, line: Mapping[str, Any]) -> None:
        """Appends a `train` line; nested mappings become one curve for each entry."""
        self._append({"event": "train", **line})
        step = line["step"]
        for name, value in line.items():
            if isinstance(value, Mapping):
                for part, number in value.items():
                    self._board.add_scalar(f"train/{name}/{part}", number, step)
            elif name != "step":
                self._board.add_scalar(f"train/{name}", value, step)

    def evaluation(self, line: Mapping[str, Any]) -> None:
        """Appends an `eval` line."""
        self._append(line)
        prefix = "/".join([line["split"], line["model"], line["slice"]])
        for name, value in line.items():
            if name.startswith(("HR@", "NDCG@", "MRR")):
                self._board.add_scalar(f"{prefix}/{name}", value, line["step"])

    def _append(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        self._board.close()


def _write(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)

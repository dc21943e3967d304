"""What a run leaves on disk: configuration, metrics, TensorBoard, the bundle (checkpoints: training/checkpoint.py)."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from mmsr_pt.config import PretrainConfig, to_json
from mmsr_pt.evaluation.cases import ProtocolName
from mmsr_pt.log import UserError, naming_a_full_disk

BUNDLE = "model"
TEST_RANKS = "test_ranks.parquet"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
CONFIGS = ("config.json", "ds_config.json")


def choose(config: PretrainConfig, domain_name: str) -> Path:
    """The run directory asked for, else runs/<date>-<domain>; nothing is written yet. Call on rank 0.

    Raises:
        UserError: the directory holds something else, a run that `--resume` was not given for, or no run to resume.
    """
    run_dir = config.run.run_dir or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{domain_name}"
    _require_directory(run_dir)
    found = {path.name for path in run_dir.iterdir() if not path.name.startswith(".")} if run_dir.exists() else set()
    is_run = found >= set(CONFIGS)
    may_start = config.run.resume_or_start and found <= set(CONFIGS)  # a run may have been killed as it wrote them
    if found and not is_run and not may_start:
        raise UserError(
            f"--run_dir {run_dir} holds something else ({min(found - set(CONFIGS), default='half a run')}): "
            "name an empty or new directory"
        )
    if config.run.resume and not is_run:
        raise UserError(f"--resume: there is no run at {run_dir}: leave out --resume to start one")
    if is_run and not (config.run.resume or config.run.resume_or_start):
        raise UserError(
            f"--run_dir {run_dir} already holds a run: add --resume to go on with it, or name another directory"
        )
    return run_dir


def _require_directory(run_dir: Path) -> None:
    """Refuses a path that cannot be, or become, a directory to write into."""
    existing = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"--run_dir {run_dir}: {existing} is a file: name a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--run_dir {run_dir}: {existing} cannot be written to: name another directory")


def record(run_dir: Path, config: PretrainConfig, ds_config: Mapping[str, Any]) -> None:
    """Makes `run_dir` and writes the resolved configuration, before the first step; call on rank 0."""
    with naming_a_full_disk(run_dir, "free some space, or choose another --run_dir"):
        run_dir.mkdir(parents=True, exist_ok=True)
        write_text(run_dir / "config.json", to_json(config) + "\n")
        write_text(run_dir / "ds_config.json", json.dumps(ds_config, indent=2) + "\n")


def begin_anew(run_dir: Path) -> None:
    """Removes what a run without a checkpoint has logged, before it starts again; call on rank 0."""
    (run_dir / METRICS).unlink(missing_ok=True)
    shutil.rmtree(run_dir / TENSORBOARD, ignore_errors=True)


def require_space(run_dir: Path, parameters: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses a disk that cannot take what the run is sure to write there: a checkpoint and the bundle.

    Args:
        run_dir: need not be there yet.
        parameters: by name their `shape`, and `group`, which is None where a parameter is frozen.
    """
    existing = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    sizes = [(math.prod(p["shape"]), p["group"] is not None) for p in parameters.values()]
    # bundle and checkpoint: all weights in float32; checkpoint: two moments besides where trained
    wanted = sum((4 + 4 + (8 if trained else 0)) * size for size, trained in sizes)
    free = shutil.disk_usage(existing).free
    if free < wanted:
        raise UserError(
            f"--run_dir {run_dir}: its disk has {free / 1e6:,.1f} MB left, a checkpoint and the model need "
            f"{wanted / 1e6:,.1f} MB: free some space, or choose another --run_dir"
        )


def write_bundle(run_dir: Path, write: Callable[[Path], None]) -> None:
    """Replaces the run's bundle by what `write` puts into the directory it is given; never half of it."""
    replace_directory(run_dir / BUNDLE, write)


def replace_directory(final: Path, write: Callable[[Path], None]) -> None:
    """Puts what `write` writes into the directory it is given in the place of `final`; never half of it."""
    fresh, old = final.with_name(f".{final.name}.new"), final.with_name(f".{final.name}.old")
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

    def __init__(self, run_dir: Path, step: int = 0, without_figures_of: int = 0, domains: Sequence[str] = ()) -> None:
        """Opens both to go on after `step`; what a run that was killed later than that wrote since is dropped.

        Args:
            run_dir: of the run.
            step: of the checkpoint; 0: a new run.
            without_figures_of: a step that was still under evaluation then; 0: none.
            domains: names of the run's; where there are several, TensorBoard's curves of figures begin with them.
        """
        from torch.utils.tensorboard import SummaryWriter

        path = run_dir / METRICS
        if path.exists():
            write_text(path, "".join(f"{line}\n" for line in _lines_up_to(path, step, without_figures_of)))
        self._file = path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(run_dir / TENSORBOARD), purge_step=step + 1 if step else None)
        self._has_several = len(domains) > 1

    def train(self, line: Mapping[str, Any]) -> None:
        """Appends a `train` line; nested mappings become one curve for each entry."""
        self._append({"event": "train", **line})
        step = line["step"]
        for name, value in line.items():
            if isinstance(value, Mapping):
                for part, number in value.items():
                    self.board.add_scalar(f"train/{name}/{part}", number, step)
            elif name != "step":
                self.board.add_scalar(f"train/{name}", value, step)

    def evaluation(self, line: Mapping[str, Any]) -> None:
        """Appends an `eval` line."""
        self._append(line)
        asked = "cold" if line.get("protocol") == "cold" else line["split"]
        prefix = self.tag(line.get("domain", ""), asked, line["model"], line["slice"])
        for name, value in line.items():
            if name.startswith(("HR@", "NDCG@", "MRR")):
                self.board.add_scalar(f"{prefix}/{name}", value, line["step"])

    def warning(self, line: Mapping[str, Any]) -> None:
        """Appends a `warning` line."""
        self._append(line)

    def tag(self, domain: str, *parts: str) -> str:
        """What TensorBoard calls something of a domain: the domain's name stands in it where there are several."""
        return "/".join([domain, *parts] if self._has_several else parts)

    def _append(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        self.board.close()


def metric_lines(run_dir: Path) -> list[dict[str, Any]]:
    """What stands in a run's metrics.jsonl; nothing where there is none yet."""
    path = run_dir / METRICS
    return list(_entries(path)) if path.is_file() else []


def figures_on_test(run_dir: Path, protocol: ProtocolName = "leave-one-out") -> dict[str, Any] | None:
    """The figures of the run's model in the test at its end; None: there are none.

    Args:
        run_dir: of the run.
        protocol: `leave-one-out`: on every user's test item, as any finished run has them; `cold`: on the cold items
            among those held out, which are missing where none is cold. The paper counts the cold items of training
            parts too; but on these a model shows what it remembers of its training, and ids are best at that.
    """
    asked = {"split": "any", "slice": "held-out"} if protocol == "cold" else {"split": "test", "slice": "all"}
    wanted = {"event": "eval", "model": "mmsr", **asked}
    return next((line for line in metric_lines(run_dir) if wanted.items() <= line.items()), None)


def write_ranks(path: Path, tables: Sequence[pl.DataFrame]) -> None:
    """Writes tables as `evaluate` hands them out (KeepRanks) into one parquet file, never half of it."""
    temporary = path.with_name(f".{path.name}.new")
    pl.concat(tables).write_parquet(temporary)
    temporary.replace(path)


def read_ranks(run_dir: Path, domain: str) -> pl.DataFrame:
    """By user, in order: user, target and rank of the run's model on the test users of a domain."""
    ranks = pl.read_parquet(run_dir / TEST_RANKS).filter(pl.col("domain") == domain, pl.col("split") == "test")
    return ranks.select("user", "target", "rank").sort("user")


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl; the last one may have been cut by a kill."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _lines_up_to(path: Path, step: int, without_figures_of: int) -> Iterator[str]:
    """The lines of a metrics.jsonl that stand at `step` or before."""
    for entry in _entries(path):
        is_under_evaluation = 0 < entry["step"] == without_figures_of
        is_made_anew = entry["event"] == "eval" and (entry["split"] != "valid" or is_under_evaluation)
        if entry["step"] <= step and not is_made_anew:
            yield json.dumps(entry)


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)

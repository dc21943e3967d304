"""A run directory as a report reads it: its configuration, its lines, its domains as it was trained on them, its model.

Each domain is opened with the users who trained, from whom follows what is cold, popular, head and tail.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsr_pt.config import ModelConfig, from_dict
from mmsr_pt.data.domain import Domain
from mmsr_pt.evaluation.cases import UserSample
from mmsr_pt.log import UserError
from mmsr_pt.model import MMSRModel
from mmsr_pt.models.bundle import WEIGHTS_FILE
from mmsr_pt.run_dir import BUNDLE, metric_lines


@dataclass(frozen=True)
class OpenedRun:
    """What a run left, and what it was about."""

    run_dir: Path
    config: dict[str, Any]
    """As in config.json."""
    ds_config: dict[str, Any]
    lines: list[dict[str, Any]]
    """Those of metrics.jsonl."""
    domains: list[Domain]
    model: MMSRModel | None
    """The best so far, on the CPU; None: nothing has been validated yet."""

    @property
    def model_config(self) -> ModelConfig:
        """Of the model that was trained."""
        return from_dict(ModelConfig, self.config["model"], str(self.run_dir / "config.json"))

    @property
    def test_users(self) -> UserSample:
        """Who was asked in the test."""
        return UserSample(self.config["run"]["test_users"], self.config["run"]["seed"])

    def train_lines(self) -> list[dict[str, Any]]:
        """In the order of steps."""
        return [line for line in self.lines if line["event"] == "train"]

    def eval_lines(self, **wanted: Any) -> list[dict[str, Any]]:
        """Those with these values."""
        return [line for line in self.lines if {"event": "eval", **wanted}.items() <= line.items()]


def open_run(run_dir: Path, data: Sequence[Path] = ()) -> OpenedRun:
    """Opens a run directory and the domains of its run.

    Args:
        run_dir: of the run, finished or not.
        data: where its domains are now, in the order of the run; none given: where they were.

    Raises:
        UserError: no run, a domain that is not there, or another build of it than the model was trained on.
    """
    config, ds_config = (_read_json(run_dir, name) for name in ("config.json", "ds_config.json"))
    known = config["data"]["data"] or [f"data/drawn_{'target' if 'transfer' in config else 'source'}"]
    if data and len(data) != len(known):
        raise UserError(
            f"--data names {len(data)} domains, the run {run_dir} has {len(known)} ({', '.join(known)}): "
            "name all of them in this order"
        )
    missing = [path for path in known if not Path(path).is_dir()]
    if missing and not data:
        raise UserError(
            f"there is no domain directory {missing[0]}, where the run {run_dir} had its data: start in the directory "
            "in which it was trained, or say with --data where its domains are now"
        )
    domains = [Domain.load(path, config["data"]["max_users"], config["run"]["seed"]) for path in data or known]
    is_validated = (run_dir / BUNDLE / WEIGHTS_FILE).is_file()
    model = MMSRModel.from_pretrained(run_dir) if is_validated else None
    for domain in domains if model is not None else ():
        assert model is not None
        model.require_readable(domain)
        if domain.fingerprint not in {trained["fingerprint"] for trained in model.recommender.trained_on}:
            raise UserError(
                f"the run {run_dir} was not trained on {domain.path}, or on another build of it: "
                "say with --data where the domain of the run is"
            )
    return OpenedRun(run_dir, config, ds_config, metric_lines(run_dir), domains, model)


def _read_json(run_dir: Path, name: str) -> dict[str, Any]:
    if not run_dir.is_dir():
        raise UserError(f"there is no directory {run_dir}: give the --run_dir of a run")
    file = run_dir / name
    if not file.is_file():
        raise UserError(f"{run_dir} is no run directory (it has no {name}): give the --run_dir of a run")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} cannot be read ({error}): give the directory of another run") from error

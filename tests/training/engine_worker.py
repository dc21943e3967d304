"""One rank of the engine tests: runs every case in turn and leaves what it saw in a file for the test to judge.

deepspeed --num_gpus 2 tests/training/engine_worker.py OUT [--offload]
python tests/training/engine_worker.py OUT
python tests/training/engine_worker.py OUT --take_up OUT_OF_ANOTHER_RUN [--offload]
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mmsr_pt.training.checkpoint import CheckpointManager
from mmsr_pt.training.ds_config import read_ds_config
from mmsr_pt.training.engine import Engine, NonFiniteLoss
from mmsr_pt.training.launch import DistInfo, init_distributed, strip_local_rank
from mmsr_pt.training.optim import param_groups
from tests.training.toy import NUM_SLOTS, OPTIM, ToyBatch, ToyModel, ToyTask, joined, slots_of_step

SHIPPED = Path(__file__).resolve().parents[2] / "ds_configs"
CONFIGS = tuple(f"zero{stage}" for stage in range(4))
OFFLOADED = ("zero2_offload", "zero3_offload")


class Cases:
    def __init__(self, out: Path, place: DistInfo) -> None:
        self.out, self.place = out, place

    def engine(
        self, config: str, bf16: bool, accumulation: int = 1, clipping: float = 0.0, seed: int = 0, dropout: float = 0.0
    ) -> Engine:
        """An engine on one of the shipped configurations, changed where the case needs it."""
        values = json.loads((SHIPPED / f"{config}.json").read_text())
        values.update(gradient_clipping=clipping, gradient_accumulation_steps=accumulation, bf16={"enabled": bf16})
        changed = self.out / f"ds_config_{self.place.rank}.json"
        changed.write_text(json.dumps(values))
        task = ToyTask(ToyModel(seed, dropout))
        groups = param_groups(task.model, OPTIM)
        return Engine(task, groups, read_ds_config(changed, self.place.world_size), self.place)

    def micro_batches(self, engine: Engine, step: int) -> list[ToyBatch]:
        """This rank's share of the step: neighbouring slots make a micro-batch."""
        slots, parts = slots_of_step(step), self.place.world_size * engine.accumulation_steps
        size = NUM_SLOTS // parts
        own = range(self.place.rank * engine.accumulation_steps, (self.place.rank + 1) * engine.accumulation_steps)
        return [joined(slots[part * size : (part + 1) * size]) for part in own]

    def curve(self, engine: Engine, steps: range, lr_factor: float = 1.0) -> dict[str, Any]:
        reports = [engine.train_step(self.micro_batches(engine, step), lr_factor) for step in steps]
        return {
            "losses": [report.loss for report in reports],
            "norms": [report.grad_norm for report in reports],
            "rates": reports[-1].learning_rates,
            "scalars": reports[-1].scalars,
            "state": engine.state_dict_on_rank0(),
        }

    def training(self, config: str, bf16: bool, accumulation: int) -> dict[str, Any]:
        engine = self.engine(config, bf16, accumulation)
        result = self.curve(engine, range(6))
        engine.close()
        return result

    def first_step(self, config: str, bf16: bool) -> dict[str, Any]:
        engine = self.engine(config, bf16, clipping=1.0)
        result = self.curve(engine, range(1), lr_factor=0.5)
        engine.close()
        return result

    def evaluation_between_steps(self, config: str, bf16: bool) -> dict[str, Any]:
        """Outputs of the engine's model, and of one with the exported weights; then the training goes on."""
        engine = self.engine(config, bf16)
        self.curve(engine, range(2))
        x = slots_of_step(9)[0].x
        outputs = []
        for _ in range(2):
            engine.model.eval()
            with torch.no_grad():
                outputs = [engine.model.encode(x).float() for _ in range(3)]
            engine.model.train()
        state = engine.state_dict_on_rank0()
        result = {"outputs": outputs, "exported": state, "x": x, **self.curve(engine, range(2, 6))}
        engine.close()
        return result

    def resume(self, config: str, bf16: bool) -> dict[str, Any]:
        """Six steps with dropout, saved in the middle, and the last three again in an engine of other weights."""
        torch.manual_seed(100 + self.place.rank)
        manager = CheckpointManager(self.out / f"run_{config}_{bf16}")
        engine = self.engine(config, bf16, accumulation=2, clipping=1.0, dropout=0.3)
        self.curve(engine, range(3))
        path = manager.save(engine, 3, {"seen": [1, 2], "best": 0.1})
        saved = {"path": str(path), "state": engine.state_dict_on_rank0()}
        straight = self.curve(engine, range(3, 6))
        engine.close()
        engine = self.engine(config, bf16, accumulation=2, clipping=1.0, dropout=0.3, seed=1)
        state = manager.load(engine)
        resumed = {**self.curve(engine, range(3, 6)), "num_steps": engine.num_steps}
        engine.close()
        return {"straight": straight, "resumed": resumed, "returned": state, "saved": saved}

    def leave(self, config: str, bf16: bool) -> dict[str, Any]:
        """Six steps without dropout, saved in the middle for runs in another layout."""
        engine = self.engine(config, bf16, clipping=1.0)
        self.curve(engine, range(3))
        path = CheckpointManager(self.out / f"left_{config}_{bf16}").save(engine, 3, {})
        straight = self.curve(engine, range(3, 6))
        engine.close()
        return {**straight, "path": str(path)}

    def take_up(self, run: Path, config: str, bf16: bool) -> dict[str, Any]:
        """The last three steps of `leave` in an engine of other weights, which has even made a step with them.

        What the engine holds when it has taken up the checkpoint is compared with the files.
        """
        engine = self.engine(config, bf16, clipping=1.0, seed=1)
        self.curve(engine, range(7, 8))
        manager = CheckpointManager(run)
        manager.load(engine)
        held = {name: tensor.clone().cpu() for found in (engine.weights(), engine.moments()) for name, tensor in found}
        path = manager.latest()
        assert path is not None
        written = load_file(path / "weights.safetensors") | load_file(path / "optimizer.safetensors")
        assert held.keys() == written.keys()
        changed = [name for name, tensor in written.items() if not torch.equal(held[name], tensor)]
        result = {
            **self.curve(engine, range(3, 6)),
            "changed": changed,
            "num_steps": engine.num_steps,
            "num_updates": engine.num_updates,
        }
        engine.close()
        return result

    def non_finite(self, config: str, bf16: bool, where: str, accumulation: int = 2) -> dict[str, Any]:
        """What a NaN in the last rank's first micro-batch leads to on every rank."""
        engine = self.engine(config, bf16, accumulation)
        before = self.curve(engine, range(2))["state"]
        batches = self.micro_batches(engine, 2)
        if self.place.rank == self.place.world_size - 1 and where == "loss":
            batches[0].x[0, 0, 0] = float("nan")
        if self.place.rank == self.place.world_size - 1 and where == "gradient":
            batches[0].broken_gradient = True
        message = ""
        try:
            engine.train_step(batches, 1.0)
        except NonFiniteLoss as error:
            message = str(error)
        result = {"message": message, "before": before, "after": engine.state_dict_on_rank0()}
        gone_on = self.curve(engine, range(3, 5))
        engine.close()
        engine = self.engine(config, bf16, accumulation)
        self.curve(engine, range(2))
        unharmed = self.curve(engine, range(3, 5))
        engine.close()
        return {**result, "gone on": gone_on, "unharmed": unharmed}

    def rollback(self, config: str, bf16: bool) -> dict[str, Any]:
        """Two steps from a checkpoint, loaded into the engine that wrote it and has gone on since, and failed."""
        manager = CheckpointManager(self.out / f"rollback_{config}_{bf16}")
        engine = self.engine(config, bf16, accumulation=2)
        self.curve(engine, range(2))
        manager.save(engine, 2, {})
        straight = self.curve(engine, range(4, 6))
        batches = self.micro_batches(engine, 2)
        batches[0].x[0, 0, 0] = float("nan")
        with contextlib.suppress(NonFiniteLoss):
            engine.train_step(batches, 1.0)
        manager.load(engine)
        again = self.curve(engine, range(4, 6))
        engine.close()
        return {"straight": straight, "again": again}


def main(argv: list[str]) -> None:
    out = Path(argv[0])
    place = init_distributed()
    cases = Cases(out, place)
    results: dict[str, Any] = {}
    if "--take_up" in argv:
        for run in sorted(Path(argv[argv.index("--take_up") + 1]).glob("left_*")):
            for config in OFFLOADED if "--offload" in argv else CONFIGS:
                for bf16 in (False, True):
                    results[f"{run.name} {config} {bf16}"] = cases.take_up(run, config, bf16)
    elif "--offload" in argv:
        for config in OFFLOADED:
            results[f"training {config} float32 2"] = cases.training(config, False, 2)
            results[f"resume {config} bfloat16"] = cases.resume(config, True)
            results[f"left {config} True"] = cases.leave(config, True)
    else:
        for stage in range(4):
            config = f"zero{stage}"
            for accumulation in (1, 2):
                results[f"training {config} float32 {accumulation}"] = cases.training(config, False, accumulation)
            for bf16, dtype in ((False, "float32"), (True, "bfloat16")):
                results[f"first step {config} {dtype}"] = cases.first_step(config, bf16)
                results[f"resume {config} {dtype}"] = cases.resume(config, bf16)
                results[f"left {config} {bf16}"] = cases.leave(config, bf16)
                results[f"evaluation {config} {dtype}"] = cases.evaluation_between_steps(config, bf16)
                for where in ("loss", "gradient"):
                    results[f"non-finite {where} {config} {dtype}"] = cases.non_finite(config, bf16, where)
                results[f"rollback {config} {dtype}"] = cases.rollback(config, bf16)
            results[f"training {config} bfloat16 1"] = cases.training(config, True, 1)
    torch.save(results, out / f"rank_{place.rank}.pt")


if __name__ == "__main__":
    main(strip_local_rank(sys.argv[1:]))

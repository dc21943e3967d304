"""The one file that knows DeepSpeed: steps the weights, saves and loads them.

DeepSpeed is imported inside functions, so evaluation and serving never load it.
"""

from __future__ import annotations

import copy
import io
import logging
import math
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmsr_pt.batch import UserBatch
from mmsr_pt.log import UserError, reason
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.training.distributed import fetched, summed
from mmsr_pt.training.ds_config import offloads_optimizer, zero_stage
from mmsr_pt.training.launch import DistInfo
from mmsr_pt.training.optim import ParamGroup
from mmsr_pt.training.task import NextItemTask

_TAG = "deepspeed"
_IN_TASK = "model."
"""What the names of the model's weights begin with in a task."""
_NAMES_OF_MASTERS = "names_of_masters"
_ONLY_WEIGHTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class NonFiniteLoss(UserError):  # noqa: N818
    """The loss or its gradient is NaN or infinite; weights and moments have not been touched by it."""

    def __init__(self, what: str, step: int, learning_rates: Mapping[str, float], is_own: bool) -> None:
        """What went wrong.

        Args:
            what: `loss` or `gradient`.
            step: in which, as the engine counts.
            learning_rates: by group name.
            is_own: whether this rank's part of the loss was it.
        """
        self.what, self.learning_rates, self.is_own = what, learning_rates, is_own
        super().__init__(self.sentence(step))

    def sentence(self, step: int) -> str:
        """What went wrong in that step, as the run counts, which has gone on where the engine was rolled back."""
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in self.learning_rates.items())
        return f"the {self.what} is NaN or infinite in step {step} at learning rates {rates}"


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step was like."""

    loss: float
    """Mean over the valid positions of all ranks and micro-batches."""
    learning_rates: dict[str, float]
    """By group name."""
    scalars: dict[str, float]
    """What the task reports, summed over this rank's micro-batches."""
    norm: Tensor | float
    """`grad_norm`, perhaps still on the device."""
    ranks_asked: int
    """How many ranks were asked to end, the same on all of them."""

    @property
    def grad_norm(self) -> float:
        """Norm of the gradient of the mean loss before clipping, over all groups. Waits for the device."""
        return float(self.norm)


class Engine:
    """Trains a task under one DeepSpeed configuration; all its methods are collective: call them on every rank."""

    def __init__(
        self, task: NextItemTask, groups: Sequence[ParamGroup], ds_config: Mapping[str, Any], place: DistInfo
    ) -> None:
        """Takes the task apart over the ranks: weights are cast, moved, and at stage 3 split.

        Args:
            task: freshly built, on the CPU in float32, with equal weights on every rank.
            groups: from `param_groups`.
            ds_config: from `read_ds_config`.
            place: from `init_distributed`.
        """
        import deepspeed

        _refuse_scalar_parameters(task)
        _quieten()
        self.task = task
        self.place = place
        self.micro_batch_size: int = ds_config["train_micro_batch_size_per_gpu"]
        self.accumulation_steps: int = ds_config["gradient_accumulation_steps"]
        self.zero_stage = zero_stage(ds_config)
        self.offloads_optimizer = offloads_optimizer(ds_config)
        self._groups = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
        group_of = {id(p): group["name"] for group in groups for p in group["params"]}
        self.parameters = {
            name: {"shape": list(p.shape), "group": group_of.get(id(p))} for name, p in task.model.named_parameters()
        }
        self._engine = deepspeed.initialize(
            model=task,
            optimizer=_optimizer(groups, self.offloads_optimizer, place.device),
            config=copy.deepcopy(dict(ds_config)),
        )[0]
        self.dtype: torch.dtype = self._engine.get_data_types()[0]
        self._keeps_plain_optimizer = isinstance(self._engine.optimizer, torch.optim.Optimizer)
        self._masters: dict[int, Tensor] = {}
        self._names_of_masters: list[list[str]] = []
        if self.zero_stage == 0 and not self._keeps_plain_optimizer:
            optimizer = self._engine.optimizer
            # its constructor takes a step with zero gradients, which would count as Adam's first
            optimizer.optimizer.state.clear()
            for weights, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups):
                self._masters.update((id(weight), master) for weight, master in zip(weights, masters))
            names = {id(weight): name for name, weight in task.model.named_parameters()}
            self._names_of_masters = [[names[id(weight)] for weight in group] for group in optimizer.fp16_groups]
        found = [group["name"] for group in self._engine.optimizer.param_groups]
        assert found == list(self._groups), f"DeepSpeed made the groups {found} of {list(self._groups)}"
        self._use_checked_reader()

    @property
    def model(self) -> Recommender:
        """The model in training: in `dtype`, and at stage 3 split over the ranks (its modules gather themselves)."""
        return self.task.model

    def train_step(self, micro_batches: Sequence[UserBatch], lr_factor: float, is_asked: bool = False) -> StepReport:
        """One optimizer step on the mean loss over all valid positions of all ranks and micro-batches.

        Args:
            micro_batches: this rank's `accumulation_steps` of them, on its device.
            lr_factor: what the groups' learning rates are multiplied by, from `learning_rate_factor`.
            is_asked: whether this rank was asked to end, which goes to the others with the loss.

        Raises:
            NonFiniteLoss: on every rank alike; it is as if there had been no step, and another one can follow.
        """
        assert len(micro_batches) == self.accumulation_steps, f"{len(micro_batches)} micro-batches"
        step = self.num_steps + 1
        learning_rates = self._set_learning_rates(lr_factor)
        total = summed(torch.stack([batch.targets.sum() for batch in micro_batches]).sum()).clamp(min=1)
        # DeepSpeed divides by the accumulation steps and averages over the ranks
        scale = (self.accumulation_steps * self.place.world_size / total).float()
        loss_sum, scalars = torch.zeros((), dtype=torch.float64, device=self.place.device), dict[str, Any]()
        for index, batch in enumerate(micro_batches):
            loss, _, report = self._engine(batch)
            # a loss that is not finite leaves no gradient that is: DeepSpeed goes by gradients alone
            self._engine.backward(loss * (scale + 0 * loss.detach()))
            loss_sum += loss.detach()
            for name, value in report.items():
                scalars[name] = scalars.get(name, 0) + value
            if index < len(micro_batches) - 1:
                self._engine.step()  # counts the micro-batch; the weights stay
        own = loss_sum.clone()
        loss_and_asked = summed(torch.stack([loss_sum, torch.full_like(loss_sum, float(is_asked))]))
        (loss, asked, own_loss, positions, norm), scalars = self._fetch([*loss_and_asked, own, total], scalars)
        mean = loss / positions
        if not self._apply(math.isfinite(mean) and math.isfinite(norm)):
            what = "gradient" if math.isfinite(mean) else "loss"
            raise NonFiniteLoss(what, step, learning_rates, not math.isfinite(own_loss))
        if not self._keeps_plain_optimizer:
            norm = self._engine.get_global_grad_norm()
        return StepReport(mean, learning_rates, scalars, norm, round(asked))

    def _apply(self, is_finite: bool) -> bool:
        """Steps the weights, unless the gradient is not finite, which is dropped; whether it was a step."""
        if self._keeps_plain_optimizer and not is_finite:
            # torch's optimizer does nothing without gradients; DeepSpeed's find out by themselves
            self._engine.optimizer.zero_grad(set_to_none=True)
        self._engine.step()
        return is_finite if self._keeps_plain_optimizer else self._engine.was_step_applied()

    def _fetch(self, sums: Sequence[Tensor], scalars: Mapping[str, Any]) -> tuple[list[float], dict[str, float]]:
        """The numbers that a step is judged and logged by: the one time in a step that the host waits for the device.

        Returns:
            The sums, and behind them the gradient's norm, or 0 where DeepSpeed itself looks at it; the task's scalars.
        """
        norm = torch.zeros(())
        if self._keeps_plain_optimizer:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.task.parameters() if p.grad is not None])
        tensors = {name: value for name, value in scalars.items() if isinstance(value, Tensor)}
        found = fetched([*sums, norm, *tensors.values()], self.place.device)
        own = len(sums) + 1
        return found[:own], {**scalars, **dict(zip(tensors, found[own:]))}

    def _set_learning_rates(self, factor: float) -> dict[str, float]:
        rates = {}
        for group in self._engine.optimizer.param_groups:
            lr, weight_decay = self._groups[group["name"]]
            group["lr"] = rates[group["name"]] = lr * factor
            # a loaded checkpoint brings its own
            group["weight_decay"] = weight_decay
        return rates

    @property
    def decay(self) -> dict[str, float]:
        """Weight decay of each parameter group."""
        return {name: weight_decay for name, (_, weight_decay) in self._groups.items()}

    def own_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Group of each trained weight, and what this rank has of it: all, or at stage 3 its part."""
        for name, parameter in self.task.model.named_parameters():
            group = self.parameters[name]["group"]
            if isinstance(group, str):
                yield group, getattr(parameter, "ds_tensor", parameter)

    def state_dict_on_rank0(self) -> dict[str, Tensor] | None:
        """The model's weights, frozen ones included, in float32 on the CPU of rank 0; None on other ranks.

        In bf16 the trained ones are the master weights, which no rounding has touched.
        """
        state = {}
        for name, value in self.model.state_dict(keep_vars=True).items():
            full = self._full_tensor(value)
            if self.place.rank == 0:
                full = full.detach().to(device="cpu", copy=True)
                state[name] = full.float() if full.is_floating_point() else full
        return state if self.place.rank == 0 else None

    def _full_tensor(self, value: Tensor) -> Tensor:
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        if id(value) in self._masters:
            return self._masters[id(value)]
        if value.requires_grad and self.dtype != torch.float32:
            master = safe_get_full_fp32_param(value)
            assert master is not None, "a trained weight without master"
            return master
        is_split = hasattr(value, "ds_id")
        with deepspeed.zero.GatheredParameters([value]) if is_split else nullcontext():
            return value.detach().clone() if is_split else value

    def save(self, directory: Path) -> None:
        """Writes weights and optimizer state of all ranks into `directory`, which must be there."""
        # at stage 0 DeepSpeed keeps master weights without their names
        named = {_NAMES_OF_MASTERS: self._names_of_masters}
        self._engine.save_checkpoint(str(directory), tag=_TAG, client_state=named, save_latest=False)

    def load(self, directory: Path) -> None:
        """Reads what `save` wrote, in a fresh engine on as many ranks and at the same stage."""
        path, _ = self._engine.load_checkpoint(str(directory), tag=_TAG)
        assert path is not None, f"nothing to load in {directory}"

    @property
    def num_steps(self) -> int:
        """Optimizer steps done, those before a resume included."""
        return self._engine.global_steps

    def close(self) -> None:
        """Frees what DeepSpeed holds; the engine cannot be used again."""
        self._engine.destroy()

    def _use_checked_reader(self) -> None:
        """Makes DeepSpeed read its files without running code from them."""

        def load(path: str, map_location: Any = None) -> Any:
            with _reading_safely():
                return torch.load(path, map_location=map_location, weights_only=True)

        self._engine.checkpoint_engine.load = load


def consolidated(directory: Path, stage: int) -> dict[str, Tensor]:
    """The model's weights from what the engines of all ranks wrote, put together in this process, which has no engine.

    Args:
        directory: that `Engine.save` wrote into.
        stage: of ZeRO, under which it did.

    Returns:
        As from `Engine.state_dict_on_rank0`.

    Raises:
        UserError: files of a rank are missing or damaged.
    """
    if not torch.cuda.is_available():
        # else DeepSpeed looks for accelerators and warns that it found none
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        with _reading_safely():
            found = _of_one_rank(directory) if stage == 0 else _of_all_ranks(directory, stage)
    except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{directory} is incomplete or damaged ({reason(error)}): use another checkpoint") from error
    inside = {name.removeprefix(_IN_TASK): value for name, value in found.items() if name.startswith(_IN_TASK)}
    return {name: value.float() if value.is_floating_point() else value for name, value in inside.items()}


def _of_all_ranks(directory: Path, stage: int) -> dict[str, Tensor]:
    """From ZeRO 1 to 3."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    _quieten()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        masters = get_fp32_state_dict_from_zero_checkpoint(str(directory), tag=_TAG)
    # of stage 1 DeepSpeed's function leaves frozen weights out; below 3 every rank has them whole
    return masters if stage == 3 else {**_states_of_rank_0(directory)["module"], **masters}


def _of_one_rank(directory: Path) -> dict[str, Tensor]:
    """Without ZeRO each rank has all; trained weights in bf16 have masters in float32."""
    saved = _states_of_rank_0(directory)
    masters = (saved["optimizer"] or {}).get("fp32_groups", [])
    for names, group in zip(saved[_NAMES_OF_MASTERS], masters, strict=True):
        saved["module"].update((_IN_TASK + name, master) for name, master in zip(names, group, strict=True))
    return saved["module"]


def _states_of_rank_0(directory: Path) -> dict[str, Any]:
    return torch.load(directory / _TAG / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=True)


@contextmanager
def _reading_safely() -> Iterator[None]:
    """Lets torch.load read DeepSpeed's files, and nobody run code from them, whatever the caller of torch.load asks."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get(_ONLY_WEIGHTS)
    os.environ[_ONLY_WEIGHTS] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        if before is None:
            del os.environ[_ONLY_WEIGHTS]
        else:
            os.environ[_ONLY_WEIGHTS] = before


def _quieten() -> None:
    """Keeps from the user what the user can do nothing about."""
    import deepspeed.ops

    for name in ("DeepSpeed", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR if name.startswith("torch") else logging.WARNING)
    # DeepSpeed calls collectives by names that torch is about to drop
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    # it would compile a kernel for inference at the first start on a machine, for half a minute
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _optimizer(groups: Sequence[ParamGroup], offloaded: bool, device: torch.device) -> torch.optim.Optimizer:
    # learning rates are set before each step; at 0 nothing that DeepSpeed does while it starts can move a weight
    at_rest = [{**group, "lr": 0.0} for group in groups]
    if offloaded:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(at_rest, adamw_mode=True)
    return torch.optim.AdamW(at_rest, fused=device.type in ("cpu", "cuda"))


def _refuse_scalar_parameters(task: nn.Module) -> None:
    scalars = [name for name, parameter in task.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise UserError(
            f"DeepSpeed cannot take parameters without a dimension: give {', '.join(scalars)} the shape [1]"
        )

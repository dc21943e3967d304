"""The one file that knows DeepSpeed: steps the weights, takes them out whole by name and puts them back.

What a checkpoint holds is what `weights` and `moments` give and `load` takes: whole tensors by name, the same at any
ZeRO stage, on any number of ranks, in any precision. DeepSpeed's own files are neither written nor read.

DeepSpeed is imported inside functions, so evaluation and serving never load it.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmsr_pt.batch import UserBatch
from mmsr_pt.log import UserError
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.training.distributed import fetched, summed
from mmsr_pt.training.ds_config import offloads_optimizer, zero_stage
from mmsr_pt.training.launch import DistInfo
from mmsr_pt.training.optim import ParamGroup
from mmsr_pt.training.task import NextItemTask
from mmsr_pt.training.tensor_file import Layout

_MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps for each weight, as torch and DeepSpeed call it."""


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
        self.weights_layout: Layout = {
            name: (torch.float32 if value.is_floating_point() else value.dtype, tuple(value.shape))
            for name, value in task.model.state_dict().items()
        }
        self.moments_layout: Layout = {
            f"{name}.{moment}": (torch.float32, tuple(parameter.shape))
            for name, parameter in task.model.named_parameters()
            if id(parameter) in group_of
            for moment in _MOMENTS
        }
        self._engine = deepspeed.initialize(
            model=task,
            optimizer=_optimizer(groups, self.offloads_optimizer, place.device),
            config=copy.deepcopy(dict(ds_config)),
        )[0]
        self.dtype: torch.dtype = self._engine.get_data_types()[0]
        self._keeps_plain_optimizer = isinstance(self._engine.optimizer, torch.optim.Optimizer)
        self._masters: dict[int, Tensor] = {}
        if self.zero_stage == 0 and not self._keeps_plain_optimizer:
            optimizer = self._engine.optimizer
            # its constructor takes a step with zero gradients, which would count as Adam's first
            optimizer.optimizer.state.clear()
            for weights, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups):
                self._masters.update((id(weight), master) for weight, master in zip(weights, masters))
        found = [group["name"] for group in self._engine.optimizer.param_groups]
        assert found == list(self._groups), f"DeepSpeed made the groups {found} of {list(self._groups)}"

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
        for name, full in self.weights():
            if self.place.rank == 0:
                state[name] = full.to(device="cpu", copy=True)
        return state if self.place.rank == 0 else None

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The model's weights and buffers by name as `weights_layout` says, whole, one after the other on the device.

        Collective: go to the end on every rank. What comes may be the weight itself: copy what is to be kept.
        """
        for name, value in self.model.state_dict(keep_vars=True).items():
            full = self._full_tensor(value).detach()
            yield name, full.float() if full.is_floating_point() else full

    def moments(self) -> Iterator[tuple[str, Tensor]]:
        """Adam's state by name as `moments_layout` says, likewise."""
        if not self._adam():
            self._make_adam(num_updates=0)
        self._link_moments()
        for name, parameter in self._trained():
            for moment in _MOMENTS:
                yield f"{name}.{moment}", self._full_moment(parameter, moment).detach().float()

    def load(
        self, weights: Callable[[str], Tensor], moments: Callable[[str], Tensor], num_steps: int, num_updates: int
    ) -> None:
        """Takes up a training where another engine, perhaps in another layout, left it.

        Args:
            weights: gives what `weights` gave by name, whole and on every rank; asked for each once, in that order.
            moments: likewise what `moments` gave, after all weights.
            num_steps: of the other engine.
            num_updates: likewise.
        """
        for name, value in self.model.state_dict(keep_vars=True).items():
            self._put_weight(value, weights(name))
        self._make_adam(num_updates)
        self._link_moments()
        for name, parameter in self._trained():
            for moment in _MOMENTS:
                self._put_moment(parameter, moment, moments(f"{name}.{moment}"))
        self._engine.global_steps = num_steps
        self._engine.global_samples = num_steps * self._engine.train_batch_size()

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        parameters = dict(self.model.named_parameters())
        return ((name, parameters[name]) for name, known in self.parameters.items() if known["group"] is not None)

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

    def _put_weight(self, value: Tensor, full: Tensor) -> None:
        """Into the weight, rounded as DeepSpeed rounds it after a step, and into its master, which is not rounded."""
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        is_split = hasattr(value, "ds_id")
        with deepspeed.zero.GatheredParameters([value], modifier_rank=0) if is_split else nullcontext():
            value.data.copy_(full)
        if id(value) in self._masters:
            self._masters[id(value)].data.copy_(full)
        elif value.requires_grad and self.zero_stage == 3:
            safe_set_local_fp32_param(value, self._own_part(value, full))
        elif value.requires_grad and self.zero_stage > 0:
            safe_set_full_fp32_param(value, full)

    def _full_moment(self, parameter: nn.Parameter, moment: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        if self.zero_stage == 0:
            return self._adam()[self._masters.get(id(parameter), parameter)][moment]
        return safe_get_full_optimizer_state(parameter, moment)

    def _put_moment(self, parameter: nn.Parameter, moment: str, full: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.zero_stage == 0:
            self._adam()[self._masters.get(id(parameter), parameter)][moment].copy_(full)
        elif self.zero_stage == 3:
            safe_set_local_optimizer_state(parameter, self._own_part(parameter, full), moment)
        else:
            safe_set_full_optimizer_state(parameter, full, moment)

    def _own_part(self, parameter: Any, full: Tensor) -> Tensor:
        """This rank's part of a weight at stage 3; the last one ends in zeros, which DeepSpeed's own setter forgets."""
        size = parameter.ds_tensor.numel()
        part = full.new_zeros(size)
        own = full.reshape(-1)[self.place.rank * size : (self.place.rank + 1) * size]
        part[: own.numel()] = own
        return part

    def _adam(self) -> dict[Tensor, dict[str, Any]]:
        """The state of the torch optimizer below all wrappers, by what it steps: weights, masters, or parts of them."""
        optimizer = self._engine.optimizer
        return (optimizer if self._keeps_plain_optimizer else optimizer.optimizer).state

    def _link_moments(self) -> None:
        """Lets DeepSpeed find at stages 1 and 2 the part of the optimizer's state that belongs to a weight.

        It does so itself once its first group is stepped (0.19.8), when the other groups have no state yet.
        """
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        if self.zero_stage in (1, 2):
            optimizer = self._engine.optimizer
            for weights, part in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups):
                lazy_init_hp_params_optimizer_state(weights, part, self._adam())

    def _make_adam(self, num_updates: int) -> None:
        """Makes the state that Adam makes at its first step, of zeros, so that there is something to put into."""
        optimizer = self._engine.optimizer
        if self.zero_stage == 3:
            stepped = list(optimizer.fp32_partitioned_groups_flat)
        elif self.zero_stage > 0:
            stepped = list(optimizer.single_partition_of_fp32_groups)
        else:
            stepped = [self._masters.get(id(parameter), parameter) for _, parameter in self._trained()]
        for tensor in stepped:
            # DeepSpeed's Adam counts in numbers, torch's fused one in tensors
            step = num_updates if self.offloads_optimizer else torch.tensor(float(num_updates), device=tensor.device)
            moments = {moment: torch.zeros_like(tensor, requires_grad=False) for moment in _MOMENTS}
            self._adam()[tensor] = {"step": step, **moments}

    @property
    def num_steps(self) -> int:
        """Optimizer steps done, those before a resume included."""
        return self._engine.global_steps

    @property
    def num_updates(self) -> int:
        """How often Adam has stepped the weights, which it corrects its moments by: all of them alike.

        DeepSpeed gives weights zeros that got no gradient, so one number stands for all.
        """
        counts = {int(state["step"]) for state in self._adam().values() if "step" in state} or {0}
        assert len(counts) == 1, f"some weights were stepped more often than others: {counts}"
        return counts.pop()

    def close(self) -> None:
        """Frees what DeepSpeed holds; the engine cannot be used again."""
        self._engine.destroy()


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

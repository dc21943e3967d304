"""Who learns how fast: parameter groups for text, vision, both and the rest; the decay of their rates over a run."""

from __future__ import annotations

from typing import TypedDict

import torch
from rich import box
from rich.table import Table
from torch import nn

from mmsr_pt.batch import ItemInputs
from mmsr_pt.config import OptimConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.layer_groups import LayerGroup
from mmsr_pt.models.recommender import Recommender

# embeddings that say where a token stands, of which kind it is or that it is hidden; looked for among the parts of a
# parameter's name
_EMBEDDINGS_WITHOUT_DECAY = {"positions", "types", "hidden_item"}


class ParamGroup(TypedDict):
    """One group as torch optimizers want it."""

    name: str
    """text, vision, joint, rest or rest_no_decay."""
    params: list[nn.Parameter]
    lr: float
    weight_decay: float


def param_groups(model: Recommender, config: OptimConfig) -> list[ParamGroup]:
    """The trained parameters, each in one group; groups that would be empty are left out.

    DeepSpeed drops empty groups, and once mixed up the learning rates of those behind a group without trained
    parameters: here is neither.
    """
    settings = {
        "text": (config.text_lr, config.encoder_weight_decay),
        "vision": (config.vision_lr, config.encoder_weight_decay),
        "joint": (config.joint_lr, config.encoder_weight_decay),
        "rest": (config.lr, config.weight_decay),
        "rest_no_decay": (config.lr, 0.0),
    }
    parameters = dict(model.named_parameters())
    members: dict[str, list[nn.Parameter]] = {name: [] for name in settings}
    for layer_group in model.layer_groups():
        for name in layer_group.parameters:
            parameter = parameters.pop(name)
            if parameter.requires_grad:
                members[_group_of(layer_group, name, parameter)].append(parameter)
    assert not parameters, f"layer_groups() of the model leaves out {next(iter(parameters))}"
    return [
        {"name": name, "params": members[name], "lr": lr, "weight_decay": weight_decay}
        for name, (lr, weight_decay) in settings.items()
        if members[name]
    ]


def _group_of(layer_group: LayerGroup, name: str, parameter: nn.Parameter) -> str:
    if layer_group.kind != "rest":
        return layer_group.kind
    is_undecayed = parameter.ndim <= 1 or not _EMBEDDINGS_WITHOUT_DECAY.isdisjoint(name.split("."))
    return "rest_no_decay" if is_undecayed else "rest"


def group_table(model: Recommender, config: OptimConfig) -> Table:
    """Tensors, parameters, rate and decay of each layer group; call it before ZeRO-3 takes the weights apart."""
    settings = {id(p): group for group in param_groups(model, config) for p in group["params"]}
    table = Table(title="layer groups", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("group", "tensors", "parameters", "", "learning rate", "decay"):
        table.add_column(column, justify="left" if column in ("group", "") else "right", no_wrap=True)
    total = {True: 0, False: 0}
    for layer_group in model.layer_groups():
        parameters = [model.get_parameter(name) for name in layer_group.parameters]
        count = sum(parameter.numel() for parameter in parameters)
        total[layer_group.trained] += count
        row = [layer_group.name, f"{len(parameters)}", f"{count:,}", "trained" if layer_group.trained else "frozen"]
        if layer_group.trained:
            groups = [settings[id(parameter)] for parameter in parameters]
            decays = sorted({group["weight_decay"] for group in groups}, reverse=True)
            row += [f"{groups[0]['lr']:g}", ", ".join(f"{decay:g}" for decay in decays)]
        table.add_row(*row)
    table.add_section()
    table.add_row("all", "", f"{total[True] + total[False]:,}", f"{total[True]:,} trained")
    return table


def check_gradients(model: Recommender) -> None:
    """Sends two made-up items through a model on the CPU: exactly what is to train must get a gradient.

    DeepSpeed would wait for a gradient that never comes, or step with none, and say nothing.

    Raises:
        UserError: naming the parameter.
    """
    spec = model.image_spec
    inputs = ItemInputs(
        ids=torch.arange(2),
        title_ids=torch.full((2, 4), 4),
        title_mask=torch.ones(2, 4, dtype=torch.bool),
        images=None if spec is None else torch.zeros(2, 3, spec.height, spec.width, dtype=torch.uint8),
    )
    vectors = model.encode_items(inputs)
    users = model.encode_users(vectors[None], torch.ones(1, 2, dtype=torch.bool))
    model.score_pairs(users, vectors[None]).sum().backward()
    for group in model.layer_groups():
        for name in group.parameters:
            parameter = model.get_parameter(name)
            if group.trained and parameter.grad is None:
                raise UserError(f"{name} of group {group.name} trains, but no item's score depends on it")
            if not group.trained and (parameter.requires_grad or parameter.grad is not None):
                raise UserError(f"{name} of group {group.name} is frozen, and would train")
    model.zero_grad(set_to_none=True)


def learning_rate_factor(step: int, total_steps: int, decay_from: float = 0.8, final: float = 0.1) -> float:
    """What the learning rates are multiplied by at a step (section 4.2 of the paper): 1, then linearly down to `final`.

    A pure function of the step, so a resumed run needs no scheduler state.

    Args:
        step: steps done before this one, from 0.
        total_steps: of the whole run.
        decay_from: share of the run after which the fall begins.
        final: factor of the last step.
    """
    first, last = decay_from * total_steps, total_steps - 1
    if step <= first:
        return 1.0
    if step >= last:
        return final
    return 1.0 - (1.0 - final) * (step - first) / (last - first)

"""Who learns how fast: parameter groups for text, vision and the rest, and the decay of their rates over a run."""

from __future__ import annotations

from typing import TypedDict

from torch import nn

from mmsr_pt.config import OptimConfig
from mmsr_pt.models.layer_groups import LayerGroup
from mmsr_pt.models.recommender import MMSRModel

# embeddings that say where a token stands or of which kind it is; looked for among the parts of a parameter's name
_EMBEDDINGS_WITHOUT_DECAY = {"positions", "types"}


class ParamGroup(TypedDict):
    """One group as torch optimizers want it."""

    name: str
    """text, vision, rest or rest_no_decay."""
    params: list[nn.Parameter]
    lr: float
    weight_decay: float


def param_groups(model: MMSRModel, config: OptimConfig) -> list[ParamGroup]:
    """The trained parameters, each in one group; groups that would be empty are left out.

    DeepSpeed drops empty groups, and once mixed up the learning rates of those behind a group without trained
    parameters: here is neither.
    """
    settings = {
        "text": (config.text_lr, config.encoder_weight_decay),
        "vision": (config.vision_lr, config.encoder_weight_decay),
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

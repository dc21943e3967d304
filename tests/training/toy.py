"""A toy recommender and its batches, small enough to check the engine against plain torch."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmsr_pt.config import OptimConfig
from mmsr_pt.models.layer_groups import LayerGroup

NUM_SLOTS = 4
"""Parts of unequal weight that a step's batch falls into: ranks x micro-batches share them out."""
OPTIM = OptimConfig(lr=0.1, text_lr=0.01, vision_lr=0.02, weight_decay=0.1, encoder_weight_decay=0.05)


class ToyModel(nn.Module):
    """A frozen group first, then two towers and a head: linear maps with values that bf16 holds exactly."""

    def __init__(self, seed: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.text_bottom = nn.Linear(4, 6)
        self.text_top = nn.Linear(6, 5)
        self.vision_bottom = nn.Linear(4, 5)
        self.vision_top = nn.Linear(5, 5)
        self.positions = nn.Embedding(3, 5)
        self.norm = nn.LayerNorm(5)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(5, 2)
        self.register_buffer("shift", torch.tensor([0.5, -0.25]))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator).bfloat16())
        self.text_bottom.requires_grad_(False)

    def layer_groups(self) -> list[LayerGroup]:
        return [
            LayerGroup("text.bottom", "text", ("text_bottom.weight", "text_bottom.bias"), trained=False),
            LayerGroup("text.top", "text", ("text_top.weight", "text_top.bias"), trained=True),
            LayerGroup("vision", "vision", tuple(f"vision_{p}.{k}" for p in ("bottom", "top") for k in KINDS), True),
            LayerGroup(
                "rest", "rest", ("positions.weight", *(f"{p}.{k}" for p in ("norm", "head") for k in KINDS)), True
            ),
        ]

    def encode(self, x: Tensor) -> Tensor:
        x = x.to(self.head.weight.dtype)
        text = self.text_top(torch.tanh(self.text_bottom(x)))
        vision = self.vision_top(torch.tanh(self.vision_bottom(x)))
        hidden = text + vision + self.positions(torch.arange(3, device=x.device))
        return self.head(self.dropout(self.norm(hidden))) + self.shift


KINDS = ("weight", "bias")


@dataclass
class ToyBatch:
    x: Tensor
    """[B, 3, 4]."""
    y: Tensor
    """[B, 3, 2]."""
    targets: Tensor
    """[B, 3] bool."""
    broken_gradient: bool = False


class ToyTask(nn.Module):
    def __init__(self, model: ToyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: ToyBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        error = (self.model.encode(batch.x).float() - batch.y)[batch.targets]
        loss = error.square().sum()
        if batch.broken_gradient:
            loss = loss + torch.sqrt(0 * loss)  # 0, with the gradient 0 x infinity
        return loss, batch.targets.sum(), {"rows": torch.tensor(len(batch.x))}


def slots_of_step(step: int) -> list[ToyBatch]:
    """The step's batch in NUM_SLOTS parts with 1, 5, 2 and 9 valid positions."""
    generator = torch.Generator().manual_seed(step)
    slots = []
    for num_valid in (1, 5, 2, 9):
        x, y = torch.randn(3, 3, 4, generator=generator), torch.randn(3, 3, 2, generator=generator)
        # far off scale, so that a wrong weight of a part shows
        slots.append(ToyBatch(x, y * num_valid, (torch.arange(9) < num_valid).view(3, 3)))
    return slots


def joined(slots: list[ToyBatch]) -> ToyBatch:
    return ToyBatch(*(torch.cat([getattr(slot, name) for slot in slots]) for name in ("x", "y", "targets")))

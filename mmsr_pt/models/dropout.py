"""How much a model drops, whoever wrote its parts; and items that are read without one of their modalities.

Shapes: N items, T text tokens, V vision tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_OF_PROBABILITIES = ("dropout", "attn_drop", "attention_dropout")
"""What attention modules call the dropout of their probabilities."""


class ModalityDropout(nn.Module):
    """In training, takes from some items their title or their picture, so that a model learns to do with either.

    After ModDrop (Neverova et al. 2016, arXiv 1501.00102), which drops each modality on its own, perhaps all of them;
    here, as in AV-HuBERT (Shi et al. 2022, arXiv 2201.02184), one at most, whose features become zero.
    """

    def __init__(self, rate: float) -> None:
        """Args: rate: share of the items that lose a modality, either with equal chance, in [0, 1)."""
        super().__init__()
        # no name that `set_dropout` looks for: --dropout 0 leaves it as it is
        self.rate = rate

    def forward(self, text: Tensor, vision: Tensor) -> tuple[Tensor, Tensor]:
        """[N, T, D], [N, V, D] -> the same, all zeros where the modality is dropped."""
        if not self.training or self.rate == 0:
            return text, vision
        drawn = torch.rand(len(text), 1, 1, device=text.device)
        return text.masked_fill(drawn < self.rate / 2, 0), vision.masked_fill(drawn >= 1 - self.rate / 2, 0)


def set_dropout(model: nn.Module, dropout: float, attention_dropout: float) -> None:
    """Sets the rates that a configuration decides over the towers' own.

    Args:
        model: a whole recommender.
        dropout: at 0 every dropout in it is turned off; above, parts keep the rates they were built with, pretrained
            towers those of their own configuration.
        attention_dropout: of attention probabilities everywhere, unless all are off.
    """
    for module in model.modules():
        if dropout == 0:
            _turn_off(module)
        elif _is_attention(module):
            for name in _OF_PROBABILITIES:
                rate = getattr(module, name, None)
                if isinstance(rate, nn.Dropout):
                    rate.p = attention_dropout
                elif isinstance(rate, float):
                    setattr(module, name, attention_dropout)


def _is_attention(module: nn.Module) -> bool:
    """Innermost only: T5's layers around an attention are called attention too, and drop what comes out of it."""
    names = [type(part).__name__ for part in (module, *module.children())]
    return names[0].endswith("Attention") and not any(name.endswith("Attention") for name in names[1:])


def _turn_off(module: nn.Module) -> None:
    if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d)):
        module.p = 0.0
    # timm drops whole paths; some attention modules keep their rate as a plain number
    for name, value in vars(module).items():
        if isinstance(value, float) and ("dropout" in name or name == "drop_prob"):
            setattr(module, name, 0.0)

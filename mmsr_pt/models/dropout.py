"""How much a model drops, whoever wrote its parts."""

from __future__ import annotations

from torch import nn

_OF_PROBABILITIES = ("dropout", "attn_drop", "attention_dropout")
"""What attention modules call the dropout of their probabilities."""


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

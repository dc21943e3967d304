"""A model's two towers as ONNX graphs: items to vectors, and the vectors of a history to what scores the next item.

Both take any number of rows at once, titles and histories of any length that the model reads. What a graph computes is
the model's own code, traced once; `onnx_check.py` says how far it is from torch.

Shapes: N items, T text tokens, B users, L positions, D width of the vectors.
"""

from __future__ import annotations

import contextlib
import io
import logging
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from mmsr_pt.batch import ItemInputs
from mmsr_pt.log import UserError, reason
from mmsr_pt.model import MMSRModel
from mmsr_pt.models.recommender import Recommender

OPSETS = range(18, 24)
"""Versions of ONNX's operators that the exporter writes."""
LARGEST_FILE = 1_500_000_000
"""Bytes of weights up to which a graph is one file; the format ends at 2 GiB, and more lie in a file beside it."""


class Port(NamedTuple):
    """A tensor that goes into a tower, or comes out of it."""

    name: str
    dtype: str
    shape: tuple[str | int, ...]
    """Letters stand for sizes that differ from call to call."""
    meaning: str


class Ports(NamedTuple):
    """All that goes into a tower, in order, and what comes out."""

    inputs: tuple[Port, ...]
    output: Port
    largest: Mapping[str, int]
    """Letters -> the largest size, where there is one."""


def item_ports(model: MMSRModel) -> Ports:
    """Of the item tower."""
    recommender, longest = model.recommender, model.preprocessor.title_tokens
    inputs: list[Port] = []
    if recommender.config.learns_items:
        inputs.append(Port("ids", "int64", ("N",), "row of the item in the catalogue that the model was trained on"))
    if model.preprocessor.tokenizer is not None:
        shape = ("N", _letter("T", longest))
        inputs.append(Port("title_ids", "int64", shape, "token ids, padded on the right"))
        inputs.append(Port("title_mask", "bool", shape, "true where a token is real"))
    spec = model.preprocessor.image
    if spec is not None:
        meaning = "RGB, resized as preprocessor.json says; the graph normalises them"
        inputs.append(Port("images", "uint8", ("N", 3, spec.height, spec.width), meaning))
    return Ports(tuple(inputs), Port("vectors", "float32", ("N", _width(recommender)), "of the items"), {"T": longest})


def user_ports(model: MMSRModel) -> Ports:
    """Of the user tower."""
    width, longest = _width(model.recommender), model.recommender.config.max_history
    positions = _letter("L", longest)
    inputs = (
        Port("vectors", "float32", ("B", positions, width), "items of each history, oldest first, real ones left"),
        Port("mask", "bool", ("B", positions), "true where an item is real, at least one in each history"),
    )
    return Ports(inputs, Port("users", "float32", ("B", width), "what scores the next item"), {"L": longest})


def _letter(letter: str, largest: int) -> str | int:
    # a size of 1 or 2 cannot be told from one that never changes: shorter ones are padded to it
    return letter if largest > 2 else largest


def _width(recommender: Recommender) -> int:
    return recommender.config.width * (2 if recommender.config.item == "both" else 1)


class ItemTower(nn.Module):
    """The item encoder behind tensors in the order of their names."""

    def __init__(self, recommender: Recommender, names: Sequence[str]) -> None:
        super().__init__()
        self.recommender, self.names = recommender, tuple(names)

    def forward(self, *tensors: Tensor) -> Tensor:
        """[N, D]."""
        given = dict(zip(self.names, tensors, strict=True))
        # items that are known by their content alone have no number
        ids = given.pop("ids", None)
        ids = torch.arange(tensors[0].shape[0]) if ids is None else ids
        return self.recommender.encode_items(ItemInputs(ids, **given))


class UserTower(nn.Module):
    """The sequence encoder at the end of a history."""

    def __init__(self, recommender: Recommender) -> None:
        super().__init__()
        self.recommender = recommender

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """[B, L, D], [B, L] bool -> [B, D]."""
        return self.recommender.encode_last(vectors, mask)


@torch.no_grad()
def write_graph(tower: ItemTower | UserTower, ports: Ports, example: Sequence[Tensor], file: Path, opset: int) -> None:
    """Traces a tower and writes its graph, weights of more than LARGEST_FILE bytes into `file`.data beside it.

    Args:
        tower: in evaluation mode, on the CPU.
        ports: its own.
        example: inputs of any sizes but 1.
        file: ends in .onnx.
        opset: of OPSETS.

    Raises:
        UserError: something in the tower has no ONNX counterpart.
    """
    named = tuple({axis: size for axis, size in enumerate(p.shape) if isinstance(size, str)} for p in ports.inputs)
    dims = {letter: Dim(letter, max=ports.largest.get(letter)) for sizes in named for letter in sizes.values()}
    shapes = tuple({axis: dims[letter] for axis, letter in sizes.items()} for sizes in named)
    # arguments behind a star are one argument
    dynamic: Any = (shapes,) if isinstance(tower, ItemTower) else shapes
    try:
        with _quietly(), _recurrence_as_operator(tower):
            traced = torch.export.export(tower, tuple(example), dynamic_shapes=dynamic, strict=False)
            program = torch.onnx.export(
                traced,
                dynamic_shapes=named,
                input_names=[port.name for port in ports.inputs],
                output_names=[ports.output.name],
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # what cannot be traced or translated shows in many ways
        raise UserError(
            f"{file.name} cannot be written, as ONNX has no graph for a part of this model ({reason(error)})"
        ) from error
    assert program is not None
    num_bytes = sum(value.numel() * value.element_size() for value in tower.state_dict().values())
    program.save(file, external_data=num_bytes > LARGEST_FILE)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps the exporter's progress and its advice to programmers from the user."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in noisy]
    try:
        for logger in noisy:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, levels):
            logger.setLevel(level)


@contextlib.contextmanager
def _recurrence_as_operator(tower: nn.Module) -> Iterator[None]:
    """Makes recurrent networks ONNX's own operator: step by step a graph would be as long as the example."""
    recurrent = [module for module in tower.modules() if isinstance(module, nn.GRU)]
    try:
        for module in recurrent:
            module.forward = types.MethodType(_run_gru, module)  # type: ignore[method-assign]
        yield
    finally:
        for module in recurrent:
            del module.forward


def _run_gru(self: nn.GRU, hidden: Tensor) -> tuple[Tensor, None]:
    """[B, L, D] -> [B, L, D]; https://onnx.ai/onnx/operators/onnx__GRU.html."""
    assert self.batch_first
    assert not self.bias
    assert not self.bidirectional
    hidden = hidden.transpose(0, 1)
    for layer in range(self.num_layers):
        weights = [_onnx_gates(getattr(self, f"weight_{kind}_l{layer}")) for kind in ("ih", "hh")]
        settings: dict[str, Any] = {"hidden_size": self.hidden_size, "linear_before_reset": 1}
        shape = (hidden.shape[0], 1, hidden.shape[1], self.hidden_size)
        hidden = torch.onnx.ops.symbolic("GRU", (hidden, *weights), settings, dtype=hidden.dtype, shape=shape)
        hidden = hidden.squeeze(1)
    return hidden.transpose(0, 1), None


def _onnx_gates(weight: Tensor) -> Tensor:
    """[3 D, d], gates as torch orders them (reset, update, new) -> [1, 3 D, d], as ONNX does (update, reset, new)."""
    reset, update, new = weight.chunk(3)
    return torch.cat([update, reset, new]).unsqueeze(0)

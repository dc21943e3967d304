"""How far exported towers are from torch: both on the same drawn inputs of several sizes.

Shapes: N items, T text tokens, B users, L positions, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmsr_pt.batch import ItemInputs
from mmsr_pt.export.graphs import Ports, item_ports, user_ports
from mmsr_pt.log import UserError, reason
from mmsr_pt.model import MMSRModel

TOLERANCE = 1e-4
"""How far an entry of a vector may be from torch's, as a share of the largest entry: sums are rounded in another order,
which makes a few 1e-7 in small towers and a few 1e-6 in deep ones."""
_NUM_ITEMS = (1, 3, 17)
_MOST_HISTORIES = 32


def draw_items(model: MMSRModel, num_items: int, longest: int, generator: torch.Generator) -> list[Tensor]:
    """Items as the item tower reads them, in the order of its inputs.

    Args:
        model: whose.
        num_items: N.
        longest: T; titles have 1 to T tokens, the first one T.
        generator: draws them.
    """
    drawn: dict[str, Tensor] = {}
    tokenizer, spec = model.preprocessor.tokenizer, model.preprocessor.image
    if model.recommender.config.learns_items:
        drawn["ids"] = torch.randint(0, _catalogue_size(model), (num_items,), generator=generator)
    if tokenizer is not None:
        lengths = torch.randint(1, longest + 1, (num_items, 1), generator=generator)
        lengths[0] = longest
        mask = torch.arange(longest) < lengths
        ids = torch.randint(0, tokenizer.vocab_size, (num_items, longest), generator=generator)
        drawn["title_ids"], drawn["title_mask"] = torch.where(mask, ids, tokenizer.pad_id), mask
    if spec is not None:
        size = (num_items, 3, spec.height, spec.width)
        drawn["images"] = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    return [drawn[port.name] for port in item_ports(model).inputs]


def draw_histories(vectors: Tensor, lengths: Tensor, longest: int, generator: torch.Generator) -> list[Tensor]:
    """Histories of items drawn among `vectors` [N, D], as the user tower reads them; `lengths` [B] up to `longest`."""
    chosen = torch.randint(0, len(vectors), (len(lengths), longest), generator=generator)
    return [vectors[chosen], torch.arange(longest) < lengths[:, None]]


@torch.no_grad()
def differences(model: MMSRModel, item_tower: Path, user_tower: Path) -> tuple[float, float]:
    """The largest difference of an entry from torch, as a share of the largest entry: of the item and the user tower.

    Items come 1, 3 and 17 at once with titles of up to 1 token, half and all that the model reads; histories of every
    length there is, or of 32 spread over them.

    Raises:
        UserError: onnxruntime cannot run a graph.
    """
    generator = torch.Generator().manual_seed(0)
    recommender, of_items, of_users = model.recommender, [], []
    ports, vectors = item_ports(model), torch.empty(0)
    graph = Graph(item_tower, ports)
    for num_items, longest in zip(_NUM_ITEMS, _sizes(ports, "T")):
        tensors = draw_items(model, num_items, longest, generator)
        named = {port.name: tensor for port, tensor in zip(ports.inputs, tensors)}
        vectors = recommender.encode_items(ItemInputs(named.pop("ids", torch.arange(num_items)), **named))
        of_items.append(_difference(graph.run(tensors), vectors))
    ports = user_ports(model)
    graph = Graph(user_tower, ports)
    for longest in _sizes(ports, "L"):
        lengths = torch.linspace(1, longest, min(longest, _MOST_HISTORIES)).round().long()
        tensors = draw_histories(vectors, lengths, longest, generator)
        of_users.append(_difference(graph.run(tensors), recommender.encode_last(*tensors)))
    # torch's max, unlike Python's, never loses what is no number
    return torch.stack(of_items).max().item(), torch.stack(of_users).max().item()


class Graph:
    """An ONNX file that onnxruntime runs on the CPU."""

    def __init__(self, file: Path, ports: Ports) -> None:
        """Loads it; raises UserError where it cannot be."""
        import onnxruntime

        self._file, self._names = file, [port.name for port in ports.inputs]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library has a kind of exception for each of its codes
            raise self._not_run(error) from error

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """What comes out for tensors in the order of the inputs."""
        given = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in zip(self._names, tensors, strict=True)}
        try:
            (found,) = self._session.run(None, given)
        except Exception as error:
            raise self._not_run(error) from error
        return torch.from_numpy(found)

    def _not_run(self, error: Exception) -> UserError:
        return UserError(
            f"onnxruntime cannot run {self._file.name} of this model ({reason(error)}): try another --opset"
        )


def _sizes(ports: Ports, letter: str) -> list[int]:
    """1, half and all of the largest size; the one that there is where it does not change."""
    largest = ports.largest[letter]
    is_free = any(letter in port.shape for port in ports.inputs)
    return [1, (largest + 1) // 2, largest] if is_free else [largest] * 3


def _difference(found: Tensor, expected: Tensor) -> Tensor:
    assert found.shape == expected.shape
    return (found - expected).abs().max() / expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)


def _catalogue_size(model: MMSRModel) -> int:
    return model.recommender.item_encoder.config()["num_items"]

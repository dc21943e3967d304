"""Contestants that encode a catalogue: ours, and the same towers as transformers and timm give them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.work import FlopCounter
from mmsr_pt.assembly import build_model
from mmsr_pt.batch import ItemInputs
from mmsr_pt.config import ModelConfig
from mmsr_pt.data.catalogue import item_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.evaluation.evaluate import encode_catalogue
from mmsr_pt.training.launch import init_distributed

TITLE_TOKENS = 50


class _Encoding:
    """Encodes the first items of a catalogue from their bytes."""

    def __init__(self, domain: str, num_items: int, encode: Callable[[int], Tensor]) -> None:
        self._num_items = min(num_items, Domain.load(domain).num_items)
        self._encode = encode

    def run(self) -> dict[str, float]:
        """Encodes them once; returns items_per_s."""
        start = time.perf_counter()
        made = self._encode(self._num_items)
        seconds = time.perf_counter() - start
        assert len(made) == self._num_items
        return {"items_per_s": self._num_items / seconds}

    def work(self) -> dict[str, Any]:
        """Operations of it."""
        with FlopCounter() as counter:
            self._encode(self._num_items)
        return {"units": self._num_items, "flops": dict(counter.flops)}


class Ours(_Encoding):
    """encode_catalogue of evaluation: towers, projections and fusion, to item vectors."""

    def __init__(self, domain: str, text: str, vision: str, num_items: int, batch: int, bf16: bool) -> None:
        """Sets the model up; `batch` as --eval_batch_size."""
        place = init_distributed()
        opened = Domain.load(domain)
        model, preprocessor = build_model(ModelConfig(text=text, vision=vision), [opened])
        model = model.to(place.device, torch.bfloat16 if bf16 else torch.float32).eval()
        source = item_source(opened, preprocessor)
        super().__init__(domain, num_items, lambda number: encode_catalogue(model, source, number, batch))


class Plain(_Encoding):
    """The towers alone, each as its library runs it: titles padded to 50 tokens, float32, inference mode."""

    def __init__(self, domain: str, text: str, vision: str, num_items: int, batch: int) -> None:
        """Loads the towers from the directories that their names hold."""
        import timm
        from transformers import AutoModel

        init_distributed()  # for its settings of threads and memory
        opened = Domain.load(domain)
        model, preprocessor = build_model(ModelConfig(text=text, vision=vision), [opened])
        spec = model.image_spec
        assert spec is not None
        source = item_source(opened, preprocessor)
        text_model: Any = AutoModel.from_pretrained(text.removeprefix("hf:"), dtype=torch.float32).eval()
        directory = Path(vision.removeprefix("timm:local-dir:"))
        vision_model: Any = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
        mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))

        def encode(items: ItemInputs) -> Tensor:
            ids, mask = padded(items, preprocessor)
            titles = text_model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            assert items.images is not None
            pictures = vision_model.forward_features((items.images.float() / 255 - mean) / std)
            assert len(titles) == len(pictures)
            return titles[:, 0]

        @torch.inference_mode()
        def encode_all(number: int) -> Tensor:
            return torch.cat([encode(items) for items in source(range(number), batch)])

        super().__init__(domain, num_items, encode_all)


def padded(items: ItemInputs, preprocessor: Preprocessor) -> tuple[Tensor, Tensor]:
    """Title ids and mask, [N, 50] both."""
    assert items.title_ids is not None
    assert items.title_mask is not None
    assert preprocessor.tokenizer is not None
    missing = TITLE_TOKENS - items.title_ids.shape[1]
    return F.pad(items.title_ids, (0, missing), value=preprocessor.tokenizer.pad_id), F.pad(
        items.title_mask, (0, missing)
    )

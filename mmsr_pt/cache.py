"""The prefix cache: runs the frozen bottoms of a model's towers once over a catalogue, and reads them ever after.

Training then decodes no picture and computes only what it trains. What is kept depends on nothing that training
changes, and the key that a cache is found by covers all it depends on: the domain's fingerprint, the frozen weights,
the cut, the preprocessing and the precision. A stale cache is never used; it is only left behind.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mmsr_pt.batch import ItemInputs
from mmsr_pt.data.activations import ActivationStore, Layout, with_activations
from mmsr_pt.data.catalogue import item_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.evaluation.evaluate import ItemSource
from mmsr_pt.log import UserError, redraw_seconds
from mmsr_pt.models.item_encoder import ContentItemEncoder
from mmsr_pt.models.recommender import MMSRModel
from mmsr_pt.models.tower import Activations, Tower
from mmsr_pt.training.distributed import barrier, from_rank0, rank, world_size

log = logging.getLogger(__name__)

_FORMAT_VERSION = 2


@dataclass(frozen=True)
class ItemCache:
    """The caches of a run's domains."""

    preprocessor: Preprocessor
    """What must still be read raw."""
    stores: list[ActivationStore]
    bases: list[int]
    """Number of the first item of each domain in this run."""

    def fill(self, items: ItemInputs) -> ItemInputs:
        """The items of a training batch with their activations."""
        return with_activations(items, self.stores, self.bases)

    def source(self, domain: Domain, number: int) -> ItemSource:
        """The catalogue of the run's domain of that number, by rows, for evaluation."""
        raw, store = item_source(domain, self.preprocessor), self.stores[number]

        def batches(rows: range, batch_size: int) -> Iterator[ItemInputs]:
            for items in raw(rows, batch_size):
                yield with_activations(items, [store], [0])

        return batches


def open_cache(
    model: MMSRModel, preprocessor: Preprocessor, domains: Sequence[Domain], dtype: torch.dtype, device: torch.device
) -> ItemCache:
    """The caches of these domains for this model, built where they are not there yet. Collective.

    Args:
        model: freshly built, on the CPU in float32; it comes back as it was.
        preprocessor: of the model.
        domains: each gets its cache in its own directory, which all ranks must share.
        dtype: in which activations are kept.
        device: where they are computed.

    Raises:
        UserError: the model has no frozen bottom, or the disk has too little room.
    """
    encoder = model.item_encoder
    if not isinstance(encoder, ContentItemEncoder) or not (_is_cut(encoder.text) or _is_cut(encoder.vision)):
        raise UserError("--cache: this model has no frozen bottom to keep the output of: leave --cache out")
    raw = dataclasses.replace(
        preprocessor,
        tokenizer=None if _is_cut(encoder.text) else preprocessor.tokenizer,
        image=None if _is_cut(encoder.vision) else preprocessor.image,
    )
    model.to(device)
    stores = [_open(encoder, preprocessor, domain, dtype, device) for domain in domains]
    model.cpu()
    bases = [sum(domain.num_items for domain in domains[:number]) for number in range(len(domains))]
    return ItemCache(raw, stores, bases)


def _is_cut(tower: Tower | None) -> bool:
    return tower is not None and tower.has_prefix


def _open(
    encoder: ContentItemEncoder,
    preprocessor: Preprocessor,
    domain: Domain,
    dtype: torch.dtype,
    device: torch.device,
) -> ActivationStore:
    titles = preprocessor.encode_titles(domain.titles()) if _is_cut(encoder.text) else None
    lengths = None if titles is None else torch.tensor([len(title) for title in titles])
    key = hashlib.sha256(f"{_FORMAT_VERSION} {domain.fingerprint} {dtype}".encode())
    for title in titles or ():
        key.update(title.tobytes() + b"|")
    _add_towers(key, encoder, preprocessor)
    directory = domain.path / "cache" / key.hexdigest()[:32]
    if not from_rank0(directory.is_dir):
        reads = Preprocessor(
            tokenizer=preprocessor.tokenizer if _is_cut(encoder.text) else None,
            image=preprocessor.image if _is_cut(encoder.vision) else None,
            title_tokens=preprocessor.title_tokens,
        )
        _build(directory, encoder, reads, domain, dtype, device, lengths)
    return ActivationStore(directory)


def _add_towers(key: hashlib._Hash, encoder: ContentItemEncoder, preprocessor: Preprocessor) -> None:
    for tower in (encoder.text, encoder.vision):
        if tower is None or not tower.has_prefix:
            continue
        key.update(json.dumps([tower.config(), str(preprocessor.image)], sort_keys=True).encode())
        for name, tensor in tower.prefix_state().items():
            key.update(name.encode())
            key.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def _build(
    directory: Path,
    encoder: ContentItemEncoder,
    reads: Preprocessor,
    domain: Domain,
    dtype: torch.dtype,
    device: torch.device,
    lengths: Tensor | None,
) -> None:
    """Writes the cache of a domain, each rank its share of the rows. Collective."""
    unfinished = directory.with_name(f".{directory.name}.tmp")
    source = item_source(domain, reads)
    text, _, vision = _prefix(encoder, next(source(range(1), 1)).to(device))

    def prepare() -> None:
        layout = Layout(
            num_items=domain.num_items,
            dtype=str(dtype).removeprefix("torch."),
            text_width=None if text is None else text.shape[-1],
            num_tokens=0 if lengths is None else int(lengths.sum()),
            vision_shape=None if vision is None else tuple(vision.shape[1:]),
        )
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        free = shutil.disk_usage(unfinished).free
        if layout.num_bytes > free:
            shutil.rmtree(unfinished)
            raise UserError(
                f"--cache needs {layout.num_bytes / 1e9:.2f} GB in {directory.parent}, which has {free / 1e9:.2f} GB "
                "free: make room, move the domain, or leave --cache out"
            )
        log.info(
            "caching the frozen part of %d items of %s: %.2f GB", layout.num_items, domain.name, layout.num_bytes / 1e9
        )
        ActivationStore.create(unfinished, layout, lengths)

    from_rank0(prepare)
    store = ActivationStore(unfinished)
    rows = range(domain.num_items * rank() // world_size(), domain.num_items * (rank() + 1) // world_size())
    bar = tqdm(
        total=len(rows),
        desc="cache",
        unit="item",
        disable=rank() != 0,
        mininterval=redraw_seconds(),
    )
    for items in source(rows, 32) if rows else ():
        store.write(items.ids, *_prefix(encoder, items.to(device)))
        bar.update(len(items))
    bar.close()
    barrier()
    if rank() == 0:
        unfinished.rename(directory)
    barrier()
    if not directory.is_dir():
        raise UserError(f"{directory} was built by another host: --cache needs domains on a file system all hosts see")


def _prefix(encoder: ContentItemEncoder, items: ItemInputs) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Text activations, their mask, and vision activations of the towers that have a frozen bottom, on the CPU."""
    text = mask = vision = None
    if encoder.text is not None and items.title_ids is not None:
        hidden, mask = encoder.text.prefix(Activations(items.title_ids, items.title_mask))
        text, mask = hidden.cpu(), None if mask is None else mask.cpu()
    if encoder.vision is not None and items.images is not None:
        vision = encoder.vision.prefix(Activations(items.images)).hidden.cpu()
    return text, mask, vision

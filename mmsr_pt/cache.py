"""The prefix cache: runs the frozen bottoms of a model's towers once over a catalogue, and reads them ever after.

Training then decodes no picture and computes only what it trains. What is kept depends on nothing that training
changes, and the key that a cache is found by covers all it depends on: the domain's fingerprint, the frozen weights,
the cut, the preprocessing and the precision. A stale cache is never used; it is only left behind. A build that is
interrupted goes on where it was.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mmsr_pt.batch import ItemInputs
from mmsr_pt.data.activations import (
    ERROR_FILE,
    ActivationStore,
    Layout,
    RoundingError,
    has_layout,
    with_activations,
)
from mmsr_pt.data.catalogue import item_source, iter_item_batches
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.evaluation.evaluate import ItemSource
from mmsr_pt.log import UserError, redraw_seconds
from mmsr_pt.models.item_encoder import ContentItemEncoder
from mmsr_pt.models.items import content_of
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.models.towers.tower import Tower
from mmsr_pt.training.distributed import barrier, from_rank0, rank, sum_over_ranks, world_size

log = logging.getLogger(__name__)

_FORMAT_VERSION = 2
_BATCH = {"cpu": 32}
"""Items that go through the towers at once, by type of device: on a CPU so few that they stay in its caches."""
_BATCH_ELSEWHERE = 256
_SAVE_SECONDS = 20
"""Between two moments at which what is done is brought to the disk: at most this much is computed again."""


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
    model: Recommender,
    preprocessor: Preprocessor,
    domains: Sequence[Domain],
    dtype: torch.dtype,
    device: torch.device,
    num_workers: int = 0,
) -> ItemCache:
    """The caches of these domains for this model, built where they are not there yet. Collective.

    Args:
        model: freshly built, on the CPU in float32; it comes back as it was.
        preprocessor: of the model.
        domains: each gets its cache in its own directory, which all ranks must share.
        dtype: in which activations are kept; float32 ones are computed in float32, others (int8 too) in bfloat16.
        device: where they are computed.
        num_workers: loader processes that decode for a rank.

    Raises:
        UserError: the model has no frozen bottom, or the disk has too little room.
    """
    encoder = content_of(model.item_encoder)
    if encoder is None or not (_is_cut(encoder.text) or _is_cut(encoder.vision)):
        raise UserError("--cache: this model has no frozen bottom to keep the output of: leave --cache out")
    raw = dataclasses.replace(
        preprocessor,
        tokenizer=None if _is_cut(encoder.text) else preprocessor.tokenizer,
        image=None if _is_cut(encoder.vision) else preprocessor.image,
    )
    builder = _Builder(encoder, preprocessor, dtype, device, num_workers)
    stores = [builder.open(domain) for domain in domains]
    bases = [sum(domain.num_items for domain in domains[:number]) for number in range(len(domains))]
    return ItemCache(raw, stores, bases)


def _is_cut(tower: Tower | None) -> bool:
    return tower is not None and tower.has_prefix


class _Builder:
    """Finds or builds the caches of one model."""

    def __init__(
        self,
        encoder: ContentItemEncoder,
        preprocessor: Preprocessor,
        dtype: torch.dtype,
        device: torch.device,
        num_workers: int,
    ) -> None:
        self._encoder, self._dtype, self._device, self._num_workers = encoder, dtype, device, num_workers
        self._compute_dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16
        self._reads = Preprocessor(
            tokenizer=preprocessor.tokenizer if _is_cut(encoder.text) else None,
            image=preprocessor.image if _is_cut(encoder.vision) else None,
            title_tokens=preprocessor.title_tokens,
        )

    def open(self, domain: Domain) -> ActivationStore:
        """The store of a domain. Collective."""
        titles = self._reads.encode_titles(domain.titles()) if self._reads.tokenizer is not None else None
        directory = domain.path / "cache" / self._key(domain, titles)
        if not from_rank0(directory.is_dir):
            is_pooled = self._encoder.text is not None and self._encoder.text.is_pooled
            lengths = None if titles is None else torch.tensor([1 if is_pooled else len(title) for title in titles])
            self._build(domain, directory, lengths)
        return ActivationStore(directory)

    def _key(self, domain: Domain, titles: Sequence[np.ndarray] | None) -> str:
        key = hashlib.sha256(f"{_FORMAT_VERSION} {domain.fingerprint} {self._dtype}".encode())
        for title in titles or ():
            key.update(title.tobytes() + b"|")
        for tower in self._encoder.towers().values():
            if not tower.has_prefix:
                continue
            key.update(
                json.dumps([tower.config(), tower.num_prefix_steps(), str(self._reads.image)], sort_keys=True).encode()
            )
            for name, tensor in tower.prefix_state().items():
                key.update(name.encode())
                if tensor.is_floating_point():
                    # as it computes: a bundle of a bf16 run holds its frozen weights rounded, and gives the same
                    tensor = tensor.to(self._compute_dtype)
                key.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return key.hexdigest()[:32]

    def _build(self, domain: Domain, directory: Path, lengths: Tensor | None) -> None:
        """Writes the cache of a domain, each rank its share of the rows. Collective."""
        encoder = copy.deepcopy(self._encoder).to(self._device, self._compute_dtype)
        unfinished = directory.with_name(f".{directory.name}.tmp")
        text, _, vision = _prefix(encoder, next(self._batches(domain, np.arange(1))).to(self._device))
        layout = Layout(
            num_items=domain.num_items,
            dtype=str(self._dtype).removeprefix("torch."),
            text_width=None if text is None else text.shape[-1],
            num_tokens=0 if lengths is None else int(lengths.sum()),
            vision_shape=None if vision is None else tuple(vision.shape[1:]),
            has_sums=True,
        )
        from_rank0(lambda: _prepare(unfinished, layout, lengths, domain.name))
        store = ActivationStore(unfinished)
        share = range(domain.num_items * rank() // world_size(), domain.num_items * (rank() + 1) // world_size())
        rows = np.asarray(share)[store.done[share.start : share.stop].numpy() == 0]
        if lengths is not None:
            rows = rows[np.argsort(lengths[rows].numpy(), kind="stable")]  # little padding in each batch
        bar = tqdm(
            total=len(share),
            initial=len(share) - len(rows),
            desc="cache",
            unit="item",
            disable=rank() != 0,
            mininterval=redraw_seconds(),
        )
        with bar:
            self._fill(encoder, store, domain, rows, bar)
        errors = {name: self._over_ranks(error) for name, error in store.errors.items()}
        if rank() == 0:
            _complete(store, directory, errors)
        barrier()
        if not directory.is_dir():
            raise UserError(
                f"{directory} was built by another host: --cache needs domains on a file system all hosts see"
            )

    def _fill(
        self, encoder: ContentItemEncoder, store: ActivationStore, domain: Domain, rows: np.ndarray, bar: tqdm
    ) -> None:
        """Computes and keeps `rows`."""
        unsaved, saved = [], time.monotonic()
        for items in self._batches(domain, rows):
            store.write(items.ids, *_prefix(encoder, items.to(self._device)))
            bar.update(len(items))
            unsaved.append(items.ids)
            if time.monotonic() - saved > _SAVE_SECONDS:
                store.mark_done(torch.cat(unsaved))
                unsaved, saved = [], time.monotonic()
        if unsaved:
            store.mark_done(torch.cat(unsaved))

    def _batches(self, domain: Domain, rows: np.ndarray) -> Iterator[ItemInputs]:
        size = _BATCH.get(self._device.type, _BATCH_ELSEWHERE)
        # none may be unreadable: what is made of mid-gray would be kept, and trained on
        return iter_item_batches(domain, self._reads, rows, size, self._num_workers, 0) if len(rows) else iter(())

    def _over_ranks(self, error: RoundingError) -> RoundingError:
        return RoundingError(*sum_over_ranks([error.lost, error.total], self._device))


def _prepare(unfinished: Path, layout: Layout, lengths: Tensor | None, name: str) -> None:
    """Makes room for a store, or finds the one of an interrupted build, on rank 0."""
    if has_layout(unfinished, layout):
        done = int(ActivationStore(unfinished).done.sum())
        log.info("going on with the cache of %s: %d of %d items are done", name, done, layout.num_items)
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    free = shutil.disk_usage(unfinished).free
    if layout.num_bytes > free:
        unfinished.rmdir()
        raise UserError(
            f"--cache needs {layout.num_bytes / 1e9:.2f} GB in {unfinished.parent}, which has {free / 1e9:.2f} GB "
            "free: make room, move the domain, give --cache_dtype int8, or leave --cache out"
        )
    others = [path for path in unfinished.parent.iterdir() if path != unfinished]
    if others:
        size = sum(file.stat().st_size for path in others for file in path.iterdir())
        log.info(
            "%s holds %d other caches (%.2f GB): remove what is not used", unfinished.parent, len(others), size / 1e9
        )
    log.info("caching the frozen part of %d items of %s: %.2f GB", layout.num_items, name, layout.num_bytes / 1e9)
    ActivationStore.create(unfinished, layout, lengths)


def _complete(store: ActivationStore, directory: Path, errors: dict[str, RoundingError]) -> None:
    """Gives a store that is filled its name, on rank 0."""
    if store.layout.dtype == "int8":
        relative = {name: error.relative for name, error in errors.items()}
        (store.directory / ERROR_FILE).write_text(json.dumps(relative) + "\n", encoding="utf-8")
        told = ", ".join(f"{100 * value:.2f} % of {name}" for name, value in relative.items())
        log.info("int8 loses %s (root mean square of the activations)", told)
    store.finish()
    store.directory.rename(directory)


def _prefix(encoder: ContentItemEncoder, items: ItemInputs) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Text activations, their mask, and vision activations of the modalities that were read, on the CPU."""
    kept = encoder.prefix(items)
    text = mask = None
    if kept.text is not None:
        text, mask = kept.text.hidden.cpu(), None if kept.text.mask is None else kept.text.mask.cpu()
    return text, mask, None if kept.vision is None else kept.vision.hidden.cpu()

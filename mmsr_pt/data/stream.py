"""Training users from tars to batches: read in the global order, decode each distinct item once, merge.

tar -> shuffle block of places in it -> user sequences -> Part (a worker's share of a micro-batch, decoded) -> `merge`
over the workers -> UserBatch. Bytes and pixels exist only for the batch at hand.

A user who cannot be read leaves an empty slot, so that all others stand where they would have stood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmsr_pt.batch import BadSample, ItemInputs, UserBatch
from mmsr_pt.data.collate import Part, Pool, RawUser, encode_part, merge
from mmsr_pt.data.domain import TrainTar
from mmsr_pt.data.item_table import ItemTable
from mmsr_pt.data.order import StreamOrder, pool_generator
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.data.shards.tars import user_key
from mmsr_pt.data.tar_reader import OpenTars, TarReader
from mmsr_pt.data.unreadable import rows_of, why
from mmsr_pt.signals import hear_parent_only


@dataclass(frozen=True)
class Share:
    """Which part of every step one rank reads."""

    rank: int
    world_size: int
    accumulation: int
    """Micro-batches that make a step."""
    replicate_pool: bool
    """True: every rank encodes the whole pool (`bce`); False: the ranks share it out and gather (`softmax`)."""


@dataclass
class UserStream(IterableDataset):
    """Endless micro-batch Parts of one rank, from optimizer step `first_step` on.

    Iterated by loader workers, each of which owns some of the rank's lanes; yields `share.accumulation` parts a step.
    """

    order: StreamOrder
    tables: list[ItemTable]
    tars: list[list[TrainTar]]
    """Of each domain."""
    user_bases: list[int]
    """Number of the first user of each domain in this run."""
    preprocessor: Preprocessor
    share: Share
    max_sequence: int
    """L + 1: newest positions of a training sequence that are kept."""
    with_negatives: bool
    """Draw one negative a position from the pool (`bce`)."""
    cloze_rate: float = 0.0
    """Share of the targets to hide; 0: nothing is hidden."""
    first_step: int = 0

    def __iter__(self) -> Iterator[Part]:
        worker = get_worker_info()
        worker_id, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        readers = self.share.world_size * num_workers
        reader = self.share.rank * num_workers + worker_id
        per_reader = self.order.num_lanes // readers
        lanes = range(reader * per_reader, (reader + 1) * per_reader)
        epoch, step = self.order.place(self.first_step)
        tars = OpenTars(with_pictures=self.preprocessor.image is not None)
        while True:
            yield from self._epoch(epoch, step, lanes, worker_id, num_workers, tars)
            epoch, step = epoch + 1, 0

    def _epoch(
        self, epoch: int, first: int, lanes: range, worker: int, num_workers: int, tars: OpenTars
    ) -> Iterator[Part]:
        per_lane = self.order.users_per_lane
        readers = [self._lane(epoch, lane, first * per_lane, tars) for lane in lanes]
        for step in range(first, self.order.steps_per_epoch):
            slots: list[RawUser | BadSample | None] = []
            for reader in readers:
                slots += [next(reader, None) for _ in range(per_lane)]
            pool = self._pool(epoch, step, worker, num_workers)
            for micro in np.array_split(np.arange(len(slots)), self.share.accumulation):
                yield encode_part(
                    [slots[i] for i in micro],
                    pool,
                    tables=self.tables,
                    preprocessor=self.preprocessor,
                    seed=(self.order.seed, epoch),
                    with_negatives=self.with_negatives,
                    cloze_rate=self.cloze_rate,
                    max_sequence=self.max_sequence,
                )

    def _pool(self, epoch: int, step: int, worker: int, num_workers: int) -> Pool:
        """The step's pool, and the part of it that this worker decodes."""
        drawn = []
        for domain, table in enumerate(self.tables):
            rng = pool_generator(self.order.seed, epoch, step, domain)
            rows = rng.choice(table.num_items, table.pool_size, replace=False)
            drawn.append(table.base + rows)
        shares, mine = (num_workers, worker)
        if not self.share.replicate_pool:
            shares, mine = shares * self.share.world_size, self.share.rank * num_workers + worker
        return Pool(drawn, np.concatenate(drawn)[mine::shares])

    def _lane(self, epoch: int, lane: int, first: int, tars: OpenTars) -> Iterator[RawUser | BadSample]:
        for segments, order in self.order.blocks(epoch, lane, first):
            block = []
            for segment in segments:
                own = self.tars[segment.domain][segment.tar]
                places = [own.place(number) for number in range(segment.start, segment.stop)]
                tar = tars(str(own.path), places[-1] + 1, own)
                block += [(segment.domain, tar, place) for place in places]
            for index in order:
                yield self._user(*block[index])

    def _user(self, domain: int, tar: TarReader, position: int) -> RawUser | BadSample:
        number = self.user_bases[domain] + tar.number(position)
        try:
            rows = rows_of(tar.user(position), self.tables[domain].num_items)
        except OSError as error:
            return BadSample(-1 - number, tar.path, user_key(tar.number(position)), why(error))
        return RawUser(number, domain, rows, tar)


class TrainLoader:
    """UserBatches of one rank, merged from its loader workers; iterating it never ends."""

    def __init__(
        self,
        stream: UserStream,
        num_workers: int,
        pin_memory: bool,
        complete: Callable[[ItemInputs], ItemInputs] | None = None,
        lay_out: Callable[[UserBatch], UserBatch] | None = None,
    ) -> None:
        """A loader.

        Args:
            stream: of the rank.
            num_workers: loader processes.
            pin_memory: whether batches are to go to an accelerator.
            complete: adds to a batch's items what the stream does not read, such as cached activations.
            lay_out: makes another batch of a finished one.
        """
        self._stream = stream
        self._complete = complete
        self._lay_out = lay_out
        self._num_parts = max(num_workers, 1)
        self._pin_memory = pin_memory
        self._loader = DataLoader(
            stream,
            batch_size=None,
            num_workers=num_workers,
            worker_init_fn=hear_parent_only,
            prefetch_factor=2 * stream.share.accumulation if num_workers else None,
            # else its start draws from torch's own state, and a resumed run has other dropout than an unbroken one
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[UserBatch]:
        # the loader asks its workers in turn, and a worker yields the micro-batches in order, so the next
        # `num_workers` parts are the shares of one micro-batch
        for parts in _groups(self._loader, self._num_parts):
            batch = merge(parts, self._stream.tables, self._stream.preprocessor, self._stream.max_sequence)
            if self._complete is not None:
                batch.items = self._complete(batch.items)
            if self._lay_out is not None:
                batch = self._lay_out(batch)
            yield batch.pin_memory() if self._pin_memory else batch


def _groups(parts: Iterable[Part], size: int) -> Iterator[list[Part]]:
    group = []
    for part in parts:
        group.append(part)
        if len(group) == size:
            yield group
            group = []

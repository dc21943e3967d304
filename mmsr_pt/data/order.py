"""Which user stands where: the order of training samples as pure arithmetic on (seed, epoch, manifest).

The users of an epoch are laid out in one row: the tars of all domains, permuted by (seed, epoch), one after the other,
and of a large tar its pieces likewise. The row is cut into `num_lanes` equal lanes. A step takes the next
`users_per_lane` users of every lane, so a step is the same set of users on any number of ranks and workers: they only
share out the lanes. Within a lane, users are permuted in blocks of `shuffle_buffer`. The state of the stream is the
number of steps done, nothing else (and where epochs began to count, if a run once went on with another batch).

A lane may begin inside a tar, which `tar_reader.py` makes cheap; webdataset's usual whole-tar lanes would end at
different steps and either hang ranks or drop users (architecture 2.5 plans disjoint lists of whole tars).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mmsr_pt.log import UserError

_ORDER, _BLOCK, _POOL, _USER, _BANK = range(5)  # first words of the generators' seeds: no two draw the same numbers
_PIECE_USERS = 1024  # of a tar that stay together: fewer and larger tars are shuffled no worse than many small ones
_USUAL_LANES = 8


@dataclass(frozen=True)
class Segment:
    """Users [start, stop) of one tar of one domain."""

    domain: int
    tar: int
    start: int
    stop: int


@dataclass(frozen=True)
class StreamOrder:
    """The order of users in training."""

    tar_users: tuple[tuple[int, ...], ...]
    """Users in each tar of each domain, from the manifests."""
    weights: tuple[float, ...]
    """How often an epoch passes over each domain; 1 is every user once."""
    global_batch: int
    """Users consumed by one optimizer step over all ranks and accumulation steps."""
    num_lanes: int
    """Independent readers at most: see `choose_lanes`."""
    shuffle_buffer: int
    seed: int
    first_epoch: int = 0
    first_step: int = 0
    """Optimizer steps before the first one of `first_epoch`: not 0 where a run went on with another global batch."""

    def place(self, step: int) -> tuple[int, int]:
        """The epoch, and the steps of it that are done, after so many optimizer steps of the run."""
        epochs, within = divmod(step - self.first_step, self.steps_per_epoch)
        return self.first_epoch + epochs, within

    def users_left(self, within: int) -> int:
        """Users of an epoch whom its first so many steps have not met."""
        lengths = [stop - start for start, stop in map(self.lane_range, range(self.num_lanes))]
        return sum(max(length - within * self.users_per_lane, 0) for length in lengths)

    @property
    def num_users(self) -> int:
        """Users in an epoch."""
        return sum(round(w * sum(tars)) for w, tars in zip(self.weights, self.tar_users))

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last one may be short of users."""
        return -(-self.num_users // self.global_batch)

    @property
    def users_per_lane(self) -> int:
        """Users that each lane gives to a step."""
        return self.global_batch // self.num_lanes

    def segments(self, epoch: int) -> list[Segment]:
        """The epoch's users in one row, as pieces of tars."""
        rng = generator(_ORDER, self.seed, epoch)
        rounds: list[list[Segment]] = []
        for domain, (weight, tars) in enumerate(zip(self.weights, self.tar_users)):
            wanted = round(weight * sum(tars))
            while wanted > 0:
                for tar in rng.permutation(len(tars)):
                    taken = min(wanted, tars[tar])
                    if taken:
                        rounds.append(_pieces(domain, int(tar), taken))
                    wanted -= taken
        # the pieces of a tar stay together: a lane then has one tar open at a time
        shuffled = [rounds[i] for i in rng.permutation(len(rounds))]
        return [pieces[i] for pieces in shuffled for i in (rng.permutation(len(pieces)) if len(pieces) > 1 else (0,))]

    def lane_range(self, lane: int) -> tuple[int, int]:
        """[start, stop) of the lane in the epoch's row of users."""
        return lane * self.num_users // self.num_lanes, (lane + 1) * self.num_users // self.num_lanes

    def blocks(self, epoch: int, lane: int, first: int) -> Iterator[tuple[list[Segment], np.ndarray]]:
        """The lane's shuffle blocks from its `first`-th user on.

        Yields: for each block the pieces of tars that hold its users, and the order to emit them in; users before
            `first` are left out of that order.
        """
        start, stop = self.lane_range(lane)
        size = self.shuffle_buffer
        pieces = self.segments(epoch)
        for block in range(first // size, -(-(stop - start) // size)):
            begin, end = start + block * size, min(start + (block + 1) * size, stop)
            order = generator(_BLOCK, self.seed, epoch, lane, block).permutation(end - begin)
            yield cut(pieces, begin, end), order[max(first - block * size, 0) :]


def _pieces(domain: int, tar: int, num_users: int) -> list[Segment]:
    """The first users of a tar in equal pieces."""
    bounds = [i * num_users // num_pieces(num_users) for i in range(num_pieces(num_users) + 1)]
    return [Segment(domain, tar, start, stop) for start, stop in pairwise(bounds)]


def num_pieces(num_users: int) -> int:
    """How many pieces of a tar are shuffled apart."""
    return -(-num_users // _PIECE_USERS)


def cut(pieces: Sequence[Segment], begin: int, end: int) -> list[Segment]:
    """The part [begin, end) of a row of users made of `pieces`."""
    found = []
    position = 0
    for piece in pieces:
        length = piece.stop - piece.start
        low, high = max(begin - position, 0), min(end - position, length)
        if low < high:
            found.append(Segment(piece.domain, piece.tar, piece.start + low, piece.start + high))
        position += length
    return found


def generator(*key: int) -> np.random.Generator:
    """A generator that depends on `key` alone."""
    return np.random.default_rng(np.random.SeedSequence(key))


def pool_generator(seed: int, epoch: int, step: int, domain: int) -> np.random.Generator:
    """Draws the pool of a step: the same on every rank."""
    return generator(_POOL, seed, epoch, step, domain)


def bank_generator(seed: int, epoch: int, step: int, domain: int) -> np.random.Generator:
    """Draws a step's negatives from the bank: the same on every rank, whatever the pool draws."""
    return generator(_BANK, seed, epoch, step, domain)


def user_generator(seed: int, epoch: int, user: int) -> np.random.Generator:
    """Draws what belongs to a user: the same on whichever rank meets that user."""
    return generator(_USER, seed, epoch, user)


def choose_lanes(tar_users: Sequence[Sequence[int]], global_batch: int, world_size: int, num_workers: int) -> int:
    """How many lanes a run has: the largest power of two that divides the global batch and is at most `max_lanes`.

    That is the same for every number of ranks and workers that is a power of two, so their runs see the same order. For
    other numbers (3 GPUs) it is the largest number of lanes that they can share evenly.

    Raises:
        UserError: the lanes cannot be shared evenly over ranks and workers: too few tars, or a batch that does not fit.
    """
    workers = max(num_workers, 1)
    readers = world_size * workers
    limit = max_lanes(tar_users)
    fitting = [lanes for lanes in range(1, min(limit, global_batch) + 1) if global_batch % lanes == 0]
    usual = max(lanes for lanes in fitting if lanes & (lanes - 1) == 0)
    if usual % readers == 0:
        return usual
    shared = [lanes for lanes in fitting if lanes % readers == 0]
    if shared:
        return max(shared)
    given = f"{world_size} rank(s) x {workers} loader worker(s) = {readers} readers"
    if global_batch % readers:
        raise UserError(
            f"{given} cannot share a global batch of {global_batch} users evenly: choose a "
            f"train_micro_batch_size_per_gpu in the ds_config that {workers} divides, or another --num_workers"
        )
    raise UserError(
        f"too few shards: {given}, the train tars of the given domain(s) serve {limit}: "
        f"rebuild with --num_shards {readers}, or use a smaller --num_workers"
    )


def max_lanes(tar_users: Sequence[Sequence[int]]) -> int:
    """Lanes that these tars serve: one for each piece, at least 8, as several lanes may share a piece."""
    return max(_USUAL_LANES, sum(num_pieces(users) for tars in tar_users for users in tars))

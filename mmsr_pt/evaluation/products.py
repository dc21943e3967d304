"""Ranks from inner products at the speed of the matrix product: counted block by block, near ties looked at exactly.

The product gives each score less the target's. In bfloat16 and float32 alike its sign is sure unless it is smaller than
what rounding can do to a sum of D terms; the items of which it is not, less than 1 in 1,000, are scored again in
float64. So the ranks are those of float64 scores of the same vectors, and no score is kept.

Scores of a block are compared as integers: positive floats are ordered as their bits are, and a processor compares
integers several times faster than it compares bfloat16.

Shapes: u users, N items, n items of a block, S seen items, P pairs, D width, W width with the columns added to it,
K blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsr_pt.evaluation.ranking import rivals

CHUNK_USERS = 1024
"""Users ranked by one call, at best: all blocks have work then."""
BLOCK_USERS = 512
BLOCK_ITEMS = 2048
"""The scores of a block are then 2 MB in bfloat16: they stay in the cache until they are counted."""
RUN = 32
"""Items of a block that are looked through together for near ties."""
PAIRS_AT_ONCE = 256
"""Exact scores computed together: their vectors stay in the cache too."""

_LEVELS = 3
"""Columns that take the target's score off: it needs so many bfloat16 numbers to stand for it."""
_MULTIPLE = 16
"""Products of widths that are no multiple of it are slower."""
_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
_UNIT = 2.0**-24
"""Relative error of one rounding to float32."""
_TINY = 2.0**-126
"""Processors may take anything smaller for 0."""
_HUGE = 1e30
"""What is larger could overflow on the way."""


def can_rank(catalogue: Tensor) -> bool:
    """Whether the products of this catalogue run where their error is known: on the CPU, with float32 in full."""
    known = catalogue.device.type == "cpu" and catalogue.dtype in (torch.bfloat16, torch.float16, torch.float32)
    return known and torch.get_float32_matmul_precision() == "highest"


class ProductRanker:
    """Ranks targets by the inner products of user vectors with the items of a catalogue."""

    def __init__(self, catalogue: Tensor) -> None:
        """Args: catalogue [N, D], see `can_rank`; copied, to float32 unless it is bfloat16 and multiplied fast here."""
        keeps = catalogue.dtype == torch.bfloat16 and _multiplies_bfloat16()
        self._dtype = torch.bfloat16 if keeps else torch.float32
        # the product of two numbers is exact in it
        self._wide = torch.float32 if keeps else torch.float64
        self.num_items, self._width = catalogue.shape
        block = min(BLOCK_ITEMS, _up_to_multiple(self.num_items, RUN))
        rows, width = _up_to_multiple(self.num_items, block), _up_to_multiple(self._width + _LEVELS + 1, _MULTIPLE)
        items = torch.zeros(rows, width, dtype=self._dtype)
        items[: self.num_items, : self._width] = catalogue
        self._norms = torch.stack([part.double().square().sum(dim=1).max().sqrt() for part in items.split(block)])
        items[:, self._width : self._width + _LEVELS] = 1
        # rows that fill up the last block: below any level
        items[self.num_items :, self._width + _LEVELS] = -_HUGE
        self._items, self._blocks = items, items.split(block)

    def ranks(self, users: Tensor, targets: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Ranks as `target_ranks` defines them.

        Args:
            users: [u, D], of the catalogue's dtype.
            targets: [u] int64.
            seen: [u, S] int64 rows in any order, repeats allowed; -1 is padding.

        Returns:
            [u] int64, 1 is the best, and [u] bool: False where the rank is not known, since numbers are not finite or
            a large part of the catalogue is about level with the target.
        """
        blocks = [part.split(BLOCK_USERS) for part in (users, targets, seen)]
        ranks, known = zip(*_side_by_side(self._ranks, list(zip(*blocks))))
        return torch.cat(ranks), torch.cat(known)

    @torch.no_grad()
    def _ranks(self, users: Tensor, targets: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        wide = F.pad(users.to(self._wide), (0, self._items.shape[1] - self._width))
        level = self._scores(wide, torch.arange(len(users)), targets)
        bounds, known = self._bounds(users, level)
        not_below = self._count_not_below(wide, level, bounds, known)
        seen, rival = rivals(seen, targets)
        of = rival.nonzero()[:, 0]
        among_seen = self._scores(wide, of, seen[rival]) >= level[of]
        return not_below - _count(of[among_seen], len(users)), known

    def _bounds(self, users: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """[K, u] bits: how far from 0 a product of each block may be and leave the sign open; [u] bool: all finite."""
        norms = users.double().square().sum(dim=1).sqrt()
        # the sum is rounded at each of its terms, whose sizes add up to at most |user| |item| + |level|; 1 % makes up
        # for what rounding does to the bound
        terms = self._items.shape[1] + 1
        error = _UNIT * (norms * self._norms[:, None] + 2 * level.abs()) + _TINY * (1 + norms + self._norms[:, None])
        known = (norms * self._norms.max() < _HUGE) & (norms < _HUGE) & (self._norms.max() < _HUGE)
        error = torch.where(known, 1.01 * terms * error, 0)
        # rounding keeps the order: what is not above the bound before is not above it after
        return error.float().to(self._dtype).view(_BITS[self._dtype]), known

    def _count_not_below(self, wide: Tensor, level: Tensor, bounds: Tensor, known: Tensor) -> Tensor:
        """[u] int64: items, the target included, that score the level or more; crowded users leave `known`."""
        users = self._with_level(wide, level)
        scores = users.new_empty(len(users), len(self._blocks[0]))
        keys = scores.view(_BITS[self._dtype])
        spare = torch.empty_like(keys)
        not_below = torch.zeros(len(users), dtype=torch.int64)
        for number, (items, bound) in enumerate(zip(self._blocks, bounds[..., None])):
            torch.mm(users, items.T, out=scores)
            not_below += _sums(torch.gt(keys, bound, out=spare))
            of, rows = _within(keys, bound, known, spare)
            level_or_more = self._scores(wide, of, rows + number * len(items)) >= level[of]
            not_below += _count(of[level_or_more], len(users))
        return not_below

    def _with_level(self, wide: Tensor, level: Tensor) -> Tensor:
        """[u, W] users whose product with an item is its score less the level."""
        users = wide.to(self._dtype)
        rest = level.clone()
        for column in range(self._width, self._width + _LEVELS):
            users[:, column] = -rest
            rest += users[:, column]
        users[:, self._width + _LEVELS] = 1
        return users

    def _scores(self, wide: Tensor, of: Tensor, rows: Tensor) -> Tensor:
        """[P] float64: what user `of` and item `rows`, [P] each, score; summed in one order, so equals are equal."""
        parts = []
        for user, row in zip(of.split(PAIRS_AT_ONCE), rows.split(PAIRS_AT_ONCE)):
            products = self._items.index_select(0, row).to(self._wide).mul_(wide.index_select(0, user))
            parts.append(products.sum(dim=1, dtype=torch.float64))
        return torch.cat(parts)


def _side_by_side(
    work: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]], blocks: Sequence[tuple[Tensor, Tensor, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """`work` on each block, each in a thread of its own with its share of torch's threads.

    Shared among threads, each of the many short operations would wait for the slowest of them, which on a machine that
    does something else as well takes far longer than the operation.
    """
    num_threads = torch.get_num_threads()
    workers = min(len(blocks), num_threads)
    if workers == 1:
        return [work(*block) for block in blocks]
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(num_threads // workers,)) as pool:
            return list(pool.map(lambda block: work(*block), blocks))
    finally:
        # what a thread sets for itself is what later ones begin with
        torch.set_num_threads(num_threads)


def _within(keys: Tensor, bound: Tensor, known: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
    """The known users and the items of a block, [P] each, whose score's bits [u, n] are within the bound [u, 1].

    A user with whom that is so in more than half the runs leaves `known`. `spare` is overwritten.
    """
    sizes = torch.bitwise_and(keys, torch.iinfo(keys.dtype).max, out=spare).view(len(keys), RUN, -1)
    hits = (sizes.amin(dim=1) <= bound) & known[:, None]
    crowded = hits.sum(dim=1) > max(4, hits.shape[1] // 2)
    known &= ~crowded
    hits[crowded] = False
    of, run = hits.nonzero(as_tuple=True)
    near, place = (sizes.transpose(1, 2)[of, run] <= bound[of]).nonzero(as_tuple=True)
    return of[near], place * sizes.shape[2] + run[near]


def _sums(mask: Tensor) -> Tensor:
    """[u, n] integers 0 and 1 -> [u] int64: the sum of each row, of which an int64 adds up several lanes at once."""
    lanes = mask.view(torch.int64).sum(dim=1)
    return lanes.view(mask.dtype).view(len(mask), -1).sum(dim=1)


def _count(users: Tensor, num_users: int) -> Tensor:
    return torch.bincount(users, minlength=num_users)


def _up_to_multiple(number: int, of: int) -> int:
    return -(-number // of) * of


def _multiplies_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()

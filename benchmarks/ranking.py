"""Full ranking: users a second, by sorting the scores of one user at a time, by ours, and by the bare matrix product.

    python -m benchmarks.ranking

Each contestant ranks the targets of users with a history of seen items among all items of a catalogue. User and item
vectors are given in bfloat16, as a model trained in bfloat16 makes them (`--dtype float32`: in float32); sorting
scores in float32, as is usual. Ours gives the ranks of exact scores; the bare product gives scores and nothing else:
the limit of what ranking can reach. Medians and ratios are over interleaved repetitions. `cpu` figures are by processor
time: other programs on the machine matter less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmsr_pt.evaluation.products import BLOCK_ITEMS, BLOCK_USERS, CHUNK_USERS, ProductRanker


@dataclass(frozen=True)
class Inputs:
    """U users, N items, D width, S seen items of each user."""

    users: Tensor
    """[U, D]."""
    items: Tensor
    """[N, D]."""
    targets: Tensor
    """[U] int64."""
    seen: Tensor
    """[U, S] int64."""

    @classmethod
    def drawn(
        cls,
        num_users: int = 1024,
        num_items: int = 80_000,
        width: int = 768,
        num_seen: int = 20,
        dtype: torch.dtype = torch.bfloat16,
        seed: int = 0,
    ) -> Inputs:
        """Normal vectors, uniform targets and histories: near ties are as common as they get."""
        generator = torch.Generator().manual_seed(seed)
        return cls(
            users=torch.randn(num_users, width, generator=generator).to(dtype),
            items=torch.randn(num_items, width, generator=generator).to(dtype),
            targets=torch.randint(num_items, (num_users,), generator=generator),
            seen=torch.randint(num_items, (num_users, num_seen), generator=generator),
        )


@dataclass(frozen=True)
class Rate:
    """Users a second."""

    wall: float
    cpu: float
    """By the processor time of all threads."""


@torch.inference_mode()
def argsort_per_user(inputs: Inputs, num_users: int = 32) -> Rate:
    """Scores all items in float32, hides the seen ones, sorts, and looks for the target, one user after the other."""
    users, items = inputs.users[:num_users].float(), inputs.items.float()

    def rank() -> None:
        for user, target, seen in zip(users, inputs.targets, inputs.seen):
            scores = items @ user
            level = scores[target].clone()
            scores[seen] = -torch.inf
            scores[target] = level
            (scores.argsort(descending=True) == target).nonzero().item()

    return _rate(rank, num_users)


@torch.inference_mode()
def scores_per_user(inputs: Inputs, num_users: int = 32) -> Rate:
    """The scores of `argsort_per_user` alone."""
    users, items = inputs.users[:num_users].float(), inputs.items.float()

    def score() -> None:
        for user in users:
            items @ user

    return _rate(score, num_users)


@torch.inference_mode()
def ours(inputs: Inputs, ranker: ProductRanker | None = None) -> Rate:
    """What `mmsr-pt evaluate` does with user vectors; `ranker`: of these items, made beforehand as it is there."""
    ready = ranker or ProductRanker(inputs.items)

    def rank() -> None:
        for users, targets, seen in zip(*(part.split(CHUNK_USERS) for part in _questions(inputs))):
            ready.ranks(users, targets, seen)

    return _rate(rank, len(inputs.users))


@torch.inference_mode()
def bare_product(inputs: Inputs) -> Rate:
    """The products of all users with all items in blocks of the same size, each thrown away."""
    blocks = inputs.items.split(BLOCK_ITEMS)

    def multiply() -> None:
        for users in inputs.users.split(BLOCK_USERS):
            scores = users.new_empty(len(users), BLOCK_ITEMS)
            for items in blocks:
                torch.mm(users, items.T, out=scores[:, : len(items)])

    return _rate(multiply, len(inputs.users))


def _questions(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    return inputs.users, inputs.targets, inputs.seen


def _rate(work: Callable[[], None], num_users: int) -> Rate:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Rate(num_users / (time.perf_counter() - wall), num_users / (time.process_time() - cpu))


def main(argv: list[str] | None = None) -> None:
    """Prints medians and ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--users", type=int, default=1024)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    flags = parser.parse_args(argv)
    torch.set_num_threads(flags.threads)
    inputs = Inputs.drawn(flags.users, dtype=getattr(torch, flags.dtype))
    ranker = ProductRanker(inputs.items)
    contestants: dict[str, Callable[[], Rate]] = {
        "argsort per user": lambda: argsort_per_user(inputs),
        "scores per user": lambda: scores_per_user(inputs),
        "ours": lambda: ours(inputs, ranker),
        "bare product": lambda: bare_product(inputs),
    }
    rates: dict[str, list[Rate]] = {name: [] for name in contestants}
    for _ in range(flags.repetitions):
        for name, run in contestants.items():
            rates[name].append(run())
    print(f"{flags.users} users, {inputs.items.shape[0]} items of {inputs.items.shape[1]}, {flags.dtype}")  # noqa: T201
    for name, found in rates.items():
        for clock in ("wall", "cpu"):
            values = [getattr(rate, clock) for rate in found]
            ratios = [getattr(our, clock) / value for our, value in zip(rates["ours"], values)]
            print(  # noqa: T201
                f"{name:18s} {clock:4s} {statistics.median(values):8.1f} users/s "
                f"({min(values):.1f} to {max(values):.1f}), ours / it {statistics.median(ratios):.2f}"
            )


if __name__ == "__main__":
    main()

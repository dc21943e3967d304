"""In which order of users a resumed run goes on: in the one it has had, or, where that is asked for, in a new one.

The order follows from seed, domains, buffer and global batch (data/order.py). A run that goes on with another batch
cannot go on inside its epoch: the users that the epoch has met so far are others in the new order. So it leaves the
rest of the epoch out and begins the next one, and counts epochs from there.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmsr_pt.data.domain import Domain
from mmsr_pt.data.order import StreamOrder
from mmsr_pt.log import UserError

log = logging.getLogger(__name__)

_OF_THE_BATCH = ("global_batch", "num_lanes")
_COUNTED_FROM = ("first_epoch", "first_step")


@dataclass(frozen=True)
class Shares:
    """What makes a global batch."""

    micro_batch: int
    accumulation: int
    ranks: int


def order_state(order: StreamOrder, domains: Sequence[Domain], max_users: int) -> dict[str, Any]:
    """What of an order stands in a checkpoint, as JSON."""
    named = ("weights", *_OF_THE_BATCH, "shuffle_buffer", "seed", *_COUNTED_FROM)
    values = {name: getattr(order, name) for name in named}
    return {
        "domains": [f"{domain.name} ({domain.fingerprint[:16]})" for domain in domains],
        "max_users": max_users,
        **values,
        "weights": list(order.weights),
    }


def resumed_order(
    order: StreamOrder,
    now: Mapping[str, Any],
    saved: Mapping[str, Any],
    step: int,
    shares: Shares,
    allow_new_batch: bool,
    run: object,
) -> StreamOrder:
    """The order in which a run goes on.

    Args:
        order: that a new run with these settings would have.
        now: its `order_state`.
        saved: the `order_state` of the checkpoint.
        step: optimizer steps that the run has done.
        shares: what makes the global batch now.
        allow_new_batch: whether it may be another than before.
        run: what to call the run in messages.

    Raises:
        UserError: the order would be another.
    """
    is_new_batch = saved["global_batch"] != order.global_batch
    if is_new_batch and not allow_new_batch:
        raise UserError(_about_batches(saved["global_batch"], order.global_batch, shares, run))
    # lanes follow from the batch, too
    ignored = {*_COUNTED_FROM, *(_OF_THE_BATCH if is_new_batch else ())}
    for name, value in now.items():
        if name not in ignored and saved[name] != value:
            raise UserError(
                f"{run} was trained with {name} {saved[name]}, now it is {value}: the order of users would change; "
                f"go on with {_what_decides(name)}, or start another run"
            )
    before = dataclasses.replace(order, **{name: saved[name] for name in (*_OF_THE_BATCH, *_COUNTED_FROM)})
    if is_new_batch:
        return _next_epoch(before, order, step)
    if allow_new_batch:
        log.info("--allow_new_batch changes nothing: the global batch is %d users, as before", order.global_batch)
    return before


def _next_epoch(before: StreamOrder, order: StreamOrder, step: int) -> StreamOrder:
    epoch, within = before.place(step)
    left = before.users_left(within) if within else 0
    following = dataclasses.replace(order, first_epoch=epoch + (within > 0), first_step=step)
    log.info(
        "the global batch was %d users and is %d now: epoch %d begins here with its first user, %d users of the epoch "
        "before are left out; users come in another order, an epoch has %d steps instead of %d; learning rates stay as "
        "given, and fall by the new number of steps",
        before.global_batch,
        order.global_batch,
        following.first_epoch + 1,
        left,
        order.steps_per_epoch,
        before.steps_per_epoch,
    )
    return following


def _what_decides(name: str) -> str:
    if name == "num_lanes":
        return "numbers of ranks and of --num_workers that share the lanes as before, such as powers of two"
    return "the same domains, batch, seed and buffer"


def _about_batches(saved: int, now: int, shares: Shares, run: object) -> str:
    """Why a run is not taken up with this global batch, and which settings would keep the one before."""
    micro, accumulation, ranks = dataclasses.astuple(shares)
    if saved % (accumulation * ranks) == 0:
        keep = f"set train_micro_batch_size_per_gpu to {saved // (accumulation * ranks)} in the ds_config"
    elif saved % ranks == 0:
        keep = (
            f"set train_micro_batch_size_per_gpu to {saved // ranks} and gradient_accumulation_steps to 1 in the "
            "ds_config"
        )
    else:
        keep = f"take a number of ranks that divides {saved}"
    return (
        f"{run} was trained with a global batch of {saved} users, now a micro-batch of {micro} x {accumulation} "
        f"accumulation steps x {ranks} ranks make {now}: {keep} to keep it, or add --allow_new_batch to go on with "
        "another from the next epoch's first user"
    )

"""The bank: negatives that cost no encoding, since their vectors come from the catalogue's last encoding.

At every step P items are drawn from each domain's catalogue, uniformly and without replacement, as for the pool; those
that are candidates already, through the batch or the pool, are left out, as their vectors there are fresh. So a user's
own items, which stand in the batch, are never in the bank. All ranks draw the same, and a step's micro-batches too.

What is approximate: a bank item's vector is that of the model at the last refresh, in evaluation mode (without
dropout) and in the precision of training, and no gradient reaches the model through it: users are pushed away from
bank items, bank items not from users. What is not: the weight of every candidate, whichever way it came in (see
`losses.inclusion_probability`).

The table is a function of the weights at the last refresh. It is refreshed before the first step, at the steps that
`--bank_refresh` names, and at every checkpoint, so a resumed run, which refreshes from the checkpoint's weights before
its first step, has the table that the unbroken run had. With another `--checkpoint_every` it has a younger one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmsr_pt.batch import BankItems, UserBatch
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.order import StreamOrder, bank_generator


class Bank:
    """Draws a step's further negatives from tables of item vectors, one for each domain of the run."""

    def __init__(self, domains: Sequence[Domain], order: StreamOrder, size: int, pool_size: int) -> None:
        """An empty bank.

        Args:
            domains: of the run.
            order: of the run; the bank takes its seed and its epochs.
            size: P, items drawn from each domain at a step; all of a domain that has fewer.
            pool_size: of the run's pool, likewise.
        """
        self._order = order
        self._counts = [domain.items["train_count"].to_numpy().astype(np.float64) for domain in domains]
        self._bases = np.cumsum([0, *map(len, self._counts)])
        self._sizes = [min(size, len(counts)) for counts in self._counts]
        missed = [
            (1 - drawn / len(counts)) * (1 - min(pool_size, len(counts)) / len(counts))
            for drawn, counts in zip(self._sizes, self._counts)
        ]
        self._drawn_rate = 1 - torch.tensor(missed, dtype=torch.float32)
        self.catalogues: list[Tensor] = []
        """[N, D] of each domain, on the model's device, from `encode_catalogue`: 2 N D bytes in bf16."""

    def extended(self, batch: UserBatch, step: int) -> UserBatch:
        """The batch with its negatives from the bank, and with chances to be drawn that know of these.

        Args:
            batch: on the host, from `share_items`.
            step: optimizer steps done before this one.
        """
        assert batch.domain is not None
        assert self.catalogues, "the bank is empty before its first refresh"
        fresh = (batch.items if batch.shared is None else batch.shared).ids.numpy()
        epoch, step = self._order.place(step)
        vectors, rates, domain = [], [], []
        for number, (catalogue, counts) in enumerate(zip(self.catalogues, self._counts)):
            rng = bank_generator(self._order.seed, epoch, step, number)
            rows = rng.choice(len(counts), self._sizes[number], replace=False)
            rows = rows[~np.isin(self._bases[number] + rows, fresh)]
            vectors.append(catalogue[torch.from_numpy(rows).to(catalogue.device)])
            rates.append(torch.from_numpy(counts[rows] / max(counts.sum(), 1)).float())
            domain.append(torch.full((len(rows),), number))
        of_bank = torch.cat(domain)
        bank = BankItems(torch.cat(vectors), of_bank, torch.cat(rates), self._drawn_rate[of_bank])
        return dataclasses.replace(batch, pool_rate=self._drawn_rate[batch.domain], bank=bank)

"""Candidates: distinct over ranks, gradients back to their owners, nobody's own item as a negative."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mmsr_pt.batch import ItemInputs, UserBatch
from mmsr_pt.training.negatives import gather_candidates, interactions_by_domain, own_columns


def batch_of(ids: list[int], sequences: list[list[int]], domains: list[int]) -> UserBatch:
    """Sequences hold item numbers; padding is on the right."""
    longest = max(map(len, sequences))
    index = torch.tensor([[ids.index(i) for i in s] + [0] * (longest - len(s)) for s in sequences])
    mask = torch.tensor([[True] * len(s) + [False] * (longest - len(s)) for s in sequences])
    return UserBatch(
        items=ItemInputs(torch.tensor(ids)),
        sequence=index,
        mask=mask,
        users=torch.arange(len(sequences)),
        occurrence_rate=torch.tensor([i / 100 for i in ids]),
        pool_rate=torch.tensor([0.5] * len(ids)),
        domain=torch.tensor(domains),
    )


def test_own_items_are_found_among_the_candidates() -> None:
    batch = batch_of([3, 5, 8, 20, 21], [[3, 8], [5], [21, 20]], [0, 0, 0, 1, 1])
    candidates = gather_candidates(batch, torch.zeros(5, 2))
    assert candidates.ids.tolist() == [3, 5, 8, 20, 21]
    assert own_columns(batch, candidates).tolist() == [[0, 2], [1, 1], [4, 3]], "padding repeats the first item"
    assert interactions_by_domain(batch, 3).tolist() == [3, 2, 0]


WHOLE = {2: 1.0, 4: 2.0, 6: 3.0, 9: 4.0}
SHARES = [([2, 4, 6], [[2, 4], [6]]), ([4, 9], [[4, 9]])]


def _rank(rank: int, port_file: str, out: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    ids, sequences = SHARES[rank]
    vectors = torch.tensor([[WHOLE[i], 0.0] for i in ids], requires_grad=True)
    batch = batch_of(ids, sequences, [0] * len(ids))
    candidates = gather_candidates(batch, vectors)
    # each rank weighs candidate c by (rank + 1) * c's item number
    ((rank + 1) * (candidates.vectors[:, 0] * candidates.ids)).sum().backward()
    torch.save(
        {
            "ids": candidates.ids,
            "vectors": candidates.vectors.detach(),
            "rates": candidates.occurrence_rate,
            "grad": vectors.grad,
            "interactions": interactions_by_domain(batch, 1),
            "own": own_columns(batch, candidates),
        },
        f"{out}{rank}.pt",
    )
    dist.destroy_process_group()


def test_two_ranks_see_the_same_candidates_and_owners_get_all_gradients(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path / "store"), str(tmp_path / "rank")), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(2))
    for seen in (first, second):
        assert seen["ids"].tolist() == [2, 4, 6, 9]
        assert seen["vectors"][:, 0].tolist() == [1.0, 2.0, 3.0, 4.0]
        torch.testing.assert_close(seen["rates"], torch.tensor([0.02, 0.04, 0.06, 0.09]))
        assert seen["interactions"].tolist() == [5.0]
    # both ranks' weights (1 + 2) times the item number; item 4 stands on both ranks and counts for the lower one
    assert first["grad"][:, 0].tolist() == [3 * 2.0, 3 * 4.0, 3 * 6.0]
    assert second["grad"][:, 0].tolist() == [0.0, 3 * 9.0]
    assert first["own"].tolist() == [[0, 1], [2, 2]]
    assert second["own"].tolist() == [[1, 3]]

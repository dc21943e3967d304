"""HR@k, NDCG@k and MRR from the rank of each user's target. U users; every figure is a fraction in [0, 1]."""

from __future__ import annotations

from torch import Tensor

CUTOFFS = (10, 20, 50)


def per_user_metrics(ranks: Tensor) -> dict[str, Tensor]:
    """What each user adds to the means, for means over slices and bootstrap intervals.

    With one target a user's ideal DCG is 1, so NDCG@k is 1 / log2(rank + 1) inside the first k and 0 outside
    (Appendix C of the paper, equations 4 and 5).

    Args:
        ranks: [U] int64, 1 is the best.

    Returns:
        Metric name -> [U] float64, in the order they are printed.
    """
    gain = 1.0 / (ranks.double() + 1.0).log2()
    hits = {k: (ranks <= k).double() for k in CUTOFFS}
    return {
        **{f"HR@{k}": hit for k, hit in hits.items()},
        **{f"NDCG@{k}": hit * gain for k, hit in hits.items()},
        "MRR": 1.0 / ranks.double(),
    }


METRICS = (*(f"{name}@{k}" for name in ("HR", "NDCG") for k in CUTOFFS), "MRR")


def mean_metrics(ranks: Tensor) -> dict[str, float]:
    """The means over users; `ranks` [U] int64, at least one."""
    assert len(ranks) > 0, "a mean over no users"
    return {name: values.mean().item() for name, values in per_user_metrics(ranks).items()}

"""The pipeline benchmark on a small domain."""

from benchmarks.pipeline import main
from mmsr_pt.data.domain import Domain


def test_it_measures_every_contestant(small_domain: Domain) -> None:
    sizes = {"side": 16, "batch": 16, "num_batches": 1, "repetitions": 2}
    flags = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    found = main(["--data", str(small_domain.path), *flags])
    assert len(found) == 4
    assert all(len(rates) == 2 and min(rates) > 0 for rates in found.values())

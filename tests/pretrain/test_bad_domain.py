"""Real runs on damaged domains: left out, counted and named below --max_bad; stopped on all ranks beyond it."""

from pathlib import Path

import pytest

from mmsr_pt.data.domain import Domain
from tests.data.broken import copy_of, flip, replace_member
from tests.data.tars import members
from tests.pretrain.launching import finish, launch, metrics, small_run

USERS_PER_STEP = 8


def broken(domain: Domain, out: Path, num_users: int, num_items: int) -> Domain:
    """So many users have no JSON, and so many items of the catalogue a picture with a wrong bit."""
    root = copy_of(domain, out)
    for number in range(num_users):
        tar = f"train/train-{number:05d}.tar"
        replace_member(root, tar, next(name for name, _ in members(root / tar) if name.startswith("u")))
    for row in range(num_items):
        place = domain.items.row(row, named=True)
        flip(root / place["tar"], place["offset"] + place["size"] // 2)
    return Domain.load(root)


def steps_per_epoch(domain: Domain, num_ranks: int = 1) -> int:
    return -(-domain.num_users // (USERS_PER_STEP * num_ranks))


def test_a_run_goes_on_without_what_is_damaged(tmp_path: Path, small_domain: Domain) -> None:
    """One of 150 users and two of 300 items may be bad."""
    domain = broken(small_domain, tmp_path / "domain", 1, 2)
    epoch = steps_per_epoch(domain)
    ended = finish(*small_run(tmp_path, domain, "--steps", epoch + 2, "--num_workers", 1))
    counts = [line["bad_samples"] for line in metrics(tmp_path / "run", "train")]
    assert counts[:epoch] == sorted(counts[:epoch])
    assert 1 <= counts[epoch - 1] <= 3
    assert counts[epoch] <= 3, "each epoch counts anew"
    (user,) = [line for line in ended.err.splitlines() if "left out" in line and "train-00000.tar: u" in line]
    assert "it is missing" in user
    assert (
        ended.err.count("items-00000.tar: i00000000 (its bytes are not those") == ended.err.count(": i00000000 (") >= 1
    )
    assert "mid-gray stands for the picture of" in ended.err, "of the catalogue, in validation"
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_too_much_damage_stops_a_run_with_a_checkpoint(tmp_path: Path, small_domain: Domain) -> None:
    domain = broken(small_domain, tmp_path / "domain", 6, 0)
    check_stop(tmp_path, domain, num_ranks=0)


@pytest.mark.slow
def test_too_much_damage_stops_all_ranks_at_the_same_step(tmp_path: Path, small_domain: Domain) -> None:
    domain = broken(small_domain, tmp_path / "domain", 6, 0)
    check_stop(tmp_path, domain, num_ranks=2)


def check_stop(tmp_path: Path, domain: Domain, num_ranks: int) -> None:
    flags = ["--steps", 30, "--num_workers", 1, "--patience", 0]
    ended = launch(*small_run(tmp_path, domain, *flags), num_ranks=num_ranks, timeout=120)
    assert ended.code == 2, ended.err[-3000:]
    (sentence,) = ended.errors
    assert "2 of 150 users could not be read in epoch 1" in sentence
    assert "--max_bad 0.01 allows 1.000%" in sentence
    assert "Traceback" not in ended.err
    assert ended.err.count("left out ") == 2
    last = metrics(tmp_path / "run", "train")[-1]["step"]
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    assert checkpoint.name == f"step_{last:08d}"
    ended = finish(*small_run(tmp_path, domain, *flags, "--resume", "--max_bad", 0.05), num_ranks=num_ranks)
    lines = metrics(tmp_path / "run", "train")
    assert [line["step"] for line in lines] == list(range(1, 31))
    whole = steps_per_epoch(domain, max(num_ranks, 1))
    assert next(line for line in lines if line["step"] == whole)["bad_samples"] == 6


@pytest.mark.slow
def test_the_count_is_that_of_one_process_on_two_ranks_with_workers(tmp_path: Path, small_domain: Domain) -> None:
    domain = broken(small_domain, tmp_path / "domain", 6, 0)
    counts = []
    for num_ranks, micro_batch, workers in ((0, 8, 2), (2, 4, 1)):
        (tmp_path / str(num_ranks)).mkdir()
        run = small_run(tmp_path / str(num_ranks), domain, "--steps", 20, "--max_bad", 0.1, "--num_workers", workers)
        config = Path(str(run[1]))
        config.write_text(config.read_text().replace('gpu": 8', f'gpu": {micro_batch}'))
        finish(*run, num_ranks=num_ranks)
        counts.append([line["bad_samples"] for line in metrics(tmp_path / str(num_ranks) / "run", "train")])
    assert counts[0] == counts[1]
    assert counts[0][steps_per_epoch(domain) - 1] == 6

"""Fusions and sequence encoders through the real launcher: what ZeRO-3 takes apart on two ranks learns the same."""

from pathlib import Path

import pytest
import torch

from mmsr_pt.data.domain import Domain
from mmsr_pt.models.fusion import fusions
from mmsr_pt.models.recommender import MMSRModel
from mmsr_pt.models.sequence import sequence_encoders
from tests.conftest import real_weights
from tests.pretrain.launching import SMALL, ds_config, finish, losses

PAIRS = {"co": "grurec", "film+dnn": "nextitnet", "gate": "rotary", "concat+dnn": "bert4rec"}


def test_every_part_goes_through_the_launcher_in_some_test() -> None:
    """`sasrec` with `merge` does everywhere else; that of `sum` and `concat` which differs is their perceptron."""
    assert {"sasrec", *PAIRS.values()} == set(sequence_encoders)
    assert {"merge", "sum", *(name.removesuffix("+dnn") for name in PAIRS)} == {
        name.removesuffix("+dnn") for name in fusions
    }


@pytest.mark.slow
@pytest.mark.parametrize(("fusion", "sequence"), PAIRS.items())
def test_zero_3_on_two_ranks_learns_what_one_process_does(
    tmp_path: Path, small_domain: Domain, fusion: str, sequence: str
) -> None:
    same_on_one_and_two_ranks(tmp_path, small_domain, "--fusion", fusion, "--sequence", sequence)


@pytest.mark.slow
def test_low_rank_updates_of_a_real_tower_do_too(tmp_path: Path, small_domain: Domain) -> None:
    text = f"hf:{real_weights('minilm-l6')}"
    learnt = same_on_one_and_two_ranks(tmp_path, small_domain, "--text", text, "--vision", "none", "--tune", "lora:4")
    updates = [tensor for name, tensor in learnt.state_dict().items() if ".lora_B." in name]
    assert len(updates) == 6 * 6
    assert all(tensor.any() for tensor in updates), "they start at zero"


def same_on_one_and_two_ranks(tmp_path: Path, domain: Domain, *parts: object) -> MMSRModel:
    """Four steps in one process without ZeRO and on two ranks at stage 3; returns what the latter learnt."""
    flags = ["--data", domain.path, *SMALL, *parts, "--steps", 4, "--dropout", 0]
    one = ds_config(tmp_path / "one.json", stage=0, micro_batch=16)
    finish("--ds_config", one, "--run_dir", tmp_path / "one", *flags)
    two = ds_config(tmp_path / "two.json", stage=3, micro_batch=8)
    finish("--ds_config", two, "--run_dir", tmp_path / "two", *flags, num_ranks=2)
    expected = losses(tmp_path / "one")
    assert len(expected) == 4
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=1e-4)
    alone, together = (MMSRModel.from_pretrained(tmp_path / run / "model") for run in ("one", "two"))
    for name, tensor in alone.state_dict().items():
        assert torch.allclose(together.state_dict()[name], tensor, rtol=1e-2, atol=1e-4), name
    return together

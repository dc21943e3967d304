"""Fusions and sequence encoders through the real launcher: what ZeRO-3 takes apart on two ranks learns the same."""

import math
from pathlib import Path

import pytest
import torch

from mmsr_pt.assembly import build_model
from mmsr_pt.config import READ_BOTH
from mmsr_pt.data.catalogue import item_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.models.fusion import fusions
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.models.sequence import sequence_encoders
from tests.conftest import real_weights
from tests.models.towers.small import relative_error
from tests.models.towers.vlps import MODELS, flags_for, publish, publish_eyes
from tests.pretrain.launching import SMALL, ds_config, finish, losses

PAIRS = {"co": "grurec", "film+dnn": "nextitnet", "gate": "rotary", "concat+dnn": "bert4rec"}


def test_every_part_goes_through_the_launcher_in_some_test() -> None:
    """`sasrec` with `merge` does everywhere else; that of `sum` and `concat` which differs is their perceptron."""
    assert {"sasrec", *PAIRS.values()} == set(sequence_encoders) - set(READ_BOTH)
    # vanilla: that of fdsa, in test_baselines.py
    assert {"merge", "sum", "vanilla", *(name.removesuffix("+dnn") for name in PAIRS)} == {
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_a_vlp_trains_saves_and_comes_back_at_zero_2_and_3(tmp_path: Path, small_domain: Domain, kind: str) -> None:
    publish(kind, tmp_path / "vlp")
    publish_eyes(tmp_path / "eyes")
    flags: list[object] = ["--data", small_domain.path, *SMALL, "--title_tokens", 20, "--steps", 20, "--dropout", 0]
    for name, value in flags_for(kind, tmp_path / "vlp", tmp_path / "eyes").items():
        flags += [f"--{name}", value]
    learnt = []
    for stage in (2, 3):
        config = ds_config(tmp_path / f"{stage}.json", stage=stage, micro_batch=8)
        run = tmp_path / f"run{stage}"
        finish("--ds_config", config, "--run_dir", run, *flags, num_ranks=2)
        learnt.append(Recommender.load(run / "model"))
        assert (run / "checkpoints" / "latest").exists()
    assert losses(tmp_path / "run3") == pytest.approx(losses(tmp_path / "run2"), rel=1e-4)
    fresh, _ = build_model(learnt[0].config, [small_domain])
    trained = {name for group in fresh.layer_groups() if group.trained for name in group.parameters}
    start, two, three = (model.state_dict() for model in (fresh, *learnt))
    assert all(torch.equal(two[name], start[name]) for name in two if name not in trained)
    pretrained = sorted(trained - set(ours(fresh)))
    changes = [torch.cat([(state[name] - start[name]).flatten() for name in pretrained]) for state in (two, three)]
    # as a whole: Adam makes steps of like size of the smallest gradients, rounding included
    assert relative_error(changes[1], changes[0]) < 0.1
    assert changes[0].count_nonzero() > 0.5 * len(changes[0])
    source = item_source(small_domain, Preprocessor.load(tmp_path / "run2" / "model"))
    (batch,) = source(range(12), 12)
    with torch.no_grad():
        vectors = [model.encode_items(batch) for model in learnt]
    assert torch.allclose(*vectors, atol=1e-2)


@pytest.mark.slow
def test_dropped_modalities_train_where_weights_are_split_and_what_is_evaluated_is_whole(
    tmp_path: Path, small_domain: Domain
) -> None:
    config = ds_config(tmp_path / "3.json", stage=3, micro_batch=8)
    flags = ["--ds_config", config, "--data", small_domain.path, *SMALL, "--steps", 4, "--dropout", 0]
    for name, rate in (("some", 0.5), ("none", 0)):
        finish(*flags, "--modality_dropout", rate, "--run_dir", tmp_path / name, num_ranks=2)
    some, none = losses(tmp_path / "some"), losses(tmp_path / "none")
    assert all(math.isfinite(loss) for loss in some)
    assert some[0] != none[0], "--dropout 0 turns off every other dropout, not this one"
    model = Recommender.load(tmp_path / "some" / "model")
    assert model.config.modality_dropout == 0.5
    (batch,) = item_source(small_domain, Preprocessor.load(tmp_path / "some" / "model"))(range(12), 12)
    with torch.no_grad():
        assert torch.equal(model.encode_items(batch), model.encode_items(batch))


def ours(model: Recommender) -> list[str]:
    """Parameters that start from random weights, which no file holds."""
    return [name for group in model.layer_groups() if group.kind == "rest" for name in group.parameters]


def same_on_one_and_two_ranks(tmp_path: Path, domain: Domain, *parts: object, stage: int = 3) -> Recommender:
    """Four steps in one process without ZeRO and on two ranks at a stage of it; returns what the latter learnt."""
    flags = ["--data", domain.path, *SMALL, *parts, "--steps", 4, "--dropout", 0]
    one = ds_config(tmp_path / "one.json", stage=0, micro_batch=16)
    finish("--ds_config", one, "--run_dir", tmp_path / "one", *flags)
    two = ds_config(tmp_path / "two.json", stage=stage, micro_batch=8)
    finish("--ds_config", two, "--run_dir", tmp_path / "two", *flags, num_ranks=2)
    expected = losses(tmp_path / "one")
    assert len(expected) == 4
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=1e-4)
    alone, together = (Recommender.load(tmp_path / run / "model") for run in ("one", "two"))
    for name, tensor in alone.state_dict().items():
        # over a whole tensor: Adam makes a full step, of 5e-4, also of a gradient that is but rounding, as of some key
        # biases; so a single entry may be off by one
        learnt = together.state_dict()[name]
        assert (learnt - tensor).norm() <= 1e-2 * tensor.norm() + 1e-4 * tensor.numel() ** 0.5, name
        assert torch.allclose(learnt, tensor, rtol=1e-2, atol=5e-4), name
    return together

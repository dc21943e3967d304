"""From source to target through the real launcher: pre-train on a mixture, fine-tune, go on after a stop, zero-shot."""

import json
from pathlib import Path

import pytest
import torch

from finetune.run import main
from mmsr_pt.cli import main as evaluate
from mmsr_pt.data.domain import Domain
from mmsr_pt.models.recommender import Recommender
from tests.conftest import build_drawn
from tests.pretrain.launching import (
    FINETUNE,
    finish,
    launch,
    losses,
    made_once,
    metrics,
    shared_root,
    small_run,
)

SOME = 40
"""Training users of the target."""


@pytest.fixture(scope="module")
def domains(small_domain: Domain, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> list[Domain]:
    """Two sources and a target."""
    root = shared_root(tmp_path_factory, worker_id) / "finetune_domains"
    made_once(
        root,
        lambda: [
            build_drawn(root / name, variant, num_users=60, items_per_cell=2)
            for name, variant in (("second", "source"), ("target", "target"))
        ],
    )
    return [small_domain, Domain.load(root / "second"), Domain.load(root / "target")]


@pytest.fixture(scope="module")
def source(domains: list[Domain], tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A model pre-trained on both sources, the second one twice as often."""
    out = shared_root(tmp_path_factory, worker_id) / "finetune_source"
    first, second, _ = domains
    return (
        made_once(
            out,
            lambda: finish(
                *small_run(out, first),
                "--data",
                first.path,
                second.path,
                "--weights",
                1,
                2,
                "--steps",
                3,
                "--dropout",
                0,
            ),
        )
        / "run"
    )


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [0, 2])
def test_a_source_is_taken_up_trained_on_and_judged_before_its_first_step(
    tmp_path: Path, domains: list[Domain], source: Path, num_ranks: int
) -> None:
    target = domains[2]
    flags = [*small_run(tmp_path, target), "--max_users", SOME, "--epochs", 2, "--init", source]
    ended = finish(*flags, num_ranks=num_ranks, script=FINETUNE)
    assert ended.out.count(" loaded") == 6
    run = tmp_path / "run"
    steps = 2 * -(-SOME // (8 * max(num_ranks, 1)))
    assert len(losses(run)) == steps
    validated = metrics(run, "eval", split="valid", slice="all")
    assert [line["step"] for line in validated] == [0, steps // 2, steps]
    assert {line["users"] for line in validated} == {SOME}
    assert {line["users"] for line in metrics(run, "eval", split="test", slice="all")} == {target.num_users}
    assert json.loads((run / "config.json").read_text())["transfer"]["init"] == str(source)
    names = [domain["name"] for domain in Recommender.load(run / "model").trained_on]
    assert names == ["small_domain", "second", "target"]
    title = "# MMSR, trained on target, started from a model of small_domain, second"
    assert title in (run / "model" / "README.md").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("where", [[], ["--async_eval"]], ids=["in line", "in the background"])
def test_the_first_judgement_is_zero_shot(
    tmp_path: Path, domains: list[Domain], source: Path, where: list[object]
) -> None:
    flags = [*small_run(tmp_path, domains[2]), "--max_users", SOME, "--steps", 1, "--init", source, *where]
    finish(*flags, script=FINETUNE)
    judged = metrics(tmp_path / "run", "eval", split="valid", slice="all")
    assert [(line["step"], line["users"]) for line in judged] == [(0, SOME), (1, SOME)]
    flags = ["--model", source, "--data", domains[2].path, "--split", "valid", "--no_baselines", "--max_users", SOME]
    evaluate(["evaluate", *(str(word) for word in flags), "--out", str(tmp_path / "zero.json")])
    (expected,) = (line for line in json.loads((tmp_path / "zero.json").read_text())["lines"] if line["slice"] == "all")
    (found,) = metrics(tmp_path / "run", "eval", split="valid", slice="all", step=0)
    assert expected["users"] == SOME
    for metric in ("HR@10", "NDCG@50", "MRR"):
        assert found[metric] == pytest.approx(expected[metric], abs=1e-6)


@pytest.mark.slow
def test_a_stopped_fine_tuning_goes_on_as_if_it_had_not_been(
    tmp_path: Path, domains: list[Domain], source: Path
) -> None:
    common = ["--max_users", SOME, "--init", source, "--checkpoint_every", 2, "--patience", 0]
    whole = small_run(tmp_path, domains[2], *common, "--steps", 6, name="whole")
    finish(*whole, script=FINETUNE)
    parts = small_run(tmp_path, domains[2], *common, "--decay_from", 1, name="parts")
    finish(*parts, "--steps", 4, script=FINETUNE)
    finish(*parts, "--steps", 6, "--resume", script=FINETUNE)
    # the decay of the rates is over the whole run: compared where neither run had begun it
    assert losses(tmp_path / "parts")[:4] == losses(tmp_path / "whole")[:4]
    validated = metrics(tmp_path / "parts", "eval", split="valid", slice="all")
    assert [line["step"] for line in validated].count(0) == 1
    refused = launch(*parts, "--steps", 8, "--resume", "--max_users", SOME - 1, script=FINETUNE)
    assert refused.code == 2
    assert "max_users 40, now it is 39" in refused.errors[0]


@pytest.mark.slow
def test_scratch_and_transfer_meet_the_same_users(tmp_path: Path, domains: list[Domain], source: Path) -> None:
    for name, init in (("scratch", "none"), ("transfer", source)):
        flags = small_run(tmp_path, domains[2], "--max_users", SOME, "--steps", 2, "--init", init, name=name)
        finish(*flags, script=FINETUNE)
    scratch, transfer = (Recommender.load(tmp_path / name / "model") for name in ("scratch", "transfer"))
    assert [domain["name"] for domain in scratch.trained_on] == ["target"]
    weights = [model.sequence_encoder.state_dict() for model in (scratch, transfer)]
    assert not any(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] if weights[0][name].ndim > 1)
    popularity = [
        metrics(tmp_path / name, "eval", split="test", slice="all", model="popularity")[0]["MRR"]
        for name in ("scratch", "transfer")
    ]
    assert popularity[0] == popularity[1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), ["--init is missing", "none to start from scratch"]),
        (("--init", "no/such/run/at/all"), ["no directory no/such/run/at/all", "hub id like user/name"]),
        (("--init", "none", "--max_users", -1), ["--max_users -1", "negative"]),
        (("--init", "none", "--freeze", "text"), ["unknown flag --freeze", "--help"]),
    ],
)
def test_mistakes_get_one_sentence(
    tmp_path: Path,
    small_domain: Domain,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[object, ...],
    words: list[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in small_run(tmp_path, small_domain, *flags)])
    assert ended.value.code == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("error: ")
    assert all(word in sentence for word in words)
    assert not (tmp_path / "run").exists()

"""The benchmark of the first recommendation, small: every step is there, and the sums are theirs."""

from pathlib import Path

import pytest

from benchmarks.first_recommendation import Settings, main, measure
from mmsr_pt.assembly import build_model
from mmsr_pt.config import ModelConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.hub.card import domain_entry


@pytest.fixture
def bundle(small_domain: Domain, tmp_path: Path) -> Path:
    config = ModelConfig(width=16, sequence_heads=2, fusion_heads=2, max_history=5)
    model, preprocessor = build_model(config, [small_domain])
    model.save(tmp_path / "bundle", trained_on=[domain_entry(small_domain)], step=1)
    preprocessor.save(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_each_step_is_timed(bundle: Path, small_domain: Domain) -> None:
    seconds = measure(Settings(str(bundle), small_domain.path, answers=3))
    assert list(seconds) == [
        "import mmsr_pt",
        "load the model",
        f"encode {small_domain.num_items:,} items",
        "load the index",
        "first answer",
        "median of 3 further answers",
    ]
    assert all(taken > 0 for taken in seconds.values())


def test_the_two_ways_differ_by_the_catalogue(
    bundle: Path, small_domain: Domain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = {"import": 1.0, "load": 2.0, "encode": 64.0, "index": 0.5, "first": 0.25, "further": 0.125}
    monkeypatch.setattr("benchmarks.first_recommendation.measure", lambda settings: steps)
    main(["--model", str(bundle), "--data", str(small_domain.path)])
    shown = capsys.readouterr().out
    with_index, without = [line for line in shown.splitlines() if "to the first answer" in line]
    assert "3.750" in with_index
    assert "67.250" in without


def test_no_answers_are_no_measurement(bundle: Path, small_domain: Domain) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--model", str(bundle), "--data", str(small_domain.path), "--answers", "0"])
    assert ended.value.code == 2

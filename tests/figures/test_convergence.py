"""Curves of validation: what is read from runs, means and bands by hand, what stands in the picture."""

import json
from pathlib import Path

import pytest

from mmsr_pt.figures.canvas import save
from mmsr_pt.figures.convergence import Curve, Panel, draw_convergence, validation_curve


def fake_run(run_dir: Path, validated: dict[int, float], steps_per_epoch: int = 4, domain: str = "hm") -> Path:
    """A run that found `validated` (step -> HR@10), and other figures that are not to be taken for it."""
    run_dir.mkdir(parents=True)
    lines = []
    for step, value in validated.items():
        line = {"event": "eval", "model": "mmsr", "split": "valid", "slice": "all", "step": step, "domain": domain}
        lines.append({"event": "train", "step": step, "epoch": round(step / steps_per_epoch, 4)})
        lines.append({**line, "HR@10": value, "NDCG@10": value / 2})
        lines.append({**line, "HR@10": 0.9, "slice": "cold"})
        lines.append({**line, "HR@10": 0.9, "split": "test"})
        lines.append({**line, "HR@10": 0.9, "model": "popularity"})
    (run_dir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return run_dir


def test_a_runs_validation_against_its_epochs(tmp_path: Path) -> None:
    first = fake_run(tmp_path / "0", {4: 0.1, 8: 0.2, 10: 0.3})
    second = fake_run(tmp_path / "1", {4: 0.3, 8: 0.1})
    begun = tmp_path / "2"
    begun.mkdir()
    curve = validation_curve("MMSR", [first, second, begun], "HR@10")
    assert curve.seeds == ({1: 0.1, 2: 0.2, 2.5: 0.3}, {1: 0.3, 2: 0.1})
    # where all seeds got to: mean, lowest, highest
    assert curve.common() == [pytest.approx((1, 0.2, 0.1, 0.3)), pytest.approx((2, 0.15, 0.1, 0.2))]
    assert validation_curve("MMSR", [first], "NDCG@10").seeds == ({1: 0.05, 2: 0.1, 2.5: 0.15},)
    assert validation_curve("MMSR", [first], "HR@10", "hm").seeds == (curve.seeds[0],)
    assert validation_curve("MMSR", [first], "HR@10", "another").seeds == ()
    assert Curve("none yet", ()).common() == []


def test_the_picture_has_the_curves_in_percent(tmp_path: Path) -> None:
    several = Curve("MMSR", ({1: 0.1, 2: 0.2}, {1: 0.2, 2: 0.4}))
    single = Curve("IDSR", ({1: 0.05, 2: 0.04, 3: 0.03},))
    grid = [[Panel("hm", "HR@10", [several, single]), Panel("mine", "HR@10", [single, Curve("none yet", ())])]]
    figure = draw_convergence(grid, "Figure 4")
    left, right = figure.axes
    assert [(axes.get_title("left"), axes.get_ylabel()) for axes in figure.axes] == [
        ("hm", "validation HR@10 (%)"),
        ("mine", "validation HR@10 (%)"),
    ]
    mean, one = left.lines
    assert mean.get_xydata().tolist() == [[1, pytest.approx(15)], [2, pytest.approx(30)]]
    assert one.get_xydata().tolist() == [[1, 5], [2, 4], [3, 3]]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["MMSR (best 30.0)", "IDSR (best 5.0)"]
    (band,) = left.collections  # of the one with several seeds
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.round(6).tolist()}
    assert corners >= {(1, 10), (1, 20), (2, 20), (2, 40)}
    assert len(right.lines) == 1
    assert not right.collections
    # black and white keeps them apart
    assert mean.get_linestyle() != one.get_linestyle()
    assert mean.get_marker() != one.get_marker()
    save(figure, tmp_path / "a.png")
    save(draw_convergence(grid, "Figure 4"), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_what_is_missing_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsr_pt.figures.canvas.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pictures need matplotlib, .* type pip install --editable '.\[figures\]'$"):
        draw_convergence([[Panel("hm", "HR@10", [])]], "Figure 4")

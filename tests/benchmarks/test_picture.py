"""The picture of growth shows every line and says what its axes are."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'mmsr_pt[bench]'")

from benchmarks import picture


def points(values: list[int], **others: float) -> list[dict[str, float]]:
    return [{"value": value, "median": 2.0 * value, "min": value, "max": 3.0 * value, **others} for value in values]


FOUND: dict[str, Any] = {
    "batch": {"axis": "users", "unit": "s/step", "lines": {"cached": points([8, 16]), "plain": points([8, 16])}},
    "history": {"axis": "longest history", "unit": "s/step", "lines": {"cached": points([5])}},
    "catalogue": {"axis": "items", "unit": "s/step", "lines": {"cached": points([300, 1200])}},
    "ranks": {"axis": "ranks", "unit": "users/s", "lines": {"cached": points([1, 2], efficiency=0.93)}},
}


def test_every_sweep_has_a_panel_with_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot

    monkeypatch.setattr(pyplot, "close", lambda _: None)
    picture.draw(FOUND, tmp_path / "growth.png")
    panels = pyplot.gcf().axes
    assert [panel.get_xlabel() for panel in panels] == [sweep["axis"] for sweep in FOUND.values()]
    assert [panel.get_ylabel() for panel in panels] == [*3 * ["seconds per step"], "users per second"]
    drawn = {line.get_label(): list(line.get_ydata()) for line in panels[0].lines}
    assert drawn == {"cached": [16, 32], "plain": [16, 32]}
    assert [bar.get_height() for bar in panels[3].patches] == [2, 4]
    assert [text.get_text() for text in panels[3].texts] == ["93%", "93%"]
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")

"""Figures of a study: which runs they start and share, and what they draw of them; the runs end at once here."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmsr_pt.assembly import build_model
from mmsr_pt.config import to_json
from mmsr_pt.data.domain import Domain
from mmsr_pt.figures.vectors import Cloud
from mmsr_pt.flags import parse_flags
from mmsr_pt.log import UserError
from mmsr_pt.presets import TABLES
from mmsr_pt.studies import table_figures
from mmsr_pt.studies import table_study as study_module
from mmsr_pt.studies.table_figures import FIGURES
from mmsr_pt.studies.table_study import study
from tests.pretrain.launching import ds_config

SMALL = ["--width", "16", "--max_history", "6"]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Run directories in the order of their runs: two validated epochs, a test, an untrained bundle if there can be."""
    done: list[Path] = []

    def run(run_dir: Path, flags: Sequence[str], *others: Any) -> None:
        done.append(run_dir)
        config = parse_flags(list(flags))
        lines: list[dict[str, Any]] = []
        for epoch in (1, 2):
            figures = {"HR@10": 0.1 * epoch + 0.02 * config.run.seed, "NDCG@10": 0.05 * epoch}
            found = {"event": "eval", "split": "valid", "model": "mmsr", "slice": "all", "seconds": 1.0, **figures}
            lines += [{"event": "train", "step": 3 * epoch, "epoch": epoch}, {**found, "step": 3 * epoch}]
        lines.append({**lines[-1], "split": "test"})
        run_dir.mkdir(parents=True)
        (run_dir / "config.json").write_text(to_json(config))
        (run_dir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        if config.model.vlp == "none":
            domain = Domain.load(config.data.data[0])
            model, preprocessor = build_model(config.model, [domain])
            trained_on = [{"name": domain.name, "fingerprint": domain.fingerprint}]
            model.save(run_dir / "model", trained_on=trained_on)
            preprocessor.save(run_dir / "model")

    monkeypatch.setattr(study_module, "finish_run", run)
    return done


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The pictures that were saved."""
    pictures: list[Any] = []

    def save(figure: Any, file: Path) -> None:
        pictures.append(figure)
        file.write_bytes(b"a picture")

    monkeypatch.setattr(table_figures, "save", save)
    return pictures


@pytest.fixture
def asked(tmp_path: Path, small_domain: Domain, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    return {"data": [small_domain.path], "ds_config": ds_config(tmp_path / "ds_config.json"), "further": SMALL}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_shows_rows_of_its_table(name: str) -> None:
    figure = FIGURES[name]
    assert set(figure.rows) <= set(TABLES[figure.table].rows)
    assert len(set(figure.rows.values())) == len(figure.rows)


def test_table_and_figures_share_their_runs(
    tmp_path: Path, asked: dict[str, Any], ran: list[Path], drawn: list[Any]
) -> None:
    study("table4", **asked, rows=["sasrec", "grurec"])
    study("figure4", **asked)
    assert [path.parent.name for path in ran] == ["sasrec", "grurec", "sasrec-id", "sasrec-text", "sasrec-vision"]
    study("figure8", **asked)
    study("figure9", **asked)
    assert len(ran) == 5
    (out,) = (tmp_path / "runs").iterdir()  # without --out, too
    assert {path.parents[2] for path in ran} == {Path("runs") / out.name}
    assert out.name.startswith("study-table4-")
    assert sorted(path.name for path in out.glob("figure*")) == ["figure4.png", "figure8.png", "figure9.png"]
    assert set(json.loads((out / "results.json").read_text())["rows"]) == {path.parent.name for path in ran}


def test_convergence_of_all_seeds_that_are_there(
    asked: dict[str, Any], ran: list[Path], drawn: list[Any], small_domain: Domain
) -> None:
    study("table4", **asked, rows=["sasrec"], seeds=3)
    study("figure4", **asked, rows=["sasrec", "sasrec-id"])
    (figure,) = drawn
    hits, gains = figure.axes
    assert [axes.get_title("left") for axes in figure.axes] == [small_domain.name] * 2
    assert [axes.get_ylabel() for axes in figure.axes] == ["validation HR@10 (%)", "validation NDCG@10 (%)"]
    labels = [text.get_text() for text in hits.get_legend().get_texts()]
    assert labels == ["IDSR (best 20.0)", "MMSR (best 22.0)"]  # seeds 0, 1, 2: 20, 22, 24
    one, mean = hits.lines
    assert mean.get_xydata().ravel().tolist() == pytest.approx([1, 12, 2, 22])
    assert one.get_xydata().ravel().tolist() == pytest.approx([1, 10, 2, 20])
    assert gains.lines[1].get_ydata().tolist() == pytest.approx([5, 10])
    assert "means of up to 3 seeds" in figure.get_suptitle()


def test_figure_6_is_of_the_vlps(
    asked: dict[str, Any], ran: list[Path], drawn: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    study("figure6", **asked, rows=["flava", "clip"])
    assert [path.parent.name for path in ran] == ["clip", "flava"]
    labels = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert labels == ["CLIP (best 20.0)", "FLAVA (best 20.0)"]


@pytest.mark.parametrize("name", ["figure8", "figure9"])
def test_the_vectors_are_those_of_the_bundles(
    asked: dict[str, Any], ran: list[Path], drawn: list[Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kept: list[Cloud] = []
    maker = {"figure8": "item_cloud", "figure9": "user_cloud"}[name]
    make = getattr(table_figures, maker)

    def looked_at(*given: Any) -> Cloud:
        kept.append(make(*given))
        return kept[-1]

    monkeypatch.setattr(table_figures, maker, looked_at)
    study(name, **asked)
    assert [path.parent.name for path in ran] == ["sasrec-id", "sasrec"]
    assert [cloud.vectors.shape[1] for cloud in kept] == [16, 16]
    assert [cloud.title.partition(": ")[2] for cloud in kept] == ["IDSR", "MMSR"]
    assert (kept[0].marks == kept[1].marks).all()
    assert len(drawn) == 1


def test_occurrences_are_those_among_the_users_who_trained(
    asked: dict[str, Any], ran: list[Path], drawn: list[Any], small_domain: Domain
) -> None:
    study("figure8", **{**asked, "further": [*SMALL, "--max_users", "40"]})
    counts = Domain.load(small_domain.path, 40).train_count()
    assert counts.sum() < small_domain.train_count().sum()
    cold, warm = drawn[0].axes[0].collections
    shown = [*cold.get_array(), *warm.get_array()]
    assert sorted(shown) == sorted(counts.clip(1).tolist())


def test_what_draws_is_asked_for_before_anything_is_run(
    asked: dict[str, Any], ran: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmsr_pt.figures.canvas.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pictures need matplotlib, which is not installed"):
        study("figure4", **asked)
    assert not ran
    study("table4", **asked, rows=["sasrec"])  # which needs it not


def test_a_dry_run_of_a_figure_names_its_runs(
    asked: dict[str, Any], ran: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    study("figure8", **asked, dry_run=True)
    said = capsys.readouterr().out
    assert said.count("to do     sasrec-id on ") == said.count("to do     sasrec on ") == 1
    assert "finished: 0 of 2; how long" in said
    assert not ran
    assert not Path("runs").exists()

"""What TensorBoard gets besides curves, read back from its files."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch.utils.tensorboard import SummaryWriter

from mmsr_pt.assembly import build_model
from mmsr_pt.board import begin_session, clear_projector, end_session, gates, settings_of, write_projector
from mmsr_pt.config import DataConfig, ModelConfig, PretrainConfig
from mmsr_pt.data.catalogue import item_source
from mmsr_pt.data.domain import Domain


def read(directory: Path) -> EventAccumulator:
    # by itself it would keep one histogram of each kind
    board = EventAccumulator(str(directory), size_guidance={"histograms": 0})
    board.Reload()
    return board


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [("gate", {"gate"}), ("film+dnn", {"scale", "shift"}), ("vanilla", {"text"}), ("sum", set())],
)
def test_gates_of_some_items(small_domain: Domain, fusion: str, expected: set[str]) -> None:
    model, preprocessor = build_model(ModelConfig(fusion=fusion, width=16), [small_domain])
    model.train()
    found = gates(model, item_source(small_domain, preprocessor), 200)
    assert set(found) == expected
    # one in a hundred of 200 items
    assert all(values.shape == ((2,) if fusion == "vanilla" else (2, 16)) for values in found.values())
    assert all(module.training for module in (model, model.item_encoder, model.sequence_encoder))
    fused = getattr(model.item_encoder, "fusion")  # noqa: B009
    assert not fused._forward_pre_hooks, "training must not pay for it"


def test_models_without_fusion_have_no_gates(small_domain: Domain) -> None:
    for config in (ModelConfig(item="id", width=16), ModelConfig(vision="none", width=16)):
        model, preprocessor = build_model(config, [small_domain])
        assert gates(model, item_source(small_domain, preprocessor), 200) == {}


def test_the_projector_shows_vectors_titles_and_pictures(tmp_path: Path, small_domain: Domain) -> None:
    rows = np.array([1, 4, 5, 7, 9])
    vectors = torch.arange(15.0).view(5, 3) / 7
    for _ in range(2):  # the end of a run may come twice
        clear_projector(tmp_path)
        with SummaryWriter(str(tmp_path)) as board:
            write_projector(board, small_domain, rows, vectors, step=12)
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (embedding,) = config.embeddings
    table = np.loadtxt(tmp_path / embedding.tensor_path, delimiter="\t")
    np.testing.assert_allclose(table, vectors.numpy(), atol=1e-6)
    with (tmp_path / embedding.metadata_path).open() as file:
        about = list(csv.DictReader(file, delimiter="\t"))
    items = small_domain.items[rows.tolist()]
    assert [one["title"] for one in about] == items["title"].to_list()
    assert [one["item_id"] for one in about] == items["item_id"].to_list()
    assert [int(one["train_count"]) for one in about] == items["train_count"].to_list()
    assert [one["cold or warm"] == "cold" for one in about] == [count < 10 for count in items["train_count"]]
    sprite = Image.open(tmp_path / embedding.sprite.image_path)
    assert list(embedding.sprite.single_image_dim) == [48, 48]
    assert sprite.size == (3 * 48, 3 * 48), "five pictures in a square of three by three"
    first, sixth = sprite.crop((0, 0, 48, 48)), sprite.crop((96, 48, 144, 96))
    assert len(first.getcolors(48 * 48) or []) > 1
    assert sixth.getcolors() == [(48 * 48, (0, 0, 0))], "there is no sixth one"


def test_a_title_of_several_lines_keeps_its_row(tmp_path: Path, small_domain: Domain) -> None:
    domain = Domain.load(small_domain.path)
    items = domain.items.with_columns(title=domain.items["title"] + "\tin two\nlines")
    object.__setattr__(domain, "titles", lambda: items["title"].to_list())
    with SummaryWriter(str(tmp_path)) as board:
        write_projector(board, domain, np.array([0, 1]), torch.ones(2, 3), step=1)
    (file,) = tmp_path.glob("*/*/metadata.tsv")
    lines = file.read_text().splitlines()
    assert len(lines) == 3
    assert lines[1].split("\t")[0] == f"{domain.items['title'][0]} in two lines"


def test_settings_stand_in_the_log_of_the_run(tmp_path: Path) -> None:
    config = PretrainConfig(model=ModelConfig(width=64, fusion="gate"), data=DataConfig(data=(Path("a"), Path("b"))))
    settings = settings_of(config, {"batch": 32})
    with SummaryWriter(str(tmp_path)) as board:
        begin_session(board, settings, ["test/mmsr/all/HR@10"])
        board.add_scalar("test/mmsr/all/HR@10", 0.25, 7)
        end_session(board)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()], "no second run beside it"
    content = read(tmp_path).PluginTagToContent("hparams")
    said = {tag: HParamsPluginData.FromString(data) for tag, data in content.items()}
    experiment = said["_hparams_/experiment"].experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["test/mmsr/all/HR@10"]
    values = said["_hparams_/session_start_info"].session_start_info.hparams
    assert set(values) == {info.name for info in experiment.hparam_infos} == set(settings)
    assert values["model/width"].number_value == 64
    assert values["model/fusion"].string_value == "gate"
    assert values["data/data"].string_value == "a, b"
    assert values["batch"].number_value == 32
    assert "_hparams_/session_end_info" in said


def test_a_picture_that_cannot_be_read_is_white_and_said(
    tmp_path: Path, small_domain: Domain, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small_domain.read_image(1)
    pictures = {0: b"", 1: whole, 2: whole[:100], 3: bytes(len(whole))}
    monkeypatch.setattr(Domain, "read_image", lambda self, row: pictures[row])
    with SummaryWriter(str(tmp_path)) as board:
        write_projector(board, small_domain, np.arange(4), torch.randn(4, 8), 5)
    assert "3 pictures of" in caplog.text
    (sheet,) = tmp_path.rglob("sprite.png")
    tiles = np.asarray(Image.open(sheet).convert("RGB"))
    side = tiles.shape[0] // 2
    of = [tiles[y : y + side, x : x + side] for y in (0, side) for x in (0, side)]
    assert [bool((tile == 255).all()) for tile in of] == [True, False, True, True]

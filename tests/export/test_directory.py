"""Exported towers against torch: every registered part, other sizes than the traced ones, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'mmsr_pt[export]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'mmsr_pt[export]'")
import onnxruntime

from mmsr_pt import cli
from mmsr_pt.batch import ItemInputs
from mmsr_pt.config import ModelConfig
from mmsr_pt.data.catalogue import item_source, iter_item_batches
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.evaluation.evaluate import catalogue_scorer, encode_catalogue
from mmsr_pt.export import directory as exporting
from mmsr_pt.export import graphs
from mmsr_pt.export.check import TOLERANCE, draw_histories, draw_items
from mmsr_pt.export.directory import EXPORT_FILE, ITEM_TOWER, USER_TOWER, export
from mmsr_pt.export.graphs import ItemTower, UserTower, item_ports, user_ports, write_graph
from mmsr_pt.log import UserError
from mmsr_pt.model import MMSRModel
from mmsr_pt.models.fusion import fusions
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.models.sequence import sequence_encoders
from mmsr_pt.recommend import recommend
from tests.models.test_combinations import ITEMS, make
from tests.models.test_recommender import with_towers
from tests.models.towers.small import TEXT, VISION, perturb
from tests.models.towers.small import make as make_tower
from tests.models.towers.vlps import MODELS, VOCAB, publish, publish_eyes
from tests.test_cli import bundle_for, refused

SMALL = ModelConfig(width=16, sequence_heads=2, sequence_layers=2, max_history=6, item="id")
SIZES = [(1, 1), (4, 6), (40, 9), (3, 20)]
"""Rows at once, and tokens of the longest title; towers are traced at 3 and 5."""


class FakeTokenizer:
    """Titles are never given to it: these tests draw tokens."""

    kind, pad_id, vocab_size = "fake", 0, min(60, VOCAB)

    def save(self, directory):
        pass


def opened(recommender: Recommender) -> MMSRModel:
    """With the preprocessing that it would have."""
    content = getattr(recommender.item_encoder, "content", recommender.item_encoder)
    tokenizer = None if getattr(content, "text", None) is None else FakeTokenizer()
    return MMSRModel(recommender, Preprocessor(tokenizer, recommender.image_spec, title_tokens=20), "this model")


def of_ids(sequence="sasrec", **changes) -> MMSRModel:
    """The smallest model that there is."""
    torch.manual_seed(0)
    recommender = Recommender.build(dataclasses.replace(SMALL, sequence=sequence, **changes), num_items=40)
    perturb(recommender)
    return opened(recommender)


def run(file, inputs, tensors):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == [port.name for port in inputs]
    return torch.from_numpy(session.run(None, {p.name: t.numpy() for p, t in zip(inputs, tensors, strict=True)})[0])


def near(found, expected):
    assert found.shape == expected.shape
    return (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@torch.no_grad()
def check_item_tower(model, file):
    """Sizes that were not traced, and padding."""
    ports, generator = item_ports(model), torch.Generator().manual_seed(5)
    names = [port.name for port in ports.inputs]
    example = draw_items(model, 3, 5, torch.Generator().manual_seed(0))
    write_graph(ItemTower(model.recommender, names), ports, example, file, 20)
    for num_items, longest in SIZES:
        tensors = draw_items(model, num_items, longest, generator)
        named = dict(zip(names, tensors))
        expected = model.recommender.encode_items(
            ItemInputs(named.get("ids", torch.arange(num_items)), **content(named))
        )
        found = run(file, ports.inputs, tensors)
        assert near(found, expected)
        if "title_ids" in named and longest < 20:
            padding = (0, 20 - longest)
            padded = {name: torch.nn.functional.pad(named[name], padding) for name in ("title_ids", "title_mask")}
            again = run(file, ports.inputs, [padded.get(name, named[name]) for name in names])
            assert near(again, found)


def content(named):
    return {name: tensor for name, tensor in named.items() if name != "ids"}


@torch.no_grad()
def check_user_tower(model, file):
    """Histories of every length, and what stands in their padding."""
    ports, generator = user_ports(model), torch.Generator().manual_seed(5)
    width = ports.output.shape[1]
    vectors = model.recommender._finish(torch.randn(30, width, generator=generator))
    example = draw_histories(vectors, torch.tensor([5, 5, 5]), 5, torch.Generator().manual_seed(0))
    write_graph(UserTower(model.recommender), ports, example, file, 20)
    for lengths, longest in (([1], 1), ([2], 6), ([1, 2, 3, 4, 5, 6], 6), ([1, 3, 4] * 7, 4)):
        tensors = draw_histories(vectors, torch.tensor(lengths), longest, generator)
        found = run(file, ports.inputs, tensors)
        assert near(found, model.recommender.encode_last(*tensors))
        garbage = torch.where(tensors[1][..., None], tensors[0], 3.0)
        assert near(run(file, ports.inputs, [garbage, tensors[1]]), found)


def test_served_by_onnxruntime_alone_the_same_ten_items_come_first(tmp_path, capsys, small_domain):
    """From a bundle through the command to recommendations: raw titles and pictures in, ten items out."""
    bundle, out = bundle_for(small_domain, tmp_path / "bundle"), tmp_path / "exported"
    cli.main(["export", "--model", str(bundle), "--out", str(out)])
    printed = capsys.readouterr().out
    assert f"{ITEM_TOWER} " in printed
    assert f"{USER_TOWER} " in printed
    assert "largest difference from torch" in printed
    model = MMSRModel.from_pretrained(bundle)
    described = json.loads((out / EXPORT_FILE).read_text())
    assert described["max_history"] == 8
    assert described["score_scale"] == model.recommender.score_scale
    assert described["trained_on"] == model.recommender.trained_on
    assert described["fingerprint"] == model.fingerprint
    assert all(difference <= TOLERANCE for difference in described["checked"]["differences"].values())
    # what a server has: the directory, and no model
    preprocessor = Preprocessor.load(out)
    towers = {name: described[name] for name in ("item_tower", "user_tower")}
    sessions = {name: onnxruntime.InferenceSession(out / tower["file"]) for name, tower in towers.items()}
    for name, tower in towers.items():
        for way in ("inputs", "outputs"):
            ports = getattr(sessions[name], f"get_{way}")()
            assert [(port.name, list(port.shape)) for port in ports] == [(p["name"], p["shape"]) for p in tower[way]]
            kinds = {"tensor(float)": "float32"}
            found = [kinds.get(port.type, port.type.removeprefix("tensor(").removesuffix(")")) for port in ports]
            assert found == [p["dtype"] for p in tower[way]]
    encoded = [
        sessions["item_tower"].run(
            None, {given["name"]: getattr(batch, given["name"]).numpy() for given in towers["item_tower"]["inputs"]}
        )[0]
        for batch in iter_item_batches(small_domain, preprocessor, range(small_domain.num_items), 100)
    ]
    vectors = np.concatenate(encoded)
    scorer = catalogue_scorer(
        model.recommender,
        encode_catalogue(model.recommender, item_source(small_domain, model.preprocessor), small_domain.num_items, 256),
    )
    for history in ([3], [7, 120, 45], list(range(20, 40))):
        read = history[-described["max_history"] :]
        given = {"vectors": vectors[read][None], "mask": np.ones((1, len(read)), dtype=bool)}
        scores = described["score_scale"] * vectors @ sessions["user_tower"].run(None, given)[0][0]
        scores[history] = -np.inf
        expected = recommend(scorer, small_domain, history, 10, 8, model.recommender.score_scale)
        assert np.argsort(-scores)[:10].tolist() == [item.row for item in expected]
        assert scores[[item.row for item in expected]] == pytest.approx([item.score for item in expected], rel=1e-3)


def test_a_directory_of_an_id_model_holds_what_it_says(tmp_path):
    """Weights beside the graph, as where there are more than fit into one file; the directory may be moved."""
    model = of_ids("grurec")
    out = tmp_path / "exported"
    out.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "LARGEST_FILE", 0)
        towers = export(model, out)
    assert [tower.file for tower in towers] == [ITEM_TOWER, USER_TOWER]
    beside = [f"{file}{end}" for file in (ITEM_TOWER, USER_TOWER) for end in ("", ".data")]
    assert sorted(path.name for path in out.iterdir()) == sorted([*beside, EXPORT_FILE, "preprocessor.json"])
    assert towers[0].num_bytes == sum((out / name).stat().st_size for name in beside[:2])
    assert all(0 <= tower.difference <= TOLERANCE for tower in towers)
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    moved = out.rename(tmp_path / "elsewhere")
    rows = torch.tensor([39, 0, 7, 7])
    expected = model.recommender.encode_items(ItemInputs(rows))
    assert near(run(moved / ITEM_TOWER, item_ports(model).inputs, [rows]), expected.detach())


def test_recurrent_steps_are_as_many_as_a_history_has(tmp_path):
    check_user_tower(of_ids("grurec"), tmp_path / USER_TOWER)


def test_short_histories_of_a_model_that_reads_two_are_padded(tmp_path):
    model = of_ids(max_history=2)
    assert user_ports(model).inputs[1].shape == ("B", 2)
    towers = export(model, tmp_path / "exported", opset=18)
    assert towers[1].difference <= TOLERANCE


def left_behind(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir())


def test_what_has_no_two_vectors_is_refused(tmp_path):
    model = opened(make(tmp_path, "both", sequence="carca"))
    with pytest.raises(UserError, match="--sequence carca each candidate attends to the history"):
        export(model, tmp_path / "exported")
    assert left_behind(tmp_path) == []


def test_a_detector_is_refused(tmp_path):
    with pytest.raises(UserError, match="the detector of --vision region looks at one picture at a time"):
        export(opened(make(tmp_path, "regions")), tmp_path / "exported")
    assert left_behind(tmp_path) == []


def test_random_item_vectors_are_refused(tmp_path):
    model = with_towers(None, make_tower("vision", "vit"), text="none")
    model.item_encoder.vision.hide_patches(0.5, in_evaluation=True)
    with pytest.raises(UserError, match="--patch_mask_eval it hides patches at random"):
        export(opened(model), tmp_path / "exported")
    assert left_behind(tmp_path) == []


def test_patches_hidden_in_training_alone_are_no_obstacle():
    model = with_towers(None, make_tower("vision", "vit"), text="none")
    model.item_encoder.vision.hide_patches(0.5, in_evaluation=False)
    exporting._require_exportable(model, "this model")


def test_other_vectors_than_torchs_are_refused_and_nothing_stays(tmp_path, monkeypatch):
    def write_then_change(tower, *args):
        write_graph(tower, *args)
        perturb(tower)

    monkeypatch.setattr(exporting, "write_graph", write_then_change)
    with pytest.raises(UserError, match=r"item_tower.onnx of this model gives other vectors than torch: an entry diff"):
        export(of_ids("nextitnet", sequence_layers=1), tmp_path / "exported")
    assert left_behind(tmp_path) == []


def test_what_cannot_be_traced_is_one_sentence_and_nothing_stays(tmp_path):
    class Undecided(torch.nn.Module):
        def forward(self, vectors, mask):
            return vectors if vectors.sum() > 0 else -vectors

        def last(self, vectors, mask):
            return self(vectors, mask)[:, 0]

    model = of_ids()
    encoder = Undecided()
    encoder.scores_by_product = True
    model.recommender.sequence_encoder = encoder
    with pytest.raises(UserError, match="user_tower.onnx cannot be written, as ONNX has no graph for a part"):
        export(model, tmp_path / "exported")
    assert left_behind(tmp_path) == []


def test_a_directory_with_something_in_it_stays_as_it_is(tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    error = refused(capsys, "export", "--model", "no/such/model", "--out", str(tmp_path))
    assert f"--out {tmp_path} is there already" in error
    assert left_behind(tmp_path) == ["mine"]


def test_an_opset_that_is_not_written_is_refused(tmp_path, capsys):
    error = refused(capsys, "export", "--model", "no/such/model", "--out", str(tmp_path / "new"), "--opset", "11")
    assert "--opset 11 is not written: give one of 18 to 23" in error


def test_a_missing_library_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mmsr_pt.export.directory.importlib.util.find_spec", lambda name: None)
    error = refused(capsys, "export", "--model", "no/such/model", "--out", str(tmp_path / "new"))
    assert "pip install 'mmsr_pt[export]'" in error
    assert "--editable '.[export]'" in error


PRODUCTS = [name for name in sequence_encoders if sequence_encoders[name].scores_by_product]


@pytest.mark.slow
@pytest.mark.parametrize("sequence", [name for name in PRODUCTS if name not in ("fdsa", "grurec")])
def test_every_sequence_encoder(tmp_path, sequence):
    check_user_tower(of_ids(sequence), tmp_path / USER_TOWER)


@pytest.mark.slow
def test_ids_beside_content(tmp_path):
    model = opened(make(tmp_path, "both", sequence="fdsa"))
    check_item_tower(model, tmp_path / ITEM_TOWER)
    check_user_tower(model, tmp_path / USER_TOWER)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT)
def test_every_text_tower(tmp_path, name):
    model = with_towers(make_tower("text", name), None, vision="none")
    check_item_tower(opened(model), tmp_path / ITEM_TOWER)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VISION if name != "region"])
def test_every_vision_tower(tmp_path, name):
    model = with_towers(None, make_tower("vision", name), text="none")
    check_item_tower(opened(model), tmp_path / ITEM_TOWER)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*fusions, "codes"])
def test_every_fusion_and_codes(tmp_path, name):
    assert name in ITEMS
    check_item_tower(opened(make(tmp_path, name)), tmp_path / ITEM_TOWER)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_pictures_and_texts(tmp_path, name):
    publish_eyes(tmp_path / "eyes")
    publish(name, tmp_path / name)
    check_item_tower(opened(make(tmp_path, name)), tmp_path / ITEM_TOWER)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["side", "lora:2", "frozen", "full"])
def test_every_policy(tmp_path, policy):
    check_item_tower(opened(make(tmp_path, "co", tune=policy)), tmp_path / ITEM_TOWER)


@pytest.mark.slow
@pytest.mark.parametrize("opset", graphs.OPSETS)
def test_every_opset(tmp_path, opset):
    export(of_ids(), tmp_path / "exported", opset)

"""The vectors of a catalogue as a dataset on the stand-in hub: who has the model recommends from them."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import DatasetCard

from mmsr_pt.cli import main
from mmsr_pt.data.domain import Domain
from mmsr_pt.log import UserError
from mmsr_pt.model import MMSRModel
from tests.hub.server import StandIn

REPO = "ada/shop-vectors"
KEPT = f"datasets/{REPO}"


@pytest.fixture
def index(run: Path, small_domain: Domain, tmp_path: Path) -> Path:
    out = tmp_path / "an index"
    main(["encode", "--model", str(run), "--data", str(small_domain.path), "--out", str(out)])
    return out


def test_a_catalogue_comes_back_with_its_vectors(
    hub: StandIn, run: Path, index: Path, small_domain: Domain, capsys: pytest.CaptureFixture[str]
) -> None:
    publish = ["publish", "--model", str(run), "--index", str(index), "--repo_id", REPO, "--license", "mit"]
    main(publish)
    assert set(hub.state.repos) == {KEPT}
    assert hub.names(KEPT) == {"README.md", "index.json", "items.parquet", "vectors.safetensors"}
    for name in ("index.json", "items.parquet", "vectors.safetensors"):
        assert hub.state.repos[KEPT].tree()[name].content == (index / name).read_bytes()
    commit = hub.state.repos[KEPT].refs["main"]
    main(publish)
    assert hub.state.repos[KEPT].refs["main"] == commit
    model = MMSRModel.from_pretrained(run)
    assert torch.equal(model.load_index(REPO).vectors, model.load_index(index).vectors)
    history = ",".join(small_domain.items["item_id"][:3])
    capsys.readouterr()
    for place in (REPO, str(index)):
        main(["recommend", "--model", str(run), "--index", place, "--history", history])
    shown = capsys.readouterr().out
    assert shown[: len(shown) // 2] == shown[len(shown) // 2 :]


def test_the_card_says_whose_titles_they_are_and_not_where_they_were(
    hub: StandIn, run: Path, index: Path, small_domain: Domain, tmp_path: Path
) -> None:
    main(["publish", "--model", str(run), "--index", str(index), "--repo_id", REPO])
    tree = hub.state.repos[KEPT].tree()
    card = DatasetCard(tree["README.md"].content.decode())
    assert (card.data.license, card.data.license_name) == ("other", "not-stated")
    assert small_domain.meta["licence"] in card.text
    assert f"{small_domain.num_items:,} items" in card.text
    assert f"--index {REPO}" in card.text
    assert not [name for name, file in tree.items() if str(tmp_path).encode() in file.content]


def test_the_card_names_a_model_of_the_hub(hub: StandIn, run: Path, index: Path) -> None:
    """Its settings lack local paths, which change no vector: what the run's own weights made is its too."""
    config = json.loads((run / "model" / "config.json").read_text())
    config["model"]["text"] = "hf:/home/ada/secret place/minilm"
    (run / "model" / "config.json").write_text(json.dumps(config))
    main(["publish", "--model", str(run), "--repo_id", "ada/shop"])
    main(["publish", "--model", "ada/shop", "--index", str(index), "--repo_id", REPO])
    card = hub.state.repos[KEPT].tree()["README.md"].content.decode()
    assert 'MMSRModel.from_pretrained("ada/shop")' in card


def test_another_models_index_is_not_published(hub: StandIn, run: Path, index: Path) -> None:
    model = MMSRModel.from_pretrained(run)
    with torch.no_grad():
        next(model.recommender.parameters()).add_(1.0)
    model.save_pretrained(run / "model")
    with pytest.raises(SystemExit) as ended:
        main(["publish", "--model", str(run), "--index", str(index), "--repo_id", REPO])
    assert ended.value.code == 2
    assert hub.state.repos == {}


def test_what_is_no_catalogue_on_the_hub_is_told(hub: StandIn, run: Path) -> None:
    main(["publish", "--model", str(run), "--repo_id", "ada/shop"])
    model = MMSRModel.from_pretrained(run)
    with pytest.raises(UserError, match="nor a dataset that could be had"):
        model.load_index("ada/shop")
    with pytest.raises(UserError, match="is no catalogue index"):
        model.load_index(run)

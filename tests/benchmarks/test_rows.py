"""Every row sets up and runs, on a small domain and with small towers."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, BertTokenizerFast

from benchmarks.growth import Sizes, study
from benchmarks.harness import measure
from benchmarks.parts import Parts
from benchmarks.rows import ROWS, Unavailable, tiny, write_sequences
from benchmarks.shards import PerOccurrence, Stored
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.shards.build import BuildOptions
from mmsr_pt.log import UserError
from tests.data.raw import build_table, write_table


@pytest.fixture
def parts(tmp_path: Path, small_domain: Domain) -> Parts:
    """A copy of the domain, as caches are written into it, and small towers that have a frozen bottom."""
    domain = Path(shutil.copytree(small_domain.path, tmp_path / "domain"))
    torch.manual_seed(0)
    bert, vision = tmp_path / "bert", tmp_path / "vision"
    words = sorted({word.strip(",.") for title in small_domain.titles() for word in title.lower().split()})
    bert.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (bert / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(bert / "vocab.txt")).save_pretrained(bert)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(bert)
    model = timm.create_model("test_efficientnet", pretrained=False)
    timm.models.save_for_hf(model, str(vision), safe_serialization=True)
    save_file(model.state_dict(), vision / "model.safetensors")
    text, image = f"hf:{bert}", f"timm:local-dir:{vision}"
    return Parts(domain, text, image, text, image)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_row_runs(name: str, parts: Parts, tmp_path: Path) -> None:
    try:
        row = tiny(ROWS[name](parts))
    except Unavailable as reason:
        pytest.skip(str(reason))
    found = measure(row, tmp_path / "logs", lambda _: None, repetitions=1)
    assert found["comparisons"]
    for line in found["comparisons"]:
        assert line["ratio"] > 0
    counted = row.entrants.keys() if name in ("train-small", "train-base", "encode") else set()
    assert found["flops"].keys() >= counted
    for name in counted:
        assert sum(found["flops"][name]["flops"].values()) > 0
    assert (parts.domain / "cache").exists() == (row.name in ("train-small", "memory"))


@pytest.mark.slow
def test_growth_is_measured_and_drawn(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    sizes = Sizes((2, 4), (5, 10), (3,), (1, 2), parts.text, parts.vision)
    study(tmp_path / "results.json", 1, sizes, tmp_path / "growth.png", ["batch", "history", "catalogue"])
    (tmp_path / "growth.png").unlink()
    study(tmp_path / "results.json", 1, sizes, tmp_path / "growth.png", ["ranks"])
    kept = json.loads((tmp_path / "results.json").read_text())["growth"]
    assert list(kept) == ["batch", "history", "catalogue", "ranks"]
    assert [point["value"] for point in kept["batch"]["lines"]["cached"]] == [2, 4]
    one, two = kept["ranks"]["lines"]["cached"]
    assert (one["value"], one["efficiency"], two["value"]) == (1, 1, 2)
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_sweep_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown sweep 'rank'; known: batch, catalogue, history, ranks"):
        study(tmp_path / "results.json", 1, sweeps=["rank"])


def test_idsr_says_what_it_lacks(parts: Parts) -> None:
    with pytest.raises(Unavailable, match="pip install recbole==1.2.1"):
        ROWS["idsr"](parts)


def test_recbole_gets_the_sequences_with_both_held_out_items_last(
    small_domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sequences = json.loads(write_sequences(small_domain.path).read_text())
    assert len(sequences) == small_domain.num_users
    assert sum(map(len, sequences)) == small_domain.meta["counts"]["interactions"]
    assert [items[-2:] for items in sequences] == small_domain.eval.select("valid", "test").to_numpy().tolist()


def built(tmp_path: Path, users: int) -> str:
    """One tar in which every user has the same seven training items."""
    rows = [(f"u{user}", f"i{item}", item) for user in range(users) for item in range(9)]
    raw = write_table(tmp_path / f"raw{users}", rows, {f"i{item}": f"title {item}" for item in range(9)})
    domain = build_table(raw, tmp_path / f"domain{users}", BuildOptions(num_shards=1, num_workers=1))
    return str(domain.path)


def test_a_copy_per_occurrence_is_the_tar_itself_where_nothing_occurs_twice(tmp_path: Path) -> None:
    one = built(tmp_path, 1)
    stored, copied = Stored(one).run()["bytes"], PerOccurrence(one).run()["bytes"]
    # a tar ends with two empty blocks and is filled up to 20 of them
    assert copied + 1024 <= stored < copied + 1024 + 10240


def test_every_further_user_of_the_same_items_costs_as_much_as_the_first(tmp_path: Path) -> None:
    one, three = (PerOccurrence(built(tmp_path, users)).run()["bytes"] for users in (1, 3))
    assert three == 3 * one

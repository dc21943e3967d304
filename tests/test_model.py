"""A trained model on raw titles and pictures, and on catalogues that are encoded once."""

import io
import json

import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmsr_pt import MMSRModel
from mmsr_pt.assembly import build_model
from mmsr_pt.catalogue_index import CatalogueIndex
from mmsr_pt.data.catalogue import item_source
from mmsr_pt.data.shards.images import as_jpeg
from mmsr_pt.evaluation.evaluate import catalogue_scorer, encode_catalogue
from mmsr_pt.flags import parse_flags
from mmsr_pt.log import UserError
from mmsr_pt.recommend import recommend


def built(domain, *flags) -> MMSRModel:
    torch.manual_seed(0)
    config = parse_flags(["--data", str(domain.path), "--width", "16", "--max_history", "4", *flags])
    recommender, preprocessor = build_model(config.model, [domain])
    recommender.trained_on = [{"name": domain.name, "fingerprint": domain.fingerprint}]
    return MMSRModel(recommender, preprocessor)


@pytest.fixture(scope="module")
def model(small_domain) -> MMSRModel:
    return built(small_domain)


@pytest.fixture(scope="module")
def index(model, small_domain) -> CatalogueIndex:
    return model.index(small_domain)


def raw(domain, row: int, **changes) -> dict:
    """An item of the domain as a person would give it."""
    return {"title": domain.items["title"][row], "image": domain.read_image(row), **changes}


def ids(domain, rows) -> list[str]:
    return domain.items["item_id"][list(rows)].to_list()


def test_raw_content_gives_the_vectors_of_the_domain(model, index, small_domain):
    rows = [7, 0, 250, 7]
    vectors = model.encode_items([raw(small_domain, row) for row in rows], batch_size=3)
    assert vectors.dtype == torch.float32
    assert torch.allclose(vectors, index.vectors[rows], atol=1e-5)


def test_a_picture_may_be_a_path_bytes_or_an_image(model, small_domain, tmp_path):
    data = small_domain.read_image(3)
    path = tmp_path / "3.jpg"
    path.write_bytes(data)
    kinds = [data, path, str(path), Image.open(io.BytesIO(data))]
    vectors = model.encode_items([raw(small_domain, 3, image=image) for image in kinds])
    # the image is decoded and written as JPEG once more
    assert torch.equal(vectors[:3], vectors[:1].expand(3, -1))
    assert torch.allclose(vectors[3], vectors[0], atol=0.05)


def test_a_picture_in_any_form_is_made_what_a_domain_would_hold():
    picture = Image.new("RGBA", (600, 400), (255, 0, 0, 0))
    file = io.BytesIO()
    picture.save(file, "PNG")
    with Image.open(io.BytesIO(as_jpeg(file.getvalue()))) as made:
        assert (made.format, made.mode, made.size) == ("JPEG", "RGB", (384, 256))
        assert min(made.convert("L").getextrema()) > 250, "transparent becomes white"


@pytest.mark.parametrize("flags", [(), ("--text", "none"), ("--item", "id"), ("--item", "both", "--sequence", "carca")])
def test_recommendations_are_those_of_the_scorer_that_evaluates(small_domain, flags):
    model = built(small_domain, *flags)
    vectors = encode_catalogue(model.recommender, item_source(small_domain, model.preprocessor), 300, 64)
    scorer = catalogue_scorer(model.recommender, vectors)
    index = model.index(small_domain)
    histories = [[5], [1, 2, 3, 4, 5, 6], [200, 0]]
    found = model.recommend_batch([ids(small_domain, rows) for rows in histories], index, top_k=7)
    for of_one, rows in zip(found, histories):
        expected = recommend(scorer, small_domain, rows, 7, 4, model.recommender.score_scale)
        assert [item.row for item in of_one] == [item.row for item in expected]
        assert [item.score for item in of_one] == pytest.approx([item.score for item in expected], abs=1e-5)
        assert [item.title for item in of_one] == [item.title for item in expected]


def test_a_history_of_content_gives_what_its_ids_give(model, index, small_domain):
    rows = [9, 40, 41]
    named = model.recommend(ids(small_domain, rows), index)
    # content that says which item it is, is not recommended again
    told = [raw(small_domain, row, id=item_id) for row, item_id in zip(rows, ids(small_domain, rows))]
    mixed = [told[0], ids(small_domain, [40])[0], {"id": told[2]["id"]}]
    for history in (told, mixed):
        assert [item.row for item in model.recommend(history, index)] == [item.row for item in named]
    unnamed = model.recommend([raw(small_domain, row) for row in rows], index, top_k=300)
    assert len(unnamed) == 300
    assert [item.row for item in unnamed if item.row not in rows][:10] == [item.row for item in named]


def test_only_the_newest_items_are_read_and_all_are_left_out(model, index, small_domain):
    long = ids(small_domain, range(20))
    found = model.recommend(long, index, top_k=300)
    assert {item.row for item in found} == set(range(20, 300))
    short = [item for item in model.recommend(long[-4:], index, top_k=300) if item.row >= 20]
    assert [item.row for item in found] == [item.row for item in short]


def test_a_catalogue_of_ones_own_of_items_never_seen(model, small_domain):
    own = [raw(small_domain, row, id=f"new {row}") for row in (3, 30, 60, 90, 120)]
    shop = model.index(own, batch_size=2)
    assert len(shop) == 5
    found = model.recommend([raw(small_domain, 200)], shop)
    assert sorted(item.item_id for item in found) == sorted(item["id"] for item in own)
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    whole = model.index(small_domain)
    scores = {item.row: item.score for item in model.recommend([raw(small_domain, 200)], whole, top_k=300)}
    assert {item.item_id: item.score for item in found} == pytest.approx(
        {f"new {row}": scores[row] for row in (3, 30, 60, 90, 120)}, abs=1e-4
    )


def test_similar_items_are_those_of_the_highest_cosine(model, index, small_domain):
    item_id = ids(small_domain, [11])[0]
    cosine = torch.nn.functional.cosine_similarity(index.vectors, index.vectors[11], dim=1)
    cosine[11] = -2
    for item in (item_id, raw(small_domain, 11, id=item_id)):
        found = model.similar(item, index, top_k=3)
        assert [item.row for item in found] == cosine.topk(3).indices.tolist()
        assert [item.score for item in found] == pytest.approx(cosine.topk(3).values.tolist(), abs=1e-5)


def test_content_that_stands_in_many_histories_is_encoded_once(model, index, small_domain, monkeypatch):
    calls = []
    encode = model.recommender.encode_items
    monkeypatch.setattr(model.recommender, "encode_items", lambda items: calls.append(len(items)) or encode(items))
    item, other = raw(small_domain, 1), raw(small_domain, 2)
    model.recommend_batch([[item], [other, item], [item, item]], index)
    assert calls == [2]


def test_a_saved_index_comes_back_the_same(model, index, tmp_path):
    index.save(tmp_path / "index")
    index.save(tmp_path / "index")
    again = model.load_index(tmp_path / "index")
    assert torch.equal(again.vectors, index.vectors)
    assert again.items.equals(index.items)
    assert again.domain == index.domain
    history = [index.items["item_id"][0]]
    assert model.recommend(history, again) == model.recommend(history, index)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_model_that_came_back_has_the_same_fingerprint_and_takes_the_index(model, index, small_domain, tmp_path):
    model.save_pretrained(tmp_path / "bundle")
    index.save(tmp_path / "index")
    again = MMSRModel.from_pretrained(tmp_path / "bundle")
    assert again.fingerprint == model.fingerprint
    history = [raw(small_domain, 5)]
    assert again.recommend(history, again.load_index(tmp_path / "index")) == model.recommend(history, index)


@pytest.mark.parametrize("flags", [("--width", "32"), ("--sequence", "grurec"), ("--title_tokens", "3"), ()])
def test_the_index_of_another_model_is_refused(model, index, small_domain, tmp_path, flags):
    other = built(small_domain, *flags)
    if not flags:
        with torch.no_grad():
            next(other.recommender.sequence_encoder.parameters()).view(-1)[0] += 1e-3
    index.save(tmp_path / "index")
    with pytest.raises(UserError, match="was made by another model"):
        other.load_index(tmp_path / "index")
    with pytest.raises(UserError, match="was made by another model"):
        other.recommend([index.items["item_id"][0]], index)


def damage_version(directory):
    about = json.loads((directory / "index.json").read_text())
    (directory / "index.json").write_text(json.dumps({**about, "format_version": 99}))


def damage_vectors(directory):
    file = directory / "vectors.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def damage_rows(directory):
    vectors = load_file(directory / "vectors.safetensors")["vectors"]
    save_file({"vectors": vectors[:-1].clone()}, directory / "vectors.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda directory: (directory / "index.json").unlink(), "is no catalogue index"),
        (lambda directory: (directory / "index.json").write_text("{"), "index.json is damaged"),
        (damage_version, "has format 99"),
        (damage_vectors, "is damaged"),
        (damage_rows, "its parts differ in size"),
        (lambda directory: (directory / "items.parquet").write_bytes(b"x"), "is damaged"),
    ],
)
def test_a_damaged_index_is_one_sentence(model, index, tmp_path, damage, message):
    index.save(tmp_path / "index")
    damage(tmp_path / "index")
    with pytest.raises(UserError, match=message):
        model.load_index(tmp_path / "index")


def test_an_index_replaces_nothing_but_an_index(index, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else than an index"):
        index.save(tmp_path)
    with pytest.raises(UserError, match="holds something else than an index"):
        index.save(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([], "history 0 is empty"),
        ("0001", "history 0 is a str"),
        ({"title": "hat"}, "history 0 is a dict"),
        (["no such item"], "unknown item 'no such item': the catalogue has 300 items"),
        ([{"id": "nowhere"}], "unknown item 'nowhere'"),
        ([{"title": "hat"}], r"item 0 \('hat'\) has no image, which the model reads"),
        ([{"image": b""}], "item 0 has no title, which the model reads"),
        ([{"title": "hat", "image": b"no picture"}], r"the image of item 0 \('hat'\) cannot be read \(its bytes: Unid"),
        ([{"title": "hat", "image": "no/such.jpg"}], r"cannot be read \(no/such.jpg: FileNotFoundError"),
        ([{"title": "hat", "image": 7}], r"item 0 \('hat'\) has a int as image"),
        ([{"titel": "hat"}], "has an unknown key 'titel': an item has id, title, image"),
        ([7], "item 0 is a int: give each item as a dictionary"),
    ],
)
def test_what_is_no_history_is_one_sentence(model, index, history, message):
    with pytest.raises(UserError, match=message) as caught:
        model.recommend(history, index)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "there is no item to encode"),
        ([{"title": "hat"}], "has no id"),
        ([{"id": "1", "title": "a"}, {"id": "1", "title": "b"}], "the id '1' stands for several items"),
    ],
)
def test_what_is_no_catalogue_is_one_sentence(small_domain, items, message):
    with pytest.raises(UserError, match=message):
        built(small_domain, "--vision", "none").index(items)


def test_an_id_model_knows_no_content(small_domain):
    model = built(small_domain, "--item", "id")
    with pytest.raises(UserError, match="knows no item by its content"):
        model.encode_items([raw(small_domain, 0)])
    with pytest.raises(UserError, match="knows no item by its content"):
        model.recommend([raw(small_domain, 0)], model.index(small_domain))


def test_an_approximate_search_finds_what_the_exact_one_does(small_domain):
    pytest.importorskip("faiss")
    model = built(small_domain, "--vision", "none")
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(4000, 16, generator=generator)
    items = pl.DataFrame({"item_id": [f"i{row}" for row in range(4000)], "title": [None] * 4000})
    exact = CatalogueIndex(items, vectors, model.fingerprint)
    fast = exact.with_search("faiss")
    assert fast.approximate.recall >= 0.98
    assert fast.approximate.index.nprobe < fast.approximate.index.nlist, "not all of it is looked at"
    histories = [[f"i{row}"] for row in range(0, 400, 20)]
    pairs = zip(model.recommend_batch(histories, fast), model.recommend_batch(histories, exact), histories)
    shares = []
    for found, wanted, history in pairs:
        assert len(found) == 10
        assert history[0] not in {item.item_id for item in found}
        scores = {item.row: item.score for item in wanted}
        shares.append(len({item.row for item in found} & scores.keys()) / 10)
        for item in found:
            assert item.score == pytest.approx(scores.get(item.row, item.score), abs=1e-5)
    assert sum(shares) / len(shares) > 0.9


def test_an_approximate_index_comes_back_and_a_damaged_one_does_not(small_domain, tmp_path):
    pytest.importorskip("faiss")
    model = built(small_domain, "--vision", "none")
    index = model.index(small_domain, search="faiss")
    index.save(tmp_path / "index")
    again = model.load_index(tmp_path / "index")
    assert again.approximate.recall == index.approximate.recall
    history = [index.items["item_id"][4]]
    assert model.recommend(history, again) == model.recommend(history, index)
    file = tmp_path / "index" / "search.faiss"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match="search.faiss is damaged"):
        model.load_index(tmp_path / "index")


def test_small_catalogues_are_searched_exactly(model, index):
    assert index.approximate is None
    assert index.with_search("auto").approximate is None

"""A model that reads the cache of its frozen bottoms is the model that computes them; a stale cache is never read."""

import dataclasses
import json
import shutil

import pytest
import torch
import transformers

from mmsr_pt.assembly import build_model
from mmsr_pt.cache import open_cache
from mmsr_pt.config import ModelConfig
from mmsr_pt.data.activations import ActivationStore
from mmsr_pt.data.catalogue import item_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor, SentencePieceTokenizer
from mmsr_pt.log import UserError
from mmsr_pt.models.item_encoder import FusedItemEncoder
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.models.sequence import sequence_encoders
from mmsr_pt.models.towers.side import tuned
from tests.models.towers.small import region_tower, timm_tower
from tests.models.towers.vlps import flags_for, publish, publish_eyes


@pytest.fixture
def domain(small_domain, tmp_path) -> Domain:
    shutil.copytree(small_domain.path, tmp_path / "domain")
    return Domain.load(tmp_path / "domain")


def make_model(domain: Domain, text: str = "hf", vision: str = "timm", tune: str = "top:1"):
    """A small model with towers that count as pretrained, and its preprocessing."""
    from mmsr_pt.models.fusion import fusions
    from mmsr_pt.models.towers.hf_text import from_config
    from mmsr_pt.models.towers.text import TinyText
    from mmsr_pt.models.towers.vision import TinyVision

    torch.manual_seed(0)
    config = ModelConfig(width=16, fusion_heads=2, tune=tune)
    tokenizer = SentencePieceTokenizer(domain.path / "tokenizer.model")
    if text == "hf":
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        bert = transformers.BertConfig(vocab_size=tokenizer.vocab_size, **sizes)
        text_tower = from_config(bert.to_dict())
    else:
        text_tower = TinyText(tokenizer.vocab_size)
    if vision == "vit":
        vision_tower = timm_tower("test_vit")
    elif vision == "region":
        vision_tower = region_tower()
    else:
        vision_tower = timm_tower("test_efficientnet") if vision == "timm" else TinyVision()
    text_tower = tuned(text_tower, tune, config.width)
    vision_tower = tuned(vision_tower, tune, config.width)
    encoder = FusedItemEncoder(text_tower, vision_tower, fusions["merge"].from_config(config), config.width)
    model = Recommender(config, encoder, sequence_encoders["sasrec"].from_config(config)).eval()
    return model, Preprocessor(tokenizer, encoder.image_spec, title_tokens=20)


def test_regions_are_detected_once(domain):
    model, preprocessor = make_model(domain, "tiny", "region")
    cache = open_for(model, preprocessor, domain)
    raw, cached = batches_of(item_source(domain, preprocessor)), batches_of(cache.source(domain, 0))
    model.item_encoder.vision.detector.backbone = None  # calling it would fail
    for expected, found in zip(raw, cached, strict=True):
        assert found.images is None
        assert found.image_activations.shape[1:] == (6, 16)
        with torch.no_grad():
            own = make_model(domain, "tiny", "region")[0].encode_items(expected)
            assert torch.allclose(model.encode_items(found), own, atol=1e-6)


def open_for(model, preprocessor, domain, dtype=torch.float32):
    return open_cache(model, preprocessor, [domain], dtype, torch.device("cpu"))


def batches_of(source):
    return list(source(range(10, 50), 16))


@pytest.mark.parametrize("tune", ["top:1", "frozen", "side"])
@pytest.mark.parametrize(("text", "vision"), [("hf", "timm"), ("tiny", "timm"), ("hf", "tiny")])
def test_cached_items_have_the_vectors_of_raw_ones(domain, text, vision, tune):
    model, preprocessor = make_model(domain, text, vision, tune)
    cache = open_for(model, preprocessor, domain)
    raw, cached = batches_of(item_source(domain, preprocessor)), batches_of(cache.source(domain, 0))
    for expected, found in zip(raw, cached, strict=True):
        assert (found.images is None) == (vision == "timm"), "no picture is decoded that is in the cache"
        assert (found.title_ids is None) == (text == "hf")
        with torch.no_grad():
            assert torch.allclose(model.encode_items(found), model.encode_items(expected), atol=1e-5)


@pytest.mark.parametrize("tune", ["top:1", "side"])
def test_what_trains_gets_the_same_gradients_from_the_cache(domain, tune):
    model, preprocessor = make_model(domain, tune=tune)
    cache = open_for(model, preprocessor, domain)
    gradients = []
    for source in (item_source(domain, preprocessor), cache.source(domain, 0)):
        model.zero_grad()
        model.encode_items(batches_of(source)[0]).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() > set()
    for name, expected in gradients[0].items():
        assert torch.allclose(gradients[1][name], expected, atol=1e-4, rtol=1e-3), name


def test_a_side_network_keeps_one_vector_an_item(domain):
    model, preprocessor = make_model(domain, tune="side")
    open_for(model, preprocessor, domain)
    text, vision = model.item_encoder.text, model.item_encoder.vision
    (directory,) = (domain.path / "cache").iterdir()
    for tower, file in ((text, "text.bin"), (vision, "vision.bin")):
        assert (directory / file).stat().st_size == domain.num_items * sum(tower.depths.values()) * 4
    assert sum(text.depths.values()) == 2 * 16  # embeddings and the last of two blocks


def test_a_cache_of_side_networks_is_none_for_frozen_towers(domain):
    for number, tune in enumerate(["side", "frozen", "top:1"], start=1):
        open_for(*make_model(domain, tune=tune), domain)
        assert len(list((domain.path / "cache").iterdir())) == number


def test_a_cache_of_whole_pictures_is_none_where_patches_are_hidden(domain):
    """The same weights are frozen, but what is kept ends below the hiding; in evaluation both come to the same."""
    vectors = []
    for number, ratio in enumerate([0.0, 0.75], start=1):
        model, preprocessor = make_model(domain, vision="vit")
        model.item_encoder.vision.hide_patches(ratio, in_evaluation=False)
        cache = open_for(model.eval(), preprocessor, domain)
        assert len(list((domain.path / "cache").iterdir())) == number
        with torch.no_grad():
            vectors.append(model.encode_items(batches_of(cache.source(domain, 0))[0]))
    assert torch.allclose(vectors[0], vectors[1], atol=1e-5)


def test_a_side_networks_own_weights_may_change_but_not_the_towers(domain):
    model, preprocessor = make_model(domain, tune="side")
    open_for(model, preprocessor, domain)
    next(model.item_encoder.text.side.parameters()).data.add_(1)
    open_for(model, preprocessor, domain)
    assert len(list((domain.path / "cache").iterdir())) == 1
    next(model.item_encoder.text.tower.parameters()).data.add_(1)
    open_for(model, preprocessor, domain)
    assert len(list((domain.path / "cache").iterdir())) == 2


def test_a_second_start_computes_nothing(domain, monkeypatch):
    model, preprocessor = make_model(domain)
    open_for(model, preprocessor, domain)
    model.item_encoder.vision.prefix = None  # calling it would fail
    cache = open_for(model, preprocessor, domain)
    assert len(batches_of(cache.source(domain, 0))) == 3


def _more_trained(model, preprocessor, domain):
    model.item_encoder.vision.tune("top:2")
    return preprocessor, domain


def _other_frozen_weight(model, preprocessor, domain):
    frozen = next(p for p in model.item_encoder.vision.parameters() if not p.requires_grad)
    frozen.data.view(-1)[0] += 1e-3
    return preprocessor, domain


def _other_batch_statistics(model, preprocessor, domain):
    next(b for name, b in model.item_encoder.vision.named_buffers() if name.endswith("running_mean")).add_(1e-3)
    return preprocessor, domain


def _shorter_titles(model, preprocessor, domain):
    return dataclasses.replace(preprocessor, title_tokens=3), domain


def _other_build(model, preprocessor, domain):
    manifest = domain.path / "domain.json"
    manifest.write_text(json.dumps({**domain.meta, "fingerprint": "another"}))
    return preprocessor, Domain.load(domain.path)


@pytest.mark.parametrize(
    "change", [_more_trained, _other_frozen_weight, _other_batch_statistics, _shorter_titles, _other_build]
)
def test_a_change_of_what_it_depends_on_makes_a_new_cache(domain, change):
    model, preprocessor = make_model(domain)
    open_for(model, preprocessor, domain)
    open_for(model, *change(model, preprocessor, domain))
    assert len(list((domain.path / "cache").iterdir())) == 2


def test_a_trained_weight_may_change(domain):
    model, preprocessor = make_model(domain)
    open_for(model, preprocessor, domain)
    next(p for p in model.item_encoder.vision.parameters() if p.requires_grad).data.add_(1)
    open_for(model, preprocessor, domain)
    assert len(list((domain.path / "cache").iterdir())) == 1


def test_frozen_weights_that_a_bf16_run_rounded_find_the_same_cache(domain):
    """As a bundle holds them, from which a fine-tuning starts; in float32 they give something else."""
    fresh, preprocessor = make_model(domain)
    rounded, _ = make_model(domain)
    rounded.to(torch.bfloat16).to(torch.float32)
    pairs = zip(fresh.parameters(), rounded.parameters())
    assert not all(torch.equal(was, now) for was, now in pairs), "rounding changes these weights"
    items = []
    for model in (fresh, rounded):
        cache = open_for(model, preprocessor, domain, torch.bfloat16)
        items.append(batches_of(cache.source(domain, 0))[0])
    assert len(list((domain.path / "cache").iterdir())) == 1
    assert torch.equal(items[0].image_activations, items[1].image_activations)
    open_for(fresh, preprocessor, domain)
    open_for(rounded, preprocessor, domain)
    assert len(list((domain.path / "cache").iterdir())) == 3


def test_an_interrupted_build_is_no_cache_and_goes_on_where_it_was(domain, monkeypatch):
    model, preprocessor = make_model(domain)
    monkeypatch.setattr("mmsr_pt.cache._SAVE_SECONDS", -1)  # after every batch
    write = ActivationStore.write
    written = []

    def failing(store, rows, *activations):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(rows)
        write(store, rows, *activations)

    monkeypatch.setattr(ActivationStore, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        open_for(model, preprocessor, domain)
    (left,) = (domain.path / "cache").iterdir()
    assert left.name.startswith("."), "what is half done has no name that could be found"
    again = []
    monkeypatch.setattr(ActivationStore, "write", lambda store, rows, *a: again.append(rows) or write(store, rows, *a))
    cache = open_for(model, preprocessor, domain)
    monkeypatch.undo()
    rows = torch.cat([*written, *again])
    assert sorted(rows.tolist()) == list(range(domain.num_items)), "every item once, none twice"
    raw, cached = batches_of(item_source(domain, preprocessor)), batches_of(cache.source(domain, 0))
    for expected, found in zip(raw, cached, strict=True):
        with torch.no_grad():
            assert torch.allclose(model.encode_items(found), model.encode_items(expected), atol=1e-5)
    assert len(list((domain.path / "cache").iterdir())) == 1


def test_a_half_built_cache_of_another_shape_is_begun_anew(domain):
    model, preprocessor = make_model(domain)
    cache = open_for(model, preprocessor, domain)
    complete = cache.stores[0].directory
    unfinished = complete.with_name(f".{complete.name}.tmp")
    complete.rename(unfinished)
    layout = json.loads((unfinished / "layout.json").read_text())
    (unfinished / "layout.json").write_text(json.dumps({**layout, "num_items": 3}))
    assert open_for(model, preprocessor, domain).stores[0].layout.num_items == domain.num_items


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.02), (torch.int8, 0.03)])
def test_fewer_bytes_give_nearly_the_same_vectors(domain, dtype, bound, caplog):
    model, preprocessor = make_model(domain)
    caplog.set_level("INFO")
    cache = open_for(model, preprocessor, domain, dtype)
    raw, cached = batches_of(item_source(domain, preprocessor))[0], batches_of(cache.source(domain, 0))[0]
    with torch.no_grad():
        exact, found = model.encode_items(raw), model.encode_items(cached)
    assert 0 < torch.linalg.norm(found - exact) / torch.linalg.norm(exact) < bound
    exact_bytes = dataclasses.replace(cache.stores[0].layout, dtype="float32").num_bytes
    assert cache.stores[0].layout.num_bytes < exact_bytes * 0.55
    if dtype == torch.int8:
        measured = json.loads((cache.stores[0].directory / "error.json").read_text())
        assert {"text", "vision"} == measured.keys()
        assert all(0 < value < 0.02 for value in measured.values())
        assert "int8 loses" in caplog.text


def test_a_model_that_trains_in_full_has_nothing_to_cache(domain):
    with pytest.raises(UserError, match="leave --cache out"):
        open_for(*make_model(domain, tune="full"), domain)


def test_a_disk_without_room_is_found_before_a_byte_is_written(domain, monkeypatch):
    model, preprocessor = make_model(domain)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(UserError, match="GB free"):
        open_for(model, preprocessor, domain)
    assert list((domain.path / "cache").iterdir()) == []


@pytest.mark.parametrize("kind", ["vilt", "visualbert", "bert", "flava"])
def test_a_deep_vlp_is_cached_as_deep_as_it_is_frozen(domain, tmp_path, kind):
    publish(kind, tmp_path / kind)
    publish_eyes(tmp_path / "eyes")
    flags = flags_for(kind, tmp_path / kind, tmp_path / "eyes")
    config = ModelConfig(width=16, fusion_heads=2, title_tokens=20, **flags)
    model, preprocessor = build_model(config, [domain])
    model.eval()
    cache = open_for(model, preprocessor, domain)
    raw, cached = batches_of(item_source(domain, preprocessor)), batches_of(cache.source(domain, 0))
    for expected, found in zip(raw, cached, strict=True):
        assert found.images is None
        assert found.title_ids is None
        with torch.no_grad():
            assert torch.allclose(model.encode_items(found), model.encode_items(expected), atol=1e-5)
    joint = model.item_encoder.joint
    assert joint.num_prefix_steps() == {"vilt": 2, "visualbert": 4, "bert": 0, "flava": 0}[kind]
    # what lies below the cut is part of the key: another weight there, another cache
    frozen = next(p for tower in model.item_encoder.towers().values() for p in tower.prefix_state().values())
    frozen.data.add_(1)
    open_for(model, preprocessor, domain)
    assert len(list((domain.path / "cache").iterdir())) == 2
    if joint.has_prefix:
        next(iter(joint.prefix_state().values())).data.add_(1)
        open_for(model, preprocessor, domain)
        assert len(list((domain.path / "cache").iterdir())) == 3

"""The assembled recommender: vectors, scores, layer groups, and the bundle it is saved as."""

import copy
import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from mmsr_pt.batch import ItemInputs
from mmsr_pt.config import ModelConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.fusion import fusions
from mmsr_pt.models.item_encoder import FusedItemEncoder
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.models.sequence import sequence_encoders
from mmsr_pt.models.towers.side import tuned
from tests.models.towers.small import (
    HF_CONFIGS,
    TEXT,
    TIMM_STEPPED,
    TIMM_WHOLE,
    VISION,
    VOCAB,
    hf_tower,
    perturb,
    timm_tower,
)

SMALL = ModelConfig(width=16, fusion_heads=2, sequence_heads=2, max_history=5, title_tokens=8)
CONFIGS = {
    "mmsr": SMALL,
    "sum": dataclasses.replace(SMALL, fusion="sum"),
    "concat": dataclasses.replace(SMALL, fusion="concat", score="dot"),
    "text only": dataclasses.replace(SMALL, vision="none"),
    "vision only": dataclasses.replace(SMALL, text="none"),
    "id": dataclasses.replace(SMALL, item="id", score="dot"),
}
every_model = pytest.mark.parametrize("name", CONFIGS)


def build(name="mmsr", **changes) -> Recommender:
    torch.manual_seed(0)
    model = Recommender.build(dataclasses.replace(CONFIGS[name], **changes), vocab_size=VOCAB, num_items=40)
    perturb(model)
    return model


def with_towers(text_tower, vision_tower, **changes) -> Recommender:
    """A model around given towers, as if they had been loaded by name."""
    config = dataclasses.replace(SMALL, **changes)
    if text_tower is not None:
        text_tower = tuned(text_tower, config.text_policy, config.width)
    if vision_tower is not None:
        vision_tower = tuned(vision_tower, config.vision_policy, config.width)
    has_both = text_tower is not None and vision_tower is not None
    fusion = fusions[config.fusion_name].from_config(config) if has_both else None
    items = FusedItemEncoder(text_tower, vision_tower, fusion, config.width)
    return Recommender(config, items, sequence_encoders[config.sequence].from_config(config)).train()


def items_for(model: Recommender, number=7, padded_to=8) -> ItemInputs:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 7, (number, 1), generator=generator)
    spec = model.image_spec
    size = (number, 3, spec.height, spec.width) if spec else (number, 3, 8, 8)
    return ItemInputs(
        ids=torch.randperm(40, generator=generator)[:number],
        title_ids=torch.nn.functional.pad(
            torch.randint(5, VOCAB, (number, 6), generator=generator), (0, padded_to - 6), value=1
        ),
        title_mask=torch.arange(padded_to) < lengths,
        images=torch.randint(0, 256, size, dtype=torch.uint8, generator=generator),
    )


SEQUENCE = torch.tensor([[0, 1, 2, 3, 4], [5, 6, 0, 0, 0]])
MASK = torch.tensor([[True] * 5, [True, True, False, False, False]])


@every_model
def test_every_trained_parameter_gets_a_gradient(name):
    model = build(name).train()
    model(items_for(model), SEQUENCE, MASK)[MASK].square().sum().backward()
    # normalised vectors have constant squares, so the scores are asked as well
    vectors = model.encode_items(items_for(model))
    hidden = model.encode_users(vectors[SEQUENCE], MASK)[MASK]
    model.score(hidden, vectors).logsumexp(dim=1).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.ndim > 0
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all()


@every_model
def test_item_vectors_depend_on_the_item_alone(name):
    model = build(name).eval()
    items = items_for(model)
    vectors = model.encode_items(items)
    assert vectors.shape == (7, 16)
    for i in (0, 4):
        one = ItemInputs(items.ids[[i]], items.title_ids[[i]], items.title_mask[[i]], items.images[[i]])
        assert torch.allclose(model.encode_items(one)[0], vectors[i], atol=1e-5)
    assert torch.allclose(model.encode_items(items_for(model, padded_to=12)), vectors, atol=1e-5)


@every_model
def test_the_cut_of_the_item_encoder_gives_the_same_vectors(name):
    model = build(name).eval()
    items = items_for(model)
    encoder = model.item_encoder
    assert torch.equal(encoder.suffix(encoder.prefix(items)), encoder(items))


@every_model
def test_user_vectors_ignore_padding_and_later_items(name):
    model = build(name).eval()
    vectors = model.encode_items(items_for(model))
    hidden = model.encode_users(vectors[SEQUENCE], MASK)
    garbage = SEQUENCE.where(MASK, 3)
    assert torch.allclose(model.encode_users(vectors[garbage], MASK)[MASK], hidden[MASK], atol=1e-5)
    later = torch.cat([SEQUENCE[:1, :3], SEQUENCE[:1, [0, 0]]], dim=1)
    assert torch.allclose(model.encode_users(vectors[later], MASK[:1])[0, :3], hidden[0, :3], atol=1e-5)


@pytest.mark.parametrize("score", ["scaled", "cosine", "dot"])
def test_the_last_user_vector_alone_is_the_one_among_all(score):
    model = build(score=score).eval()
    vectors = model.encode_items(items_for(model))
    expected = model.encode_users(vectors[SEQUENCE], MASK)[[0, 1], [4, 1]]
    assert torch.allclose(model.encode_last(vectors[SEQUENCE], MASK), expected, atol=1e-5)


def test_scaled_scores_are_inner_products_over_the_root_of_the_width():
    model = build(score="scaled").eval()
    vectors = model.encode_items(items_for(model))
    hidden = model.encode_users(vectors[SEQUENCE], MASK)[MASK]
    expected = (hidden[0] * vectors[2]).sum() / model.config.width**0.5
    assert model.score(hidden, vectors)[0, 2].item() == pytest.approx(expected.item(), abs=1e-4)
    assert model.score_pairs(hidden[:1], vectors[2:3]).item() == pytest.approx(expected.item(), abs=1e-4)


def test_cosine_scores_are_cosines_over_the_temperature():
    model = build(score="cosine", temperature=0.2).eval()
    vectors = model.encode_items(items_for(model))
    hidden = model.encode_users(vectors[SEQUENCE], MASK)[MASK]
    assert model.score_scale == pytest.approx(5)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(7))
    assert torch.allclose(hidden.norm(dim=1), torch.ones(7))
    scores = model.score(hidden, vectors)
    for u, i in ((0, 0), (3, 6)):
        cosine = (hidden[u] @ vectors[i] / (hidden[u].norm() * vectors[i].norm())).item()
        assert scores[u, i].item() == pytest.approx(5 * cosine, abs=1e-4)
        pair = model.score_pairs(hidden[u : u + 1], vectors[i : i + 1])
        assert pair.item() == pytest.approx(5 * cosine, abs=1e-4)


def test_dot_scores_are_plain_inner_products_of_vectors_as_they_are():
    model = build(score="dot").eval()
    items = items_for(model)
    vectors = model.encode_items(items)
    assert model.score_scale == 1.0
    assert torch.equal(vectors, model.item_encoder(items))
    hidden = model.encode_users(vectors[SEQUENCE], MASK)
    assert torch.equal(hidden, model.sequence_encoder(vectors[SEQUENCE], MASK))
    expected = sum(hidden[0, 2, d].item() * vectors[5, d].item() for d in range(16))
    assert model.score(hidden[0, 2:3], vectors[5:6]).item() == pytest.approx(expected, abs=1e-4)
    assert model.score_pairs(hidden[0, 2:3], vectors[5:6]).item() == pytest.approx(expected, abs=1e-4)


@every_model
def test_runs_with_all_weights_in_bfloat16(name):
    model = build(name).train().bfloat16()
    vectors = model.encode_items(items_for(model))
    assert vectors.dtype == torch.bfloat16
    hidden = model.encode_users(vectors[SEQUENCE], MASK)
    assert hidden.dtype == torch.bfloat16
    model.score(hidden[MASK], vectors).float().logsumexp(dim=1).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    if model.config.score == "cosine":
        assert torch.allclose(vectors.float().norm(dim=1), torch.ones(7), atol=1e-2)


@every_model
def test_layer_groups_are_a_complete_partition(name):
    model = build(name)
    names = [parameter for group in model.layer_groups() for parameter in group.parameters]
    assert sorted(names) == sorted(parameter for parameter, _ in model.named_parameters())
    for group in model.layer_groups():
        assert all(model.get_parameter(inside).requires_grad == group.trained for inside in group.parameters)


def test_groups_say_whose_learning_rate_applies():
    model = with_towers(hf_tower("bert"), timm_tower("test_vit"), text_tune="top:1", vision_tune="frozen")
    groups = {group.name: group for group in model.layer_groups()}
    assert [name for name, group in groups.items() if group.kind == "text"] == [
        "text.embeddings",
        "text.block.0",
        "text.block.1",
        "text.block.2",
    ]
    assert [name for name, group in groups.items() if group.kind == "rest"] == [
        "text_projection",
        "vision_projection",
        "fusion",
        "sequence_encoder",
    ]
    assert [name for name, group in groups.items() if group.kind == "text" and group.trained] == ["text.block.2"]
    assert not any(group.trained for group in groups.values() if group.kind == "vision")
    assert all(group.trained for group in groups.values() if group.kind == "rest")


def test_a_side_network_learns_at_the_rate_of_the_rest_beside_a_frozen_tower():
    groups = {
        group.name: group for group in with_towers(hf_tower("bert"), None, vision="none", tune="side").layer_groups()
    }
    assert (groups["text.tower"].kind, groups["text.tower"].trained) == ("text", False)
    assert (groups["text.side"].kind, groups["text.side"].trained) == ("rest", True)


@pytest.mark.parametrize("fusion", ["sum", "concat", "merge"])
@pytest.mark.parametrize(
    ("text", "vision"), [("bert", "test_vit"), ("bert", None), (None, "test_vit"), ("tiny", "test_vit")]
)
def test_side_networks_work_with_every_fusion_and_with_one_tower(text, vision, fusion):
    towers = [None if name is None else made[name]() for made, name in ((TEXT, text), (VISION, vision))]
    model = with_towers(*towers, tune="side", fusion=fusion, text=text or "none", vision=vision or "none")
    perturb(model)
    items = items_for(model)
    model.encode_items(items).square().sum().backward()
    groups = [group for group in model.layer_groups() if group.name != "sequence_encoder"]
    for group in groups:
        for parameter in group.parameters:
            assert (model.get_parameter(parameter).grad is not None) == group.trained, parameter
    model.eval()
    vectors = model.encode_items(items)
    one = ItemInputs(items.ids[[4]], items.title_ids[[4]], items.title_mask[[4]], items.images[[4]])
    assert torch.allclose(model.encode_items(one)[0], vectors[4], atol=1e-5)
    assert torch.allclose(model.encode_items(items_for(model, padded_to=12)), vectors, atol=1e-5)


def test_untrained_towers_learn_at_the_rate_of_the_rest():
    assert {group.kind for group in build().layer_groups()} == {"rest"}


PAIRS = [("roberta", vision) for vision in (*TIMM_STEPPED, *TIMM_WHOLE)]
PAIRS += [(text, "test_vit") for text in HF_CONFIGS if text != "roberta"]
every_pair = pytest.mark.parametrize(("text", "vision"), [*PAIRS, ("tiny", "tiny")])


def of_pair(text, vision, **changes) -> Recommender:
    """A model whose configuration names towers that are nowhere to be found."""
    torch.manual_seed(0)
    return with_towers(TEXT[text](), VISION[vision](), text="hf:/gone", vision="timm:gone", **changes)


@every_pair
@pytest.mark.parametrize("tune", ["full", "side"])
def test_no_dropout_means_none_in_the_towers_either(text, vision, tune):
    model = of_pair(text, vision, tune=tune, dropout=0.0)
    evaluated = copy.deepcopy(model).eval()
    items = items_for(model)
    vectors = model.encode_items(items)
    assert torch.equal(vectors, model.encode_items(items))
    assert torch.allclose(vectors, evaluated.encode_items(items), atol=1e-5)
    hidden = model.encode_users(vectors[SEQUENCE], MASK)
    assert torch.allclose(hidden, evaluated.encode_users(vectors[SEQUENCE], MASK), atol=1e-5)


def test_towers_keep_their_own_dropout_otherwise():
    items = items_for(of_pair("bert", "test_vit"))
    dropping = with_towers(hf_tower("bert"), timm_tower("test_vit"), text_tune="full", dropout=0.1)
    assert not torch.equal(dropping.encode_items(items), dropping.encode_items(items))


def test_a_tower_keeps_its_frozen_blocks_in_evaluation_mode_inside_the_model():
    model = with_towers(hf_tower("bert"), timm_tower("test_vit"))
    model.eval()
    model.train()
    blocks = model.item_encoder.text.backbone.encoder.layer
    assert [block.training for block in blocks] == [False, True, True]
    assert not model.item_encoder.text.backbone.embeddings.dropout.training


def outputs(model: Recommender) -> list[torch.Tensor]:
    with torch.no_grad():
        vectors = model.encode_items(items_for(model))
        return [vectors, model.encode_users(vectors[SEQUENCE], MASK)]


@every_model
def test_a_bundle_gives_the_same_outputs(name, tmp_path):
    model = build(name).eval()
    model.save(tmp_path / "bundle", trained_on=[{"name": "a", "fingerprint": "b"}])
    again = Recommender.load(tmp_path / "bundle")
    assert not again.training
    assert again.config == model.config
    for found, expected in zip(outputs(again), outputs(model)):
        assert torch.equal(found, expected)
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert config["format_version"] == 1
    assert config["trained_on"] == [{"name": "a", "fingerprint": "b"}]
    again.save(tmp_path / "second")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "second" / file).read_bytes() == (tmp_path / "bundle" / file).read_bytes()


@pytest.mark.parametrize("tune", ["top:2", "side"])
@every_pair
def test_a_bundle_of_other_towers_needs_none_of_their_files(text, vision, tune, tmp_path):
    """Non-persistent buffers (position ids, Swin's attention masks) must be right again: outputs are compared."""
    model = of_pair(text, vision, tune=tune).eval()
    perturb(model)
    model.save(tmp_path)
    again = Recommender.load(tmp_path)
    assert again.image_spec == model.image_spec
    for found, expected in zip(outputs(again), outputs(model)):
        assert torch.equal(found, expected)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in again.named_parameters() if parameter.requires_grad} == trained


def test_weights_named_by_directories_are_loaded_and_travel_in_the_bundle(tmp_path):
    torch.manual_seed(0)
    bert = AutoModel.from_config(copy.deepcopy(HF_CONFIGS["bert"]))
    bert.save_pretrained(tmp_path / "bert")
    config = dataclasses.replace(SMALL, text=f"hf:{tmp_path / 'bert'}", vision="none")
    model = Recommender.build(config, vocab_size=VOCAB)
    assert torch.equal(
        model.item_encoder.text.backbone.embeddings.word_embeddings.weight, bert.embeddings.word_embeddings.weight
    )
    model.save(tmp_path / "bundle")
    for file in (tmp_path / "bert").iterdir():
        file.unlink()
    for found, expected in zip(outputs(Recommender.load(tmp_path / "bundle")), outputs(model.eval())):
        assert torch.equal(found, expected)


def test_weights_may_come_from_elsewhere_and_as_views_of_one_buffer(tmp_path):
    """DeepSpeed keeps all weights in one flat tensor, in bfloat16 perhaps."""
    model = build("text only").eval()
    state = {name: value.bfloat16() for name, value in model.state_dict().items()}
    flat = torch.cat([value.flatten() for value in state.values()])
    views = torch.split(flat, [value.numel() for value in state.values()])
    state = {name: view.view(value.shape) for view, (name, value) in zip(views, state.items())}
    model.save(tmp_path, state_dict=state)
    again = Recommender.load(tmp_path)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    for name, value in again.state_dict().items():
        assert torch.equal(value, state[name].float())


@pytest.fixture
def bundle(tmp_path):
    build("text only").save(tmp_path)
    return tmp_path


def test_a_missing_an_unexpected_and_a_misshapen_tensor_are_named(bundle):
    file = bundle / "model.safetensors"
    weights = load_file(file)
    del weights["sequence_encoder.norm.weight"]
    weights["sequence_encoder.norm.bias"] = torch.zeros(17)
    weights["stranger"] = torch.zeros(1)
    save_file(weights, file)
    with pytest.raises(UserError, match="another model: 3 tensors do not fit") as error:
        Recommender.load(bundle)
    assert "sequence_encoder.norm.weight is missing" in str(error.value)
    assert "stranger is unexpected" in str(error.value)
    assert "sequence_encoder.norm.bias has shape [17] instead of [16]" in str(error.value)


def test_a_truncated_download_is_refused(bundle):
    file = bundle / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="model.safetensors is damaged"):
        Recommender.load(bundle)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json is damaged"),
        ("[]", "another program"),
        ('{"architectures": ["BertModel"]}', "another program"),
        ('{"format_version": 99}', "has format 99, this version reads formats up to 1"),
    ],
)
def test_a_config_that_is_not_ours_is_refused(bundle, content, message):
    (bundle / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        Recommender.load(bundle)


def test_an_unknown_setting_in_a_bundle_is_named(bundle):
    config = json.loads((bundle / "config.json").read_text())
    config["model"]["widht"] = 3
    (bundle / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"unknown setting 'widht'.*Did you mean 'width'"):
        Recommender.load(bundle)


def test_an_empty_directory_is_no_bundle(tmp_path):
    with pytest.raises(UserError, match="is no model bundle"):
        Recommender.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": "gatee"}, "unknown fusion 'gatee'"),
        ({"sequence": "gru"}, "unknown sequence encoder 'gru'"),
        ({"text": "bert-base"}, "write hf:bert-base"),
        ({"vision": "vit"}, "unknown vision tower 'vit'"),
        ({"text_tune": "most"}, "unknown tuning policy 'most'"),
    ],
)
def test_an_unknown_part_is_one_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        Recommender.build(dataclasses.replace(SMALL, **changes), vocab_size=VOCAB)


def test_item_vectors_of_an_id_model_are_its_table():
    model = build("id").eval()
    items = ItemInputs(ids=torch.tensor([3, 39, 3]))
    assert torch.equal(model.encode_items(items), model.item_encoder.items.weight[[3, 39, 3]])


def test_fresh_projections_are_xavier_normal_without_bias():
    torch.manual_seed(0)
    model = Recommender.build(ModelConfig(width=128), vocab_size=VOCAB)
    projection = model.item_encoder.text_projection
    assert projection.weight.std().item() == pytest.approx(math.sqrt(2 / (64 + 128)), rel=0.1)
    assert not projection.bias.any()


def test_one_tower_alone_is_the_mean_of_its_projected_tokens():
    model = build("text only", score="dot").eval()
    items = items_for(model)
    encoder = model.item_encoder
    tokens = encoder.text_projection(encoder.text.suffix(encoder.prefix(items).text).hidden)
    expected = torch.stack([tokens[i][items.title_mask[i]].mean(dim=0) for i in range(7)])
    assert torch.allclose(model.encode_items(items), expected, atol=1e-5)

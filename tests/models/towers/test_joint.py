"""Deep VLPs: ViLT, VisualBERT and FLAVA are what their library computes, cut where they are frozen."""

import copy
import dataclasses

import pytest
import torch
from transformers import BertModel, ViltModel, VisualBertModel

from mmsr_pt.batch import ItemInputs
from mmsr_pt.config import ModelConfig, OptimConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.item_encoder import DeepItemEncoder, item_encoder_from_config
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.models.sequence import sequence_encoders
from mmsr_pt.models.towers.tower import Activations
from mmsr_pt.models.towers.vision import vision_tower_from_config
from mmsr_pt.models.towers.visualbert import seeing
from mmsr_pt.training.optim import check_gradients, param_groups
from tests.conftest import real_weights
from tests.models.towers.small import region_tower, relative_error
from tests.models.towers.vlps import DEEP, VOCAB, flags_for, publish, publish_eyes

SMALL = ModelConfig(width=16, fusion_heads=2, title_tokens=20, max_history=5)
POLICIES = {
    "default": {},
    "full": {"tune": "full"},
    "frozen": {"tune": "frozen"},
    "top:1": {"tune": "top:1"},
    "lora": {"tune": "lora:2"},
    "vision": {"vision_tune": "full"},
    "text": {"text_tune": "full"},
    "joint": {"tune": "frozen", "joint_tune": "top:1"},
    "patches": {"patch_mask": 0.5},
}
every_vlp = pytest.mark.parametrize("kind", DEEP)
every_policy = pytest.mark.parametrize("policy", POLICIES)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("vlps")
    publish_eyes(root / "eyes")
    for kind in DEEP:
        publish(kind, root / kind)
    return root


def build(root, kind, **changes) -> Recommender:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, **{**flags_for(kind, root / kind, root / "eyes"), **changes})
    return Recommender.build(config, vocab_size=VOCAB)


def items(lengths=(7, 3, 1), padded_to=7) -> ItemInputs:
    generator = torch.Generator().manual_seed(1)
    ids = torch.zeros(len(lengths), padded_to, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, VOCAB, (length,), generator=generator)
    return ItemInputs(
        ids=torch.arange(len(lengths)),
        title_ids=ids,
        title_mask=torch.arange(padded_to) < torch.tensor(lengths)[:, None],
        images=torch.randint(0, 256, (len(lengths), 3, 32, 32), dtype=torch.uint8, generator=generator),
    )


def tokens_of(encoder: DeepItemEncoder, inputs: ItemInputs) -> Activations:
    """What the joint encoder gives."""
    text = encoder.text(Activations(inputs.title_ids, inputs.title_mask))
    vision = encoder.vision(Activations(inputs.images))
    return encoder.joint.suffix(encoder.joint.prefix(encoder.joint.enter(text, vision.hidden)))


def of_the_library(kind: str, root, encoder: DeepItemEncoder, inputs: ItemInputs):
    """[N, T, d] of titles and [N, V, d] of pictures by the library's own forward."""
    pixels = encoder.vision.pixels(inputs.images)
    mask, length = inputs.title_mask.long(), inputs.title_mask.shape[1]
    if kind == "vilt":
        model = ViltModel.from_pretrained(root / kind).eval()
        out = model(
            input_ids=inputs.title_ids,
            attention_mask=mask,
            pixel_values=pixels,
            pixel_mask=torch.ones(len(mask), 32, 32, dtype=torch.int64),
        ).last_hidden_state
        return out[:, :length], out[:, length:]
    if kind == "flava":
        from transformers import FlavaModel

        out = FlavaModel.from_pretrained(root / kind).eval()(
            input_ids=inputs.title_ids, attention_mask=mask, pixel_values=pixels
        )
        return out.multimodal_embeddings[:, -length:], out.multimodal_embeddings[:, :-length]
    seen = encoder.vision(Activations(inputs.images)).hidden
    model = VisualBertModel.from_pretrained(root / kind).eval()
    out = model(
        input_ids=inputs.title_ids,
        attention_mask=mask,
        visual_embeds=seen,
        visual_attention_mask=torch.ones(seen.shape[:2], dtype=torch.int64),
    ).last_hidden_state
    return out[:, :length], out[:, length:]


@pytest.mark.parametrize("kind", ["vilt", "visualbert", "flava"])
def test_tokens_are_those_of_the_library(published, kind):
    encoder = build(published, kind).eval().item_encoder
    inputs = items()
    with torch.no_grad():
        tokens, mask = tokens_of(encoder, inputs)
        title, picture = of_the_library(kind, published, encoder, inputs)
        length = inputs.title_mask.shape[1]
        assert torch.allclose(tokens[:, :length][inputs.title_mask], title[inputs.title_mask], atol=1e-4)
        # ViLT's own forward shuffles the patches
        found, expected = (part.sort(dim=1).values for part in (tokens[:, length:], picture))
        assert torch.allclose(found, expected, atol=1e-4)
        total = (title * inputs.title_mask[:, :, None]).sum(dim=1) + picture.sum(dim=1)
        mean = total / (inputs.title_mask.sum(dim=1, keepdim=True) + picture.shape[1])
        assert torch.allclose(encoder(inputs), encoder.projection(mean), atol=1e-4)
        assert mask.sum(dim=1).tolist() == [n + picture.shape[1] for n in (7, 3, 1)]


def test_a_visualbert_that_starts_from_bert_is_bert_for_a_title_alone(published):
    """No vision token at all: what is left is BERT, to the last digit that another attention kernel leaves."""
    check_bert(published / "bert", torch.randint(5, VOCAB, (2, 6), generator=torch.Generator().manual_seed(2)))


def test_so_it_is_with_the_weights_of_minilm():
    ids = torch.tensor([[101, 2304, 7191, 2007, 7777, 102], [101, 6174, 102, 0, 0, 0]])
    check_bert(real_weights("minilm-l6"), ids)


def check_bert(directory, ids):
    bert = BertModel.from_pretrained(directory, dtype=torch.float32).eval()
    mask = ids != 0
    expected = bert(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    vlp = seeing(copy.deepcopy(bert), vision_tower_from_config({"kind": "tiny"}))
    text = vlp.text.eval()(Activations(ids, mask))
    joint = vlp.joint.eval()
    nothing = torch.zeros(len(ids), 0, 128)
    found, found_mask = joint.suffix(joint.prefix(joint.enter(text, nothing)))
    assert torch.equal(found_mask, mask)
    assert relative_error(found[mask], expected[mask]) < 1e-5


@every_vlp
def test_what_trains_by_default_is_what_the_paper_trained(published, kind):
    trained = [group.name for group in build(published, kind).layer_groups() if group.trained]
    ours = ["projection", "sequence_encoder"]
    last_four = [f"joint.block.{i}" for i in range(2, 6)]
    assert (
        trained
        == {
            "vilt": [*last_four, *ours],
            "visualbert": [*last_four, *ours],
            "bert": ["joint.projection", *last_four, *ours],
            "flava": [
                *(f"{side}.block.{i}" for side in ("text", "vision") for i in (4, 5)),
                *("joint.embeddings", "joint.block.0", "joint.block.1"),
                *ours,
            ],
        }[kind]
    )


@every_policy
@every_vlp
def test_exactly_what_trains_gets_a_gradient(published, kind, policy):
    model = build(published, kind, **POLICIES[policy])
    check_gradients(model)
    names = [name for group in model.layer_groups() for name in group.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all(parameter.ndim > 0 for parameter in model.parameters())


@every_policy
@every_vlp
def test_the_cut_changes_nothing(published, kind, policy):
    model = build(published, kind, **POLICIES[policy])
    encoder, inputs = model.item_encoder, items()
    whole = build(published, kind, tune="full").eval()
    if "lora" not in policy:
        whole.load_state_dict(model.state_dict())
    for training in (True, False):
        encoder.train(training)
        torch.manual_seed(5)
        cut = encoder.suffix(encoder.prefix(inputs))
        torch.manual_seed(5)
        assert torch.equal(cut, encoder(inputs))
    with torch.no_grad():
        if "lora" not in policy:
            assert torch.allclose(cut, whole.item_encoder(inputs), atol=1e-5)


def test_what_is_kept_of_a_deep_vlp_is_the_state_in_its_blocks(published):
    """Of the cut inside the joint blocks, by hand: title and picture states of what is frozen, then the rest."""
    for kind, num_frozen in (("vilt", 2), ("visualbert", 2)):
        encoder = build(published, kind).eval().item_encoder
        inputs = items()
        with torch.no_grad():
            kept = encoder.prefix(inputs)
            state = torch.cat([kept.text.hidden, kept.vision.hidden], dim=1)
            mask = torch.cat([inputs.title_mask, torch.ones(kept.vision.hidden.shape[:2], dtype=torch.bool)], dim=1)
            text = encoder.text(Activations(inputs.title_ids, inputs.title_mask))
            begun = encoder.joint.enter(text, encoder.vision(Activations(inputs.images)).hidden).hidden
            for block in encoder.joint.backbone.encoder.layer[:num_frozen]:
                begun = block(begun, mask[:, None, None])[0]
        assert relative_error(state[mask], begun[mask]) < 1e-5
        assert encoder.joint.num_prefix_steps() == num_frozen + len(encoder.joint.entry_groups())


@every_vlp
def test_a_frozen_bottom_does_not_drop_out_and_the_rest_does(published, kind):
    encoder = build(published, kind).train().item_encoder
    first, second = encoder.prefix(items()), encoder.prefix(items())
    assert torch.equal(first.text.hidden, second.text.hidden)
    assert torch.equal(first.vision.hidden, second.vision.hidden)
    if kind != "flava":  # its public configuration drops nothing
        assert not torch.equal(encoder.suffix(first), encoder.suffix(first))


@every_vlp
def test_an_item_depends_on_itself_alone(published, kind):
    encoder = build(published, kind).eval().item_encoder
    with torch.no_grad():
        vectors = encoder(items())
        assert torch.allclose(encoder(items(padded_to=12)), vectors, atol=1e-5)
        for row in range(3):
            assert torch.allclose(encoder(items().select(torch.tensor([row])))[0], vectors[row], atol=1e-5)


@every_vlp
def test_both_modalities_count(published, kind):
    encoder = build(published, kind).eval().item_encoder
    inputs = items()
    with torch.no_grad():
        vectors = encoder(inputs)
        other = dataclasses.replace(inputs, images=255 - inputs.images)
        assert (encoder(other) - vectors).norm(dim=1).min() > 1e-3
        other = dataclasses.replace(inputs, title_ids=(inputs.title_ids + 7) % VOCAB)
        assert (encoder(other) - vectors).norm(dim=1).min() > 1e-3


@pytest.mark.parametrize("policy", ["default", "lora"])
@every_vlp
def test_a_bundle_gives_the_same_vectors_without_the_original_files(published, tmp_path, kind, policy):
    model = build(published, kind, **POLICIES[policy]).eval()
    model.save(tmp_path)
    text = (tmp_path / "config.json").read_text()
    config = dataclasses.replace(model.config, vlp="hf:/gone", text="hf:/gone", vision="hf:/gone")
    (tmp_path / "config.json").write_text(text.replace(model.config.vlp, config.vlp))
    again = Recommender.load(tmp_path)
    assert torch.equal(again.encode_items(items()), model.encode_items(items()))
    assert again.item_encoder.config() == model.item_encoder.config()
    assert {g.name: g.trained for g in again.layer_groups()} == {g.name: g.trained for g in model.layer_groups()}


@every_vlp
def test_a_copy_is_a_model_of_its_own(published, kind):
    encoder = build(published, kind).eval().item_encoder
    vectors, other = encoder(items()), copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    assert torch.equal(other(items()), vectors)


@every_vlp
def test_trains_in_bfloat16(published, kind):
    encoder = build(published, kind).train().item_encoder
    for parameter in encoder.parameters():
        parameter.data = parameter.data.bfloat16()
    vectors = encoder(items())
    assert vectors.dtype == torch.bfloat16
    vectors.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.requires_grad)


def test_joint_blocks_have_a_rate_of_their_own_and_a_new_projection_that_of_the_rest(published):
    model = build(published, "bert")
    groups = param_groups(model, OptimConfig(lr=1.0, joint_lr=2.0, weight_decay=3.0, encoder_weight_decay=4.0))
    settings = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    joint = model.item_encoder.joint
    assert settings[id(joint.backbone.encoder.layer[5].output.dense.weight)] == (2.0, 4.0)
    assert settings[id(joint.entry.projection.weight)] == (1.0, 3.0)
    assert id(joint.entry.norm.weight) not in settings


def test_eyes_of_another_width_look_through_a_new_projection(published, tmp_path):
    publish_eyes(tmp_path / "wide", width=32)
    model = build(published, "visualbert", vision=f"hf:{tmp_path / 'wide'}")
    assert model.item_encoder.joint.entry.projection.weight.shape == (24, 32)
    assert "joint.projection" in {group.name for group in model.layer_groups() if group.trained}
    check_gradients(model)


def test_a_visualbert_reads_the_regions_of_a_detector(published):
    joint = build(published, "bert").item_encoder.joint
    eyes = region_tower()
    described = {**joint.config(), "config": {**joint.config()["config"], "visual_embedding_dim": eyes.out_dim}}
    config = dataclasses.replace(SMALL, vlp=f"hf:{published / 'bert'}", vision="region")
    encoder = item_encoder_from_config(config, {"joint": described, "vision": eyes.config()})
    model = Recommender(config, encoder, sequence_encoders["sasrec"].from_config(config))
    check_gradients(model)
    assert encoder.joint.entry.projection.in_features == eyes.out_dim
    assert encoder.vision.trained_groups == frozenset()
    spec = encoder.image_spec
    inputs = dataclasses.replace(items(), images=torch.zeros(3, 3, spec.height, spec.width, dtype=torch.uint8))
    kept = encoder.eval().prefix(inputs)
    assert kept.vision.hidden.shape == (3, eyes.num_regions, eyes.out_dim), "what a cache keeps are the features"


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        ("vilt", {"title_tokens": 41}, "reads at most 40 tokens: give --title_tokens 40, not 41"),
        ("vilt", {"fusion": "merge"}, "joins title and picture itself: leave --fusion merge out"),
        ("vilt", {"modality_dropout": 0.3}, "always reads both: leave --modality_dropout 0.3 out"),
        ("vilt", {"vision": "timm:resnet50"}, "reads pictures itself: leave --vision timm:resnet50 out"),
        ("flava", {"tune": "side"}, "--tune side is for towers of one modality"),
        ("visualbert", {"vision": "none"}, "VisualBERT reads a picture: name a vision tower"),
    ],
)
def test_what_does_not_go_together_is_said(published, kind, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        build(published, kind, **changes)


def test_a_visualbert_without_eyes_asks_for_them(published):
    with pytest.raises(UserError, match="VisualBERT has no eyes of its own: give --vision"):
        Recommender.build(dataclasses.replace(SMALL, vlp=f"hf:{published / 'visualbert'}"), vocab_size=VOCAB)


def test_a_tokenizer_of_more_tokens_than_the_model_knows(published):
    config = dataclasses.replace(SMALL, vlp=f"hf:{published / 'vilt'}")
    with pytest.raises(UserError, match=f"knows {VOCAB} tokens, its tokenizer has {VOCAB + 1}"):
        Recommender.build(config, vocab_size=VOCAB + 1)

"""Models of pictures and texts in two streams: both sides of one checkpoint, joined."""

import dataclasses

import pytest
import torch
from transformers import AutoModel, ViltConfig

from mmsr_pt.batch import ItemInputs
from mmsr_pt.config import ModelConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.fusion import ConcatFusion, masked_mean
from mmsr_pt.models.recommender import Recommender
from tests.models.towers.vlps import DEEP, MODELS, VOCAB, publish

SMALL = ModelConfig(width=16, fusion_heads=2, title_tokens=8, max_history=5)
KINDS = sorted(MODELS.keys() - set(DEEP))


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_of_the_checkpoint_are_pooled_and_joined(tmp_path, kind):
    own = publish(kind, tmp_path)
    model = Recommender.build(dataclasses.replace(SMALL, vlp=f"hf:{tmp_path}"), vocab_size=VOCAB).eval()
    encoder = model.item_encoder
    assert isinstance(encoder.fusion, ConcatFusion)
    spec = model.image_spec
    items = ItemInputs(
        ids=torch.arange(2),
        title_ids=torch.tensor([[5, 6, 7, 3], [8, 3, 0, 0]]),
        title_mask=torch.tensor([[True] * 4, [True, True, False, False]]),
        images=torch.randint(0, 256, (2, 3, spec.height, spec.width), dtype=torch.uint8),
    )
    with torch.no_grad():
        text = own.text_model(input_ids=items.title_ids, attention_mask=items.title_mask.long()).last_hidden_state
        vision = own.vision_model(pixel_values=encoder.vision.pixels(items.images)).last_hidden_state
        text = encoder.fusion.norm(masked_mean(encoder.text_projection(text), items.title_mask))
        vision = encoder.fusion.norm(encoder.vision_projection(vision).mean(dim=1))
        expected = encoder.fusion.both(torch.cat([text, vision], dim=1))
        assert torch.allclose(model.encode_items(items), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_blocks_of_both_sides_train_and_a_bundle_holds_all(tmp_path, kind):
    publish(kind, tmp_path / "vlp")
    model = Recommender.build(dataclasses.replace(SMALL, vlp=f"hf:{tmp_path / 'vlp'}", tune="top:1"), vocab_size=VOCAB)
    trained = {group.name for group in model.layer_groups() if group.trained}
    last = 2 if kind == "groupvit" else 5  # whose blocks are its stages
    assert {"text.block.5", f"vision.block.{last}", "fusion"} <= trained
    assert not trained & {"text.block.4", f"vision.block.{last - 1}", "text.embeddings", "vision.stem"}
    model.save(tmp_path / "bundle")
    again = Recommender.load(tmp_path / "bundle")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_pictures_of_another_tower_are_one_too_many(tmp_path):
    publish("clip", tmp_path)
    with pytest.raises(UserError, match="reads pictures itself: leave --vision timm:resnet50 out"):
        Recommender.build(dataclasses.replace(SMALL, vlp=f"hf:{tmp_path}", vision="timm:resnet50"), vocab_size=VOCAB)


def test_another_fusion_may_join_them():
    assert ModelConfig(vlp="hf:x").fusion_name == "concat"
    assert ModelConfig(vlp="hf:x", fusion="merge").fusion_name == "merge"
    assert ModelConfig().fusion_name == "merge"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"vlp": "clip"}, "--vlp clip: give hf:NAME or hf:/a/local/dir, or none"),
        ({"vlp": "hf:x", "text": "hf:y"}, "--vlp hf:x reads titles itself: leave --text hf:y out"),
    ],
)
def test_flags_that_do_not_go_together(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        ModelConfig(**flags)


@pytest.mark.parametrize("flag", ["text", "vision"])
def test_the_sides_of_a_deep_one_make_no_towers(tmp_path, flag):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    AutoModel.from_config(ViltConfig(**sizes, vocab_size=20, image_size=32, patch_size=8)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="vilt is a model of titles and pictures in one: name it with --vlp"):
        Recommender.build(dataclasses.replace(SMALL, **{flag: f"hf:{tmp_path}"}), vocab_size=20)

"""State dicts laid out as the hub's public checkpoints load with no weight missing.

Configurations are the public ones at small width: names, numbers of blocks, tokens, patches and heads' extras are
theirs, sizes are not. Names of tensors are written out where the library's own have changed or may.
"""

import dataclasses

import pytest
import torch
from torch import Tensor
from transformers import (
    FlavaConfig,
    FlavaModel,
    GroupViTConfig,
    GroupViTModel,
    ViltConfig,
    ViltForMaskedLM,
    VisualBertConfig,
    VisualBertForPreTraining,
)

from mmsr_pt.config import ModelConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.training.optim import check_gradients
from tests.models.towers.small import relative_error
from tests.models.towers.vlps import publish_eyes, write_old

SMALL = ModelConfig(width=16, fusion_heads=2, title_tokens=40, max_history=5)
D, INNER, VOCAB = 24, 32, 99
BERT_LIKE = {
    "hidden_size": D,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": INNER,
    "vocab_size": VOCAB,
}


def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (D,), f"{name}.bias": (D,)}


def clip_layer(name: str) -> dict[str, tuple[int, ...]]:
    shapes = {**norm(f"{name}.layer_norm1"), **norm(f"{name}.layer_norm2")}
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= linear(f"{name}.self_attn.{projection}", D, D)
    return shapes | linear(f"{name}.mlp.fc1", INNER, D) | linear(f"{name}.mlp.fc2", D, INNER)


def clip() -> tuple[dict, dict[str, Tensor]]:
    """openai/clip-vit-base-patch32."""
    sides = {"hidden_size": D, "intermediate_size": INNER, "num_hidden_layers": 12}
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 8,
        "logit_scale_init_value": 2.6592,
        "text_config": {
            **sides,
            "model_type": "clip_text_model",
            "num_attention_heads": 8,
            "vocab_size": VOCAB,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        "vision_config": {
            **sides,
            "model_type": "clip_vision_model",
            "num_attention_heads": 12,
            "image_size": 224,
            "patch_size": 32,
            "hidden_act": "quick_gelu",
        },
    }
    shapes = {
        "logit_scale": (),
        "text_model.embeddings.token_embedding.weight": (VOCAB, D),
        "text_model.embeddings.position_embedding.weight": (77, D),
        **norm("text_model.final_layer_norm"),
        "vision_model.embeddings.class_embedding": (D,),
        "vision_model.embeddings.patch_embedding.weight": (D, 3, 32, 32),
        "vision_model.embeddings.position_embedding.weight": (50, D),
        **norm("vision_model.pre_layrnorm"),
        **norm("vision_model.post_layernorm"),
        "visual_projection.weight": (8, D),
        "text_projection.weight": (8, D),
    }
    for side in ("text_model", "vision_model"):
        for i in range(12):
            shapes |= clip_layer(f"{side}.encoder.layers.{i}")
    places = {
        "text_model.embeddings.position_ids": torch.arange(77)[None],
        "vision_model.embeddings.position_ids": torch.arange(50)[None],
    }
    return config, {**{name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}, **places}


def groupvit() -> tuple[dict, dict[str, Tensor]]:
    """nvidia/groupvit-gcc-yfcc."""
    config = GroupViTConfig(
        text_config={**BERT_LIKE, "num_attention_heads": 4, "max_position_embeddings": 77, "eos_token_id": 2},
        vision_config={
            "hidden_size": D,
            "intermediate_size": INNER,
            "depths": [6, 3, 3],
            "num_group_tokens": [64, 8, 0],
            "num_output_groups": [64, 8, 8],
            "num_attention_heads": 6,
        },
        projection_dim=8,
        projection_intermediate_dim=16,
    )
    weights = GroupViTModel(config).state_dict()
    anchors = (
        "logit_scale",
        "visual_projection.3.weight",
        "text_model.encoder.layers.11.self_attn.out_proj.weight",
        "vision_model.embeddings.patch_embeddings.projection.weight",
        "vision_model.encoder.stages.0.group_token",
        "vision_model.encoder.stages.1.downsample.assign.q_proj.weight",
        "vision_model.encoder.stages.1.group_projector.1.fc1.weight",
    )
    assert set(anchors) <= set(weights)
    return config.to_dict(), {**weights, "text_model.embeddings.position_ids": torch.arange(77)[None]}


def vilt() -> tuple[dict, dict[str, Tensor]]:
    """dandelin/vilt-b32-mlm."""
    config = ViltConfig(**BERT_LIKE, tie_word_embeddings=False)
    config.architectures = ["ViltForMaskedLM"]
    weights = ViltForMaskedLM(config).state_dict()
    anchors = (
        "vilt.embeddings.text_embeddings.word_embeddings.weight",
        "vilt.embeddings.cls_token",
        "vilt.embeddings.patch_embeddings.projection.weight",
        "vilt.embeddings.token_type_embeddings.weight",
        "vilt.encoder.layer.11.attention.attention.query.weight",
        "vilt.encoder.layer.11.layernorm_before.weight",
        "vilt.layernorm.weight",
        "mlm_score.transform.dense.weight",
    )
    assert set(anchors) <= set(weights)
    return config.to_dict(), {**weights, "vilt.embeddings.text_embeddings.position_ids": torch.arange(40)[None]}


def visualbert() -> tuple[dict, dict[str, Tensor]]:
    """uclanlp/visualbert-vqa-coco-pre."""
    config = VisualBertConfig(**BERT_LIKE, visual_embedding_dim=D)
    config.architectures = ["VisualBertForPreTraining"]
    weights = VisualBertForPreTraining(config).state_dict()
    anchors = (
        "visual_bert.embeddings.word_embeddings.weight",
        "visual_bert.embeddings.visual_token_type_embeddings.weight",
        "visual_bert.embeddings.visual_position_embeddings.weight",
        "visual_bert.embeddings.visual_projection.weight",
        "visual_bert.encoder.layer.11.attention.self.query.weight",
        "visual_bert.encoder.layer.11.attention.output.LayerNorm.weight",
        "cls.predictions.transform.dense.weight",
    )
    assert set(anchors) <= set(weights)
    return config.to_dict(), {**weights, "visual_bert.embeddings.position_ids": torch.arange(512)[None]}


def flava() -> tuple[dict, dict[str, Tensor]]:
    """facebook/flava-full, whose file holds the heads of its pre-training and a codebook too."""
    sides = {"hidden_size": D, "num_attention_heads": 12, "intermediate_size": INNER}
    config = FlavaConfig(
        text_config=dict(BERT_LIKE),
        image_config={**sides, "mask_token": True},
        multimodal_config={**sides, "num_hidden_layers": 6},
        projection_dim=8,
    )
    config.architectures = ["FlavaForPreTraining"]
    weights = FlavaModel(config).state_dict()
    anchors = (
        "logit_scale",
        "text_model.embeddings.word_embeddings.weight",
        "image_model.embeddings.mask_token",
        "image_model.encoder.layer.11.attention.attention.query.weight",
        "multimodal_model.cls_token",
        "multimodal_model.encoder.layer.5.output.dense.weight",
        "image_to_mm_projection.weight",
        "text_to_mm_projection.weight",
    )
    assert set(anchors) <= set(weights)
    extras = {
        "flava.text_model.embeddings.position_ids": torch.arange(512)[None],
        "mim_head.bias": torch.zeros(8192),
        "mmm_text_head.dense.weight": torch.randn(D, D),
        "itm_head.seq_relationship.weight": torch.randn(2, D),
        "image_codebook.blocks.input.weight": torch.randn(4, 3, 7, 7),
    }
    return config.to_dict(), {**{f"flava.{name}": value for name, value in weights.items()}, **extras}


LAYOUTS = {"clip": clip, "groupvit": groupvit, "vilt": vilt, "visualbert": visualbert, "flava": flava}
_DENSE = "encoder.layer.3.output.dense.weight"
_QUERY = "encoder.stages.0.downsample.assign.q_proj.weight"
TRACED = {
    "clip": ("vision_model.encoder.layers.11.mlp.fc2.weight", "vision", "encoder.layers.11.mlp.fc2.weight"),
    "groupvit": (f"vision_model.{_QUERY}", "vision", f"vision_model.{_QUERY}"),
    "vilt": (f"vilt.{_DENSE}", "joint", _DENSE),
    "visualbert": (f"visual_bert.{_DENSE}", "joint", _DENSE),
    "flava": (f"flava.multimodal_model.{_DENSE}", "joint", _DENSE),
}
"""A tensor of the file, and where it must be found again."""


@pytest.mark.parametrize("kind", LAYOUTS)
def test_it_loads_with_every_weight_and_trains(tmp_path, kind):
    torch.manual_seed(0)
    config, weights = LAYOUTS[kind]()
    write_old(tmp_path / "vlp", config, weights)
    more = {}
    if kind == "visualbert":
        publish_eyes(tmp_path / "eyes", width=D)
        more = {"vision": f"hf:{tmp_path / 'eyes'}"}
    model = Recommender.build(dataclasses.replace(SMALL, vlp=f"hf:{tmp_path / 'vlp'}", **more), vocab_size=VOCAB)
    name, tower, inside = TRACED[kind]
    found = getattr(model.item_encoder, tower).backbone.get_parameter(inside)
    assert relative_error(found, weights[name]) == 0
    check_gradients(model)


@pytest.mark.parametrize("kind", ["vilt", "visualbert", "flava"])
def test_a_file_that_lacks_a_weight_is_refused(tmp_path, kind):
    config, weights = LAYOUTS[kind]()
    del weights[TRACED[kind][0]]
    write_old(tmp_path / "vlp", config, weights)
    publish_eyes(tmp_path / "eyes", width=D)
    more = {"vision": f"hf:{tmp_path / 'eyes'}"} if kind == "visualbert" else {}
    with pytest.raises(UserError, match="lacks 1 weights of"):
        Recommender.build(dataclasses.replace(SMALL, vlp=f"hf:{tmp_path / 'vlp'}", **more), vocab_size=VOCAB)

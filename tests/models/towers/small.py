"""Small towers of every kind, random weights, no download: what the generic tests run over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d
from transformers import (
    AlbertConfig,
    BertConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    DebertaV2Config,
    DeiTConfig,
    Dinov2Config,
    DistilBertConfig,
    ElectraConfig,
    GroupViTTextConfig,
    GroupViTVisionConfig,
    ResNetConfig,
    RobertaConfig,
    SiglipTextConfig,
    SiglipVisionConfig,
    SwinConfig,
    T5Config,
    ViTConfig,
    ViTMAEConfig,
    XLMRobertaConfig,
)

from mmsr_pt.models.towers.text import TinyText, text_tower_from_config
from mmsr_pt.models.towers.tower import Activations, Tower
from mmsr_pt.models.towers.vision import TinyVision, vision_tower_from_config
from mmsr_pt.models.towers.vision_tower import VisionTower

VOCAB = 60

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 30,
}
_IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
HF_CONFIGS = {
    "bert": BertConfig(**_SIZES),
    "roberta": RobertaConfig(**_SIZES),
    "xlm-roberta": XLMRobertaConfig(**_SIZES),
    "electra": ElectraConfig(**_SIZES, embedding_size=8),
    "distilbert": DistilBertConfig(vocab_size=VOCAB, dim=16, n_layers=3, n_heads=2, hidden_dim=32),
    "clip_text_model": CLIPTextConfig(**_SIZES, **_IDS),
    "siglip_text_model": SiglipTextConfig(**_SIZES, **_IDS),
    # the rest run as one step
    "groupvit_text_model": GroupViTTextConfig(**_SIZES, **_IDS),
    "albert": AlbertConfig(**_SIZES, embedding_size=8),
    "deberta-v2": DebertaV2Config(**_SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8),
    "t5": T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2),
}
_PICTURES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
HF_VISION_STEPPED = {
    "vit": ViTConfig(**_PICTURES),
    "deit": DeiTConfig(**_PICTURES),
    "vit_mae": ViTMAEConfig(**_PICTURES),
    "dinov2": Dinov2Config(**{k: v for k, v in _PICTURES.items() if k != "intermediate_size"}, drop_path_rate=0.1),
    "clip_vision_model": CLIPVisionConfig(**_PICTURES),
    "siglip_vision_model": SiglipVisionConfig(**_PICTURES),
}
HF_VISION_WHOLE = {
    "groupvit_vision_model": GroupViTVisionConfig(
        **{k: v for k, v in _PICTURES.items() if k != "num_hidden_layers"},
        depths=[1, 1, 1],
        num_group_tokens=[4, 2, 0],
        num_output_groups=[4, 2, 0],
    ),
    "hf-swin": SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2),
    "hf-resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "hf-convnext": ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], image_size=32),
}
STEMS = {f"stem-{name}": name for name in HF_VISION_STEPPED}
"""Towers without blocks -> those whose patch embedding they are."""
HF_IMAGE = {"height": 32, "width": 32, "interpolation": "bicubic", "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
TIMM_STEPPED = {
    "test_vit": {},
    "test_vit3": {},  # norms before the blocks, register tokens
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 2, "embed_dim": 16, "depths": [1, 1, 2]},
    "test_efficientnet": {},
    "tf_efficientnet_lite0": {},
    "test_resnet": {},
    "test_convnext": {},
}
TIMM_WHOLE = {"test_mambaout": {}, "test_nfnet": {}}
REGION = {
    "kind": "region",
    "backbone": "resnet18",
    "image_size": 64,
    "num_regions": 6,
    "num_proposals": 40,
    "width": 16,
    "num_classes": 6,
}
NEVER_TRAINS = {"region"}
"""Towers that stay frozen whatever the policy."""


def hf_tower(kind: str) -> Tower:
    return text_tower_from_config({"kind": "hf", "config": HF_CONFIGS[kind].to_dict()})


def timm_tower(name: str) -> VisionTower:
    args = {**TIMM_STEPPED, **TIMM_WHOLE}[name]
    cfg = {} if name.startswith("test_") else {"input_size": [3, 64, 64]}
    return vision_tower_from_config({"kind": "timm", "architecture": name, "model_args": args, "pretrained_cfg": cfg})


def hf_vision_tower(name: str) -> VisionTower:
    config = {**HF_VISION_STEPPED, **HF_VISION_WHOLE}[name].to_dict()
    return vision_tower_from_config({"kind": "hf", "config": config, "image": HF_IMAGE})


def stem_tower(name: str) -> VisionTower:
    config = {**HF_VISION_STEPPED[STEMS[name]].to_dict(), "num_hidden_layers": 0}
    for counted_in_blocks in ("out_features", "out_indices", "stage_names"):
        config.pop(counted_in_blocks, None)
    return vision_tower_from_config({"kind": "hf", "config": config, "image": HF_IMAGE})


def region_tower() -> VisionTower:
    tower = vision_tower_from_config(REGION)
    for module in tower.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.fill_(0.35)  # random weights, once perturbed, would blow pictures up beyond any box
    return tower


TEXT: dict[str, Callable[[], Tower]] = {"tiny": lambda: TinyText(VOCAB)}
TEXT |= {kind: (lambda kind=kind: hf_tower(kind)) for kind in HF_CONFIGS}
VISION: dict[str, Callable[[], VisionTower]] = {"tiny": TinyVision}
VISION |= {name: (lambda name=name: timm_tower(name)) for name in {**TIMM_STEPPED, **TIMM_WHOLE}}
VISION |= {name: (lambda name=name: hf_vision_tower(name)) for name in {**HF_VISION_STEPPED, **HF_VISION_WHOLE}}
VISION |= {name: (lambda name=name: stem_tower(name)) for name in STEMS}
VISION["region"] = region_tower


def make(modality: str, name: str, seed: int = 0) -> Tower:
    """A tower whose weights are not those of a fresh one, so that biases and norms matter in every comparison."""
    torch.manual_seed(seed)
    tower = {"text": TEXT, "vision": VISION}[modality][name]()
    perturb(tower)
    return tower


def perturb(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


def titles(lengths: list[int], padded_to: int, pad_id: int = 0) -> Activations:
    """Random titles; the same lengths give the same tokens whatever the padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.full((len(lengths), padded_to), pad_id)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, VOCAB, (length,), generator=generator)
    return Activations(ids, torch.arange(padded_to) < torch.tensor(lengths)[:, None])


def pictures(tower: VisionTower, number: int) -> Activations:
    size = (number, 3, tower.image_spec.height, tower.image_spec.width)
    return Activations(torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(1)))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Over all entries at once: random weights blow the rounding of single ones up through the layers."""
    return (torch.linalg.norm(found - expected) / torch.linalg.norm(expected)).item()


def inputs_for(tower: Tower) -> Activations:
    return pictures(tower, 3) if isinstance(tower, VisionTower) else titles([6, 2, 1], padded_to=6)

"""Rates of dropout: attention probabilities by their own flag in every part, the rest as built or off."""

import pytest
from torch import nn

from mmsr_pt.models.attention import SelfAttention
from mmsr_pt.models.dropout import set_dropout
from tests.models.test_recommender import with_towers
from tests.models.towers.small import HF_CONFIGS, hf_tower, timm_tower


@pytest.mark.parametrize("name", sorted(HF_CONFIGS))
def test_attention_of_every_library_tower_gets_the_rate_and_nothing_else_does(name):
    tower = hf_tower(name)
    others = [m for n, m in tower.named_modules() if isinstance(m, nn.Dropout) and "ttention" not in n]
    before = [module.p for module in others]
    set_dropout(tower, dropout=0.1, attention_dropout=0.25)
    attention = [m for m in tower.modules() if type(m).__name__.endswith("Attention")]
    rates = [
        rate.p if isinstance(rate, nn.Dropout) else rate
        for module in attention
        if not hasattr(module, "SelfAttention")  # T5 calls the layer around it so too
        for rate in (getattr(module, n, None) for n in ("dropout", "attention_dropout"))
        if isinstance(rate, (nn.Dropout, float))
    ]
    assert rates
    assert set(rates) == {0.25}
    assert [module.p for module in others] == before


def test_a_model_gets_the_rates_of_its_configuration():
    for attention_dropout in (0.0, 0.25):
        model = with_towers(hf_tower("bert"), timm_tower("test_vit"), attention_dropout=attention_dropout)
        own = [module.dropout for module in model.modules() if isinstance(module, SelfAttention)]
        assert own
        assert set(own) == {attention_dropout}
        assert model.item_encoder.text.backbone.encoder.layer[0].attention.self.dropout.p == attention_dropout
        assert model.item_encoder.vision.backbone.blocks[0].attn.attn_drop.p == attention_dropout
        assert model.item_encoder.fusion.blocks[0].dropout.p == 0.1


def test_no_dropout_is_none_at_all():
    model = with_towers(hf_tower("bert"), timm_tower("test_vit"), dropout=0.0, attention_dropout=0.5)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.0}
    assert {module.dropout for module in model.modules() if isinstance(module, SelfAttention)} == {0.0}

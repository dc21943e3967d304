"""Rates of dropout: attention probabilities by their own flag in every part, the rest as built or off; modalities."""

import pytest
import torch
from torch import nn

from mmsr_pt.config import ModelConfig
from mmsr_pt.log import UserError
from mmsr_pt.models import item_encoder
from mmsr_pt.models.attention import SelfAttention
from mmsr_pt.models.dropout import ModalityDropout, set_dropout
from mmsr_pt.models.fusion import fusions
from mmsr_pt.models.recommender import Recommender
from tests.models.test_recommender import build, items_for, with_towers
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


def dropped(text, vision):
    """[N] bool each: of which items nothing but zeros is left."""
    return text.eq(0).flatten(1).all(dim=1), vision.eq(0).flatten(1).all(dim=1)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_share_of_the_items_loses_one_modality_either_as_often_and_never_both(rate):
    torch.manual_seed(0)
    number = 20_000
    text, vision = torch.randn(number, 3, 4), torch.randn(number, 2, 4)
    left_text, left_vision = ModalityDropout(rate).train()(text, vision)
    no_text, no_vision = dropped(left_text, left_vision)
    assert not (no_text & no_vision).any()
    for is_dropped, left, whole in ((no_text, left_text, text), (no_vision, left_vision, vision)):
        deviation = (number * rate / 2 * (1 - rate / 2)) ** 0.5
        assert abs(is_dropped.sum() - number * rate / 2) < 5 * deviation, "binomial, five standard deviations"
        assert torch.equal(left[~is_dropped], whole[~is_dropped]), "what is kept is not scaled"


def test_it_is_drawn_anew_each_time_and_nothing_is_dropped_in_evaluation():
    drop = ModalityDropout(0.5).train()
    text, vision = torch.randn(50, 3, 4), torch.randn(50, 2, 4)
    first, second = (torch.cat(dropped(*drop(text, vision))) for _ in range(2))
    assert first.any()
    assert not torch.equal(first, second)
    assert all(left is whole for left, whole in zip(drop.eval()(text, vision), (text, vision)))


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.5, False)])
def test_no_random_number_is_drawn_where_nothing_is_dropped(rate, training):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    ModalityDropout(rate).train(training)(torch.ones(5, 1, 1), torch.ones(5, 1, 1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("fusion", sorted(fusions))
def test_only_what_is_kept_of_an_item_gets_a_gradient(fusion):
    model = build("mmsr", fusion=fusion, modality_dropout=0.5, dropout=0.0)
    encoder = model.item_encoder
    met = {}

    def keep(name):
        def hook(module, inputs, output):
            output.retain_grad()
            met[name] = output

        return hook

    encoder.text_projection.register_forward_hook(keep("text"))
    encoder.vision_projection.register_forward_hook(keep("vision"))
    lost = []
    encoder.modality_dropout.register_forward_hook(lambda _, inputs, output: lost.append(dropped(*output)))
    torch.manual_seed(1)
    model.encode_items(items_for(model, number=24)).square().sum().backward()
    ((no_text, no_vision),) = lost
    assert no_text.any(), "or there is nothing to see here"
    assert no_vision.any()
    for name, is_dropped in (("text", no_text), ("vision", no_vision)):
        has_gradient = met[name].grad.ne(0).flatten(1).any(dim=1)
        assert not has_gradient[is_dropped].any()
        if not fusion.endswith("dnn"):  # whose ReLUs may all be shut
            assert has_gradient[~(no_text | no_vision)].all()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_model_drops_modalities_at_the_rate_of_its_configuration_and_its_bundle_remembers(dropout, tmp_path):
    model = build("mmsr", modality_dropout=0.3, dropout=dropout)
    assert model.item_encoder.modality_dropout.rate == 0.3, "also where --dropout 0 turns all others off"
    model.save(tmp_path)
    again = Recommender.load(tmp_path)
    assert again.item_encoder.modality_dropout.rate == 0.3
    items = items_for(model)
    plain = build("mmsr", dropout=dropout).eval()
    assert torch.equal(again.encode_items(items), plain.encode_items(items)), "evaluation is that of a model without"


def test_what_is_computed_again_drops_the_same(monkeypatch):
    monkeypatch.setattr(item_encoder, "_RECOMPUTED_PIECES", 1)
    monkeypatch.setitem(item_encoder._PIECE, "cpu", 3)
    found = []
    for recompute in (False, True):
        model = build("mmsr", modality_dropout=0.6, recompute=recompute)
        torch.manual_seed(1)
        vectors = model.encode_items(items_for(model))
        vectors.square().sum().backward()
        found.append([vectors, *(p.grad for p in model.parameters() if p.grad is not None)])
    for kept, again in zip(*found, strict=True):
        torch.testing.assert_close(again, kept)


def test_the_frozen_part_knows_nothing_of_it():
    tower = with_towers(hf_tower("bert"), timm_tower("test_vit"))
    tower.item_encoder.modality_dropout.rate = 0.9
    items = items_for(tower)
    first, second = tower.item_encoder.prefix(items), tower.item_encoder.prefix(items)
    assert torch.equal(first.text.hidden, second.text.hidden)
    assert torch.equal(first.vision.hidden, second.vision.hidden)


@pytest.mark.parametrize("changes", [{"text": "none"}, {"vision": "none"}, {"item": "id"}])
def test_modality_dropout_needs_both_modalities(changes):
    with pytest.raises(UserError, match=r"--modality_dropout 0.3 needs title and picture"):
        ModelConfig(modality_dropout=0.3, **changes)
    ModelConfig(modality_dropout=0.0, **changes)
    with pytest.raises(UserError, match=r"--modality_dropout 1.0 must lie in \[0, 1\)"):
        ModelConfig(modality_dropout=1.0)

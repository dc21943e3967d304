"""Items are encoded in pieces of titles of like length: the same vectors and gradients, with little padding."""

import pytest
import torch

from mmsr_pt.models import item_encoder
from mmsr_pt.models.fusion import masked_mean
from tests.models.test_recommender import build, items_for


def encode(model, items):
    model.zero_grad()
    vectors = model.item_encoder(items)
    (vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum().backward()
    return vectors, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["mmsr", "sum", "text only", "vision only"])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pieces_give_the_vectors_and_gradients_of_the_whole(name, size, monkeypatch):
    model = build(name, dropout=0).eval()
    items = items_for(model)
    monkeypatch.setitem(item_encoder._PIECE, "cpu", len(items))
    whole, gradients = encode(model, items)
    monkeypatch.setitem(item_encoder._PIECE, "cpu", size)
    found, found_gradients = encode(model, items)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-4)
    assert found_gradients.keys() == gradients.keys() > set()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[parameter], gradient, atol=1e-4, rtol=1e-3, msg=parameter)


@pytest.mark.parametrize("name", ["mmsr", "text only"])
def test_what_is_computed_again_gives_the_same_gradients_dropout_included(name, monkeypatch):
    monkeypatch.setattr(item_encoder, "_RECOMPUTED_PIECES", 1)
    monkeypatch.setitem(item_encoder._PIECE, "cpu", 3)
    found = []
    for recompute in (False, True):
        model = build(name, recompute=recompute).train()
        torch.manual_seed(1)
        calls = []
        suffix = model.item_encoder.suffix
        model.item_encoder.suffix = lambda activations, run=suffix, calls=calls: calls.append(None) or run(activations)
        found.append((*encode(model, items_for(model)), len(calls)))
    (kept, gradients, once), (again, same, twice) = found
    assert twice == 2 * once
    torch.testing.assert_close(again, kept)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(same[parameter], gradient, msg=parameter)


@pytest.mark.parametrize("name", ["sum", "text only", "vision only"])
def test_where_only_means_are_seen_their_projection_is_the_mean_of_all_projected_tokens(name):
    encoder = build(name).eval().item_encoder
    activations = encoder.prefix(items_for(build(name)))
    parts = {}
    if encoder.text is not None:
        tokens, mask = encoder.text.suffix(activations.text)
        parts["text"] = masked_mean(encoder.text_projection(tokens), mask)
    if encoder.vision is not None:
        parts["vision"] = encoder.vision_projection(encoder.vision.suffix(activations.vision).hidden).mean(dim=1)
    expected = next(iter(parts.values()))
    if encoder.fusion is not None:
        expected = encoder.fusion.fuse(*(encoder.fusion.norm(part) for part in parts.values()))
    torch.testing.assert_close(encoder.suffix(activations), expected, atol=1e-5, rtol=1e-4)


def test_a_piece_is_as_wide_as_its_longest_title(monkeypatch):
    model = build("text only")
    items = items_for(model, padded_to=8)
    lengths = items.title_mask.sum(dim=1)
    widths = []
    monkeypatch.setattr(
        model.item_encoder, "prefix", lambda piece: widths.append(piece.title_ids.shape) or prefix(piece)
    )
    prefix = type(model.item_encoder).prefix.__get__(model.item_encoder)
    monkeypatch.setitem(item_encoder._PIECE, "cpu", 3)
    model.item_encoder(items)
    ordered = lengths.sort().values.tolist()
    assert [tuple(shape) for shape in widths] == [(3, ordered[2]), (3, ordered[5]), (1, ordered[6])]


def test_weights_that_zero_3_has_split_are_run_once_for_all_items(monkeypatch):
    model = build("mmsr")
    monkeypatch.setitem(item_encoder._PIECE, "cpu", 2)
    items = items_for(model)
    assert len(model.item_encoder._pieces(items)) == 4
    model.item_encoder.fusion.types.ds_id = 0
    assert len(model.item_encoder._pieces(items)) == 1

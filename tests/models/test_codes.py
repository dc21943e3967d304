"""VQRec's codes: nearest centroids, the same for the same numbers, kept in the bundle, and given to any item."""

import dataclasses

import pytest
import torch

from mmsr_pt.batch import ItemInputs
from mmsr_pt.config import ModelConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.codes import Codebook, CodeItemEncoder
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.models.sequence import sequence_encoders
from mmsr_pt.models.towers.side import tuned
from tests.models.towers.small import VOCAB, hf_tower

CODES, VALUES, WIDTH = 4, 6, 16
CONFIG = ModelConfig(
    item="codes", text="hf:bert", width=WIDTH, num_codes=CODES, code_values=VALUES, max_history=5, fusion_heads=2
)


def clustered(seed: int = 0, spread: float = 0.05) -> torch.Tensor:
    """[240, 16]: each of the 4 parts is near one of 6 points, all in other combinations."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(CODES, VALUES, WIDTH // CODES, generator=torch.Generator().manual_seed(9))
    chosen = torch.randint(VALUES, (240, CODES), generator=generator)
    parts = points[torch.arange(CODES), chosen]
    return (parts + spread * torch.randn(parts.shape, generator=generator)).flatten(1)


def fitted(vectors: torch.Tensor, seed: int = 0) -> Codebook:
    codebook = Codebook(WIDTH, CODES, VALUES)
    codebook.fit(vectors, torch.Generator().manual_seed(seed))
    return codebook


def error(codebook: Codebook, vectors: torch.Tensor) -> float:
    """Squared distance to what the codes stand for, as a share of the variance."""
    restored = codebook.centroids[torch.arange(CODES), codebook(vectors)].flatten(1) @ codebook.rotation.T
    centred = vectors - vectors.mean(dim=0)
    return ((restored + codebook.mean - vectors).square().sum() / centred.square().sum()).item()


def make_model(seed: int = 0) -> Recommender:
    torch.manual_seed(seed)
    encoder = CodeItemEncoder(tuned(hf_tower("bert"), "frozen", WIDTH), CODES, VALUES, WIDTH)
    model = Recommender(CONFIG, encoder, sequence_encoders["sasrec"].from_config(CONFIG)).eval()
    encoder.codebook.fit(encoder.title_vectors(titles(40)), torch.Generator().manual_seed(0))
    return model


def titles(number: int, seed: int = 0) -> ItemInputs:
    ids = torch.randint(5, VOCAB, (number, 4), generator=torch.Generator().manual_seed(seed))
    return ItemInputs(torch.arange(number), ids, torch.ones_like(ids, dtype=torch.bool))


def test_codes_are_the_nearest_centroids() -> None:
    vectors = clustered()
    codebook = fitted(vectors)
    turned = (vectors - codebook.mean) @ codebook.rotation
    codes = codebook(vectors)
    assert codes.shape == (240, CODES)
    for code in range(CODES):
        part = turned[:, 4 * code : 4 * code + 4]
        assert codes[:, code].tolist() == torch.cdist(part, codebook.centroids[code]).argmin(dim=1).tolist()


def test_the_rotation_keeps_lengths_and_the_fit_explains_most_of_what_there_is() -> None:
    """Neither k-means nor the rotation ever adds error (Ge et al. 2013); 6 vectors as they come leave twice as much."""
    vectors = clustered()
    codebook = fitted(vectors)
    assert torch.allclose(codebook.rotation @ codebook.rotation.T, torch.eye(WIDTH), atol=1e-4)
    start = Codebook(WIDTH, CODES, VALUES)
    start.centroids.data.copy_(
        (vectors - vectors.mean(dim=0))[:VALUES].view(VALUES, CODES, -1).transpose(0, 1).contiguous()
    )
    start.mean.data.copy_(vectors.mean(dim=0, keepdim=True))
    assert error(codebook, vectors) < 0.5 * error(start, vectors)


def test_a_rotation_is_found_where_parts_depend_on_each_other() -> None:
    """4 numbers decide all 16 entries; turned at random, no part of 4 entries shows them, but some rotation does."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
    vectors = clustered() @ turn
    codebook = fitted(vectors)
    plain = Codebook(WIDTH, CODES, VALUES)
    plain.load_state_dict(codebook.state_dict())
    plain.rotation.data.copy_(torch.eye(WIDTH))
    # k-means alone, from where the whole fit began
    parts = (vectors - vectors.mean(dim=0)).view(-1, CODES, WIDTH // CODES)
    for code in range(CODES):
        centroids = parts[torch.randperm(240, generator=torch.Generator().manual_seed(0))[:VALUES], code]
        for _ in range(20):
            nearest = torch.cdist(parts[:, code], centroids).argmin(dim=1)
            centroids = torch.stack([parts[nearest == value, code].mean(dim=0) for value in range(VALUES)])
        plain.centroids.data[code] = centroids
    assert error(codebook, vectors) < error(plain, vectors)


def test_the_same_numbers_give_the_same_codebook() -> None:
    vectors = clustered()
    first, again, other = fitted(vectors).state_dict(), fitted(vectors).state_dict(), fitted(vectors, 1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["centroids"], other["centroids"])


def test_an_item_is_the_mean_of_its_codes_vectors() -> None:
    model = make_model()
    encoder, items = model.item_encoder, titles(7, seed=3)
    assert isinstance(encoder, CodeItemEncoder)
    codes = encoder.item_codes(items)
    table = encoder.codes.weight.view(CODES, VALUES, WIDTH)
    expected = torch.stack([sum(table[code, row[code]] for code in range(CODES)) / CODES for row in codes.tolist()])
    torch.testing.assert_close(encoder(items), expected)


def test_the_bundle_keeps_the_codebook_and_codes_new_items_alike(tmp_path) -> None:
    model = make_model()
    model.save(tmp_path)
    again, new = Recommender.load(tmp_path), titles(30, seed=5)
    for name, tensor in model.item_encoder.codebook.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(again.item_encoder.codebook.state_dict()[name], tensor)  # type: ignore[union-attr]
    codes = again.item_encoder.item_codes(new)  # type: ignore[operator]
    assert torch.equal(codes, model.item_encoder.item_codes(new))  # type: ignore[operator]
    assert len(codes.unique(dim=0)) > 1


def test_only_code_vectors_and_the_sequence_encoder_train() -> None:
    trained = {group.name for group in make_model().layer_groups() if group.trained}
    assert trained == {"codes", "sequence_encoder"}


def test_what_cannot_be_coded_is_refused() -> None:
    with pytest.raises(UserError, match="--num_codes 5 must divide 16, the width of the text tower's vectors"):
        Codebook(16, 5, 2)
    with pytest.raises(UserError, match="--code_values 6 is more than the 5 titles: give fewer"):
        fitted(clustered()[:5])


def test_equal_titles_are_one_item_to_it() -> None:
    """A limit: what has the same codes cannot be told apart, whatever is learnt."""
    model = make_model()
    same = dataclasses.replace(titles(3), title_ids=titles(1).title_ids.expand(3, -1))  # type: ignore[union-attr]
    vectors = model.encode_items(same)
    assert torch.equal(vectors[0], vectors[1])

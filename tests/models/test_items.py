"""Learned vectors beside content: where each stands, and what of it scores."""

import pytest
import torch
import torch.nn.functional as F

from mmsr_pt.config import ModelConfig
from mmsr_pt.log import UserError
from mmsr_pt.models.items import BothItemEncoder, content_of
from mmsr_pt.models.recommender import Recommender
from tests.models.test_recommender import MASK, SEQUENCE, build, items_for

WIDTH = 16


def test_the_learned_vector_comes_first_and_the_content_is_that_of_its_encoder() -> None:
    model = build(item="both", sequence="fdsa", score="dot").eval()
    encoder, items = model.item_encoder, items_for(model)
    assert isinstance(encoder, BothItemEncoder)
    vectors = model.encode_items(items)
    assert torch.equal(vectors[:, :WIDTH], encoder.items.weight[items.ids])
    content = content_of(encoder)
    assert content is encoder.content
    torch.testing.assert_close(vectors[:, WIDTH:], content(items))
    assert content_of(build("id").item_encoder) is None


def test_codes_of_an_untrained_tower_are_refused() -> None:
    with pytest.raises(UserError, match="--text tiny is none: give --text hf:NAME"):
        Recommender.build(ModelConfig(item="codes"), vocab_size=60)


def fdsa_scores(model: Recommender, vectors: torch.Tensor) -> torch.Tensor:
    return model.score(model.encode_users(vectors[SEQUENCE], MASK), vectors)


def test_fdsa_scores_by_the_cosine_with_the_learned_vector_alone() -> None:
    """What is left of a user's vector once it is divided by its length scores; content of a candidate does not."""
    model = build(item="both", sequence="fdsa", temperature=0.2).eval()
    items = items_for(model)
    vectors = model.encode_items(items)
    raw = model.item_encoder(items)
    assert torch.allclose(vectors[:, :WIDTH].norm(dim=1), torch.ones(7))
    assert torch.allclose(vectors[:, WIDTH:].norm(dim=1), torch.ones(7))
    users = model.encode_users(vectors[SEQUENCE], MASK)[..., :WIDTH]
    unit = model.sequence_encoder(vectors[SEQUENCE] * WIDTH**0.5, MASK)[..., :WIDTH]
    assert torch.allclose(users, F.normalize(unit, dim=-1), atol=1e-6)
    expected = F.cosine_similarity(unit[:, :, None], raw[:, :WIDTH], dim=-1) / 0.2
    assert torch.allclose(fdsa_scores(model, vectors), expected, atol=1e-4)
    other = torch.cat([vectors[:, :WIDTH], -vectors[:, WIDTH:]], dim=1)
    users = model.encode_users(vectors[SEQUENCE], MASK)
    assert torch.equal(model.score(users, other), model.score(users, vectors))


@pytest.mark.parametrize("sequence", ["fdsa", "carca"])
def test_what_does_not_transfer_is_one_table(sequence: str) -> None:
    """All but the item table has a shape that no catalogue decides."""
    small = build(item="both", sequence=sequence).state_dict()
    large = Recommender.build(build(item="both", sequence=sequence).config, vocab_size=60, num_items=90).state_dict()
    assert {name for name in small if small[name].shape != large[name].shape} == {"item_encoder.items.weight"}

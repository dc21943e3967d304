"""CARCA's scores against attention written out in full: every position, candidate, head and width at once."""

import pytest
import torch
import torch.nn.functional as F

from mmsr_pt.config import ModelConfig
from mmsr_pt.models.sequence.carca import CARCA
from tests.models.towers.small import perturb

WIDTH, HEADS, LENGTH, CANDIDATES = 12, 3, 6, 7
CONFIG = ModelConfig(
    item="both", sequence="carca", width=WIDTH, sequence_heads=HEADS, fusion_heads=1, max_history=LENGTH, dropout=0.0
)
MASK = torch.arange(LENGTH) < torch.tensor([6, 1, 3])[:, None]


def build() -> CARCA:
    torch.manual_seed(0)
    encoder = CARCA.from_config(CONFIG)
    perturb(encoder)
    return encoder


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, 2 * WIDTH, generator=torch.Generator().manual_seed(seed))


def naive(encoder: CARCA, history: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """[B, L, C]: what each candidate finds is a vector for each position, and the last map comes last."""
    states = encoder.profile(encoder.joint(history), MASK)
    embedded, cross = encoder.joint(candidates), encoder.cross
    query, key, value = (
        F.leaky_relu(part, 0.2) for part in (cross.query(embedded), cross.key(states), cross.value(states))
    )
    rows = []
    for position in range(LENGTH):
        found = []
        for head in range(HEADS):
            part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            logits = query[:, part] @ key[:, : position + 1, part].transpose(1, 2) / (WIDTH / HEADS) ** 0.5
            found.append(logits.softmax(dim=2) @ value[:, : position + 1, part])
        rows.append((torch.cat(found, dim=2) * embedded) @ cross.weigh.weight[0])
    return torch.stack(rows, dim=1)


def gradients(encoder: CARCA, scores: torch.Tensor) -> dict[str, torch.Tensor]:
    encoder.zero_grad()
    (scores * torch.linspace(-1, 1, scores.numel()).view_as(scores)).sum().backward()
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


def test_scores_and_gradients_are_those_of_attention_written_out() -> None:
    encoder = build()
    history, candidates = vectors(3, LENGTH), vectors(CANDIDATES, seed=1)
    expected = naive(encoder, history, candidates)[MASK]
    wanted = gradients(encoder, expected)
    found = encoder.score_all(encoder(history, MASK), encoder.as_candidates(candidates))[MASK]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    got = gradients(encoder, found)
    assert got.keys() == wanted.keys() == dict(encoder.named_parameters()).keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-4, rtol=1e-3, msg=name)


def test_a_candidate_of_its_own_at_each_position_scores_as_among_all() -> None:
    encoder = build()
    history, candidates = vectors(3, LENGTH), vectors(CANDIDATES, seed=1)
    chosen = torch.randint(CANDIDATES, (3, LENGTH), generator=torch.Generator().manual_seed(2))
    users = encoder(history, MASK)
    of_all = encoder.score_all(users, encoder.as_candidates(candidates)).gather(2, chosen[..., None])[..., 0]
    pairs = encoder.score_pairs(users, encoder.as_candidates(candidates[chosen]))
    torch.testing.assert_close(pairs[MASK], of_all[MASK], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("late", [1e4, -1e4])
def test_an_exponent_far_from_the_others_spoils_no_earlier_position(late: float) -> None:
    """float32 knows no exp(-10,000): sums of early positions must not be scaled by what comes later."""
    encoder = build()
    users, candidates = vectors(1, LENGTH), vectors(CANDIDATES, seed=1)
    expected = encoder.score_all(users, candidates)
    changed = users.clone()
    changed[:, 4, :WIDTH] *= late
    found = encoder.score_all(changed, candidates)
    torch.testing.assert_close(found[:, :4], expected[:, :4])
    assert found.isfinite().all()


def test_dropped_probabilities_leave_the_expected_score_as_it_is() -> None:
    encoder = build()
    users, candidates = vectors(1, LENGTH), vectors(CANDIDATES, seed=1)
    expected = encoder.eval().score_all(users, candidates)
    encoder.train()
    encoder.cross.dropout = 0.5
    torch.manual_seed(0)
    drawn = torch.stack([encoder.score_all(users, candidates) for _ in range(4000)])
    # the mean of n draws is off by their spread / sqrt(n); 5 of that is chance for none of 42 scores
    assert ((drawn.mean(dim=0) - expected).abs() <= 5 * drawn.std(dim=0) / 4000**0.5).all()
    assert (drawn.std(dim=0) > 0).all()

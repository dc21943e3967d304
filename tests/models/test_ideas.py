"""Toy worlds, one for each baseline, in which its idea must win; what chance gives is arithmetic.

Each world has a catalogue whose titles say as little as its idea needs, training sequences, and questions: a history
and its target, of users who were not trained on.
"""

import dataclasses

import pytest
import torch
from torch import Tensor

from mmsr_pt.batch import ItemInputs, UserBatch
from mmsr_pt.config import ModelConfig
from mmsr_pt.models.codes import CodeItemEncoder
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.models.sequence import sequence_encoders
from mmsr_pt.models.towers.side import tuned
from mmsr_pt.training.task import NextItemTask
from tests.models.towers.small import hf_tower

VOCAB = 40
SMALL = ModelConfig(width=32, fusion_heads=2, max_history=8, sequence_layers=1, dropout=0.0, vision="none")
IDS = dataclasses.replace(SMALL, item="id")


@dataclasses.dataclass
class World:
    """Items by number with titles [N, T], sequences [U, L + 1], and questions [Q, L], [Q]."""

    titles: Tensor
    train: Tensor
    histories: Tensor
    targets: Tensor

    @property
    def items(self) -> ItemInputs:
        """The whole catalogue."""
        return ItemInputs(torch.arange(len(self.titles)), self.titles, torch.ones_like(self.titles, dtype=torch.bool))


def learnt(model: Recommender, world: World, steps: int) -> Recommender:
    """The model after so many steps on 64 users each, with the whole catalogue as candidates."""
    task, generator = NextItemTask(model.train(), "softmax", num_domains=1), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    num_items = len(world.titles)
    for _ in range(steps):
        sequence = world.train[torch.randint(len(world.train), (64,), generator=generator)]
        batch = UserBatch(
            items=world.items,
            sequence=sequence,
            mask=torch.ones_like(sequence, dtype=torch.bool),
            users=torch.arange(64),
            occurrence_rate=torch.zeros(num_items),
            pool_rate=torch.ones(num_items),
            domain=torch.zeros(num_items, dtype=torch.int64),
        )
        optimizer.zero_grad()
        loss, count, _ = task(batch)
        (loss / count).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def scores(model: Recommender, world: World) -> Tensor:
    """[Q, N]: what the questions' histories give every item."""
    vectors = model.encode_items(world.items)
    mask = torch.ones_like(world.histories, dtype=torch.bool)
    return model.score(model.encode_users(vectors[world.histories], mask), vectors)[:, -1]


def hits(found: Tensor, targets: Tensor) -> float:
    """Share of the questions whose target scores highest."""
    return (found.argmax(dim=1) == targets).double().mean().item()


def above(found: Tensor, targets: Tensor, is_rival: Tensor) -> float:
    """Chance that a target scores above a rival ([Q, N] bool); 1/2 is what knowing nothing gives."""
    level = found.gather(1, targets[:, None])
    wins = (found < level).double() + (found == level).double() / 2
    return ((wins * is_rival).sum(dim=1) / is_rival.sum(dim=1)).mean().item()


def built(config: ModelConfig, world: World) -> Recommender:
    torch.manual_seed(0)
    return Recommender.build(config, vocab_size=VOCAB, num_items=len(world.titles))


@pytest.mark.parametrize("sequence", ["sasrec", "grurec", "nextitnet"])
def test_who_reads_the_order_knows_which_of_two_items_came_first(sequence: str) -> None:
    """Behind two of 20 items comes the partner of the first: popularity hits 1 in 20, the last item alone 1 in 19, both
    in any order 1 in 2, and their order always. A quarter of the 380 pairs is asked for and occurs in no sequence.
    """
    pairs = torch.cartesian_prod(torch.arange(20), torch.arange(20))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    walks = torch.cat([pairs, 20 + pairs[:, :1]], dim=1)
    asked = torch.arange(380) % 4 == 1
    world = World(torch.full((40, 1), 5), walks[~asked], walks[asked][:, :-1], walks[asked][:, -1])
    model = learnt(built(dataclasses.replace(IDS, sequence=sequence, sequence_layers=2), world), world, 200)
    # half way between both in any order and their order
    assert hits(scores(model, world), world.targets) > 0.75


def features_world() -> World:
    """Items 0 to 7 each follow items of one kind, whose title says which; there are 320, of which 160 are trained on.

    A trained one occurs in one sequence, those in the questions in none.
    """
    kinds = torch.arange(8).repeat(41)
    rare = torch.arange(8, 328)
    pairs = torch.stack([rare, kinds[rare]], dim=1)
    return World(5 + kinds[:, None], pairs[:160], pairs[160:, :1], pairs[160:, 1])


def test_fdsa_knows_by_features_what_follows_an_item_that_it_never_saw() -> None:
    """One of 8 items follows: ids guess 1 in 8 (160 questions: 0.125 +- 0.026), features know it."""
    world = features_world()
    fdsa = built(dataclasses.replace(SMALL, item="both", sequence="fdsa"), world)
    by_features = hits(scores(learnt(fdsa, world, steps=150), world)[:, :8], world.targets)
    by_ids = hits(scores(learnt(built(IDS, world), world, steps=150), world)[:, :8], world.targets)
    # 0.25 is five such deviations above the guess
    assert by_ids < 0.25
    assert by_features > 0.9


def candidates_world(num_users: int = 600) -> World:
    """Items have one of 4 types and one of 4 colours, 12 of each of the 16; a title is two words.

    A history holds one item of each type, in any order and colour; what comes next has the colour that the history
    shows for its type.
    """
    generator = torch.Generator().manual_seed(0)
    types, colours = torch.arange(192) // 4 % 4, torch.arange(192) % 4
    shown = torch.randint(4, (num_users + 100, 4), generator=generator)
    order = torch.rand(num_users + 100, 4, generator=generator).argsort(dim=1)
    variants = torch.randint(12, (num_users + 100, 5), generator=generator)
    history = 16 * variants[:, :4] + 4 * order + shown.gather(1, order)
    asked = torch.randint(4, (num_users + 100, 1), generator=generator)
    sequences = torch.cat([history, 16 * variants[:, 4:] + 4 * asked + shown.gather(1, asked)], dim=1)
    titles = torch.stack([5 + types, 10 + colours], dim=1)
    return World(titles, sequences[:num_users], sequences[num_users:, :-1], sequences[num_users:, -1])


def test_carca_lets_the_candidate_find_what_of_a_history_matters_to_it() -> None:
    """Rivals are the 36 items of the target's type in the other colours: who does not look at that type wins half.

    Ids would have to learn 192 items from 600 sequences, 16 occurrences each.
    """
    world = candidates_world()
    types, colours = world.titles.T
    is_rival = (types == types[world.targets][:, None]) & (colours != colours[world.targets][:, None])
    assert (is_rival.sum(dim=1) == 36).all()
    carca = built(dataclasses.replace(SMALL, item="both", sequence="carca"), world)
    by_candidates = above(scores(learnt(carca, world, steps=200), world), world.targets, is_rival)
    by_ids = above(scores(learnt(built(IDS, world), world, steps=200), world), world.targets, is_rival)

    assert by_candidates > 0.85
    assert by_ids < 0.65


def codes_world() -> World:
    """8 kinds in a ring, 20 items of each with one title; the next item is of the next kind. Half occur in training."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.arange(160) % 8
    start = torch.randint(8, (260, 1), generator=generator)
    of_kind = (start + torch.arange(5)) % 8
    sequences = of_kind + 8 * torch.randint(10, (260, 5), generator=generator)
    sequences[200:, -1] += 80
    return World(5 + 3 * kinds[:, None], sequences[:200], sequences[200:, :-1], sequences[200:, -1])


def test_codes_share_what_is_learnt_and_hide_what_differs() -> None:
    """No target occurs in training: ids win half of the comparisons with the 140 items of other kinds, codes the most.

    Of the 20 items of a kind none is told from another: all score the same.
    """
    world = codes_world()
    kinds = world.titles[:, 0]
    is_rival = kinds != kinds[world.targets][:, None]
    config = dataclasses.replace(SMALL, item="codes", text="hf:bert", num_codes=4, code_values=8)
    torch.manual_seed(0)
    encoder = CodeItemEncoder(tuned(hf_tower("bert"), "frozen", config.width), 4, 8, config.width)
    model = Recommender(config, encoder, sequence_encoders["sasrec"].from_config(config))
    encoder.codebook.fit(encoder.title_vectors(world.items), torch.Generator().manual_seed(0))
    found = scores(learnt(model, world, steps=150), world)
    by_ids = above(scores(learnt(built(IDS, world), world, steps=150), world), world.targets, is_rival)
    assert above(found, world.targets, is_rival) > 0.9
    assert by_ids < 0.65
    of_kind = found.gather(1, (~is_rival).nonzero()[:, 1].view(len(found), 20))
    assert torch.equal(of_kind, of_kind[:, :1].expand(-1, 20))

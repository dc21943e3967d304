"""--naive changes what is computed and not what comes out: the loss and the gradients of every trained weight."""

import pytest
import torch

from mmsr_pt.assembly import build_order, build_stream
from mmsr_pt.config import DataConfig, ModelConfig, OptimConfig, PretrainConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor, SentencePieceTokenizer
from mmsr_pt.models.fusion import fusions
from mmsr_pt.models.item_encoder import FusedItemEncoder
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.models.sequence import sequence_encoders
from mmsr_pt.models.towers.hf_text import from_config
from mmsr_pt.models.towers.text import TinyText
from mmsr_pt.models.towers.tower import Activations
from mmsr_pt.models.towers.vision import TinyVision
from mmsr_pt.training.launch import DistInfo
from mmsr_pt.training.task import NextItemTask
from tests.models.towers.small import HF_CONFIGS, perturb, timm_tower

ALONE = DistInfo(0, 0, 1, torch.device("cpu"))
TITLE_TOKENS = 12


def make_task(domain: Domain, text: str, vision: str) -> tuple[NextItemTask, Preprocessor]:
    """A small model in evaluation mode, the bottoms of its pretrained towers frozen."""
    torch.manual_seed(0)
    config = ModelConfig(width=16, fusion_heads=2, max_history=8, title_tokens=TITLE_TOKENS)
    tokenizer = SentencePieceTokenizer(domain.path / "tokenizer.model")
    text_tower = vision_tower = None
    if text == "tiny":
        text_tower = TinyText(tokenizer.vocab_size)
    elif text != "none":
        text_tower = from_config({**HF_CONFIGS[text].to_dict(), "vocab_size": tokenizer.vocab_size})
    if vision != "none":
        vision_tower = TinyVision() if vision == "tiny" else timm_tower(vision)
    for tower in (text_tower, vision_tower):
        if tower is not None:
            tower.tune("top:1")
    fusion = fusions["merge"].from_config(config) if text_tower and vision_tower else None
    encoder = FusedItemEncoder(text_tower, vision_tower, fusion, config.width)
    model = Recommender(config, encoder, sequence_encoders["sasrec"].from_config(config)).eval()
    perturb(model)
    preprocessor = Preprocessor(tokenizer if text_tower else None, encoder.image_spec, TITLE_TOKENS)
    return NextItemTask(model, "bce", num_domains=1), preprocessor


def learn(domain: Domain, task: NextItemTask, preprocessor: Preprocessor, naive: bool) -> tuple:
    """Loss, number of positions, items encoded and gradients of a first micro-batch."""
    config = PretrainConfig(
        data=DataConfig(num_workers=0, pool_size=16, naive=naive),
        model=task.model.config,
        optim=OptimConfig(loss="bce"),
    )
    order = build_order(config, [domain], 8, 1)
    stream = build_stream(config, [domain], order, preprocessor, ALONE, {"gradient_accumulation_steps": 1}, 0)
    task.zero_grad()
    loss, positions, report = task(next(iter(stream)))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    return loss.item(), int(positions), int(report["items_encoded"]), gradients


@pytest.mark.parametrize(
    ("text", "vision"),
    [("tiny", "tiny"), ("bert", "test_efficientnet"), ("roberta", "test_vit"), ("tiny", "none"), ("none", "tiny")],
)
def test_the_loss_and_its_gradients_are_those_of_distinct_items(small_domain: Domain, text: str, vision: str) -> None:
    task, preprocessor = make_task(small_domain, text, vision)
    loss, positions, encoded, gradients = learn(small_domain, task, preprocessor, naive=False)
    naive_loss, naive_positions, naive_encoded, naive_gradients = learn(small_domain, task, preprocessor, naive=True)
    assert naive_encoded == 8 * 9 * 2 > encoded
    assert naive_positions == positions
    assert naive_loss == pytest.approx(loss, rel=1e-5)
    assert naive_gradients.keys() == gradients.keys() > set()
    for name, expected in gradients.items():
        error = torch.linalg.norm(naive_gradients[name] - expected)
        assert error <= 1e-4 * torch.linalg.norm(expected) + 1e-5, name


def test_all_slots_go_through_the_towers_at_once_with_all_their_padding(small_domain: Domain) -> None:
    task, preprocessor = make_task(small_domain, "bert", "test_efficientnet")
    encoder = task.model.item_encoder
    assert isinstance(encoder, FusedItemEncoder)
    assert encoder.text is not None
    shapes = []
    prefix = encoder.text.prefix

    def spy(inputs: Activations) -> Activations:
        shapes.append(tuple(inputs.hidden.shape))
        return prefix(inputs)

    encoder.text.prefix = spy  # type: ignore[method-assign]
    learn(small_domain, task, preprocessor, naive=True)
    assert shapes == [(8 * 9 * 2, TITLE_TOKENS)]


@pytest.mark.parametrize("text", ["tiny", *HF_CONFIGS])
def test_a_title_without_a_token_gives_finite_vectors(small_domain: Domain, text: str) -> None:
    task, preprocessor = make_task(small_domain, text, "tiny")
    config = PretrainConfig(
        data=DataConfig(num_workers=0, naive=True), model=task.model.config, optim=OptimConfig(loss="bce")
    )
    order = build_order(config, [small_domain], 8, 1)
    stream = build_stream(config, [small_domain], order, preprocessor, ALONE, {"gradient_accumulation_steps": 1}, 0)
    items = next(iter(stream)).items
    assert items.title_mask is not None
    assert not items.title_mask.any(dim=1).all()
    with torch.no_grad():
        assert task.model.encode_items(items).isfinite().all()

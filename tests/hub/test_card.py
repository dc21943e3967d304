"""The model card: what it is, where from, how to use it, and nothing about the machine it was made on."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from mmsr_pt.config import ModelConfig
from mmsr_pt.data.domain import Domain
from mmsr_pt.hub.card import domain_entry, kind, model_card

NONE = "none"


@pytest.mark.parametrize(
    ("config", "name", "content"),
    [
        (ModelConfig(), "MMSR", "its title and picture"),
        (ModelConfig(vision=NONE), "MMSR-T", "its title,"),
        (ModelConfig(text=NONE), "MMSR-V", "its picture,"),
        (ModelConfig(item="id"), "IDSR", "a learned vector of its own"),
        (ModelConfig(item="both", sequence="fdsa"), "FDSA", "its title and picture and a learned vector"),
        (ModelConfig(item="both", sequence="carca", vision=NONE), "CARCA++", "its title and a learned vector"),
        (ModelConfig(item="codes", text="hf:a/b"), "VQRec", "is 32 codes of its title"),
    ],
)
def test_it_says_what_the_model_is(small_domain: Domain, config: ModelConfig, name: str, content: str) -> None:
    assert kind(config) == name
    card = model_card(config, [domain_entry(small_domain)], step=40, validation_ndcg=0.12345)
    assert f"# {name}, trained on {small_domain.name}\n" in card
    assert content in card
    assert "step 40" in card
    assert "NDCG@10 0.1235 " in card or "NDCG@10 0.1234 " in card
    for tower in ("text tower", "vision tower", "fusion"):
        is_joined = config.reads_content and "none" not in (config.text, config.vision)
        assert (f"| {tower} |" in card) == (name not in ("IDSR", "VQRec") and (tower != "fusion" or is_joined))


def test_it_names_every_domain_with_its_licence_and_both_commands(small_domain: Domain) -> None:
    other = Domain(small_domain.path, {**small_domain.meta, "name": "other", "licence": "ours | yours"})
    card = model_card(ModelConfig(), [domain_entry(d) for d in (small_domain, other)], step=1, validation_ndcg=0.5)
    for domain in (small_domain, other):
        assert f"| {domain.name} | {domain.num_users:,} | {domain.num_items:,} | " in card
    assert small_domain.meta["licence"] in card
    assert "ours \\| yours" in card
    assert "mmsr-pt evaluate " in card
    assert "mmsr-pt recommend " in card


def test_a_deep_vlp_is_not_said_to_have_a_fusion(small_domain: Domain) -> None:
    config = ModelConfig(vlp="hf:facebook/flava-full")
    assert "| fusion | none: the first joins both |" in model_card(
        config, [domain_entry(small_domain)], 1, 0.5, joins_itself=True
    )
    assert "| fusion | concat |" in model_card(config, [domain_entry(small_domain)], 1, 0.5)


def test_the_hub_can_read_its_header(small_domain: Domain) -> None:
    header = ModelCard(model_card(ModelConfig(), [domain_entry(small_domain)], 1, 0.5)).data
    assert header.library_name == "mmsr_pt"
    assert "multimodal" in header.tags
    assert (
        "multimodal"
        not in ModelCard(model_card(ModelConfig(item="id"), [domain_entry(small_domain)], 1, 0.5)).data.tags
    )


def test_local_directories_are_told_by_their_last_name(small_domain: Domain, tmp_path: Path) -> None:
    (tmp_path / "minilm").mkdir()
    config = ModelConfig(text=f"hf:{tmp_path}/minilm", vision="timm:local-dir:/far/away/lite0")
    card = model_card(config, [domain_entry(small_domain)], 1, 0.5)
    assert "`hf:minilm` (a local copy)" in card
    assert "`timm:local-dir:lite0` (a local copy)" in card
    assert str(tmp_path) not in card
    assert "/far/away" not in card
    assert "`hf:user/name`" in model_card(ModelConfig(text="hf:user/name"), [domain_entry(small_domain)], 1, 0.5)

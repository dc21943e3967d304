"""Text towers against the transformers library's own models, and what a user who mistypes a name reads."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from mmsr_pt.log import UserError
from mmsr_pt.models.towers.hf import from_architecture
from mmsr_pt.models.towers.text import TinyText, build_text_tower
from mmsr_pt.models.towers.tower import Activations
from tests.conftest import SHARED, real_weights
from tests.models.towers.small import HF_CONFIGS, hf_tower, perturb, titles


@pytest.fixture
def small_bert(tmp_path):
    """A directory with a small BERT in half precision, as published weights often are."""
    torch.manual_seed(0)
    model = AutoModel.from_config(copy.deepcopy(HF_CONFIGS["bert"]))
    model.half().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.parametrize("kind", HF_CONFIGS)
def test_equals_the_models_own_forward_on_padded_titles(kind):
    torch.manual_seed(0)
    tower = hf_tower(kind).eval()
    perturb(tower)
    own = from_architecture(HF_CONFIGS[kind].to_dict())
    own = (own.get_encoder() if own.config.is_encoder_decoder else own).eval()
    weights = {name.removeprefix("backbone."): value for name, value in tower.state_dict().items()}
    missing, unexpected = own.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.startswith(("pooler.", "head.")) for name in missing)
    inputs = titles([7, 3, 1], padded_to=7, pad_id=own.config.pad_token_id)
    expected = own(input_ids=inputs.hidden, attention_mask=inputs.mask.long()).last_hidden_state
    assert torch.allclose(tower(inputs).hidden[inputs.mask], expected[inputs.mask], atol=1e-6)


def test_known_architectures_are_cut_between_their_blocks():
    for kind in ("bert", "roberta", "xlm-roberta", "electra", "distilbert"):
        tower = hf_tower(kind)
        assert list(tower.layer_groups()) == ["embeddings", "block.0", "block.1", "block.2"]
        tower.tune("top:1")
        inputs = titles([3], 3, pad_id=1)
        assert tower.prefix(inputs).hidden.shape == (1, 3, 16)
    assert any("embeddings_project" in name for name in hf_tower("electra").layer_groups()["embeddings"])


def test_poolers_and_other_unused_parameters_are_dropped():
    for kind in ("bert", "albert"):
        assert "pooler" in dict(from_architecture(HF_CONFIGS[kind].to_dict()).named_children())
        assert not any("pooler" in name for name, _ in hf_tower(kind).named_parameters())


def test_weights_are_float32_whatever_the_file_holds(small_bert):
    assert {tensor.dtype for tensor in load_file(small_bert / "model.safetensors").values()} == {torch.float16}
    tower = build_text_tower(f"hf:{small_bert}", vocab_size=60, title_tokens=30)
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}


def test_the_configuration_in_a_bundle_names_no_place_on_this_machine(small_bert):
    tower = build_text_tower(f"hf:{small_bert}", vocab_size=60, title_tokens=30)
    assert str(small_bert) not in repr(tower.config())


def test_weights_that_lack_tensors_are_refused(small_bert):
    file = small_bert / "model.safetensors"
    weights = load_file(file)
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights of BertModel .*encoder.layer.1.output.dense.weight"):
        build_text_tower(f"hf:{small_bert}", 60, 30)


def test_truncated_weights_are_refused(small_bert):
    file = small_bert / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="could not be loaded"):
        build_text_tower(f"hf:{small_bert}", 60, 30)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(small_bert):
    with pytest.raises(UserError, match="knows 60 tokens, its tokenizer has 61"):
        build_text_tower(f"hf:{small_bert}", vocab_size=61, title_tokens=30)


def test_titles_longer_than_the_model_reads_are_refused(small_bert):
    with pytest.raises(UserError, match="reads at most 30 tokens: give --title_tokens 30, not 31"):
        build_text_tower(f"hf:{small_bert}", vocab_size=60, title_tokens=31)


def test_a_name_without_prefix_that_looks_like_a_model_says_what_to_write():
    for name in ("roberta-base", "google/electra-small-discriminator", "./weights", "/a/dir"):
        with pytest.raises(UserError, match=f"write hf:{name} "):
            build_text_tower(name, 60, 30)


def test_an_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(UserError, match=r"unknown text tower 'tinny'; known: .*Did you mean 'tiny'\?"):
        build_text_tower("tinny", 60, 30)
    with pytest.raises(UserError, match="unknown text tower 'hf:'"):
        build_text_tower("hf:", 60, 30)


def test_a_missing_directory_and_a_directory_of_something_else_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        build_text_tower("hf:/no/such/dir", 60, 30)
    with pytest.raises(UserError, match="could not be loaded"):
        build_text_tower(f"hf:{tmp_path}", 60, 30)


def test_none_is_no_tower():
    assert build_text_tower("none", None, 30) is None


def test_the_order_of_words_matters_to_the_tiny_tower():
    torch.manual_seed(0)
    tower = TinyText(60).eval()
    mask = torch.ones(1, 3, dtype=torch.bool)
    one, other = torch.tensor([[7, 8, 9]]), torch.tensor([[9, 8, 7]])
    found = tower(Activations(one, mask)).hidden, tower(Activations(other, mask)).hidden.flip(1)
    assert not torch.allclose(*found, atol=1e-3)


def test_the_tiny_tower_reads_titles_of_any_length():
    tower = TinyText(60).eval()
    assert tower(titles([300], 300)).hidden.shape == (1, 300, 64)


def test_minilm_equals_the_library_on_real_titles():
    directory = real_weights("minilm-l6")
    tower = build_text_tower(f"hf:{directory}", 30522, 50).eval()
    own = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    from transformers import AutoTokenizer

    read = AutoTokenizer.from_pretrained(directory)(
        ["Strap top, Vest top, Black", "Socks", "A jersey dress with a wide neckline"],
        padding=True,
        return_tensors="pt",
    )
    mask = read["attention_mask"].bool()
    with torch.no_grad():
        expected = own(**read).last_hidden_state
        found = tower(Activations(read["input_ids"], mask)).hidden
    assert found.shape[2] == tower.out_dim == 384
    assert len(tower.layer_groups()) == 7
    assert torch.allclose(found[mask], expected[mask], atol=1e-5)


def test_minilm_is_no_vision_model_and_efficientnet_no_text_model():
    real_weights("tf_efficientnet_lite0")
    with pytest.raises(UserError, match="no text model"):
        build_text_tower(f"hf:{SHARED / 'weights' / 'tf_efficientnet_lite0'}", 30522, 50)

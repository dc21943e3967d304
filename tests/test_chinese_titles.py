"""Chinese titles through XLM-R, whose tokenizer is a SentencePiece model, from a directory as the hub has one."""

import io
import itertools

import pytest
import sentencepiece
import torch
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaModel

from mmsr_pt.config import ModelConfig
from mmsr_pt.data.preprocess import HuggingFaceTokenizer, Preprocessor, tokenizer_for
from mmsr_pt.models.recommender import Recommender

COLOURS, STUFFS, KINDS = ("红色", "蓝色", "黑色"), ("纯棉", "羊毛", "真丝"), ("连衣裙", "衬衫", "牛仔裤", "外套")
TITLES = ["".join(words) for words in itertools.product(COLOURS, STUFFS, KINDS)]
PAD, BEGIN, END = 1, 0, 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(directory, the SentencePiece model): sentencepiece.bpe.model, config.json, model.safetensors."""
    directory = tmp_path_factory.mktemp("xlmr") / "xlm-roberta"
    directory.mkdir()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TITLES),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    (directory / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=pieces.vocab_size() + 2,  # <pad> and <mask> are not among the pieces
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=34,
        pad_token_id=PAD,
    )
    XLMRobertaModel(config).save_pretrained(directory)
    return directory, pieces


def test_titles_are_the_pieces_of_sentencepiece_between_begin_and_end(checkpoint):
    directory, pieces = checkpoint
    tokenizer = tokenizer_for(f"hf:{directory}", directory)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert tokenizer.pad_id == PAD
    assert tokenizer.vocab_size == pieces.vocab_size() + 2
    ids = tokenizer.encode(TITLES, max_tokens=50)
    # one further than SentencePiece's own, since <pad> stands before them
    assert ids == [[BEGIN, *(piece + 1 for piece in pieces.encode(title)), END] for title in TITLES]
    assert all(PAD not in title and 3 not in title and max(title) < tokenizer.vocab_size for title in ids)
    assert len({tuple(title) for title in ids}) == len(TITLES)
    assert AutoTokenizer.from_pretrained(directory).batch_decode(ids, skip_special_tokens=True) == TITLES


def test_a_long_title_is_cut_and_keeps_its_end(checkpoint):
    directory, _ = checkpoint
    (ids,) = tokenizer_for(f"hf:{directory}", directory).encode(["".join(TITLES)], max_tokens=6)
    assert len(ids) == 6
    assert (ids[0], ids[-1]) == (BEGIN, END)


def encode(model, preprocessor, titles):
    items = preprocessor.item_inputs(torch.arange(len(titles)).numpy(), titles, None)
    with torch.no_grad():
        return items, model.encode_items(items)


def test_a_model_reads_them_and_its_bundle_goes_on_reading_them(checkpoint, tmp_path):
    directory, _ = checkpoint
    tokenizer = tokenizer_for(f"hf:{directory}", directory)
    config = ModelConfig(text=f"hf:{directory}", vision="none", width=16, title_tokens=20)
    model = Recommender.build(config, vocab_size=tokenizer.vocab_size).eval()
    preprocessor = Preprocessor(tokenizer, model.image_spec, config.title_tokens)
    titles = [TITLES[0], TITLES[0] + TITLES[7] + TITLES[9], TITLES[20]]
    items, vectors = encode(model, preprocessor, titles)
    assert torch.equal(items.title_ids == PAD, ~items.title_mask)
    assert not items.title_mask.all(), "some are shorter than the longest"
    for title, vector in zip(titles, vectors):
        assert torch.allclose(encode(model, preprocessor, [title])[1][0], vector, atol=1e-6), "padding changes nothing"
    assert torch.cdist(vectors, vectors).triu(1).flatten().topk(3).values.min() > 1e-3, "and other titles do"

    bundle = tmp_path / "bundle"
    model.save(bundle)
    preprocessor.save(bundle)
    (directory / "sentencepiece.bpe.model").rename(directory / "gone")
    try:
        again, read = Recommender.load(bundle), Preprocessor.load(bundle)
        assert read.tokenizer.encode(TITLES, 50) == tokenizer.encode(TITLES, 50)
        assert (read.tokenizer.pad_id, read.tokenizer.vocab_size) == (PAD, tokenizer.vocab_size)
        assert torch.equal(encode(again, read, titles)[1], vectors)
    finally:
        (directory / "gone").rename(directory / "sentencepiece.bpe.model")

"""The SentencePiece vocabulary of a domain's titles, for the `tiny` text tower."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence

import numpy as np

_MAX_TITLES = 100_000
_MAX_LETTERS = 500  # of a title that are looked at
_PIECES = 4000  # beyond the single characters


def train_vocabulary(titles: Sequence[str], seed: int) -> bytes:
    """A SentencePiece model: padding is 0, unknown is 1, no begin and no end.

    Args:
        titles: the catalogue's, not empty; of many, a sample drawn by `seed` is used.
        seed: of the sample.

    Returns: the model file.
    """
    import sentencepiece

    if len(titles) > _MAX_TITLES:
        drawn = np.random.default_rng(seed).choice(len(titles), _MAX_TITLES, replace=False)
        titles = [titles[i] for i in np.sort(drawn)]
    titles = [title[:_MAX_LETTERS] for title in titles]
    characters: Counter[str] = Counter()
    for title in titles:
        characters.update(title)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(titles),
        model_writer=model,
        model_type="unigram",
        vocab_size=_PIECES + len(characters),
        hard_vocab_limit=False,
        character_coverage=0.9995,
        max_sentence_length=8 * _MAX_LETTERS,  # bytes
        num_threads=1,  # more would make the result depend on their timing
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()

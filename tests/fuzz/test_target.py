"""The fuzzed promises, over the kept corpus and over changes of it drawn the same each time, without atheris."""

import random
from pathlib import Path

import pytest

from tests.fuzz.target import one_input, seeds

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())


def changed(data: bytes, rng: random.Random) -> bytes:
    """Up to four bytes flipped, runs cleared, cut out, doubled, or the end cut off."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(1, len(data) + 1), rng.randint(1, 64)
        match rng.randrange(5):
            case 0 if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                data[place : place + length] = bytes(len(data[place : place + length]))
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = data[place : place + length]
            case 4 if place > 1:
                del data[place:]
    return bytes(data)


def test_the_kept_corpus() -> None:
    assert len(CORPUS) >= 50
    for path in CORPUS:
        one_input(path.read_bytes())


@pytest.mark.parametrize("seed", range(len(seeds())))
def test_changes_of_what_can_be_read(seed: int) -> None:
    whole, rng = seeds()[seed], random.Random(seed)
    one_input(whole)
    for _ in range(150):
        one_input(changed(whole, rng))

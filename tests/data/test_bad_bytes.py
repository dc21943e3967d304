"""Properties of the reader under any damage (hypothesis): what it returns is what was written, or it says so."""

import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmsr_pt.data.activations import ActivationStore, Layout
from mmsr_pt.data.domain import Domain, TrainTar
from mmsr_pt.data.preprocess import Preprocessor, tokenizer_for
from mmsr_pt.data.tar_reader import TarReader
from mmsr_pt.data.unreadable import Unreadable, check, parse_user
from mmsr_pt.log import UserError
from tests.data.broken import member, picture
from tests.fuzz.target import READS

MANY = settings(
    max_examples=4 * settings.default.max_examples, suppress_health_check=list(HealthCheck), derandomize=True
)
"""400, and 80,000 with `--hypothesis-profile often`."""

USERS = {
    number: json.dumps({"user": number, "items": [number, 1, 2], "times": [3, 4, 5]}).encode() for number in (5, 2, 9)
}
PICTURES = {row: picture(size=(20 + row, 12)) for row in (1, 2, 5, 9)}


def whole_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in [(f"i{row:08d}.jpg", data) for row, data in PICTURES.items()] + [
            (f"u{number:08d}.json", data) for number, data in USERS.items()
        ]:
            info, _ = member(name, data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


WHOLE = whole_tar()
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "clear", "cut", "repeat", "end"]), st.integers(0, len(WHOLE)), st.integers(0, 2000)
    ),
    min_size=1,
    max_size=5,
)


def edited(edits: list[tuple[str, int, int]]) -> bytes:
    data = bytearray(WHOLE)
    for what, place, number in edits:
        piece = data[place : place + number]
        if what == "flip" and place < len(data):
            data[place] ^= 1 << number % 8
        elif what == "clear":
            data[place : place + number] = bytes(len(piece))
        elif what == "cut":
            del data[place : place + number]
        elif what == "repeat":
            data[place:place] = piece
        elif what == "end":
            del data[place:]
    return bytes(data)


def check_edits(path: Path, edits: list[tuple[str, int, int]]) -> None:
    path.write_bytes(edited(edits))
    sums = np.array([zlib.crc32(data) for data in USERS.values()], dtype=np.uint32)
    own = TrainTar(path, len(USERS), None, np.array(list(USERS), dtype=np.uint32), sums)
    try:
        reader = TarReader(str(path), True, own)
    except UserError:
        return
    for position, data in enumerate(USERS.values()):
        try:
            assert reader.user(position) == json.loads(data)
        except Unreadable:
            assert edited(edits) != WHOLE
    for row, data in PICTURES.items():
        try:
            found = reader.picture(row)
            check(found, zlib.crc32(data))
            assert found == data
        except Unreadable:
            assert edited(edits) != WHOLE


@MANY
@given(edits=EDITS)
def test_of_a_damaged_tar_comes_what_was_written_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, edits: list
) -> None:
    check_edits(tmp_path_factory.getbasetemp() / "edited.tar", edits)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["user", "items", "times", "id"]) | st.text(), inner)
    ),
    max_leaves=20,
)


@MANY
@given(value=ANY_JSON | st.fixed_dictionaries({"user": ANY_JSON, "items": ANY_JSON | st.lists(st.integers())}))
def test_any_json_is_a_user_with_items_or_none(value: object) -> None:
    try:
        found = parse_user(json.dumps(value).encode())
    except Unreadable:
        return
    assert found == value
    assert type(found["user"]) is int
    assert found["items"]
    assert all(type(item) is int and 0 <= item < 2**31 for item in found["items"])


@MANY
@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_user_or_none(data: bytes) -> None:
    try:
        parse_user(data)
    except Unreadable:
        return
    assert isinstance(json.loads(data), dict)


@MANY
@given(
    titles=st.lists(st.text(st.characters()) | st.text(st.characters(categories=["Cc", "Cs", "Cf", "Zs"])), max_size=5)
)
def test_any_title_is_between_one_token_and_as_many_as_asked_for(small_domain: Domain, titles: list[str]) -> None:
    reads = Preprocessor(tokenizer_for("tiny", small_domain.path), None, title_tokens=7)
    found = reads.encode_titles(titles)
    assert len(found) == len(titles)
    assert all(1 <= len(ids) <= 7 and ids.min() >= 0 and ids.max() < reads.tokenizer.vocab_size for ids in found)


def test_a_title_of_a_megabyte_is_that_of_its_first_words(small_domain: Domain) -> None:
    reads = Preprocessor(tokenizer_for("tiny", small_domain.path), None, title_tokens=7)
    long, short = reads.encode_titles(["red shoe " * 120_000, "red shoe " * 30])
    assert long.tolist() == short.tolist()


@MANY
@given(
    mode=st.sampled_from(
        [("RGB", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("I;16", "PNG"), ("L", "GIF"), ("RGB", "WEBP")]
    ),
    places=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6),
    kept=st.integers(0, 5000) | st.none(),
)
def test_a_damaged_picture_is_a_picture_of_the_wanted_size_or_an_error(
    mode: tuple, places: list, kept: int | None
) -> None:
    data = bytearray(picture(mode[0], (30, 20), mode[1]))
    for place, value in places:
        data[place % len(data)] = value
    try:
        pixels = READS.decode_image(bytes(data[:kept]))
    except Exception:  # any: the stream lets each pass as a bad sample
        return
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == torch.uint8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_any_flipped_bit_of_a_cache_is_found(tmp_path: Path, dtype: str) -> None:
    lengths = torch.tensor([3, 1, 4, 2])
    mask = torch.arange(4) < lengths[:, None]
    generator = torch.Generator().manual_seed(0)
    text, vision = torch.randn(4, 4, 2, generator=generator), torch.randn(4, 2, 3, generator=generator)
    layout = Layout(4, dtype, text_width=2, num_tokens=10, vision_shape=(2, 3), has_sums=True)
    directory = tmp_path / "store"
    directory.mkdir()
    ActivationStore.create(directory, layout, lengths).write(torch.arange(4), text, mask, vision)
    assert not list(ActivationStore(directory).damages())
    ActivationStore(directory).read(torch.arange(4))
    files = sorted(directory.glob("*.bin"))
    assert layout.num_bytes == sum(file.stat().st_size for file in files)
    for file in files:
        whole = file.read_bytes()
        for place in range(len(whole)):
            changed = bytearray(whole)
            changed[place] ^= 1 << place % 8
            file.write_bytes(changed)
            with pytest.raises(UserError, match=r"the cache .*store is damaged \((text|vision|lengths)\.bin"):
                ActivationStore(directory).read(torch.arange(4))
        file.write_bytes(whole)
    assert not list(ActivationStore(directory).damages())


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", "{", '{"num_items": 4}', '{"num_items": 4, "vision_shape": 3}']
)
def test_a_cache_whose_layout_is_damaged_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "layout.json").write_text(text)
    with pytest.raises(UserError, match=r"the cache .* is damaged \(layout\.json"):
        ActivationStore(tmp_path)

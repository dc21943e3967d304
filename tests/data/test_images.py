"""Pictures in the tars: plain JPEG, upright, small, never enlarged, of the raw picture's shape and content."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from mmsr_pt.data.shards.images import encode_image, is_plain_jpeg
from tests.data.raw import build_table, write_table


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards: shows a mirrored, turned or cropped picture."""
    x, y = np.linspace(0, 255, width), np.linspace(0, 255, height)
    pixels = np.stack([np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))], axis=-1)
    return Image.fromarray(np.concatenate([pixels, np.full((height, width, 1), 64.0)], axis=-1).astype(np.uint8))


def encoded(path: Path) -> Image.Image:
    data = encode_image(str(path))
    assert isinstance(data, bytes), data
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.mode) == ("JPEG", "RGB")
    return picture


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ((600, 400), (384, 256)),
        ((400, 600), (256, 384)),
        ((2048, 1024), (512, 256)),
        ((1024, 3000), (256, 750)),
        ((257, 257), (256, 256)),
        ((256, 1000), (256, 1000)),
        ((200, 300), (200, 300)),
        ((1, 1), (1, 1)),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_the_shorter_side_is_at_most_256_and_nothing_is_enlarged(
    tmp_path: Path, raw: tuple[int, int], expected: tuple[int, int], suffix: str
) -> None:
    path = tmp_path / f"picture.{suffix}"
    gradient(*raw).save(path)
    picture = encoded(path)
    # a large JPEG is decoded at a half or a quarter, where an odd side is rounded
    assert picture.size == pytest.approx(expected, abs=2 if suffix == "jpg" else 0)
    assert min(picture.size) == min(expected)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_whole_picture_is_kept(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    gradient(900, 600).save(path)
    difference = np.asarray(encoded(path), float) - np.asarray(gradient(384, 256), float)
    assert np.abs(difference).mean() < 2


def test_a_photograph_is_turned_upright_and_loses_its_metadata(tmp_path: Path) -> None:
    upright = gradient(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    exif[0x010E] = "where it was taken"
    upright.rotate(90, expand=True).save(tmp_path / "photo.jpg", exif=exif, comment=b"made by")
    picture = encoded(tmp_path / "photo.jpg")
    assert picture.size == (60, 40)
    assert not picture.getexif()
    assert "comment" not in picture.info
    assert np.abs(np.asarray(picture, float) - np.asarray(upright, float)).mean() < 3


@pytest.mark.parametrize("size", [(256, 700), (160, 240), (1, 1)])
@pytest.mark.parametrize(
    "options", [{}, {"quality": 20}, {"subsampling": 0, "optimize": True}, {"restart_marker_rows": 1}]
)
def test_a_small_plain_jpeg_is_taken_byte_for_byte(
    tmp_path: Path, size: tuple[int, int], options: dict[str, Any]
) -> None:
    path = tmp_path / "picture.jpg"
    gradient(*size).save(path, **options)
    assert encode_image(str(path)) == path.read_bytes()


def saved(**options: Any) -> bytes:
    buffer = io.BytesIO()
    gradient(60, 40).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def orientation() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 3
    return exif


@pytest.mark.parametrize(
    "data",
    [
        saved(comment=b"made by"),
        saved(icc_profile=b"a profile"),
        saved(exif=orientation()),
        saved(progressive=True),
        saved(keep_rgb=True, comment=b"x"),
        saved() + b"behind",
        saved() + saved(),
        saved()[:20] + b"\xff\xe1\x00\x06<x/>" + saved()[20:],  # XMP
        saved()[:2] + b"\xff\xe0\x00\x08JFXX\x00\x10" + saved()[2:],  # a thumbnail
    ],
    ids=["comment", "colour profile", "exif", "progressive", "rgb", "bytes behind", "two", "xmp", "thumbnail"],
)
def test_any_other_jpeg_is_encoded_anew_and_is_then_plain(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    found = encode_image(str(path))
    assert isinstance(found, bytes)
    assert found != data
    assert is_plain_jpeg(found)
    assert not is_plain_jpeg(data)
    with Image.open(path) as raw:
        upright = np.asarray(ImageOps.exif_transpose(raw), float)
    assert np.abs(np.asarray(Image.open(io.BytesIO(found)), float) - upright).mean() < 3


def test_a_larger_plain_jpeg_and_a_grey_one_are_encoded_anew(tmp_path: Path) -> None:
    for number, picture in enumerate([gradient(257, 300), gradient(50, 50).convert("L")]):
        path = tmp_path / f"{number}.jpg"
        picture.save(path)
        assert encode_image(str(path)) != path.read_bytes()
        assert min(encoded(path).size) <= 256


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(tmp_path: Path, mode: str) -> None:
    cutout = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    cutout.paste((0, 0, 0, 255), (10, 0, 20, 20))
    cutout.convert(mode).save(tmp_path / "cutout.png")
    pixels = np.asarray(encoded(tmp_path / "cutout.png"))
    assert pixels[:, :8].min() > 250
    assert pixels[:, 12:].max() < 5


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_spaces_become_rgb(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (20, 20), (90, 90, 90)).convert(mode).save(tmp_path / "picture.jpg")
    assert np.abs(np.asarray(encoded(tmp_path / "picture.jpg"), int) - 90).max() < 4


@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_a_damaged_file_gives_its_name_and_the_reason(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "picture.jpg"
    gradient(100, 100).save(path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"<html>not found</html>", "truncated": whole[: len(whole) // 2]}[damage])
    reason = encode_image(str(path))
    assert isinstance(reason, str)
    assert reason.startswith(f"{path} (")


def test_the_tars_hold_the_encoded_pictures(tmp_path: Path) -> None:
    root = write_table(tmp_path / "raw", [("u", str(i), i) for i in range(5)], {str(i): "t" for i in range(5)})
    gradient(600, 400).save(root / "images" / "3.jpg")
    domain = build_table(root, tmp_path / "out")
    for row in range(5):
        assert domain.read_image(row) == encode_image(str(root / "images" / f"{row}.jpg"))
    assert Image.open(io.BytesIO(domain.read_image(3))).size == (384, 256)

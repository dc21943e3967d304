"""Pictures as the tars hold them: what is fit as it is, byte for byte; all else re-encoded once."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SHORTER_SIDE = 256
JPEG_QUALITY = 90
_LARGEST_OF_16_BITS = 2**16 - 1

_START, _END = b"\xff\xd8", b"\xff\xd9"
_JFIF, _TABLES, _RESTART, _BASELINE, _SCAN = 0xE0, (0xDB, 0xC4), 0xDD, 0xC0, 0xDA
_JFIF_BYTES = 16  # without a thumbnail
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")


def encode_image(path: str) -> bytes | str:
    """A picture file as the JPEG that goes into the tars; see `as_jpeg`.

    Returns: the JPEG, or why the file cannot be decoded.
    """
    try:
        return as_jpeg(Path(path).read_bytes())
    except Exception as error:  # decoders of damaged files raise nearly anything
        return f"{path} ({type(error).__name__}: {error})"


def as_jpeg(data: bytes) -> bytes:
    """A picture in any format as a JPEG: RGB, upright, shorter side at most 256 px, no metadata.

    What is all that, and baseline, is taken as it is: encoding it again would make it larger and worse.

    Args:
        data: of the file.

    Raises:
        Exception: of nearly any kind, where it cannot be decoded.
    """
    with Image.open(io.BytesIO(data)) as picture:
        is_small = picture.format == "JPEG" and picture.mode == "RGB" and min(picture.size) <= SHORTER_SIDE
        if is_small and is_plain_jpeg(data):
            picture.load()  # raises where it cannot be decoded
            return data
        # a JPEG much larger than needed is decoded at a half, a quarter or an eighth, which costs that much less
        picture.draft(None, (2 * SHORTER_SIDE, 2 * SHORTER_SIDE))
        rgb = upright_rgb(picture)
    shrink = min(rgb.size) / SHORTER_SIDE
    if shrink > 1:
        size = (round(rgb.width / shrink), round(rgb.height / shrink))
        rgb = rgb.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    rgb.info.clear()  # comments and the like would travel along
    encoded = io.BytesIO()
    rgb.save(encoded, "JPEG", quality=JPEG_QUALITY)
    return encoded.getvalue()


def is_plain_jpeg(data: bytes) -> bool:
    """Whether the bytes are one baseline JPEG of one scan without metadata, and nothing else behind it."""
    if not data.startswith(_START):
        return False
    position = len(_START)
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        position += 2 + length
        if marker == _SCAN:
            end = _MARKER_IN_SCAN.search(data, position)
            return end is not None and end.group() == _END and end.end() == len(data)
        if marker not in (*_TABLES, _RESTART, _BASELINE) and (marker, length) != (_JFIF, _JFIF_BYTES):
            return False
    return False


def upright_rgb(picture: Image.Image) -> Image.Image:
    """Any opened picture as people see it: its first frame, turned as its EXIF data says, in RGB on white."""
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I"):
        # Pillow would cut 16 bits off at 255, which leaves a white page
        picture = Image.fromarray((np.asarray(picture).clip(0, _LARGEST_OF_16_BITS) // 257).astype(np.uint8))
    return _on_white(picture)


def _on_white(picture: Image.Image) -> Image.Image:
    """As RGB; what is transparent becomes white: shop pictures are cut out for white pages."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    cutout = picture.convert("RGBA")
    page = Image.new("RGB", picture.size, "white")
    page.paste(cutout, mask=cutout)
    return page


def encode_images(paths: list[str]) -> list[bytes | str]:
    """`encode_image` of each."""
    return [encode_image(path) for path in paths]

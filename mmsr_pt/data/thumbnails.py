"""Pictures of items, made small for people to look at."""

from __future__ import annotations

import io

from PIL import Image

from mmsr_pt.data.domain import Domain


def thumbnail(domain: Domain, row: int, size: int) -> Image.Image:
    """The picture of an item, RGB, its longer side at most `size` pixels; the domain must have pictures."""
    picture = Image.open(io.BytesIO(domain.read_image(row)))
    # lets the decoder leave out what is not needed
    picture.draft("RGB", (2 * size, 2 * size))
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    return picture.convert("RGB")


def as_jpeg(picture: Image.Image) -> bytes:
    """The picture as a small file."""
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=82)
    return file.getvalue()

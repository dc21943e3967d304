"""Pictures of items, made small for people to look at."""

from __future__ import annotations

import io

from PIL import Image

from mmsr_pt.data.domain import Domain


def thumbnail(domain: Domain, row: int, size: int) -> Image.Image | None:
    """The picture of an item, RGB, its longer side at most `size` pixels; the domain must have pictures.

    None for one that cannot be read: what people look at is not worth the end of a run.
    """
    try:
        picture = Image.open(io.BytesIO(domain.read_image(row)))
        # lets the decoder leave out what is not needed
        picture.draft("RGB", (2 * size, 2 * size))
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
        return picture.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return None


def as_jpeg(picture: Image.Image) -> bytes:
    """The picture as a small file."""
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=82)
    return file.getvalue()

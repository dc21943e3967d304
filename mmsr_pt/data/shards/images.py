"""Pictures re-encoded once, for the tars."""

from __future__ import annotations

import io

from PIL import Image, ImageOps

SHORTER_SIDE = 256
JPEG_QUALITY = 90


def encode_image(path: str) -> bytes | str:
    """A picture file as the JPEG that goes into the tars: RGB, upright, shorter side at most 256 px, no metadata.

    Returns: the JPEG, or why the file cannot be decoded.
    """
    try:
        with Image.open(path) as picture:
            # a JPEG much larger than needed is decoded at a half, a quarter or an eighth, which costs that much less
            picture.draft(None, (2 * SHORTER_SIDE, 2 * SHORTER_SIDE))
            ImageOps.exif_transpose(picture, in_place=True)
            rgb = _on_white(picture)
        shrink = min(rgb.size) / SHORTER_SIDE
        if shrink > 1:
            size = (round(rgb.width / shrink), round(rgb.height / shrink))
            rgb = rgb.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        rgb.info.clear()  # comments and the like would travel along
        encoded = io.BytesIO()
        rgb.save(encoded, "JPEG", quality=JPEG_QUALITY)
    except Exception as error:  # decoders of damaged files raise nearly anything
        return f"{path} ({type(error).__name__}: {error})"
    return encoded.getvalue()


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

"""Pictures as the towers want them, against Pillow; and the memory they lie in."""

import gc
import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from mmsr_pt.batch import ImageSpec
from mmsr_pt.data.pixel_memory import PixelMemory
from mmsr_pt.data.preprocess import Preprocessor


def jpeg(width: int, height: int, seed: int = 0) -> bytes:
    """A smooth picture with some grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(coarse, int) + rng.integers(-8, 9, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def preprocessor(interpolation: str, height: int = 48, width: int = 64) -> Preprocessor:
    return Preprocessor(None, ImageSpec(height, width, interpolation, (0.5,) * 3, (0.5,) * 3))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(160, 240), (60, 90), (20, 30), (64, 48)])
def test_pictures_are_resized_as_pillow_resizes_them(interpolation: str, size: tuple[int, int]) -> None:
    encoded = jpeg(*size)
    found = preprocessor(interpolation).decode_image(encoded)
    assert found.shape == (48, 64, 3)
    assert found.dtype == torch.uint8
    picture = Image.open(io.BytesIO(encoded))
    picture.draft("RGB", (64, 48))
    expected = picture.convert("RGB").resize((64, 48), Image.Resampling[interpolation.upper()])
    difference = np.abs(found.numpy().astype(int) - np.asarray(expected, int))
    assert difference.max() <= (1 if interpolation == "bilinear" else 3)
    assert difference.mean() < 0.3


def test_many_pictures_are_those_decoded_one_by_one() -> None:
    encoded = [jpeg(60, 90, seed) for seed in range(5)]
    reads = preprocessor("bicubic")
    together = reads.decode_images(iter(encoded), len(encoded))
    assert together.shape == (5, 3, 48, 64)
    assert together.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(together, torch.stack([reads.decode_image(data).permute(2, 0, 1) for data in encoded]))


def test_memory_is_lent_again_only_when_its_last_view_is_gone() -> None:
    memory = PixelMemory()
    first = memory.lend(4, 8, 8).fill_(1)
    place = first.data_ptr()
    view = first[2:].permute(0, 3, 1, 2)
    del first
    gc.collect()
    second = memory.lend(4, 8, 8).fill_(2)
    assert second.data_ptr() != place
    assert torch.equal(view, torch.ones_like(view))
    del view
    gc.collect()
    third = memory.lend(3, 8, 8)
    assert third.data_ptr() == place
    assert third.shape == (3, 8, 8, 3)
    assert torch.equal(second, torch.full_like(second, 2))


def test_memory_too_small_is_replaced_and_does_not_travel() -> None:
    memory = PixelMemory()
    memory.lend(2, 8, 8)
    assert memory.lend(50, 8, 8).fill_(3).shape == (50, 8, 8, 3)
    reads = preprocessor("bilinear")
    reads.decode_images([jpeg(60, 90)] * 40, 40)
    assert len(pickle.dumps(reads)) < 2_000  # the memory that came back alone is 368,640 bytes
    assert pickle.loads(pickle.dumps(reads)) == reads

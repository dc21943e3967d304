"""From raw titles and JPEG bytes to what the towers read; saved in the bundle and used by everything after training.

Tokenizer and image size come from the towers' own files, never one setting for all.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmsr_pt.batch import ImageSpec, ItemInputs
from mmsr_pt.data.domain import TOKENIZER_FILE
from mmsr_pt.data.pixel_memory import PixelMemory
from mmsr_pt.data.shards.images import upright_rgb
from mmsr_pt.log import UserError, reason

PREPROCESSOR_FILE = "preprocessor.json"
MAX_PIXELS = 50_000_000
"""Of a picture: more is a decompression bomb, or a poster that nobody needs to see at 224 pixels."""
_MAX_TITLE = 10_000
"""Characters of a title that are looked at: many times the longest `title_tokens`."""
_MID_GRAY = 128
_FORMAT_VERSION = 1


class Tokenizer(Protocol):
    """Turns titles into token ids."""

    pad_id: int
    vocab_size: int

    def encode(self, titles: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Token ids of each title, cut to `max_tokens` (special tokens included), at least one each."""

    def save(self, directory: Path) -> None:
        """Writes its files into `directory`."""


class SentencePieceTokenizer:
    """The tokenizer of the `tiny` text tower, trained on the domain's titles while it was built."""

    kind = "sentencepiece"

    def __init__(self, model_file: Path) -> None:
        self.model_proto = Path(model_file).read_bytes()
        self._load()

    def _load(self) -> None:
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor(model_proto=self.model_proto)
        self.pad_id = max(self._processor.pad_id(), 0)
        self.vocab_size = self._processor.vocab_size()

    def __getstate__(self) -> dict[str, bytes]:
        return {"model_proto": self.model_proto}

    def __setstate__(self, state: dict[str, bytes]) -> None:
        self.model_proto = state["model_proto"]
        self._load()

    def encode(self, titles: Sequence[str], max_tokens: int) -> list[list[int]]:
        """See Tokenizer."""
        unknown = self._processor.unk_id()
        return [ids[:max_tokens] or [unknown] for ids in self._processor.encode(list(titles))]

    def save(self, directory: Path) -> None:
        """Writes the SentencePiece model."""
        (directory / TOKENIZER_FILE).write_bytes(self.model_proto)


class HuggingFaceTokenizer:
    """The tokenizer beside a transformers model."""

    kind = "huggingface"

    def __init__(self, name_or_dir: str) -> None:
        # several loader processes each tokenise; the library's own threads would only fight them and warn after a fork
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name_or_dir)
        except (OSError, ValueError) as error:
            raise UserError(
                f"no tokenizer at {name_or_dir!r} ({reason(error)}): --tokenizer hf:NAME names another place"
            ) from error
        self.pad_id = self._tokenizer.pad_token_id or 0
        self.vocab_size = len(self._tokenizer)

    def encode(self, titles: Sequence[str], max_tokens: int) -> list[list[int]]:
        """See Tokenizer."""
        encoded = self._tokenizer(list(titles), truncation=True, max_length=max_tokens, padding=False)["input_ids"]
        return [ids or [self.pad_id] for ids in encoded]

    def save(self, directory: Path) -> None:
        """Writes the tokenizer's own files."""
        self._tokenizer.save_pretrained(directory)


_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_TENSOR_INTERPOLATIONS = ("bilinear", "bicubic")


@dataclasses.dataclass
class Preprocessor:
    """Title and image preprocessing of one model; a part that the model lacks is None."""

    tokenizer: Tokenizer | None
    image: ImageSpec | None
    title_tokens: int = 50
    _memory: PixelMemory = dataclasses.field(default_factory=PixelMemory, init=False, repr=False, compare=False)

    def encode_titles(self, titles: Sequence[str]) -> list[np.ndarray]:
        """Returns: for each title its token ids, int64, unpadded."""
        assert self.tokenizer is not None
        # no model reads that far, and a tokenizer takes seconds for a megabyte; nor does any know half a surrogate pair
        titles = [title[:_MAX_TITLE].encode(errors="replace").decode() for title in titles]
        return [np.asarray(ids, dtype=np.int64) for ids in self.tokenizer.encode(titles, self.title_tokens)]

    def decode_image(self, encoded: bytes) -> Tensor:
        """Returns: [H, W, 3] uint8 RGB from the bytes of one picture; raises OSError when they are no picture."""
        assert self.image is not None
        size = (self.image.width, self.image.height)
        with Image.open(io.BytesIO(encoded)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise OSError(f"{picture.width} x {picture.height} pixels, {MAX_PIXELS:,} are allowed")
            # what the builder does not write may be turned, transparent or of 16 bits
            is_plain = picture.format == "JPEG" and picture.mode == "RGB" and "exif" not in picture.info
            # a JPEG much larger than wanted is decoded at a half, a quarter or an eighth, which costs that much less
            picture.draft("RGB", size)
            rgb = picture.convert("RGB") if is_plain else upright_rgb(picture)
        if rgb.size == size:
            return torch.from_numpy(np.array(rgb))
        if self.image.interpolation not in _TENSOR_INTERPOLATIONS:
            return torch.from_numpy(np.array(rgb.resize(size, _INTERPOLATIONS[self.image.interpolation])))
        # the same filters as Pillow's, in a third of its time
        pixels = torch.from_numpy(np.array(rgb))[None].permute(0, 3, 1, 2)
        resized = F.interpolate(pixels, size[::-1], mode=self.image.interpolation, antialias=True)
        return resized[0].permute(1, 2, 0)

    def item_inputs(self, ids: np.ndarray, titles: Sequence[str] | None, images: Sequence[bytes] | None) -> ItemInputs:
        """Items from raw content: `titles` and `images` as `ids` has them, None where the model has no such tower."""
        title_ids = title_mask = pixels = None
        if self.tokenizer is not None and titles is not None:
            title_ids, title_mask = self.pad(self.encode_titles(titles))
        if self.image is not None and images is not None:
            pixels = self.decode_images(images, len(images))
        return ItemInputs(torch.from_numpy(ids.astype(np.int64)), title_ids, title_mask, pixels)

    def decode_images(self, images: Iterable[bytes], num_images: int) -> Tensor:
        """Returns: [N, 3, H, W] uint8, channels last in memory: as decoders write and convolutions read them."""
        assert self.image is not None
        return self.stack((self.decode_image(encoded) for encoded in images), num_images)

    def stack(self, decoded: Iterable[Tensor | None], num_images: int) -> Tensor:
        """Pictures from `decode_image` as one tensor [n, 3, H, W], n <= `num_images`: a None takes no place in it."""
        assert self.image is not None
        pixels = self._memory.lend(num_images, self.image.height, self.image.width)
        place = 0
        for picture in decoded:
            if picture is not None:
                pixels[place] = picture
                place += 1
        return pixels[:place].permute(0, 3, 1, 2)

    @property
    def no_picture(self) -> Tensor:
        """[H, W, 3] uint8: mid-gray, what stands where a catalogue's picture cannot be read."""
        assert self.image is not None
        return torch.full((self.image.height, self.image.width, 3), _MID_GRAY, dtype=torch.uint8)

    def pad(self, titles: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Returns: [N, T] int64 ids and [N, T] bool mask, padded to the longest title given."""
        assert self.tokenizer is not None
        longest = max((len(ids) for ids in titles), default=1)
        title_ids = np.full((len(titles), longest), self.tokenizer.pad_id, dtype=np.int64)
        mask = np.zeros((len(titles), longest), dtype=bool)
        for row, ids in enumerate(titles):
            title_ids[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        return torch.from_numpy(title_ids), torch.from_numpy(mask)

    def save(self, directory: Path) -> None:
        """Writes tokenizer files and preprocessor.json into a bundle."""
        if self.tokenizer is not None:
            self.tokenizer.save(directory)
        state = {
            "format_version": _FORMAT_VERSION,
            "tokenizer": None if self.tokenizer is None else self.tokenizer.kind,  # type: ignore[attr-defined]
            "title_tokens": self.title_tokens,
            "image": None if self.image is None else dataclasses.asdict(self.image),
        }
        (directory / PREPROCESSOR_FILE).write_text(json.dumps(state, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path | str) -> Preprocessor:
        """Reads what `save` wrote; raises UserError where a file is missing."""
        directory = Path(directory)
        file = directory / PREPROCESSOR_FILE
        if not file.is_file():
            raise UserError(f"{directory} has no {PREPROCESSOR_FILE}: it is not a complete model bundle")
        state = json.loads(file.read_text())
        if not 1 <= state["format_version"] <= _FORMAT_VERSION:
            raise UserError(f"{file} has format {state['format_version']}, this version reads up to {_FORMAT_VERSION}")
        tokenizer: Tokenizer | None = None
        if state["tokenizer"] == SentencePieceTokenizer.kind:
            tokenizer = SentencePieceTokenizer(directory / TOKENIZER_FILE)
        elif state["tokenizer"] == HuggingFaceTokenizer.kind:
            tokenizer = HuggingFaceTokenizer(str(directory))
        image = None if state["image"] is None else ImageSpec.from_json(state["image"])
        return cls(tokenizer=tokenizer, image=image, title_tokens=state["title_tokens"])


def tokenizer_for(text: str, domain_dir: Path, tokenizer: str | None = None) -> Tokenizer | None:
    """The tokenizer of a text tower: its own, or the domain's SentencePiece for `tiny`.

    Args:
        text: name of the tower.
        domain_dir: where the domain's is.
        tokenizer: hf:NAME_OR_DIR of another one; None: the tower's.

    Raises:
        UserError: there is none.
    """
    if text == "none":
        return None
    if text == "tiny":
        if tokenizer is not None:
            raise UserError(f"--tokenizer {tokenizer}: --text tiny has that of the domain: leave --tokenizer out")
        return SentencePieceTokenizer(domain_dir / TOKENIZER_FILE)
    return HuggingFaceTokenizer((tokenizer or text).removeprefix("hf:"))

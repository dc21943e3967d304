"""MMSRModel: a trained recommender with all it needs to read raw titles and pictures, as a bundle holds it.

    from mmsr_pt import MMSRModel

    model = MMSRModel.from_pretrained("runs/mine")      # a run directory, a bundle or a hub id
    model.save_pretrained("somewhere/else")

Needs no DeepSpeed and no file of the pretrained towers.
"""

from __future__ import annotations

from pathlib import Path

import torch

from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.hub import find_bundle
from mmsr_pt.log import UserError
from mmsr_pt.models.recommender import Recommender


class MMSRModel:
    """Ranks items behind histories, both as raw content."""

    def __init__(self, recommender: Recommender, preprocessor: Preprocessor, origin: str = "this model") -> None:
        """Puts both together.

        Args:
            recommender: is put into evaluation mode.
            preprocessor: of the same model.
            origin: where it comes from, as errors call it.
        """
        self.recommender = recommender.eval()
        self.preprocessor = preprocessor
        self.origin = origin

    @classmethod
    def from_pretrained(
        cls,
        directory_or_id: Path | str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: Path | str | None = None,
        local_files_only: bool = False,
    ) -> MMSRModel:
        """The model of a bundle, on the CPU in float32.

        Args:
            directory_or_id: a run directory, a bundle's directory, else a hub id; the other arguments are for the hub.
            revision: branch, tag or commit.
            token: the hub's; none given: the one of `hf auth login` or HF_TOKEN.
            cache_dir: where downloads are kept.
            local_files_only: look into the cache only.

        Raises:
            UserError: no bundle, one of another format, or weights of another model.
        """
        directory = find_bundle(
            str(directory_or_id),
            "from_pretrained",
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        return cls(Recommender.load(directory), Preprocessor.load(directory), str(directory))

    def save_pretrained(self, directory: Path | str) -> None:
        """Writes the files that `from_pretrained` reads: configuration, weights, tokenizer and preprocessing."""
        self.recommender.save(Path(directory))
        self.preprocessor.save(Path(directory))

    def require_readable(self, domain: Domain) -> None:
        """Raises UserError where the model cannot read that domain: for its items or for want of content."""
        trained_on = self.recommender.trained_on
        if self.recommender.config.learns_items and domain.fingerprint not in {d["fingerprint"] for d in trained_on}:
            names = ", ".join(entry["name"] for entry in trained_on)
            raise UserError(
                f"{self.origin} is an ID model, which knows the items of {names} only; {domain.path} is another domain "
                "or another build: use the domain it was trained on, or a model trained with --item content"
            )
        for part, modality in ((self.preprocessor.tokenizer, "text"), (self.preprocessor.image, "image")):
            if part is not None and modality not in domain.modalities:
                raise UserError(
                    f"{self.origin} reads {modality}, {domain.path} was built without: build it again with {modality}"
                )

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.recommender.parameters()).device

    def to(self, device: torch.device | str) -> MMSRModel:
        """The same model, its weights moved to `device`."""
        self.recommender.to(device)
        return self

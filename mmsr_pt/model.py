"""MMSRModel: a trained recommender with all it needs to read raw titles and pictures, as a bundle holds it.

    from mmsr_pt import MMSRModel

    model = MMSRModel.from_pretrained("runs/mine")      # a run directory, a bundle or a hub id
    model.save_pretrained("somewhere/else")
    model.push_to_hub("user/name")

Needs no DeepSpeed and no file of the pretrained towers.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.hub import find_bundle
from mmsr_pt.log import UserError
from mmsr_pt.models.bundle import MAX_SHARD_SIZE
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.publish import Origin, lay_out
from mmsr_pt.upload import Target, check_licence, upload


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

    def save_pretrained(self, directory: Path | str, *, max_shard_size: int = MAX_SHARD_SIZE) -> None:
        """Writes the files that `from_pretrained` reads: configuration, weights, tokenizer and preprocessing.

        Args:
            directory: made if it is not there.
            max_shard_size: bytes of weights above which they stand in several files.
        """
        self.recommender.save(Path(directory), max_shard_size=max_shard_size)
        self.preprocessor.save(Path(directory))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        private: bool = False,
        create_pr: bool = False,
        license: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Publishes the model with a card in one commit; `mmsr-pt publish` adds how its run went.

        Args:
            repo_id: user/name, made if it is not there.
            revision: branch, made if it is not there; None: main.
            private: make the repository a private one, if it is made now.
            create_pr: propose the commit instead of making it.
            license: of the weights, as the hub spells it; None: the card says that none was stated.
            token: the hub's; none given: the one of `hf auth login` or HF_TOKEN.

        Returns:
            The address of the commit, of the pull request, or of the commit that held these very bytes.

        Raises:
            UserError: it failed, with what to do; the repository holds what it held.
        """
        target = Target(repo_id, revision, private, create_pr)
        check_licence(license)
        with tempfile.TemporaryDirectory(prefix="mmsr-pt-publish-") as scratch:
            self.save_pretrained(Path(scratch) / "model")
            (Path(scratch) / "laid out").mkdir()
            origin = Origin(Path(scratch) / "model", None, None)
            what = lay_out(origin, Path(scratch) / "laid out", repo_id, license)
            return upload(Path(scratch) / "laid out", target, f"Upload {what}", token).url

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

"""MMSRModel: a trained recommender with all it needs to read raw titles and pictures, as a bundle holds it.

    from mmsr_pt import MMSRModel

    model = MMSRModel.from_pretrained("runs/mine")      # a run directory, a bundle or a hub id
    shop = model.index([{"id": "7", "title": "red scarf", "image": "scarf.jpg"}, ...])
    model.recommend(history=[{"title": "blue hat", "image": "hat.jpg"}], catalogue=shop, top_k=10)
    model.push_to_hub("user/name")

Needs no DeepSpeed and no file of the pretrained towers.

Shapes: u histories, L positions, N items, D width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmsr_pt.catalogue_index import CatalogueIndex, SearchName
from mmsr_pt.data.catalogue import item_source
from mmsr_pt.data.domain import Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.data.raw_items import RawItem, raw_item_batches
from mmsr_pt.evaluation.evaluate import ItemSource, catalogue_scorer, encode_catalogue
from mmsr_pt.evaluation.ranking import CHUNK_SCORES, CHUNK_USERS
from mmsr_pt.histories import HistoryItem, is_known, row_of, seen_rows, table_of
from mmsr_pt.hub.find import find_bundle, find_index
from mmsr_pt.hub.publish import Origin, lay_out
from mmsr_pt.hub.upload import Target, check_licence, upload
from mmsr_pt.log import UserError
from mmsr_pt.models.bundle import MAX_SHARD_SIZE
from mmsr_pt.models.recommender import Recommender
from mmsr_pt.recommend import Recommendation, best_unseen, described

_PROBES = ("Red cotton T-shirt, 2 pcs", "Ünïcode naïve café", "红色 围巾", "")
"""Titles whose tokens tell tokenizers apart."""
_NAMES_OF_TOWERS = ("text", "vision", "vlp", "tokenizer")


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

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.recommender.parameters()).device

    def to(self, device: torch.device | str) -> MMSRModel:
        """The same model, its weights moved to `device`."""
        self.recommender.to(device)
        return self

    @cached_property
    def fingerprint(self) -> str:
        """Changes with anything that changes a vector: settings, weights, tokenizer, pictures' size; 64 hex digits.

        Where towers once came from changes none, and a published model has other names for it.
        """
        tokenizer, image = self.preprocessor.tokenizer, self.preprocessor.image
        reads = [
            self.preprocessor.title_tokens if tokenizer else None,
            None if tokenizer is None else tokenizer.encode(_PROBES, self.preprocessor.title_tokens),
            None if image is None else dataclasses.asdict(image),
        ]
        config = dataclasses.asdict(self.recommender.config)
        settings = {name: value for name, value in config.items() if name not in _NAMES_OF_TOWERS}
        described = [settings, self.recommender.item_encoder.config(), reads]
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        for name, tensor in sorted(self.recommender.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def require_readable(self, domain: Domain) -> None:
        """Raises UserError where the model cannot read that domain for its items or for want of content."""
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

    @torch.inference_mode()
    def encode_items(self, items: Sequence[RawItem], batch_size: int = 64) -> Tensor:
        """The vectors by which items are scored: [N, D] float32, where the model is; see RawItem.

        Raises:
            UserError: no item, one that lacks what the model reads, or a model that knows items by number only.
        """
        if self.recommender.config.learns_items:
            raise UserError(
                f"{self.origin} is an ID model, which knows no item by its content: name its items by their ids"
            )
        if not len(items):
            raise UserError("there is no item to encode: give at least one")
        batches = raw_item_batches(items, self.preprocessor, batch_size)
        return torch.cat([self.recommender.encode_items(batch.to(self.device)) for batch in batches]).float()

    def index(
        self,
        catalogue: Domain | Path | str | Sequence[RawItem],
        batch_size: int = 64,
        search: SearchName = "auto",
        source: ItemSource | None = None,
    ) -> CatalogueIndex:
        """Encodes a catalogue, once for any number of recommendations. Of a domain collective.

        Args:
            catalogue: a domain or its directory, or items with distinct ids.
            batch_size: items encoded at once.
            search: exactly, by faiss, or `auto`: by faiss where there are more than half a million items.
            source: in place of the domain's own reader, the same items.

        Raises:
            UserError: the model cannot read them, or ids are missing or repeated.
        """
        if isinstance(catalogue, (str, Path)):
            catalogue = Domain.load(catalogue)
        if isinstance(catalogue, Domain):
            self.require_readable(catalogue)
            source = source or item_source(catalogue, self.preprocessor)
            vectors = encode_catalogue(self.recommender, source, catalogue.num_items, batch_size).float()
            about = {name: catalogue.meta[name] for name in ("name", "fingerprint", "source", "licence")}
            index = CatalogueIndex(catalogue.items.select("item_id", "title"), vectors, self.fingerprint, about)
        else:
            items = table_of(catalogue)
            index = CatalogueIndex(items, self.encode_items(catalogue, batch_size), self.fingerprint)
        return index.with_search(search if self.recommender.scores_by_product else "exact")

    def load_index(self, directory_or_id: Path | str) -> CatalogueIndex:
        """An index that `CatalogueIndex.save` wrote, or the hub's dataset of that id, where the model is.

        Raises:
            UserError: there is none, or another model made it.
        """
        return CatalogueIndex.load(find_index(directory_or_id), self.fingerprint).to(self.device)

    def recommend(
        self, history: Sequence[HistoryItem], catalogue: CatalogueIndex, top_k: int = 10
    ) -> list[Recommendation]:
        """The items of a catalogue that rank highest behind a history, best first; see `recommend_batch`."""
        return self.recommend_batch([history], catalogue, top_k)[0]

    @torch.inference_mode()
    def recommend_batch(
        self, histories: Sequence[Sequence[HistoryItem]], catalogue: CatalogueIndex, top_k: int = 10
    ) -> list[list[Recommendation]]:
        """For each history the best items that are not in it, best first.

        Args:
            histories: items oldest first, at least one each, by their ids in the catalogue or as content; only the
                newest `max_history` are read. Content with an `id` of the catalogue is not recommended again either.
            catalogue: from `index` or `load_index`.
            top_k: how many; fewer where the catalogue has no more.

        Raises:
            UserError: a history without items, an unknown id, content that cannot be read, or another model's index.
        """
        if catalogue.model != self.fingerprint:
            raise UserError(f"this index was made by another model than {self.origin}: make one with its index()")
        if top_k < 1:
            raise UserError(f"top_k {top_k} must be at least 1")
        catalogue = catalogue.to(self.device)
        seen = [seen_rows(history, catalogue, number) for number, history in enumerate(histories)]
        at_once = max(1, min(CHUNK_USERS, CHUNK_SCORES // len(catalogue)))
        found: list[list[Recommendation]] = []
        for start in range(0, len(histories), at_once):
            chunk = slice(start, start + at_once)
            found += self._recommend(histories[chunk], seen[chunk], catalogue, top_k)
        return found

    def similar(self, item: HistoryItem, catalogue: CatalogueIndex, top_k: int = 10) -> list[Recommendation]:
        """The items of a catalogue whose vectors have the highest cosine with that of an item, itself left out."""
        catalogue, seen = catalogue.to(self.device), seen_rows([item], catalogue, 0)
        vector = self._vectors([[item]], catalogue)[0][0]
        length = catalogue.vectors.norm(dim=1).clamp_min(1e-12) * vector.norm().clamp_min(1e-12)
        cosine = catalogue.vectors @ vector / length
        return described(catalogue.items, *best_unseen(cosine, seen, top_k), 1.0)

    def _recommend(
        self,
        histories: Sequence[Sequence[HistoryItem]],
        seen: Sequence[Sequence[int]],
        catalogue: CatalogueIndex,
        top_k: int,
    ) -> list[list[Recommendation]]:
        vectors = self._vectors(histories, catalogue)
        lengths = torch.tensor([len(of_one) for of_one in vectors], device=self.device)
        padded = pad_sequence(vectors, batch_first=True)
        mask = torch.arange(padded.shape[1], device=self.device) < lengths[:, None]
        scale = self.recommender.score_scale
        if catalogue.approximate is None:
            scores = catalogue_scorer(self.recommender, catalogue.vectors).of(padded, mask)
            best = [best_unseen(of_one, rows, top_k) for of_one, rows in zip(scores, seen)]
        else:
            users = self.recommender.encode_last(padded, mask).float()
            wanted = min(len(catalogue), top_k + max(len(rows) for rows in seen))
            nearest = torch.from_numpy(catalogue.approximate.search(users.cpu().numpy(), wanted)).to(self.device)
            best = [_among(near, user, catalogue, rows, top_k) for near, user, rows in zip(nearest, users, seen)]
        return [described(catalogue.items, rows, scores, scale) for rows, scores in best]

    def _vectors(self, histories: Sequence[Sequence[HistoryItem]], catalogue: CatalogueIndex) -> list[Tensor]:
        """[L, D] of the newest items of each history; content that stands in several places is encoded once."""
        newest = [list(history)[-self.recommender.config.max_history :] for history in histories]
        raw = {
            id(item): item for history in newest for item in history if not isinstance(item, str) and not is_known(item)
        }
        encoded: Sequence[Tensor] | Tensor = self.encode_items(list(raw.values())) if raw else ()
        vectors = dict(zip(raw, encoded))
        return [
            torch.stack(
                [
                    vectors[id(item)] if id(item) in raw else catalogue.vectors[row_of(item, catalogue)]
                    for item in history
                ]
            )
            for history in newest
        ]


def _among(
    nearest: Tensor, user: Tensor, catalogue: CatalogueIndex, seen: Sequence[int], top_k: int
) -> tuple[Tensor, Tensor]:
    """The best of some rows, -1 where there is none, by their scores without the model's scale."""
    rows = nearest[nearest >= 0].sort().values
    rows = rows[~torch.isin(rows, torch.tensor(list(seen), dtype=torch.int64, device=rows.device))]
    order, scores = best_unseen(catalogue.vectors[rows] @ user, [], top_k)
    return rows[order], scores

"""What the explorer shows, apart from how: a catalogue with small pictures, some users, and several models.

Saved, it needs neither the domain's tars nor the domain: a Space holds this directory.

    exhibit/
      exhibit.json            of which domain; what the models are called, in order
      items.parquet           item_id, title, train_count, thumbnail (JPEG) by row
      users.parquet           user_id, history, test
      models/0/               a bundle, and index/ with the vectors of every item; a directory for each model

Shapes: N items.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import polars as pl
import torch
from torch import Tensor
from tqdm import tqdm

from mmsr_pt.catalogue_index import CatalogueIndex
from mmsr_pt.data.domain import COLD_BELOW, IMAGE, Domain
from mmsr_pt.data.thumbnails import as_jpeg, thumbnail
from mmsr_pt.evaluation.cases import UserSample
from mmsr_pt.evaluation.evaluate import catalogue_scorer
from mmsr_pt.evaluation.ranking import Scorer
from mmsr_pt.hub.card import kind
from mmsr_pt.hub.find import short_names
from mmsr_pt.hub.publish import shorten_places
from mmsr_pt.log import UserError, redraw_seconds
from mmsr_pt.model import MMSRModel
from mmsr_pt.models.baselines.popularity import Popularity
from mmsr_pt.models.bundle import CONFIG_FILE

FORMAT_VERSION = 1
EXHIBIT_FILE = "exhibit.json"
POPULARITY = "Popularity"
THUMBNAIL = 192
"""Longer side in pixels: sharp at the 96 to 150 of the page on most screens."""
_KEPT = 2_000
"""Thumbnails kept of a domain, some 10 MB."""

Picture = Callable[[int], bytes | None]
"""Row -> the item's thumbnail as JPEG; None where there is none."""


@dataclass(frozen=True, eq=False)
class Shown:
    """A model, and the catalogue as it sees it."""

    model: MMSRModel
    catalogue: CatalogueIndex

    @cached_property
    def scorer(self) -> Scorer:
        """Scores the catalogue, without the model's scale."""
        return catalogue_scorer(self.model.recommender, self.catalogue.vectors)


@dataclass(frozen=True, eq=False)
class Exhibit:
    """All that the explorer shows."""

    domain: dict[str, str]
    """Its name, source and licence note."""
    items: pl.DataFrame
    """item_id, title, train_count by row; titles may be null."""
    users: pl.DataFrame
    """user_id, history (rows, all but the last item) and test (the last one's row); may be empty."""
    models: dict[str, Shown]
    """By what they are called, in order, at least one."""
    picture: Picture

    @cached_property
    def train_count(self) -> Tensor:
        """[N] int64: occurrences of each item in training."""
        return torch.from_numpy(self.items["train_count"].to_numpy().astype("int64"))

    @cached_property
    def is_cold(self) -> Tensor:
        """[N] bool: fewer than COLD_BELOW occurrences."""
        return self.train_count < COLD_BELOW

    @cached_property
    def titles(self) -> list[str]:
        """By row; the item's id where it has no title."""
        return [title or item_id for item_id, title in self.items.select("item_id", "title").iter_rows()]

    @cached_property
    def searched(self) -> list[str]:
        """Title and id of each item by row, as a search compares them."""
        return [f"{title} {item_id}".casefold() for title, item_id in zip(self.titles, self.items["item_id"])]

    @cached_property
    def scorers(self) -> dict[str, Scorer]:
        """The models', and popularity as the last."""
        return {
            **{name: shown.scorer for name, shown in self.models.items()},
            POPULARITY: Popularity(self.train_count),
        }

    def save(self, directory: Path) -> None:
        """Writes its files; of local paths in the models' settings only last names.

        Args:
            directory: empty or not there.
        """
        directory.mkdir(parents=True, exist_ok=True)
        rows = tqdm(range(len(self.items)), desc="thumbnails", unit="item", mininterval=redraw_seconds())
        thumbnails = [self.picture(row) for row in rows]
        table = self.items.with_columns(thumbnail=pl.Series(thumbnails, dtype=pl.Binary))
        table.write_parquet(directory / "items.parquet")
        self.users.write_parquet(directory / "users.parquet")
        for number, shown in enumerate(self.models.values()):
            place = _place(directory, number)
            shown.model.save_pretrained(place)
            shorten_places(place / CONFIG_FILE)
            shown.catalogue.save(place / "index")
        about = {"format_version": FORMAT_VERSION, "domain": self.domain, "models": list(self.models)}
        (directory / EXHIBIT_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Exhibit:
        """Reads what `save` wrote, models on the CPU; raises UserError where there is none, or another format's."""
        file = directory / EXHIBIT_FILE
        if not file.is_file():
            raise UserError(f"{directory} holds nothing to explore (it has no {EXHIBIT_FILE}): write the Space again")
        about = json.loads(file.read_text(encoding="utf-8"))
        if about["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"{file} has format {about['format_version']}, this version reads {FORMAT_VERSION}: "
                "write the Space again"
            )
        models = {}
        for number, name in enumerate(about["models"]):
            model = MMSRModel.from_pretrained(_place(directory, number))
            models[name] = Shown(model, model.load_index(_place(directory, number) / "index"))
        table = pl.read_parquet(directory / "items.parquet")
        thumbnails = table["thumbnail"]
        users = pl.read_parquet(directory / "users.parquet")
        return cls(about["domain"], table.drop("thumbnail"), users, models, thumbnails.__getitem__)


def gather(domain: Domain, models: Mapping[str, Shown], num_users: int, name_users: bool = True) -> Exhibit:
    """An exhibit of a domain.

    Args:
        domain: whose items and users.
        models: by what they are called, from `names_of`.
        num_users: how many users, drawn by chance, always the same ones; 0: none.
        name_users: call users by their ids, else by their numbers in the sample.
    """
    frame = UserSample(num_users).of(domain.eval) if num_users else domain.eval.head(0)
    number = pl.format("user {}", pl.int_range(1, pl.len() + 1))
    users = frame.select(
        pl.col("user_id") if name_users else number.alias("user_id"),
        history=pl.concat_list("history", "valid"),
        test="test",
    )
    about = {"name": domain.name, "source": domain.meta["source"], "licence": domain.meta["licence"]}
    items = domain.items.select("item_id", "title", "train_count")
    return Exhibit(about, items, users, dict(models), _pictures_of(domain))


def names_of(references: Sequence[str], models: Sequence[MMSRModel]) -> list[str]:
    """What the models are called: MMSR, MMSR-T, IDSR, ...; several of one kind by the ends of their paths too.

    Args:
        references: where each comes from; raises UserError where one is named twice.
        models: in the same order.
    """
    short_names(references)
    kinds = [kind(model.recommender.config) for model in models]
    alike = {name: [ref for ref, other in zip(references, kinds) if other == name] for name in kinds}
    ends = {ref: end for refs in alike.values() if len(refs) > 1 for ref, end in zip(refs, short_names(refs))}
    return [f"{name} ({ends[ref]})" if ref in ends else name for ref, name in zip(references, kinds)]


def _place(directory: Path, number: int) -> Path:
    return directory / "models" / str(number)


def _pictures_of(domain: Domain) -> Picture:
    if IMAGE not in domain.modalities:
        return lambda row: None

    @lru_cache(_KEPT)
    def picture(row: int) -> bytes | None:
        small = thumbnail(domain, row, THUMBNAIL)
        return None if small is None else as_jpeg(small)

    return picture

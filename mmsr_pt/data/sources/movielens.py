"""MovieLens as GroupLens hands it out, and a folder of posters, which it does not.

ROOT/ratings.csv   userId,movieId,rating,timestamp      ROOT/movies.csv   movieId,title,genres    (latest, 20M to 32M)
ROOT/ratings.dat   user::movie::rating::timestamp       ROOT/movies.dat   movie::title::genres    (1M, 10M; no header)
ROOT/images/<movieId>.jpg

Described in the README of each of them: times are seconds since 1970, genres are joined by `|`, the files of 1M are
Latin-1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mmsr_pt.data.sources.base import SOURCES, RawDomain, add_images, distinct_names, join_text, scan_table
from mmsr_pt.data.sources.files import the_one
from mmsr_pt.data.sources.rows import epoch_seconds, scan_headless
from mmsr_pt.log import UserError

_NO_GENRE = "(no genres listed)"
_MAX_RATING = 5.0
# polars splits at one character, so that `::` leaves an empty column between two full ones
_DAT_RATINGS = ("userId", "", "movieId", " ", "rating", "  ", "timestamp")
_NEVER = "\x1f"
_DAT_MOVIE = r"^(?<movieId>.*?)::(?<title>.*)::(?<genres>.*)$"


@SOURCES.register("movielens")
@dataclass(frozen=True)
class MovieLens:
    """MovieLens: ratings.csv and movies.csv, or ratings.dat and movies.dat, and posters."""

    root: Path
    """Directory with ratings.csv and movies.csv, or both as .dat."""
    images: Path | None = None
    """Folder of posters, each named by its movieId; none given: ROOT/images."""
    min_rating: float = 0.0
    """Lower ratings, of 0.5 to 5, are no interactions; 0: every rating is one."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_rating <= _MAX_RATING:
            raise UserError(f"--min_rating {self.min_rating:g} must lie in 0 (all) ... {_MAX_RATING:g}")

    def read(self, scratch: Path, with_images: bool) -> RawDomain:
        """See Source."""
        ratings_file = the_one(self.root, ("ratings.csv", "ratings.dat"))
        movies_file = the_one(self.root, (f"movies{ratings_file.suffix}",))
        ratings = _scan_ratings(ratings_file, scratch)
        if self.min_rating > 0:
            ratings = ratings.filter(pl.col("rating").cast(pl.Float64, strict=False) >= self.min_rating)
        genres = distinct_names(pl.col("genres").str.replace(_NO_GENRE, "", literal=True).str.split("|"))
        movies = _scan_movies(movies_file, scratch).select(
            item_id="movieId",
            title=join_text([pl.col("title"), genres.list.join(", ")]),
            categories=genres,
        )
        return RawDomain(
            source="movielens",
            root=self.root,
            licence="MovieLens, GroupLens: research use, no commercial use without permission",
            interactions=ratings.select(user_id="userId", item_id="movieId", time=epoch_seconds("timestamp")),
            items=add_images(movies, self.images or self.root / "images", with_images),
        )


def _scan_ratings(path: Path, scratch: Path) -> pl.LazyFrame:
    if path.suffix == ".dat":
        return scan_headless(path, _DAT_RATINGS, scratch, separator=":", quote=None)
    return scan_table(path, ("userId", "movieId", "rating", "timestamp"), scratch)


def _scan_movies(path: Path, scratch: Path) -> pl.LazyFrame:
    if path.suffix == ".dat":
        lines = scan_headless(path, ("line",), scratch, separator=_NEVER, quote=None)
        # a title may hold colons: the first pair of them ends the id, the last one begins the genres
        return lines.select(pl.col("line").str.extract_groups(_DAT_MOVIE)).unnest("line")
    return scan_table(path, ("movieId", "title", "genres"), scratch)

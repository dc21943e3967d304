"""What a model's vectors look like, as in the paper's figures 8 and 9 (appendix F.5): t-SNE, with numbers beside it.

t-SNE keeps neighbours and little else: sizes of clusters and distances between them mean nothing in it. So the numbers
below each panel are of the full vectors, by Euclidean distance, and it is they that compare models.

Shapes: n points, D width, U users, L positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mmsr_pt.data.catalogue import iter_item_batches
from mmsr_pt.data.domain import COLD_BELOW, Domain
from mmsr_pt.data.preprocess import Preprocessor
from mmsr_pt.evaluation.cases import UserSample, pad_rows
from mmsr_pt.evaluation.processes import processes
from mmsr_pt.figures.canvas import COLOURS, MARKERS, canvas, headline, require_drawing
from mmsr_pt.models.recommender import Recommender

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_ITEMS, NUM_USERS = 1000, 10
"""The paper's."""
NEIGHBOURS = 10
_BATCH = 256
_NOTE = "placed by t-SNE; the numbers are of the full vectors"


@dataclass(frozen=True)
class Cloud:
    """Vectors of one model, and what is known of each."""

    title: str
    vectors: np.ndarray
    """[n, D] float32."""
    marks: np.ndarray
    """[n] int64: an item's occurrences in training; or whose a position is, users counted from 0."""


@torch.inference_mode()
def item_cloud(
    title: str,
    model: Recommender,
    preprocessor: Preprocessor,
    domain: Domain,
    num_items: int = NUM_ITEMS,
    seed: int = 0,
    catalogue: Tensor | None = None,
) -> Cloud:
    """Item vectors as they are scored, with how often each item occurs in training.

    Args:
        title: of its panel.
        model: in evaluation mode.
        preprocessor: of the model.
        domain: whose items; the same seed draws the same ones for every model.
        num_items: drawn without replacement; all where there are no more.
        seed: of the draw.
        catalogue: [N, D], every item's vector where they are known; None: those drawn are encoded.
    """
    rows = drawn_items(domain.num_items, num_items, seed)
    vectors = _vectors_of(rows, model, preprocessor, domain, catalogue)
    return Cloud(title, vectors.float().cpu().numpy(), domain.train_count()[rows])


@torch.inference_mode()
def user_cloud(
    title: str,
    model: Recommender,
    preprocessor: Preprocessor,
    domain: Domain,
    num_users: int = NUM_USERS,
    seed: int = 0,
    catalogue: Tensor | None = None,
) -> Cloud:
    """What a model makes of users: its output at each position of their newest items, held-out ones included.

    The paper does not say which vectors its figure 9 shows; these are each item as the user's sequence sees it.

    Args:
        title: of its panel.
        model: in evaluation mode.
        preprocessor: of the model.
        domain: whose users; the same seed draws the same ones for every model.
        num_users: drawn without replacement; all where there are no more.
        seed: of the draw.
        catalogue: as in `item_cloud`.
    """
    users = UserSample(num_users, seed).of(domain.eval)
    whole = users.select(pl.concat_list("history", "valid", "test")).to_series()
    rows, mask = pad_rows(whole.list.tail(model.config.max_history))
    distinct, places = np.unique(rows[mask].numpy(), return_inverse=True)
    sequence = torch.zeros_like(rows)
    sequence[mask] = torch.from_numpy(places)
    items = _vectors_of(distinct, model, preprocessor, domain, catalogue)
    mask = mask.to(items.device)
    vectors = model.encode_users(items[sequence.to(items.device)], mask)[mask]
    return Cloud(title, vectors.float().cpu().numpy(), mask.nonzero()[:, 0].cpu().numpy())


def drawn_items(num_items: int, count: int, seed: int = 0) -> np.ndarray:
    """That many rows of a catalogue in order, drawn without replacement; all where there are no more."""
    return np.sort(np.random.default_rng(seed).choice(num_items, min(count, num_items), replace=False))


def _vectors_of(
    rows: np.ndarray, model: Recommender, preprocessor: Preprocessor, domain: Domain, catalogue: Tensor | None
) -> Tensor:
    if catalogue is not None:
        return catalogue[torch.from_numpy(rows).to(catalogue.device)]
    device = processes().device
    batches = iter_item_batches(domain, preprocessor, rows, _BATCH)
    return torch.cat([model.encode_items(batch.to(device)) for batch in batches])


def popularity_numbers(cloud: Cloud) -> dict[str, float]:
    """How far an item's place tells how popular it is.

    Returns: `neighbours`: the rank correlation (Spearman) of items' occurrences with the mean over their nearest
    neighbours', which is about 0 where popularity plays no part, and 1 where it decides; `popular`: the mean distance
    between two of the most popular tenth, as a share of that between any two items, below 1 where they huddle.
    """
    from scipy.stats import spearmanr

    apart = _distances(cloud.vectors)
    nearest = np.argsort(apart + np.diag(np.full(len(apart), np.inf)), axis=1, kind="stable")[:, :NEIGHBOURS]
    popular = np.argsort(-cloud.marks, kind="stable")[: max(2, len(apart) // 10)]
    return {
        "neighbours": float(spearmanr(cloud.marks, cloud.marks[nearest].mean(axis=1)).statistic),
        "popular": _mean_between(apart[np.ix_(popular, popular)]) / _mean_between(apart),
    }


def user_numbers(cloud: Cloud) -> dict[str, float]:
    """How far positions of one user stand together.

    Returns: `silhouette` (Rousseeuw 1987): mean over positions in [-1, 1], 1 where every user is a tight cluster of its
    own; `within`: the mean distance between two positions of a user, as a share of that between two users' positions.
    """
    from sklearn.metrics import silhouette_score

    apart = _distances(cloud.vectors)
    same = cloud.marks[:, None] == cloud.marks[None, :]
    within = same & ~np.eye(len(apart), dtype=bool)
    return {
        "silhouette": float(silhouette_score(cloud.vectors, cloud.marks)),
        "within": float(apart[within].mean() / apart[~same].mean()),
    }


def _distances(vectors: np.ndarray) -> np.ndarray:
    """[n, D] -> [n, n] float64."""
    exact = torch.from_numpy(vectors).double()
    return torch.cdist(exact, exact, compute_mode="donot_use_mm_for_euclid_dist").numpy()


def _mean_between(apart: np.ndarray) -> float:
    """Over pairs of two."""
    return float(apart.sum() / (len(apart) * (len(apart) - 1)))


def places(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """[n, D] -> [n, 2]: t-SNE (van der Maaten and Hinton 2008), from the two main components on."""
    require_drawing()
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)


def draw_items(panels: Sequence[Sequence[Cloud]], title: str, seed: int = 0) -> Figure:
    """Items in a grid of panels, the darker the more popular; see `Cloud`."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    figure, grid = canvas(len(panels), len(panels[0]), width=4.6, height=4.6)
    for axes_row, row in zip(grid, panels, strict=True):
        # an item that never occurs is as light as one that occurs once
        counts = np.concatenate([cloud.marks for cloud in row]).clip(1)
        norm = LogNorm(counts.min(), counts.max() + 1)
        for axes, cloud in zip(axes_row, row, strict=True):
            shown = _scatter(axes, cloud, places(cloud.vectors, seed), norm)
            found = popularity_numbers(cloud)
            _finish(
                axes,
                f"{cloud.title}, {len(cloud.marks):,} items",
                f"occurrences of an item and its {NEIGHBOURS} nearest: rank correlation {found['neighbours']:.2f}\n"
                f"between two of the popular tenth: {found['popular']:.2f} of the mean distance",
            )
        bar = figure.colorbar(shown, ax=list(axes_row), label="occurrences in training", shrink=0.8)
        bar.set_ticks(LogLocator(subs=(1, 2, 5)))
        bar.formatter = StrMethodFormatter("{x:,g}")
        bar.minorticks_off()
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower left", ncols=2)
    headline(figure, title, _NOTE)
    return figure


def _scatter(axes: Any, cloud: Cloud, at: np.ndarray, norm: Any) -> Any:
    order, is_cold = np.argsort(cloud.marks, kind="stable"), cloud.marks < COLD_BELOW
    groups = ((is_cold, "^", f"fewer than {COLD_BELOW} occurrences (cold)"), (~is_cold, "o", f"{COLD_BELOW} or more"))
    for some, marker, name in groups:
        # the popular ones on top
        chosen = order[some[order]]
        shown = axes.scatter(
            *at[chosen].T,
            c=cloud.marks[chosen].clip(1),
            norm=norm,
            cmap="cividis_r",
            marker=marker,
            s=22,
            linewidths=0.3,
            edgecolors="#666666",
            label=name,
        )
    return shown


def draw_users(panels: Sequence[Sequence[Cloud]], title: str, seed: int = 0) -> Figure:
    """Users in a grid of panels: each has a colour and a mark, which stands at each position of the user."""
    figure, grid = canvas(len(panels), len(panels[0]), width=4.6, height=4.6)
    for axes_row, row in zip(grid, panels, strict=True):
        for axes, cloud in zip(axes_row, row, strict=True):
            at = places(cloud.vectors, seed)
            for user in np.unique(cloud.marks):
                axes.scatter(
                    *at[cloud.marks == user].T,
                    color=COLOURS[user % len(COLOURS)],
                    marker=MARKERS[user % len(MARKERS)],
                    s=30,
                    linewidths=0.4,
                    edgecolors="white",
                )
            found = user_numbers(cloud)
            _finish(
                axes,
                f"{cloud.title}, {len(cloud.marks):,} positions",
                f"silhouette by user: {found['silhouette']:.2f} (1: each by itself, 0: mixed)\n"
                f"within a user: {found['within']:.2f} of the mean distance between users",
            )
    headline(figure, title, _NOTE)
    return figure


def _finish(axes: Any, title: str, said: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(said, fontsize=8, loc="left")
    # the axes of a t-SNE have no unit
    axes.set_xticks([])
    axes.set_yticks([])

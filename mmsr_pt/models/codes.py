"""VQRec: titles become discrete codes, and an item is the mean of its codes' learned vectors.

After Hou et al. 2023 (WWW). Codes come from optimised product quantisation (Ge et al. 2013) of what a frozen text tower
makes of titles: a rotation, then k-means in each of M equal parts of the vector. Items of any catalogue can be coded,
and items with equal codes are one and the same to the model.

Differences: a title's vector is the mean of its tokens, not the first one; the codebook is fitted on the whole
catalogue; left out are the paper's made-up negatives of mixed codes and its relearnt match of codes and vectors in
fine-tuning, since all baselines share losses and negatives (section 4.4 of the MMSR paper).

Shapes: N items, d the text tower's width, M codes, K values of a code, e = d / M, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmsr_pt.batch import ItemInputs
from mmsr_pt.log import UserError
from mmsr_pt.models.fusion import masked_mean
from mmsr_pt.models.item_encoder import ContentItemEncoder, ItemActivations
from mmsr_pt.models.layer_groups import LayerGroup
from mmsr_pt.models.towers.tower import Tower

_ROUNDS = 20
"""Of k-means and rotation in turn."""


class Codebook(nn.Module):
    """The quantiser: M codes of K values for a vector. Frozen from the moment it is fitted."""

    def __init__(self, width: int, num_codes: int, num_values: int) -> None:
        """One that is not fitted yet.

        Args:
            width: d.
            num_codes: M, a divisor of d.
            num_values: K.

        Raises:
            UserError: M does not divide d.
        """
        super().__init__()
        if width % num_codes:
            raise UserError(f"--num_codes {num_codes} must divide {width}, the width of the text tower's vectors")
        self.mean = nn.Parameter(torch.zeros(1, width), requires_grad=False)
        self.rotation = nn.Parameter(torch.eye(width), requires_grad=False)
        centroids = torch.zeros(num_codes, num_values, width // num_codes)
        self.centroids = nn.Parameter(centroids, requires_grad=False)

    @torch.no_grad()
    def forward(self, vectors: Tensor) -> Tensor:
        """The nearest centroid of each part: [N, d] -> [N, M] int64."""
        turned = (vectors.float() - self.mean.float()) @ self.rotation.float()
        return _nearest(turned, self.centroids.float())

    @torch.no_grad()
    def fit(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Finds rotation and centroids: k-means and, for the rotation, orthogonal Procrustes in turn.

        Args:
            vectors: [N, d], on the CPU.
            generator: draws the items at which centroids start; the same numbers give the same codebook.

        Raises:
            UserError: there are fewer vectors than values.
        """
        num_codes, num_values, _ = self.centroids.shape
        if len(vectors) < num_values:
            raise UserError(f"--code_values {num_values} is more than the {len(vectors)} titles: give fewer")
        vectors = vectors.float()
        mean = vectors.mean(dim=0, keepdim=True)
        centred = vectors - mean
        rotation = torch.eye(vectors.shape[1])
        start = torch.randperm(len(vectors), generator=generator)[:num_values]
        centroids = centred[start].view(num_values, num_codes, -1).transpose(0, 1).contiguous()
        for _ in range(_ROUNDS):
            turned = centred @ rotation
            codes = _nearest(turned, centroids)
            centroids = _means(turned, codes, centroids)
            restored = centroids[torch.arange(num_codes), codes].flatten(1)
            left, _, right = torch.linalg.svd(centred.T @ restored)
            rotation = left @ right
        centroids = _means(centred @ rotation, _nearest(centred @ rotation, centroids), centroids)
        for parameter, found in ((self.mean, mean), (self.rotation, rotation), (self.centroids, centroids)):
            parameter.copy_(found)


def _nearest(vectors: Tensor, centroids: Tensor) -> Tensor:
    """[N, d], [M, K, e] -> [N, M] int64: the nearest centroid of each part, the first of equally near ones."""
    parts = vectors.view(vectors.shape[0], len(centroids), -1)
    # |v - c|^2 without |v|^2, which is the same for all c
    sizes = centroids.square().sum(dim=2)
    # an exported graph has one path for any number of items
    pieces = (parts,) if torch.compiler.is_exporting() else parts.split(1024)
    return torch.cat([(sizes - 2 * torch.einsum("nme,mke->nmk", piece, centroids)).argmin(dim=2) for piece in pieces])


def _means(vectors: Tensor, codes: Tensor, centroids: Tensor) -> Tensor:
    """The mean of each part over the vectors with its code; a centroid that no vector is near stays where it is."""
    num_codes, num_values, size = centroids.shape
    parts = vectors.view(len(vectors), num_codes, size)
    place = (codes + torch.arange(num_codes) * num_values).flatten()
    total = centroids.new_zeros(num_codes * num_values, size).index_add_(0, place, parts.flatten(0, 1))
    count = torch.bincount(place, minlength=num_codes * num_values)[:, None]
    return torch.where(count > 0, total / count.clamp(min=1), centroids.flatten(0, 1)).view_as(centroids)


class CodeItemEncoder(ContentItemEncoder):
    """A frozen text tower, a codebook, and a learned vector for each value of each code."""

    text: Tower
    own_modules = ("codes",)

    def __init__(self, text: Tower, num_codes: int, num_values: int, width: int) -> None:
        """An encoder whose codebook is yet to be fitted or loaded.

        Args:
            text: frozen.
            num_codes: M.
            num_values: K.
            width: D.
        """
        super().__init__(text, None)
        self.codebook = Codebook(text.out_dim, num_codes, num_values)
        self.num_values = num_values
        self.codes = nn.Embedding(num_codes * num_values, width)
        # so that their mean starts as a learned vector of an item does
        nn.init.xavier_normal_(self.codes.weight, gain=num_codes**0.5)

    def config(self) -> dict[str, Any]:
        """See ItemEncoder."""
        return {"text": self.text.config()}

    def layer_groups(self) -> list[LayerGroup]:
        """See ItemEncoder."""
        names = tuple(f"codebook.{name}" for name, _ in self.codebook.named_parameters())
        return [*super().layer_groups(), LayerGroup("codebook", "rest", names, trained=False)]

    def title_vectors(self, items: ItemInputs) -> Tensor:
        """What is quantised: [N, d]."""
        return self._pooled(self.prefix(items))

    def item_codes(self, items: ItemInputs) -> Tensor:
        """[N, M] int64, each below K."""
        return self.codebook(self.title_vectors(items))

    def suffix(self, activations: ItemActivations) -> Tensor:
        """See ItemEncoder."""
        codes = self.codebook(self._pooled(activations))
        first = torch.arange(codes.shape[1], device=codes.device) * self.num_values
        return self.codes(codes + first).mean(dim=1)

    def _pooled(self, activations: ItemActivations) -> Tensor:
        assert activations.text is not None
        tokens, mask = self.text.suffix(activations.text)
        assert mask is not None
        return masked_mean(tokens.float(), mask)

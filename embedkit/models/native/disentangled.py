"""DeBERTa's attention (He et al. 2020, arXiv 2006.03654), in which distances have keys and queries, too.

A score is the sum of three products: of query and key, of the query and the key of their distance, and of the key
and the query of their distance. For a text of n tokens, the latter two are made for all 2 n - 1 distances, and
read along the diagonals by their strides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from embedkit.models.native.attention import MOST_SCORES, SelfAttention, Texts
from embedkit.models.native.linear import Form, Products, Rows
from embedkit.models.native.relative import DistanceTable
from embedkit.models.varlen_attention import AttentionRules

if TYPE_CHECKING:
    from embedkit.models.native.kernels import Kernels


@dataclass(frozen=True, slots=True)
class DisentangledAttention:
    """Attention to all tokens of a text, by content and distance; see attention.Attention."""

    n_heads: int
    position_keys: DistanceTable | None  # multiplied by the queries: [heads, width, rows]; None if they are not
    position_queries: DistanceTable | None  # multiplied by the keys, and scaled; likewise

    def __call__(self, projected: Tensor, texts: Texts) -> Tensor:
        """See Attention."""
        width = projected.shape[1] // 3
        context = projected.new_empty(len(projected), width)
        for group in texts.groups:
            length = group.length
            # A text has its scores, and two products that are twice as wide.
            at_once = max(1, MOST_SCORES // (5 * self.n_heads * length * length))
            for first in range(0, group.count, at_once):
                count = min(at_once, group.count - first)
                rows = slice(group.start + first * length, group.start + (first + count) * length)
                # [3, heads, count, length, width].
                parts = projected[rows].view(count, length, 3, self.n_heads, -1).permute(2, 3, 0, 1, 4)
                query, key, value = parts.contiguous().unbind()
                weights = torch.softmax(self._scores(query, key), dim=-1)
                seen = torch.matmul(weights, value)
                context[rows].view(count, length, self.n_heads, -1).copy_(seen.permute(1, 2, 0, 3))
        return context

    def fused(self, kernels: Kernels, projected: Products, texts: Texts, *, form: Form) -> Rows:
        """See Attention."""
        return kernels.attend(projected, texts, self.heads, form=form, distances=self.distances)

    @property
    def heads(self) -> SelfAttention:
        """See Attention."""
        return SelfAttention(self.n_heads, self.n_heads, AttentionRules())

    @property
    def distances(self) -> tuple[DistanceTable | None, DistanceTable | None]:
        """See Attention."""
        return self.position_keys, self.position_queries

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        """Computes the scores of texts of one length.

        Args:
            query: [heads, count, length, width].
            key: the same.

        Returns:
            [heads, count, length, length].
        """
        count, length = query.shape[1:3]
        n_distances = 2 * length - 1
        scores = torch.matmul(query, key.transpose(-1, -2))
        shape, of_head = scores.shape, count * length * n_distances
        if self.position_keys is not None:
            by_distance = torch.bmm(query.flatten(1, 2), self.position_keys.between(length))
            # Query i and key j are at [i, length - 1 + j - i].
            strides = (of_head, length * n_distances, n_distances - 1, 1)
            scores += by_distance.as_strided(shape, strides, length - 1)
        if self.position_queries is not None:
            # Turned round, so that query i and key j are at [j, length - 1 + i - j]: no stride is negative.
            table = self.position_queries.between(length).flip(-1)
            by_distance = torch.bmm(key.flatten(1, 2), table)
            strides = (of_head, length * n_distances, 1, n_distances - 1)
            scores += by_distance.as_strided(shape, strides, length - 1)
        return scores

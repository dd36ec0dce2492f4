"""Attention of one layer, between the projections to queries, keys and values and the one after it.

A layer holds an `Attention`, and calls it with the projected states and the `Texts` of the batch. Families whose
scores are made in another way (relative positions with weights of their own, windows with global tokens) have a
class of their own here; nothing else of a layer knows how the scores are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from embedkit.models.native.linear import Form, Products, Rows
from embedkit.models.native.norm import Norm
from embedkit.models.native.relative import DistanceTable
from embedkit.models.native.rotary import rotate_
from embedkit.models.native.rotation import Rotation
from embedkit.models.varlen_attention import Attend, AttentionRules, Packing, groups
from embedkit.types import LengthGroup

if TYPE_CHECKING:
    from embedkit.models.native.kernels import Kernels

#: Attention scores held at once: 8 MiB, which stay in the caches.
MOST_SCORES = 2 << 20
#: Longer texts go through torch's own attention, whose memory does not grow with the square of the length.
_LONGEST = 1024


@dataclass(frozen=True, slots=True)
class Texts:
    """Packed texts, and what the layers need of them; computed once for all layers."""

    groups: tuple[LengthGroup, ...]  # the texts by length, the shortest first; they cover the T tokens in order
    #: For each kind of rotation, cosine and sine of every token: fp32 [T, width / 2].
    rotations: Mapping[Rotation, tuple[Tensor, Tensor]]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        return [group.length for group in self.groups for _ in range(group.count)]

    @property
    def n_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(group.count * group.length for group in self.groups)

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(group.length for group in self.groups)

    def split(self, length: int) -> tuple[Texts, Texts]:
        """Divides them into those of up to `length` tokens and the longer ones, without rotations."""
        short = tuple(group for group in self.groups if group.length <= length)
        start = sum(group.count * group.length for group in short)
        rest = tuple(replace(group, start=group.start - start) for group in self.groups[len(short) :])
        return Texts(short, {}), Texts(rest, {})


class Attention(Protocol):
    """Attention within each text of a packed batch on a CPU, with torch or compiled kernels."""

    @property
    def heads(self) -> SelfAttention:
        """The heads, and which tokens they attend to."""

    @property
    def distances(self) -> tuple[DistanceTable | None, DistanceTable | None] | None:
        """What queries, and keys, are multiplied by; None if these scores are made without."""

    def __call__(self, projected: Tensor, texts: Texts) -> Tensor:
        """Computes it with torch's operations.

        Args:
            projected: [T, (heads + 2 key heads) * width]: queries, scaled, then keys and values; overwritten.
            texts: the T tokens.

        Returns:
            [T, heads * width].
        """

    def fused(self, kernels: Kernels, projected: Products, texts: Texts, *, form: Form) -> Rows:
        """Computes the same with compiled kernels.

        Args:
            kernels: the compiled ones.
            projected: as above, with rows of padding after those of the texts; overwritten.
            texts: see above.
            form: what the next layer takes.
        """


@dataclass(frozen=True, slots=True)
class SelfAttention:
    """Attention to all tokens of a text, to earlier ones, or to those in a window; see Attention."""

    n_heads: int  # of the queries
    n_key_heads: int  # each serves as many of the queries'
    rules: AttentionRules
    query_norm: Norm | None = None  # of each head, before it is rotated
    key_norm: Norm | None = None
    rotation: Rotation | None = None
    #: Added to the scores: [heads, buckets]. Only for whole texts, and where no heads share keys.
    bias: DistanceTable | None = None

    def __call__(self, projected: Tensor, texts: Texts) -> Tensor:
        """See Attention."""
        self.prepare_(projected, texts)
        if self._is_plain:
            return attend(projected, texts.groups, self.n_heads, self.bias)
        short, long = self._divided(texts)
        context = projected.new_empty(len(projected), self.n_heads * self._width(projected))
        if short.groups:
            context[: short.n_tokens] = attend(
                self._expanded(projected[: short.n_tokens]), short.groups, self.n_heads, None
            )
        self._attend_to_some(projected, short.n_tokens, long, context)
        return context

    def fused(self, kernels: Kernels, projected: Products, texts: Texts, *, form: Form) -> Rows:
        """See Attention."""
        return kernels.attend(projected, texts, self, form=form)

    @property
    def heads(self) -> SelfAttention:
        """See Attention."""
        return self

    @property
    def distances(self) -> None:
        """See Attention."""

    def on_device(self, kernel: Attend, projected: Tensor, packing: Packing, texts: Texts) -> Tensor:
        """Computes the same on a GPU with a kernel for packed texts; its queries are not scaled."""
        self.prepare_(projected, texts)
        return kernel(*self.split(projected), packing, self.rules).flatten(1)

    def prepare_(self, projected: Tensor, texts: Texts) -> None:
        """Applies the norms of queries and keys and rotates both, in place."""
        heads = projected.view(len(projected), self.n_heads + 2 * self.n_key_heads, -1)
        query, key, _ = self.split(projected)
        if self.query_norm is not None:
            query.copy_(self.query_norm(query))
        if self.key_norm is not None:
            key.copy_(self.key_norm(key))
        if self.rotation is not None:
            rotate_(heads[:, : self.n_heads + self.n_key_heads], *texts.rotations[self.rotation])

    def split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries [T, heads, width], and keys and values [T, key heads, width]."""
        heads = projected.view(len(projected), self.n_heads + 2 * self.n_key_heads, -1)
        query, key, value = torch.split(heads, [self.n_heads, self.n_key_heads, self.n_key_heads], dim=1)
        return query, key, value

    @property
    def _is_plain(self) -> bool:
        """Whether every token attends to its whole text, and every head has keys of its own."""
        return not self.rules.causal and self.rules.window is None and self.n_heads == self.n_key_heads

    def _width(self, projected: Tensor) -> int:
        return projected.shape[1] // (self.n_heads + 2 * self.n_key_heads)

    def _divided(self, texts: Texts) -> tuple[Texts, Texts]:
        """Divides texts into those in which every token attends to all of them, and the others."""
        if self.rules.causal:
            return texts.split(0)
        return texts.split(self.rules.window if self.rules.window is not None else texts.groups[-1].length)

    def _expanded(self, projected: Tensor) -> Tensor:
        """Repeats keys and values for each of the heads that they serve."""
        served = self.n_heads // self.n_key_heads
        if served == 1:
            return projected.contiguous()
        query, key, value = self.split(projected)
        parts = (query, key.repeat_interleave(served, 1), value.repeat_interleave(served, 1))
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def _attend_to_some(self, projected: Tensor, start: int, texts: Texts, context: Tensor) -> None:
        """Computes the rows of texts in which a token attends to a part, from row `start` on, into `context`."""
        if texts.groups:
            query, key, value = self.split(projected[start:])
            # `groups` needs no more of the packing.
            packing = Packing(texts.groups, torch.empty(0), texts.groups[-1].length)
            seen = groups(query, key, value, packing, replace(self.rules, scale=1.0))
            context[start : start + len(seen)] = seen.flatten(1)


def attend(qkv: Tensor, groups: Sequence[LengthGroup], n_heads: int, bias: DistanceTable | None) -> Tensor:
    """Computes attention of every token to its whole text.

    Args:
        qkv: [T, 3 D]: scaled queries, keys, values.
        groups: the texts; they cover the T tokens in order.
        n_heads: heads that D is made of.
        bias: see SelfAttention.

    Returns:
        [T, D].
    """
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    context = qkv.new_empty(tokens, width)
    for group in groups:
        length = group.length
        at_once = max(1, MOST_SCORES // (n_heads * length * length))
        added = None if bias is None else bias.of_pairs(length)
        for first in range(0, group.count, at_once):
            count = min(at_once, group.count - first)
            rows = slice(group.start + first * length, group.start + (first + count) * length)
            # [3, count, heads, length, head_dim]; for a single text the next line copies nothing.
            parts = qkv[rows].view(count, length, 3, n_heads, -1).permute(2, 0, 3, 1, 4)
            query, key, value = parts.reshape(3, count * n_heads, length, -1).unbind()
            if length > _LONGEST:
                seen = functional.scaled_dot_product_attention(
                    *(query[None], key[None], value[None]), attn_mask=added, scale=1.0
                )[0].contiguous()
            else:
                scores = torch.bmm(query, key.transpose(1, 2))
                if added is not None:
                    scores.view(count, n_heads, length, length).add_(added)
                seen = torch.bmm(torch.softmax(scores, dim=-1), value)
            context[rows].view(count, length, n_heads, -1).copy_(
                seen.view(count, n_heads, length, -1).transpose(1, 2)
            )
    return context

"""Attention over ragged sequences: padded by groups of like length, so that the heavy work is dense
products.

Legend: H query heads, K kv heads, G = H / K, d head width, s sequences of a group, L padded length,
N keys, T ragged rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_TILE = 512
"""Queries per attention tile: bounds the score matrix, and makes windowed attention linear in the
length."""

LENGTH_GRANULE = 16
"""Padded lengths are multiples of this, likewise."""

PADDING_WASTE = 1.25
"""A group of sequences spans lengths up to this ratio."""


@dataclass(frozen=True)
class Group:
    """Sequences of like length, padded to `length`."""

    sequences: np.ndarray
    length: int
    rows: slice
    """Its rows among the padded rows of all groups."""


@dataclass(frozen=True)
class Padding:
    """How the ragged rows of a step map to padded rows, group after group, and back."""

    groups: tuple[Group, ...]
    source: Tensor
    """[padded rows] → ragged row; padding repeats a row of its sequence."""
    target: Tensor
    """[T] → padded row."""


def make_padding(cu_seqlens_S1: np.ndarray, device: torch.device) -> Padding:
    lengths = np.diff(cu_seqlens_S1)
    groups: list[Group] = []
    sources: list[np.ndarray] = []
    target = np.zeros(int(cu_seqlens_S1[-1]), np.int64)
    row = 0
    for sequences, length in groups_by_length(lengths):
        size = len(sequences) * length
        groups.append(Group(sequences, length, slice(row, row + size)))
        offsets = np.arange(length)
        inside = offsets < lengths[sequences, None]
        source = cu_seqlens_S1[sequences, None] + np.where(inside, offsets, 0)
        sources.append(source.reshape(-1))
        target[source[inside]] = row + np.flatnonzero(inside.reshape(-1))
        row += size
    return Padding(
        tuple(groups), row_indices(np.concatenate(sources), device), row_indices(target, device)
    )


def groups_by_length(lengths: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Non-empty sequences, sorted by length and cut where the ratio passes `PADDING_WASTE`, and the
    length that each group is padded to."""
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    while len(order):
        fits = int(np.searchsorted(lengths[order], lengths[order[0]] * PADDING_WASTE, "right"))
        length = int(lengths[order[fits - 1]])
        if length > LENGTH_GRANULE:  # decoding stays at 1
            length = -(-length // LENGTH_GRANULE) * LENGTH_GRANULE
        yield order[:fits], length
        order = order[fits:]


def visible(queries: np.ndarray, keys: np.ndarray, window: int | None) -> np.ndarray:
    """[…, queries, keys]: does the query see the key? Negative keys are holes."""
    q, k = queries[..., :, None], keys[..., None, :]
    sees = (k <= q) & (k >= 0)
    if window is not None:
        sees &= k > q - window
    return sees


def tiles(length: int) -> Iterator[tuple[int, int]]:
    for first in range(0, length, QUERY_TILE):
        yield first, min(first + QUERY_TILE, length)


def row_indices(values: np.ndarray, device: torch.device) -> Tensor:
    """Indices as torch takes them."""
    return torch.from_numpy(np.asarray(values, np.int64)).to(device)


def attend(
    q_sLHd: Tensor, k_sNKd: Tensor, v_sNKd: Tensor, sinks_H: Tensor, visible: Tensor
) -> Tensor:
    """Softmax attention with one sink per head; visible [L, N] or [s, L, N]; returns [s, L, H · d].

    The sink is a key of zeros whose score the bias supplies, and whose value is zero.
    """
    s, L, H, d = q_sLHd.shape
    K = k_sNKd.shape[2]
    G = H // K
    q = q_sLHd.unflatten(2, (K, G)).permute(0, 2, 3, 1, 4).reshape(s, K, G * L, d)
    k = F.pad(k_sNKd.permute(0, 2, 3, 1), (1, 0))  # s K d 1+N
    v = F.pad(v_sNKd.permute(0, 2, 1, 3), (0, 0, 1, 0))  # s K 1+N d
    bias = torch.zeros(visible.shape, dtype=q.dtype, device=q.device)
    bias = bias.masked_fill_(~visible, -math.inf)
    bias = bias.view(-1, 1, 1, *visible.shape[-2:]).expand(-1, K, G, -1, -1)
    sink = sinks_H.to(q.dtype).view(1, K, G, 1, 1).expand(len(bias), -1, -1, L, -1)
    bias = torch.cat([sink, bias], dim=-1).flatten(2, 3)
    scores = torch.matmul(q * (1 / math.sqrt(d)), k) + bias
    out = torch.matmul(scores.softmax(-1), v)
    return out.unflatten(2, (G, L)).permute(0, 3, 1, 2, 4).reshape(s, L, H * d)

"""Attention of whole sequences upon themselves, as training needs it: `attention.attend` with a
gradient written by hand, at two thirds of the cost.

Sequences of like length are padded into groups, and the queries of a group are cut into tiles, so
that keys that no query of a tile sees are left out. One gather brings the rows of all heads to
where the products want them, and one takes the results back. Softmaxes run in float32; the gradient
is given their results in the dtype of the products.

Legend: H query heads, K kv heads, G = H / K, d head width, s sequences of a group, L padded length,
n queries of a tile, N keys that they meet, T ragged rows, P rows of the layout.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ossia.kernels.interface import Dims
from ossia.kernels.torch.attention import LENGTH_GRANULE, groups_by_length, row_indices, visible

QUERY_TILE = 128
"""Queries of a tile: fewer leave out more keys, more make larger products."""

SINK_COLUMNS = 16
"""A softmax is this much wider than its keys, and the first of these columns is the sink: rows that
do not start at a whole vector take a third longer."""


@dataclass(frozen=True)
class Tile:
    """Queries `first` to `last` of all sequences and heads of a group."""

    batch: int
    """s · K"""
    first: int
    last: int
    queries: slice
    """Rows of the layout: [s, K, G, n]."""
    keys: slice
    """Rows of the layout: [s, K, L], the same for all tiles of a group."""
    values: slice

    def first_key(self, window: int | None) -> int:
        """Keys before this one are seen by no query of the tile."""
        seen = 0 if window is None else max(0, self.first - window + 1)
        return seen // LENGTH_GRANULE * LENGTH_GRANULE

    def of(self, rows_Pd: Tensor, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Its queries [s · K, G · n, d], keys and values [s · K, N, d]: views of `rows_Pd`."""
        q, k, v = (
            rows_Pd[rows].view(self.batch, -1, rows_Pd.shape[1])
            for rows in (self.queries, self.keys, self.values)
        )
        seen = slice(self.first_key(window), self.last)
        return q, k[:, seen], v[:, seen]


@dataclass(frozen=True)
class Layout:
    """Where the rows of the heads lie for the products."""

    tiles: tuple[Tile, ...]
    source_P: Tensor
    """Row of the layout → row of qkv [T · (H + 2K), d]; padding repeats a row of its sequence."""
    target: Tensor
    """[T, H + 2K] → row of the layout."""


def make_layout(cu_seqlens_S1: np.ndarray, dims: Dims, device: torch.device) -> Layout:
    H, K = dims.num_heads, dims.num_kv_heads
    heads = np.arange(H + 2 * K)
    sources: list[np.ndarray] = []
    real: list[np.ndarray] = []
    size = 0

    def place(rows: np.ndarray, inside: np.ndarray, heads: np.ndarray) -> slice:
        """[s, n] ragged rows of some heads take the next rows of the layout, [s, heads, n]."""
        nonlocal size
        source = rows[:, None] * (H + 2 * K) + heads[:, None]
        sources.append(source.reshape(-1))
        real.append(np.broadcast_to(inside[:, None], source.shape).reshape(-1))
        size += source.size
        return slice(size - source.size, size)

    tiles: list[Tile] = []
    lengths = np.diff(cu_seqlens_S1)
    for sequences, length in groups_by_length(lengths):
        offsets = np.arange(length)
        inside = offsets < lengths[sequences, None]
        rows = cu_seqlens_S1[sequences, None] + np.where(inside, offsets, 0)
        keys = place(rows, inside, heads[H : H + K])
        values = place(rows, inside, heads[H + K :])
        for first in range(0, length, QUERY_TILE):
            last = min(first + QUERY_TILE, length)
            queries = place(rows[:, first:last], inside[:, first:last], heads[:H])
            tiles.append(Tile(len(sequences) * K, first, last, queries, keys, values))
    source_P = np.concatenate(sources)
    real_P = np.flatnonzero(np.concatenate(real))
    target = np.empty(int(cu_seqlens_S1[-1]) * len(heads), np.int64)
    target[source_P[real_P]] = real_P
    return Layout(
        tuple(tiles),
        row_indices(source_P, device),
        row_indices(target.reshape(-1, len(heads)), device),
    )


class SelfAttention(torch.autograd.Function):
    """qkv [T, (H + 2K) · d] → [T, H · d]."""

    @staticmethod
    def forward(ctx, qkv, sinks_H, layout, window, dims):  # type: ignore[override]
        H, d = dims.num_heads, dims.head_dim
        rows_Pd = qkv.view(-1, d).index_select(0, layout.source_P)
        out_Pd, sink_P = torch.empty_like(rows_Pd), sinks_H.new_empty(len(rows_Pd))
        sinks = sinks_H.view(dims.num_kv_heads, -1)
        kept: list[Tensor] = []
        for tile in layout.tiles:
            q, k, v = tile.of(rows_Pd, window)
            bias = _bias(
                *(tile.first, tile.last, tile.first_key(window), window),
                *(sinks_H.dtype, sinks_H.device),
            )
            p, p_sink = _softmax(torch.bmm(q, k.mT), sinks, bias, d**-0.5)
            torch.bmm(p, v, out=tile.of(out_Pd, window)[0])
            sink_P[tile.queries] = p_sink.flatten()
            kept.append(p)
        queries = layout.target[:, :H].flatten()
        out_T = out_Pd.index_select(0, queries).view(len(qkv), H * d)
        ctx.save_for_backward(rows_Pd, out_T, sink_P[queries], *kept)
        ctx.layout, ctx.window, ctx.queries, ctx.dims = layout, window, queries, dims
        return out_T

    @staticmethod
    def backward(ctx, grad_T):  # type: ignore[override]
        rows_Pd, out_T, p_sink, *kept = ctx.saved_tensors
        layout, window, d = ctx.layout, ctx.window, ctx.dims.head_dim
        grad_rows = grad_T.reshape(-1, d)
        # Padding is zero here, so that its queries add nothing to the gradients of keys.
        grad_out_Pd = torch.zeros_like(rows_Pd).index_copy_(0, ctx.queries, grad_rows)
        grad_Pd = torch.zeros_like(rows_Pd)
        for tile, p in zip(layout.tiles, kept, strict=True):
            q, k, v = tile.of(rows_Pd, window)
            grad_q, grad_k, grad_v = tile.of(grad_Pd, window)
            grad, _, _ = tile.of(grad_out_Pd, window)
            grad_v.baddbmm_(p.mT, grad)
            grad_p = torch.bmm(grad, v.mT)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_q.baddbmm_(grad_scores, k, alpha=d**-0.5)
            grad_k.baddbmm_(grad_scores.mT, q, alpha=d**-0.5)
        # The sink has no value: all that reaches it is its share of what a softmax takes off.
        taken_off = (out_T * grad_T).view(-1, d).sum(-1, dtype=p_sink.dtype)
        grad_sinks = -(p_sink * taken_off).view(len(grad_T), -1).sum(0)
        grad_qkv = grad_Pd.index_select(0, layout.target.flatten())
        return grad_qkv.view(len(grad_T), -1), grad_sinks, None, None, None


def _softmax(scores: Tensor, sinks_KG: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """scores [s · K, G · n, N] and bias [n, N] → probabilities of the keys, shaped and typed as
    scores; of the sink [s, K, G, n], as bias."""
    n, N = bias.shape
    sequences = scores.numel() // (sinks_KG.numel() * n * N)
    wide = bias.new_empty(sequences, *sinks_KG.shape, n, N + SINK_COLUMNS)
    wide[..., N:] = -math.inf
    torch.add(bias, scores.view(*wide.shape[:-1], N), alpha=scale, out=wide[..., :N])
    wide[..., N] = sinks_KG[..., None]
    torch.softmax(wide, -1, out=wide)
    p = torch.empty_like(scores)
    p.view(*wide.shape[:-1], N).copy_(wide[..., :N])
    return p, wide[..., N]


@functools.lru_cache(maxsize=64)
def _bias(
    first: int, last: int, seen: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[n, N]: 0 where the query sees the key, else −∞. The same at every step, hence kept."""
    sees = visible(np.arange(first, last), np.arange(seen, last), window)
    return torch.from_numpy(np.where(sees, 0.0, -np.inf)).to(device, dtype)

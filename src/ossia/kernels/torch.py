"""The kernels in PyTorch: differentiable for training, and inference on devices without kernels of
their own.

Matrix products run in `dtype`; the residual stream, norms, routing, logits and softmaxes run in
float32 (float64 under float64). Parameters may be torch tensors that require gradients: `prepare`
is then part of the graph and is called once per training step. Ragged sequences are padded by
groups of like length, and tokens sorted by expert, so that the heavy work is dense products.

Legend: T tokens, D model width, H query heads, K kv heads, G = H / K, d head width, E experts, I
expert width, A = T · experts_per_token assignments sorted by expert, s sequences of a group, L
padded length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ossia.errors import KernelError
from ossia.kernels.interface import (
    NO_BLOCK,
    CacheSpec,
    Dims,
    HostTensor,
    PagedIndex,
    Part,
    Rope,
    SampledTokens,
    SamplingBatch,
    part_shapes,
)
from ossia.kernels.mxfp4 import E2M1_VALUES, Mxfp4Tensor
from ossia.kernels.sampling import sample_rows

DECODE_ONCE_BYTES = 64 << 20
"""MXFP4 experts of one layer that decode into fewer bytes are decoded by `prepare`; larger ones
stay packed and each selected expert is decoded in use (20b: 0.8 GB a layer decoded, 0.4 GB
packed)."""

QUERY_TILE = 512
"""Queries per attention tile: bounds the score matrix, and makes windowed attention linear in the
length."""

ROW_GRANULE = 64
"""Large batches give each expert a multiple of so many rows: oneDNN compiles a kernel for every new
shape, which otherwise takes a third of a training step."""

LENGTH_GRANULE = 16
"""Padded lengths are multiples of this, likewise."""

PADDING_WASTE = 1.25
"""A group of sequences spans lengths up to this ratio."""


@dataclass(frozen=True)
class Embedding:
    weight_VD: Tensor


@dataclass(frozen=True)
class AttentionWeights:
    """q, k and v are fused, in this order of rows."""

    dims: Dims
    norm_D: Tensor
    qkv: Tensor
    qkv_bias: Tensor
    o: Tensor
    o_bias: Tensor
    sinks_H: Tensor


@dataclass(frozen=True)
class PackedExperts:
    """MXFP4 as the checkpoint holds it, on the device."""

    blocks: Tensor
    scales: Tensor


@dataclass(frozen=True)
class MoeWeights:
    dims: Dims
    norm_D: Tensor
    router_ED: Tensor
    router_bias_E: Tensor
    gate_up: Sequence[Tensor] | PackedExperts
    """Per expert [2I, D], rows de-interleaved: gates, then ups (packed ones: in decoding)."""
    gate_up_bias: Tensor
    down: Sequence[Tensor] | PackedExperts
    down_bias: Tensor


@dataclass(frozen=True)
class Head:
    dims: Dims
    norm_D: Tensor
    weight_VD: Tensor


@dataclass(frozen=True)
class Routing:
    """What one MoE layer's router did in one forward pass, recorded for the load-balance loss."""

    probabilities_TE: Tensor
    """Softmax over all experts; carries the gradient."""
    counts_E: Tensor
    """Tokens that chose each expert."""


@dataclass(frozen=True)
class TorchCache:
    """One tensor [N, block_size, 2, K, d] per layer: a token's keys and values are one slot."""

    layers: tuple[Tensor, ...]
    block_size: int


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


@dataclass(frozen=True)
class Dispatch:
    """Which rows go to which expert; padding repeats token 0 and is never read back."""

    slot_Tk: Tensor
    """[T, k] → row among the assignments, which are sorted by expert."""
    token_A: Tensor
    """Row → token."""
    sizes: list[int]
    """Rows of each expert."""


class TorchKernels:
    """`Kernels` over torch tensors; see the module docstring.

    `record_routing`: every `moe` call appends a `Routing` to `routing`, which the caller clears.
    """

    name = "torch"

    def __init__(
        self,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        cache_dtype: torch.dtype | None = None,
        *,
        record_routing: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.residual_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.cache_dtype = cache_dtype or dtype
        self.record_routing = record_routing
        self.routing: list[Routing] = []
        self._padding: tuple[np.ndarray, Padding] | None = None

    @property
    def cache_itemsize(self) -> int:
        return self.cache_dtype.itemsize

    # ---- weights -------------------------------------------------------------------------------

    def prepare(
        self, part: Part, tensors: Mapping[str, HostTensor | Tensor], dims: Dims
    ) -> Embedding | AttentionWeights | MoeWeights | Head:
        for name, shape in part_shapes(part, dims).items():
            if name not in tensors:
                raise KernelError(f"[prepare] {part.value} expected a tensor {name}, got none")
            if tuple(tensors[name].shape) != shape:
                raise KernelError(
                    f"[prepare] expected {part.value}.{name} of shape {list(shape)}, got "
                    f"{list(tensors[name].shape)}"
                )

        def take(name: str, dtype: torch.dtype | None = None) -> Tensor:
            return self._tensor(tensors[name], dtype or self.residual_dtype)

        match part:
            case Part.EMBEDDING:
                return Embedding(take("weight"))
            case Part.HEAD:
                return Head(dims, take("norm"), take("weight", self.dtype))
            case Part.ATTENTION:
                return AttentionWeights(
                    dims,
                    norm_D=take("norm"),
                    qkv=torch.cat([take(name, self.dtype) for name in ("q", "k", "v")]),
                    qkv_bias=torch.cat(
                        [take(name, self.dtype) for name in ("q_bias", "k_bias", "v_bias")]
                    ),
                    o=take("o", self.dtype),
                    o_bias=take("o_bias"),
                    sinks_H=take("sinks"),
                )
            case Part.MOE:
                bias = take("gate_up_bias", self.dtype)
                return MoeWeights(
                    dims,
                    norm_D=take("norm"),
                    router_ED=take("router"),
                    router_bias_E=take("router_bias"),
                    gate_up=self._experts(tensors["gate_up"], interleaved=True),
                    gate_up_bias=torch.cat([bias[:, 0::2], bias[:, 1::2]], dim=1),
                    down=self._experts(tensors["down"], interleaved=False),
                    down_bias=take("down_bias", self.dtype),
                )

    def _tensor(self, value: HostTensor | Tensor, dtype: torch.dtype) -> Tensor:
        if isinstance(value, Mxfp4Tensor):
            packed = self._packed(value)
            return decode_mxfp4(packed.blocks, packed.scales, dtype)
        if isinstance(value, Tensor):
            return value.to(self.device, dtype)
        if value.dtype.name == "bfloat16":  # torch reads no ml_dtypes; the bits are the same
            bits = np.array(value.view(np.int16))
            return torch.from_numpy(bits).view(torch.bfloat16).to(self.device, dtype)
        return torch.from_numpy(np.array(value)).to(self.device, dtype)

    def _packed(self, value: Mxfp4Tensor) -> PackedExperts:
        return PackedExperts(
            torch.from_numpy(np.array(value.blocks)).to(self.device),
            torch.from_numpy(np.array(value.scales)).to(self.device),
        )

    def _experts(
        self, value: HostTensor | Tensor, *, interleaved: bool
    ) -> Sequence[Tensor] | PackedExperts:
        decoded_bytes = math.prod(value.shape) * self.dtype.itemsize
        if isinstance(value, Mxfp4Tensor) and decoded_bytes > DECODE_ONCE_BYTES:
            return self._packed(value)
        weight = self._tensor(value, self.dtype)
        if interleaved:
            weight = torch.cat([weight[:, 0::2], weight[:, 1::2]], dim=1)
        return weight.unbind()

    # ---- the cache -----------------------------------------------------------------------------

    def allocate_cache(self, spec: CacheSpec) -> TorchCache:
        return TorchCache(
            layers=tuple(
                torch.zeros(
                    (
                        spec.num_sliding_blocks if sliding else spec.num_full_blocks,
                        spec.block_size,
                        2,
                        spec.num_kv_heads,
                        spec.head_dim,
                    ),
                    dtype=self.cache_dtype,
                    device=self.device,
                )
                for sliding in spec.sliding_layers
            ),
            block_size=spec.block_size,
        )

    # ---- ops -----------------------------------------------------------------------------------

    def embed(self, ids_T: np.ndarray, weight: Embedding) -> Tensor:
        if len(ids_T) and not 0 <= int(ids_T.min()) <= int(ids_T.max()) < len(weight.weight_VD):
            raise KernelError(
                f"[embed] expected ids from 0 to {len(weight.weight_VD) - 1}, got "
                f"{int(ids_T.min())} to {int(ids_T.max())}"
            )
        return F.embedding(self._index(ids_T), weight.weight_VD)

    def attn_in(
        self,
        x: Tensor,
        weight: AttentionWeights,
        *,
        positions_T: np.ndarray,
        rope: Rope,
        cache: TorchCache | None,
        layer: int,
        index: PagedIndex | None,
    ) -> Tensor:
        """[T, (H + 2K) · d]: q, k, v, the first two rotated."""
        dims = weight.dims
        H, K, d = dims.num_heads, dims.num_kv_heads, dims.head_dim
        normed = rms_norm(x, weight.norm_D, dims.rms_norm_eps).to(self.dtype)
        qkv = F.linear(normed, weight.qkv, weight.qkv_bias)
        rotated = (H + K) * d
        cos, sin = self._rotation(positions_T, rope)
        qk = apply_rope(qkv[:, :rotated].unflatten(1, (H + K, d)), cos, sin)
        qkv = torch.cat([qk.to(self.dtype).flatten(1), qkv[:, rotated:]], dim=1)
        if cache is not None:
            assert index is not None
            slots = cache.layers[layer].view(-1, 2, K, d)
            stored = qkv[:, H * d :].view(-1, 2, K, d).to(self.cache_dtype)
            slots.index_copy_(0, self._index(index.slot_mapping_T), stored.detach())
        return qkv

    def attention(
        self,
        qkv: Tensor,
        weight: AttentionWeights,
        *,
        positions_T: np.ndarray,
        cu_seqlens_S1: np.ndarray,
        window: int | None,
        cache: TorchCache | None,
        layer: int,
        index: PagedIndex | None,
    ) -> Tensor:
        dims = weight.dims
        H, K, d = dims.num_heads, dims.num_kv_heads, dims.head_dim
        padding = self._pad(cu_seqlens_S1)
        padded = _Pad.apply(qkv if cache is None else qkv[:, : H * d], padding)
        outputs: list[Tensor] = []
        for group in padding.groups:
            rows = padded[group.rows].unflatten(0, (len(group.sequences), group.length))
            q_sLHd = rows[..., : H * d].unflatten(2, (H, d))
            if cache is None:
                k_sLKd, v_sLKd = rows[..., H * d :].unflatten(2, (2, K, d)).unbind(2)
                for first, last in _tiles(group.length):
                    seen = 0 if window is None else max(0, first - window + 1)
                    visible = self._visible(
                        np.arange(first, last), np.arange(seen, last), window=window
                    )
                    outputs.append(
                        attend(
                            q_sLHd[:, first:last],
                            k_sLKd[:, seen:last],
                            v_sLKd[:, seen:last],
                            weight.sinks_H,
                            visible,
                        )
                    )
                if group.length > QUERY_TILE:
                    count = len(list(_tiles(group.length)))
                    outputs[-count:] = [torch.cat(outputs[-count:], dim=1)]
            else:
                assert index is not None
                outputs.append(
                    self._attend_cached(
                        q_sLHd,
                        weight,
                        group=group,
                        first_positions=positions_T[cu_seqlens_S1[group.sequences]],
                        window=window,
                        pages=cache.layers[layer],
                        tables=index.block_tables_SB[group.sequences],
                    )
                )
        flat = [output.reshape(-1, H * d) for output in outputs]
        return _Unpad.apply(torch.cat(flat) if len(flat) > 1 else flat[0], padding)

    def _attend_cached(
        self,
        q_sLHd: Tensor,
        weight: AttentionWeights,
        *,
        group: Group,
        first_positions: np.ndarray,
        window: int | None,
        pages: Tensor,
        tables: np.ndarray,
    ) -> Tensor:
        """Gathers the pages that hold visible keys; freed pages are masked by their position."""
        block_size = pages.shape[1]
        outputs: list[Tensor] = []
        for first, last in _tiles(group.length):
            seen = 0 if window is None else max(0, int(first_positions.min()) + first - window + 1)
            blocks = slice(
                seen // block_size,
                min(-(-(int(first_positions.max()) + last) // block_size), tables.shape[1]),
            )
            table = np.ascontiguousarray(tables[:, blocks])
            keys = np.arange(blocks.start * block_size, blocks.stop * block_size)
            visible = self._visible(
                first_positions[:, None] + np.arange(first, last),
                np.where(table.repeat(block_size, axis=1) == NO_BLOCK, -1, keys),
                window=window,
            )
            # The cache is zeroed when made, so that what an unused slot holds is finite.
            kv = pages[self._index(np.maximum(table, 0))].flatten(1, 2).to(self.dtype)
            outputs.append(
                attend(q_sLHd[:, first:last], kv[:, :, 0], kv[:, :, 1], weight.sinks_H, visible)
            )
        return torch.cat(outputs, dim=1)

    def attn_out(self, x: Tensor, attended: Tensor, weight: AttentionWeights) -> Tensor:
        return x + (F.linear(attended, weight.o) + weight.o_bias)

    def moe(self, x: Tensor, weight: MoeWeights) -> Tensor:
        dims = weight.dims
        E, k = dims.num_experts, dims.experts_per_token
        normed = rms_norm(x, weight.norm_D, dims.rms_norm_eps)
        logits_TE = F.linear(normed, weight.router_ED, weight.router_bias_E)
        # A stable sort keeps the lowest index among equals, as topk does not promise.
        top_Tk, chosen_Tk = logits_TE.sort(dim=-1, descending=True, stable=True)
        top_Tk, chosen_Tk = top_Tk[:, :k], chosen_Tk[:, :k]
        share_Tk = top_Tk.softmax(-1).to(self.dtype)

        counts_E = torch.bincount(chosen_Tk.reshape(-1), minlength=E)
        if self.record_routing:
            self.routing.append(Routing(logits_TE.softmax(-1), counts_E))
        plan = self._dispatch(chosen_Tk, counts_E)
        rows_AD = _Dispatch.apply(normed.to(self.dtype), plan)
        outputs: list[Tensor] = []
        for expert, rows in enumerate(rows_AD.split(plan.sizes)):
            if not len(rows):
                continue
            up = expert_weight(weight.gate_up, expert, self.dtype, interleaved=True)
            down = expert_weight(weight.down, expert, self.dtype, interleaved=False)
            hidden = F.linear(rows, up, weight.gate_up_bias[expert])
            act = swiglu(hidden, dims.swiglu_limit, dims.swiglu_alpha)
            outputs.append(F.linear(act, down, weight.down_bias[expert]))
        return x + _Combine.apply(torch.cat(outputs), share_Tk, plan)

    def _dispatch(self, chosen_Tk: Tensor, counts_E: Tensor) -> Dispatch:
        T, k = chosen_Tk.shape
        experts_A = chosen_Tk.reshape(-1)
        granule = ROW_GRANULE if len(experts_A) >= ROW_GRANULE * len(counts_E) else 1
        sizes_E = (counts_E + granule - 1) // granule * granule
        order_A = experts_A.argsort(stable=True)
        first_E = sizes_E.cumsum(0) - sizes_E - (counts_E.cumsum(0) - counts_E)
        slots = torch.arange(len(order_A), device=self.device) + first_E[experts_A[order_A]]
        slot_Tk = torch.empty_like(order_A)
        slot_Tk[order_A] = slots
        sizes = sizes_E.tolist()
        token_A = order_A.new_zeros(sum(sizes))
        token_A[slots] = order_A // k
        return Dispatch(slot_Tk.view(T, k), token_A, sizes)

    def logits(self, x: Tensor, weight: Head, rows: np.ndarray) -> Tensor:
        chosen = x if len(rows) == len(x) else x.index_select(0, self._index(rows))
        normed = rms_norm(chosen, weight.norm_D, weight.dims.rms_norm_eps)
        return F.linear(normed.to(self.dtype), weight.weight_VD).to(self.residual_dtype)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> SampledTokens:
        return sample_rows(self.to_host(logits), batch)

    def to_host(self, handle: Tensor) -> np.ndarray:
        return handle.detach().to("cpu", torch.float32).numpy()

    # ---- indices -------------------------------------------------------------------------------

    def _index(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.int64)).to(self.device)

    def _rotation(self, positions_T: np.ndarray, rope: Rope) -> tuple[Tensor, Tensor]:
        """cos and sin, [T, 1, d / 2]."""
        positions = torch.from_numpy(np.asarray(positions_T, np.float32))
        angles = positions[:, None] * torch.tensor(rope.inv_freq, dtype=torch.float32)
        return (
            (angles.cos() * rope.concentration)[:, None].to(self.device, self.residual_dtype),
            (angles.sin() * rope.concentration)[:, None].to(self.device, self.residual_dtype),
        )

    def _visible(self, queries: np.ndarray, keys: np.ndarray, *, window: int | None) -> Tensor:
        """[…, queries, keys]: does the query see the key? Negative keys are holes."""
        q, k = queries[..., :, None], keys[..., None, :]
        visible = (k <= q) & (k >= 0)
        if window is not None:
            visible &= k > q - window
        return torch.from_numpy(visible).to(self.device)

    def _pad(self, cu_seqlens_S1: np.ndarray) -> Padding:
        """The same for every layer of a step, so the last one made is kept."""
        if self._padding is None or self._padding[0] is not cu_seqlens_S1:
            self._padding = (cu_seqlens_S1, self._make_padding(cu_seqlens_S1))
        return self._padding[1]

    def _make_padding(self, cu_seqlens_S1: np.ndarray) -> Padding:
        lengths = np.diff(cu_seqlens_S1)
        groups: list[Group] = []
        sources: list[np.ndarray] = []
        target = np.zeros(int(cu_seqlens_S1[-1]), np.int64)
        row = 0
        for sequences in _by_length(lengths):
            length = int(lengths[sequences].max())
            if length > LENGTH_GRANULE:  # decoding stays at 1
                length = -(-length // LENGTH_GRANULE) * LENGTH_GRANULE
            size = len(sequences) * length
            groups.append(Group(sequences, length, slice(row, row + size)))
            offsets = np.arange(length)
            inside = offsets < lengths[sequences, None]
            source = cu_seqlens_S1[sequences, None] + np.where(inside, offsets, 0)
            sources.append(source.reshape(-1))
            target[source[inside]] = row + np.flatnonzero(inside.reshape(-1))
            row += size
        return Padding(tuple(groups), self._index(np.concatenate(sources)), self._index(target))


def _by_length(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Non-empty sequences, sorted by length and cut where the ratio passes `PADDING_WASTE`."""
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    while len(order):
        fits = int(np.searchsorted(lengths[order], lengths[order[0]] * PADDING_WASTE, "right"))
        yield order[:fits]
        order = order[fits:]


def _tiles(length: int) -> Iterator[tuple[int, int]]:
    for first in range(0, length, QUERY_TILE):
        yield first, min(first + QUERY_TILE, length)


# ---- formulas ----------------------------------------------------------------------------------


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight_D.shape, weight_D, eps)


def apply_rope(x_Thd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x_Thd.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def swiglu(hidden: Tensor, limit: float, alpha: float) -> Tensor:
    """g · sigmoid(alpha · g) · (u + 1) of hidden [.., gates | ups]; the gate is clamped from above
    only."""
    gate, up = hidden.chunk(2, dim=-1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return F.silu(gate * alpha) * ((up + 1) / alpha)


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


def decode_mxfp4(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """[.., rows, groups, 16] and [.., rows, groups] uint8 → [.., rows, 32 · groups], exact."""
    signed = (*E2M1_VALUES, *(-value for value in E2M1_VALUES))
    table = torch.tensor(signed, dtype=dtype, device=blocks.device)
    nibbles = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2)
    exponent = scales.to(torch.int32).unsqueeze(-1) - 127
    return torch.ldexp(table[nibbles.to(torch.int64)], exponent).flatten(-2).to(dtype)


def expert_weight(
    experts: Sequence[Tensor] | PackedExperts, index: int, dtype: torch.dtype, *, interleaved: bool
) -> Tensor:
    if not isinstance(experts, PackedExperts):
        return experts[index]
    weight = decode_mxfp4(experts.blocks[index], experts.scales[index], dtype)
    return torch.cat([weight[0::2], weight[1::2]]) if interleaved else weight


# ---- moving rows: torch's own gradient of a gather is a serial scatter-add on CPU, these are
# gathers too ------------------------------------------------------------------------------------


class _Pad(torch.autograd.Function):
    """Ragged rows → padded rows. Padding repeats real rows, whose gradient it does not carry: what
    comes out of padded rows is never used, and padded keys are never visible."""

    @staticmethod
    def forward(ctx, x, padding):  # type: ignore[override]
        ctx.padding = padding
        return x.index_select(0, padding.source)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        return grad.index_select(0, ctx.padding.target), None


class _Unpad(torch.autograd.Function):
    """Padded rows → ragged rows; the gradient of padding is zero."""

    @staticmethod
    def forward(ctx, x, padding):  # type: ignore[override]
        ctx.padding, ctx.rows = padding, len(x)
        return x.index_select(0, padding.target)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        out = grad.new_zeros(ctx.rows, grad.shape[1])
        return out.index_copy_(0, ctx.padding.target, grad), None


class _Dispatch(torch.autograd.Function):
    """Token rows → one row per assignment, sorted by expert."""

    @staticmethod
    def forward(ctx, x_TD, plan):  # type: ignore[override]
        ctx.plan = plan
        return x_TD.index_select(0, plan.token_A)

    @staticmethod
    def backward(ctx, grad_AD):  # type: ignore[override]
        return F.embedding_bag(ctx.plan.slot_Tk, grad_AD, mode="sum"), None


class _Combine(torch.autograd.Function):
    """Σ_k share[t, k] · y[slot[t, k]]: a weighted bag of rows."""

    @staticmethod
    def forward(ctx, y_AD, share_Tk, plan):  # type: ignore[override]
        ctx.save_for_backward(y_AD, share_Tk)
        ctx.plan = plan
        return F.embedding_bag(plan.slot_Tk, y_AD, per_sample_weights=share_Tk, mode="sum")

    @staticmethod
    def backward(ctx, grad_TD):  # type: ignore[override]
        y_AD, share_Tk = ctx.saved_tensors
        slot_Tk = ctx.plan.slot_Tk
        grad_AD = grad_TD.to(y_AD.dtype).index_select(0, ctx.plan.token_A)
        share_A = share_Tk.new_zeros(len(y_AD))  # padding has no share, hence no gradient
        share_A[slot_Tk] = share_Tk
        grad_share_A = torch.linalg.vecdot(grad_AD, y_AD)
        return grad_AD * share_A[:, None], grad_share_A[slot_Tk], None

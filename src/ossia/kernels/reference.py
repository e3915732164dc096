"""The specification: every op of `Kernels` in numpy, written to be read.

All arithmetic runs in one dtype, float32 or float64, whatever the checkpoint holds. The surprising
thing is what happens to memory: tensors that are small once converted are converted by `prepare`,
larger ones stay as the checkpoint maps them and are converted each time they are used, experts one
by one. So a model of any size runs, though not fast.

Legend as in `kernels.interface`; t queries of a tile, L keys that a tile may see, k experts per
token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import DTypeLike

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
from ossia.kernels.mxfp4 import Mxfp4Tensor, decode
from ossia.kernels.sampling import sample_rows

CONVERT_ONCE_BYTES = 16 << 20
"""A tensor that takes at most this much in the compute dtype is converted once, by `prepare`. All
of a small model's do; of gpt-oss-20b's only the norms, biases, routers, k and v."""

# A model that diverges gives NaN logits, and `sample` reports them: numpy need not warn as well.
_quietly = np.errstate(over="ignore", invalid="ignore")

_CONVERT_CHUNK_BYTES = 32 << 20  # of a tensor that is converted in use, at a time
_QUERY_TILE = 256
_SCORES_PER_TILE = 1 << 24  # 64 MiB of float32: bounds the tile further for long contexts


@dataclass(frozen=True)
class AttentionWeights:
    dims: Dims
    norm_D: np.ndarray
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    qkv_bias: np.ndarray
    o: np.ndarray
    o_bias: np.ndarray
    sinks_H: np.ndarray


@dataclass(frozen=True)
class MoeWeights:
    dims: Dims
    norm_D: np.ndarray
    router_ED: np.ndarray
    router_bias_E: np.ndarray
    gate_up: HostTensor
    gate_up_bias: np.ndarray
    down: HostTensor
    down_bias: np.ndarray


@dataclass(frozen=True)
class HeadWeights:
    dims: Dims
    norm_D: np.ndarray
    weight_VD: np.ndarray


@dataclass(frozen=True)
class Qkv:
    """What `attn_in` hands to `attention`; k and v are those of this step."""

    q_THd: np.ndarray
    k_TKd: np.ndarray
    v_TKd: np.ndarray


@dataclass(frozen=True)
class ReferenceCache:
    """Per layer [N, K, 2, block_size, d]; index 0 of the third axis holds keys, 1 values."""

    layers: tuple[np.ndarray, ...]
    block_size: int


class ReferenceKernels:
    """`Kernels` over numpy arrays. `dtype`: float32 or float64, of all arithmetic. `cache_dtype`:
    that in which keys and values are stored and read back, float32 or bfloat16 (ml_dtypes).
    """

    name = "reference"

    def __init__(
        self, *, dtype: DTypeLike = np.float32, cache_dtype: DTypeLike = np.float32
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.cache_dtype = np.dtype(cache_dtype)
        if self.dtype not in (np.float32, np.float64):
            raise KernelError(f"reference computes in float32 or float64, not in {self.dtype}")
        self._rotations: dict[Rope, _Rotation] = {}

    @property
    def cache_itemsize(self) -> int:
        return self.cache_dtype.itemsize

    # -- Weights and cache ---------------------------------------------------------------------

    def prepare(
        self, part: Part, tensors: Mapping[str, HostTensor], dims: Dims
    ) -> np.ndarray | AttentionWeights | MoeWeights | HeadWeights:
        for name, shape in part_shapes(part, dims).items():
            if name not in tensors:
                raise KernelError(f"[prepare] {part.value} expected a tensor {name}, got none")
            _expect("prepare", f"{part.value}.{name}", tensors[name], shape)

        def array(name: str) -> np.ndarray:
            tensor = tensors[name]
            if isinstance(tensor, Mxfp4Tensor):
                raise KernelError(f"[prepare] expected {part.value}.{name} as an array, got MXFP4")
            return tensor

        def dense(name: str) -> np.ndarray:
            tensor = array(name)
            return tensor if self._is_large(tensor) else np.ascontiguousarray(tensor, self.dtype)

        def experts(name: str) -> HostTensor:
            tensor = tensors[name]
            if isinstance(tensor, Mxfp4Tensor) and not self._is_large(tensor):
                return decode(tensor, self.dtype)
            return tensor if isinstance(tensor, Mxfp4Tensor) else dense(name)

        match part:
            case Part.EMBEDDING:
                return array("weight")  # rows are converted when they are gathered
            case Part.HEAD:
                return HeadWeights(dims, dense("norm"), dense("weight"))
            case Part.ATTENTION:
                return AttentionWeights(
                    dims,
                    norm_D=dense("norm"),
                    q=dense("q"),
                    k=dense("k"),
                    v=dense("v"),
                    qkv_bias=np.concatenate([dense("q_bias"), dense("k_bias"), dense("v_bias")]),
                    o=dense("o"),
                    o_bias=dense("o_bias"),
                    sinks_H=dense("sinks"),
                )
            case Part.MOE:
                return MoeWeights(
                    dims,
                    norm_D=dense("norm"),
                    router_ED=dense("router"),
                    router_bias_E=dense("router_bias"),
                    gate_up=experts("gate_up"),
                    gate_up_bias=dense("gate_up_bias"),
                    down=experts("down"),
                    down_bias=dense("down_bias"),
                )

    def _is_large(self, tensor: HostTensor) -> bool:
        return math.prod(tensor.shape) * self.dtype.itemsize > CONVERT_ONCE_BYTES

    def allocate_cache(self, spec: CacheSpec) -> ReferenceCache:
        def layer(sliding: bool) -> np.ndarray:
            num_blocks = spec.num_sliding_blocks if sliding else spec.num_full_blocks
            shape = (num_blocks, spec.num_kv_heads, 2, spec.block_size, spec.head_dim)
            return np.zeros(shape, self.cache_dtype)

        return ReferenceCache(tuple(map(layer, spec.sliding_layers)), spec.block_size)

    # -- The ops -------------------------------------------------------------------------------

    def embed(self, ids_T: np.ndarray, weight: np.ndarray) -> np.ndarray:
        V = len(weight)
        if len(ids_T) and not 0 <= ids_T.min() <= ids_T.max() < V:  # numpy would count from the end
            raise KernelError(
                f"[embed] expected token ids from 0 to {V - 1}, got {ids_T.min()} to {ids_T.max()}"
            )
        return weight[ids_T].astype(self.dtype)

    @_quietly
    def attn_in(
        self,
        x: np.ndarray,
        weight: AttentionWeights,
        *,
        positions_T: np.ndarray,
        rope: Rope,
        cache: ReferenceCache | None,
        layer: int,
        index: PagedIndex | None,
    ) -> Qkv:
        dims = weight.dims
        T, H, K, d = len(positions_T), dims.num_heads, dims.num_kv_heads, dims.head_dim
        _expect("attn_in", "x", x, (T, dims.hidden_size))
        n_TD = _rms_norm(x, weight.norm_D, dims.rms_norm_eps)
        qkv = np.concatenate([self._product(n_TD, w) for w in (weight.q, weight.k, weight.v)], 1)
        qkv_Thd = (qkv + weight.qkv_bias).reshape(T, H + 2 * K, d)
        qk_Thd = self._rotate(qkv_Thd[:, : H + K], positions_T, rope)
        q_THd, k_TKd, v_TKd = qk_Thd[:, :H], qk_Thd[:, H:], qkv_Thd[:, H + K :]
        if cache is not None:
            assert index is not None
            _expect("attn_in", "slot_mapping", index.slot_mapping_T, (T,))
            assert index.slot_mapping_T.min(initial=0) >= 0, "a token has no block to be stored in"
            blocks_T, offsets_T = np.divmod(index.slot_mapping_T, cache.block_size)
            pages = cache.layers[layer]
            pages[blocks_T, :, 0, offsets_T] = k_TKd
            pages[blocks_T, :, 1, offsets_T] = v_TKd
        return Qkv(q_THd, k_TKd, v_TKd)

    @_quietly
    def attention(
        self,
        qkv: Qkv,
        weight: AttentionWeights,
        *,
        positions_T: np.ndarray,
        cu_seqlens_S1: np.ndarray,
        window: int | None,
        cache: ReferenceCache | None,
        layer: int,
        index: PagedIndex | None,
    ) -> np.ndarray:
        dims = weight.dims
        T, H, d = qkv.q_THd.shape
        out_THd = np.empty((T, H, d), self.dtype)
        bounds = cu_seqlens_S1.tolist()
        if bounds[0] != 0 or bounds[-1] != T:
            raise KernelError(f"[attention] expected cu_seqlens from 0 to {T}, got {bounds}")
        for s, (start, end) in enumerate(pairwise(bounds)):
            if start == end:
                continue
            if cache is None:
                first_query = first_key = 0
                k_LKd, v_LKd = qkv.k_TKd[start:end], qkv.v_TKd[start:end]
            else:
                assert index is not None
                first_query = int(positions_T[start])
                first_key = _first_visible(first_query, window)
                k_LKd, v_LKd = self._read(
                    cache, layer, index.block_tables_SB[s], first_key, first_query + end - start
                )
            out_THd[start:end] = _attend(
                qkv.q_THd[start:end],
                k_LKd,
                v_LKd,
                weight.sinks_H,
                first_query=first_query,
                first_key=first_key,
                window=window,
            )
        return out_THd.reshape(T, dims.num_heads * d)

    @_quietly
    def attn_out(self, x: np.ndarray, attended: np.ndarray, weight: AttentionWeights) -> np.ndarray:
        dims = weight.dims
        _expect("attn_out", "attended", attended, (len(x), dims.num_heads * dims.head_dim))
        return x + (self._product(attended, weight.o) + weight.o_bias)

    @_quietly
    def moe(self, x: np.ndarray, weight: MoeWeights) -> np.ndarray:
        dims = weight.dims
        _expect("moe", "x", x, (len(x), dims.hidden_size))
        n_TD = _rms_norm(x, weight.norm_D, dims.rms_norm_eps)
        router_TE = self._product(n_TD, weight.router_ED) + weight.router_bias_E
        # A stable sort gives the lowest index among equals.
        chosen_Tk = np.argsort(-router_TE, axis=1, kind="stable")[:, : dims.experts_per_token]
        share_Tk = _softmax(np.take_along_axis(router_TE, chosen_Tk, axis=1))
        out_TD = x.copy()
        for expert in sorted(set(chosen_Tk.ravel().tolist())):
            tokens, places = np.nonzero(chosen_Tk == expert)
            h = n_TD[tokens] @ self._expert(weight.gate_up, expert).T + weight.gate_up_bias[expert]
            act = _swiglu(h, dims.swiglu_limit, dims.swiglu_alpha)
            y = act @ self._expert(weight.down, expert).T + weight.down_bias[expert]
            out_TD[tokens] += share_Tk[tokens, places, None] * y
        return out_TD

    @_quietly
    def logits(self, x: np.ndarray, weight: HeadWeights, rows: np.ndarray) -> np.ndarray:
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(x):
            raise KernelError(
                f"[logits] expected rows from 0 to {len(x) - 1}, got {rows.min()} to {rows.max()}"
            )
        n_SD = _rms_norm(x[rows], weight.norm_D, weight.dims.rms_norm_eps)
        return self._product(n_SD, weight.weight_VD)

    def sample(self, logits: np.ndarray, batch: SamplingBatch) -> SampledTokens:
        return sample_rows(logits, batch)

    def to_host(self, handle: np.ndarray) -> np.ndarray:
        return handle.astype(np.float32)

    # -- What the ops share --------------------------------------------------------------------

    def _product(self, x_TN: np.ndarray, weight_MN: np.ndarray) -> np.ndarray:
        """x · weightᵀ; a weight of another dtype is converted in chunks of its rows."""
        if weight_MN.dtype == self.dtype:
            return x_TN @ weight_MN.T
        M, N = weight_MN.shape
        rows = max(_CONVERT_CHUNK_BYTES // (N * self.dtype.itemsize), 1)
        out_TM = np.empty((len(x_TN), M), self.dtype)
        for at in range(0, M, rows):
            out_TM[:, at : at + rows] = x_TN @ weight_MN[at : at + rows].astype(self.dtype).T
        return out_TM

    def _expert(self, stack: HostTensor, expert: int) -> np.ndarray:
        """One expert's matrix [rows, columns] of a stack, in the compute dtype."""
        if isinstance(stack, Mxfp4Tensor):
            return decode(Mxfp4Tensor(stack.blocks[expert], stack.scales[expert]), self.dtype)
        return stack[expert].astype(self.dtype, copy=False)

    def _rotate(self, x_Thd: np.ndarray, positions_T: np.ndarray, rope: Rope) -> np.ndarray:
        """Half-split ("NeoX"): element j turns with element j + d/2."""
        if rope not in self._rotations:
            self._rotations[rope] = _Rotation(rope, self.dtype)
        cos_T1r, sin_T1r = self._rotations[rope].at(positions_T)
        half = x_Thd.shape[-1] // 2
        first, second = x_Thd[..., :half], x_Thd[..., half:]
        return np.concatenate(
            [first * cos_T1r - second * sin_T1r, second * cos_T1r + first * sin_T1r], axis=-1
        )

    def _read(
        self, cache: ReferenceCache, layer: int, block_table_B: np.ndarray, first: int, end: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values [L, K, d] of positions first … end − 1."""
        size = cache.block_size
        blocks = block_table_B[first // size : -(-end // size)]
        assert len(blocks) * size >= end - first // size * size, "the block table is too short"
        assert NO_BLOCK not in blocks, "a block that the window still sees was freed"
        pages_BK2bd = cache.layers[layer][blocks]
        kv = pages_BK2bd.transpose(2, 0, 3, 1, 4)
        kv_2LKd = kv.reshape(2, -1, *kv.shape[3:])[:, first % size :][:, : end - first]
        k_LKd, v_LKd = kv_2LKd.astype(self.dtype, copy=False)
        return k_LKd, v_LKd


class _Rotation:
    """cos and sin of one `Rope` for all positions so far, [P, 1, d/2]. Angles are products of
    float32 numbers, as in the published implementations.
    """

    def __init__(self, rope: Rope, dtype: np.dtype) -> None:
        self._rope, self._dtype = rope, dtype
        self._extend(4096)

    def at(self, positions_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        last = int(positions_T.max(initial=0))
        if last >= len(self._cos):
            self._extend(2 * last)
        return self._cos[positions_T], self._sin[positions_T]

    def _extend(self, length: int) -> None:
        positions_P = np.arange(length, dtype=np.float32)
        angles = np.outer(positions_P, np.array(self._rope.inv_freq, np.float32))
        angles_P1r = angles.astype(self._dtype)[:, None]
        self._cos = np.cos(angles_P1r) * self._dtype.type(self._rope.concentration)
        self._sin = np.sin(angles_P1r) * self._dtype.type(self._rope.concentration)


def _attend(
    q_THd: np.ndarray,
    k_LKd: np.ndarray,
    v_LKd: np.ndarray,
    sinks_H: np.ndarray,
    *,
    first_query: int,
    first_key: int,
    window: int | None,
) -> np.ndarray:
    """Attention of one sequence, [T, H, d]. Queries and keys stand at consecutive positions from
    `first_query` and `first_key`; the last of both is the same.
    """
    T, H, d = q_THd.shape
    L, K, _ = k_LKd.shape
    out_THd = np.empty_like(q_THd)
    q_KGTd = q_THd.reshape(T, K, H // K, d).transpose(1, 2, 0, 3) / math.sqrt(d)
    k_K1dL, v_K1Ld = k_LKd.transpose(1, 2, 0)[:, None], v_LKd.transpose(1, 0, 2)[:, None]
    sinks_KG11 = sinks_H.reshape(K, H // K, 1, 1)
    for first, end in _query_tiles(T, scores_per_query=H * L):
        seen = slice(
            _first_visible(first_query + first, window) - first_key, first_query + end - first_key
        )
        scores_KGtL = q_KGTd[:, :, first:end] @ k_K1dL[..., seen]
        query = np.arange(first_query + first, first_query + end)[:, None]
        key = np.arange(first_key + seen.start, first_key + seen.stop)
        hidden = key > query
        if window is not None:
            hidden |= key <= query - window
        scores_KGtL[..., hidden] = -np.inf
        # The sink is one more score, whose value is zero.
        largest = np.maximum(scores_KGtL.max(-1, keepdims=True), sinks_KG11)
        weights_KGtL = np.exp(scores_KGtL - largest)
        total = weights_KGtL.sum(-1, keepdims=True) + np.exp(sinks_KG11 - largest)
        attended_KGtd = weights_KGtL @ v_K1Ld[:, :, seen] / total
        out_THd[first:end] = attended_KGtd.transpose(2, 0, 1, 3).reshape(-1, H, d)
    return out_THd


def _query_tiles(num_queries: int, *, scores_per_query: int) -> Iterator[tuple[int, int]]:
    tile = max(min(_QUERY_TILE, _SCORES_PER_TILE // scores_per_query), 1)
    for first in range(0, num_queries, tile):
        yield first, min(first + tile, num_queries)


def _first_visible(position: int, window: int | None) -> int:
    return 0 if window is None else max(position - window + 1, 0)


def _rms_norm(x_TD: np.ndarray, weight_D: np.ndarray, eps: float) -> np.ndarray:
    mean_square_T = np.vecdot(x_TD, x_TD) / x_TD.shape[1]
    return x_TD / np.sqrt(mean_square_T + eps)[:, None] * weight_D


def _softmax(logits_Tk: np.ndarray) -> np.ndarray:
    weights_Tk = np.exp(logits_Tk - logits_Tk.max(-1, keepdims=True))
    return weights_Tk / weights_Tk.sum(-1, keepdims=True)


def _swiglu(h: np.ndarray, limit: float, alpha: float) -> np.ndarray:
    """Gates are the even columns, ups the odd ones; the gate has no lower bound."""
    gate = np.minimum(h[:, 0::2], limit)
    up = np.minimum(np.maximum(h[:, 1::2], -limit), limit)
    return (
        gate / (1 + np.exp(-alpha * gate)) * (up + 1)
    )  # exp may overflow: ∞ gives 0, as it should


def _expect(op: str, what: str, array: HostTensor, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise KernelError(f"[{op}] expected {what} of shape {list(shape)}, got {list(array.shape)}")

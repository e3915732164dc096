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
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

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
from ossia.kernels.mxfp4 import Mxfp4Tensor
from ossia.kernels.sampling import sample_rows
from ossia.kernels.torch.attention import (
    Group,
    Padding,
    attend,
    make_padding,
    row_indices,
    tiles,
    visible,
)
from ossia.kernels.torch.elementwise import RmsNorm, Rotate, both_halves
from ossia.kernels.torch.experts import (
    Mixture,
    PackedExperts,
    Routing,
    choose,
    decode_mxfp4,
    deinterleave,
    dispatch,
    mix,
)
from ossia.kernels.torch.self_attention import Layout, SelfAttention, make_layout

DECODE_ONCE_BYTES = 64 << 20
"""MXFP4 experts of one layer that decode into fewer bytes are decoded by `prepare`; larger ones
stay packed and each selected expert is decoded in use (20b: 0.8 GB a layer decoded, 0.4 GB
packed)."""


Made = TypeVar("Made")


@dataclass(frozen=True)
class Embedding:
    weight_VD: Tensor
    """As the checkpoint holds it; rows are converted when they are gathered."""


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
class MoeWeights:
    dims: Dims
    norm_D: Tensor
    router_ED: Tensor
    router_bias_E: Tensor
    gate_up: Tensor | PackedExperts
    """[E, 2I, D], rows de-interleaved: gates, then ups (packed ones: in decoding)."""
    gate_up_bias: Tensor
    down: Tensor | PackedExperts
    down_bias: Tensor


@dataclass(frozen=True)
class Head:
    dims: Dims
    norm_D: Tensor
    weight_VD: Tensor


@dataclass(frozen=True)
class TorchCache:
    """One tensor [N, block_size, 2, K, d] per layer: a token's keys and values are one slot."""

    layers: tuple[Tensor, ...]
    block_size: int


class TorchKernels:
    """`Kernels` over torch tensors; see the module docstring.

    `record_routing`: every `moe` call appends a `Routing` to `routing`, which the caller clears.
    `widen_logits`: when false, `logits` stay in `dtype`, for `CrossEntropy`, which widens a few
    rows at a time.
    """

    name = "torch"

    def __init__(
        self,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        cache_dtype: torch.dtype | None = None,
        *,
        record_routing: bool = False,
        widen_logits: bool = True,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.residual_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.cache_dtype = cache_dtype or dtype
        self.record_routing = record_routing
        self.logits_dtype = self.residual_dtype if widen_logits else dtype
        self.routing: list[Routing] = []
        self._angles: _Latest[tuple[Tensor, Tensor]] = _Latest()
        self._padding: _Latest[Padding] = _Latest()
        self._layout: _Latest[Layout] = _Latest()

    @classmethod
    def in_bfloat16(cls, device: str | torch.device = "cpu") -> TorchKernels:
        """Products, keys and values in bfloat16, as the published implementations compute."""
        return cls(device, torch.bfloat16)

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
                return Embedding(self._stored(tensors["weight"]))
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
                return MoeWeights(
                    dims,
                    norm_D=take("norm"),
                    router_ED=take("router"),
                    router_bias_E=take("router_bias"),
                    gate_up=self._experts(tensors["gate_up"], interleaved=True),
                    gate_up_bias=deinterleave(take("gate_up_bias"), self.dtype),
                    down=self._experts(tensors["down"], interleaved=False),
                    down_bias=take("down_bias", self.dtype),
                )

    def _tensor(self, value: HostTensor | Tensor, dtype: torch.dtype) -> Tensor:
        if isinstance(value, Mxfp4Tensor):
            packed = self._packed(value)
            return decode_mxfp4(packed.blocks, packed.scales, dtype)
        return self._stored(value).to(dtype)

    def _stored(self, value: HostTensor | Tensor) -> Tensor:
        """In its own dtype; on the CPU in place, so that what the checkpoint maps stays mapped."""
        if isinstance(value, Mxfp4Tensor):
            raise KernelError("[prepare] expected an array for the embedding, got MXFP4")
        if isinstance(value, Tensor):
            return value.to(self.device)
        if value.dtype.name == "bfloat16":  # torch reads no ml_dtypes; the bits are the same
            return from_array(value.view(np.int16)).view(torch.bfloat16).to(self.device)
        return from_array(value).to(self.device)

    def _packed(self, value: Mxfp4Tensor) -> PackedExperts:
        return PackedExperts(
            from_array(value.blocks).to(self.device), from_array(value.scales).to(self.device)
        )

    def _experts(self, value: HostTensor | Tensor, *, interleaved: bool) -> Tensor | PackedExperts:
        decoded_bytes = math.prod(value.shape) * self.dtype.itemsize
        if isinstance(value, Mxfp4Tensor) and decoded_bytes > DECODE_ONCE_BYTES:
            return self._packed(value)
        if not interleaved:
            return self._tensor(value, self.dtype)
        stored = (
            self._tensor(value, self.dtype)
            if isinstance(value, Mxfp4Tensor)
            else self._stored(value)
        )
        return deinterleave(stored, self.dtype)

    # ---- the cache -----------------------------------------------------------------------------

    def allocate_cache(self, spec: CacheSpec) -> TorchCache:
        def layer(sliding: bool) -> Tensor:
            blocks = spec.num_sliding_blocks if sliding else spec.num_full_blocks
            shape = (blocks, spec.block_size, 2, spec.num_kv_heads, spec.head_dim)
            if self.device.type != "cpu":
                return torch.zeros(shape, dtype=self.cache_dtype, device=self.device)
            # numpy's zeros take no memory until they are written, torch's do at once.
            size = math.prod(shape) * self.cache_dtype.itemsize
            return torch.from_numpy(np.zeros(size, np.uint8)).view(self.cache_dtype).view(shape)

        return TorchCache(tuple(map(layer, spec.sliding_layers)), spec.block_size)

    # ---- ops -----------------------------------------------------------------------------------

    def embed(self, ids_T: np.ndarray, weight: Embedding) -> Tensor:
        if len(ids_T) and not 0 <= int(ids_T.min()) <= int(ids_T.max()) < len(weight.weight_VD):
            raise KernelError(
                f"[embed] expected ids from 0 to {len(weight.weight_VD) - 1}, got "
                f"{int(ids_T.min())} to {int(ids_T.max())}"
            )
        rows = F.embedding(row_indices(ids_T, self.device), weight.weight_VD)
        return rows.to(self.residual_dtype)

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
        normed = RmsNorm.apply(x, weight.norm_D, dims.rms_norm_eps).to(self.dtype)
        qkv = F.linear(normed, weight.qkv, weight.qkv_bias)
        cos, sin = self._angles.of(positions_T, lambda: self._rotation(positions_T, rope))
        qkv = Rotate.apply(qkv, cos, sin, H + K)
        if cache is not None:
            assert index is not None
            slots = cache.layers[layer].view(-1, 2, K, d)
            stored = qkv[:, H * d :].view(-1, 2, K, d).to(self.cache_dtype)
            slots.index_copy_(0, row_indices(index.slot_mapping_T, self.device), stored.detach())
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
        if cache is None:
            layout = self._layout.of(
                cu_seqlens_S1, lambda: make_layout(cu_seqlens_S1, dims, self.device)
            )
            return SelfAttention.apply(qkv, weight.sinks_H, layout, window, dims)
        assert index is not None
        padding = self._padding.of(cu_seqlens_S1, lambda: make_padding(cu_seqlens_S1, self.device))
        width = dims.num_heads * dims.head_dim
        padded = qkv[:, :width].index_select(0, padding.source)
        outputs: list[Tensor] = []
        for group in padding.groups:
            q = padded[group.rows].view(len(group.sequences), group.length, -1, dims.head_dim)
            attended = self._attend_cached(
                q,
                weight,
                group=group,
                first_positions=positions_T[cu_seqlens_S1[group.sequences]],
                window=window,
                pages=cache.layers[layer],
                tables=index.block_tables_SB[group.sequences],
            )
            outputs.append(attended.reshape(-1, width))
        return torch.cat(outputs).index_select(0, padding.target)

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
        for first, last in tiles(group.length):
            seen = 0 if window is None else max(0, int(first_positions.min()) + first - window + 1)
            blocks = slice(
                seen // block_size,
                min(-(-(int(first_positions.max()) + last) // block_size), tables.shape[1]),
            )
            table = np.ascontiguousarray(tables[:, blocks])
            keys = np.arange(blocks.start * block_size, blocks.stop * block_size)
            sees = visible(
                first_positions[:, None] + np.arange(first, last),
                np.where(table.repeat(block_size, axis=1) == NO_BLOCK, -1, keys),
                window,
            )
            # The cache is zeroed when made, so that what an unused slot holds is finite.
            kv = pages[row_indices(np.maximum(table, 0), self.device)].flatten(1, 2).to(self.dtype)
            outputs.append(
                attend(
                    q_sLHd[:, first:last],
                    kv[:, :, 0],
                    kv[:, :, 1],
                    weight.sinks_H,
                    torch.from_numpy(sees).to(self.device),
                )
            )
        return torch.cat(outputs, dim=1)

    def attn_out(self, x: Tensor, attended: Tensor, weight: AttentionWeights) -> Tensor:
        return x + (F.linear(attended, weight.o) + weight.o_bias)

    def moe(self, x: Tensor, weight: MoeWeights) -> Tensor:
        dims = weight.dims
        E, k = dims.num_experts, dims.experts_per_token
        normed = RmsNorm.apply(x, weight.norm_D, dims.rms_norm_eps)
        logits_TE = F.linear(normed, weight.router_ED, weight.router_bias_E)
        chosen_Tk = choose(logits_TE, k)
        share_Tk = logits_TE.gather(1, chosen_Tk).softmax(-1)
        counts_E = torch.bincount(chosen_Tk.reshape(-1), minlength=E)
        if self.record_routing:
            self.routing.append(Routing(logits_TE.softmax(-1), counts_E))
        packed = isinstance(weight.gate_up, PackedExperts) or isinstance(weight.down, PackedExperts)
        mixed = (mix if packed else Mixture.apply)(
            normed.to(self.dtype),
            share_Tk,
            weight.gate_up,
            weight.gate_up_bias,
            weight.down,
            weight.down_bias,
            dispatch(chosen_Tk, counts_E),
            dims.swiglu_limit,
            dims.swiglu_alpha,
        )
        return x + mixed

    def logits(self, x: Tensor, weight: Head, rows: np.ndarray) -> Tensor:
        every_row = len(rows) == len(x) and np.array_equal(rows, np.arange(len(x)))
        chosen = x if every_row else x.index_select(0, row_indices(rows, self.device))
        normed = RmsNorm.apply(chosen, weight.norm_D, weight.dims.rms_norm_eps)
        return F.linear(normed.to(self.dtype), weight.weight_VD).to(self.logits_dtype)

    def sample(self, logits: Tensor, batch: SamplingBatch) -> SampledTokens:
        return sample_rows(self.to_host(logits), batch)

    def to_host(self, handle: Tensor) -> np.ndarray:
        return handle.detach().to("cpu", torch.float32).numpy()

    # ---- indices -------------------------------------------------------------------------------

    def _rotation(self, positions_T: np.ndarray, rope: Rope) -> tuple[Tensor, Tensor]:
        """As `Rotate` takes it."""
        positions = torch.from_numpy(np.asarray(positions_T, np.float32))
        angles = positions[:, None, None] * torch.tensor(rope.inv_freq, dtype=torch.float32)
        cos, sin = angles.cos() * rope.concentration, angles.sin() * rope.concentration
        cos, sin = both_halves(cos, sin)
        return cos.to(self.device, self.residual_dtype), sin.to(self.device, self.residual_dtype)


class _Latest(Generic[Made]):
    """The last value made, kept for as long as it is asked for the same array: for the layers of a
    step."""

    def __init__(self) -> None:
        self._last: tuple[np.ndarray, Made] | None = None

    def of(self, array: np.ndarray, make: Callable[[], Made]) -> Made:
        if self._last is None or self._last[0] is not array:
            self._last = (array, make())
        return self._last[1]


def from_array(array: np.ndarray) -> Tensor:
    """The array as a tensor over the same memory. Nothing writes to weights, so that torch's
    warning of arrays that are read-only does not apply.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array if array.flags.c_contiguous else np.ascontiguousarray(array))

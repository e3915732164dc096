"""The `native` kernels: C++ with SIMD for the processor at hand, over the extension `_native`.

Ops are recorded and run together, without the GIL, when `sample` or `to_host` wants values. MXFP4
experts are used in place as the checkpoint maps them; dense tensors are repacked once into int8
with a scale per 32 columns, and their source pages released. What an op computes, to the bit, is
stated in csrc/op_table.h; docs/native.md explains it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import ml_dtypes
import numpy as np

from ossia.errors import KernelError, UsageError
from ossia.kernels import _native
from ossia.kernels.cores import usable_cores
from ossia.kernels.interface import (
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
from ossia.kernels.mapped import FileRows, release_pages
from ossia.kernels.mxfp4 import Mxfp4Tensor
from ossia.kernels.native_sampling import sample_rows_native

DENSE_DTYPES = ("int8", "bf16")
"""How dense tensors are kept: repacked into int8 with scales, or as the checkpoint holds them."""

_PACK_CHUNK_BYTES = 64 << 20
"""Source pages of a dense tensor are released in pieces of this size while it is packed."""

_ANGLES_CHUNK = 4096  # positions whose angles are worked out at once: 3 MB of float64

_MOST_BYTES = 2**63 - 1  # what the extension counts bytes with is an int64

_P = ParamSpec("_P")
_R = TypeVar("_R")


def instruction_sets() -> tuple[str, ...]:
    """Those this processor and this build have, the best last."""
    return tuple(_native.instruction_sets())


def _op(
    op: Callable[Concatenate[NativeKernels, _P], _R],
) -> Callable[Concatenate[NativeKernels, _P], _R]:
    """One op at a time, whichever thread calls; the extension's errors as KernelError."""

    @functools.wraps(op)
    def locked(self: NativeKernels, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self._lock:
            try:
                return op(self, *args, **kwargs)
            except KernelError:
                raise
            except ValueError as error:
                raise KernelError(str(error)) from None
            except TypeError:
                got = ", ".join(_described(value) for value in (*args, *kwargs.values()))
                raise KernelError(
                    f"[{op.__name__}] expected the arrays and handles that the protocol names, in "
                    f"their dtypes and order; got {got}"
                ) from None

    return locked


def _is_integer(value: object) -> bool:
    """True and False are none: they were meant for another argument."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__


@dataclass(frozen=True)
class NativeWeight:
    """What `prepare` gives: the extension's object and the arrays that it borrows."""

    part: Any
    kept: tuple[Any, ...]
    rows: FileRows | None = None
    """Of an embedding that stays in its file."""


class NativeKernels:
    """`Kernels` over the C++ extension.

    `instruction_set`: one of `instruction_sets()`, or "auto" for the best. `num_threads`: by
    default what affinity and control group allow. `exact`: nothing is quantised beyond what the
    checkpoint holds, keys and values are float32. `dense_dtype`: "int8", or "bf16" to keep the
    dense tensors as they are. `expert_bytes`: for a model larger than memory, keep at most so much
    of its experts there and page them from their file as they are routed; None = all of them.
    Raises UsageError for settings that this machine cannot have.
    """

    name = "native"

    def __init__(
        self,
        *,
        instruction_set: str = "auto",
        num_threads: int | None = None,
        exact: bool = False,
        dense_dtype: str = "int8",
        expert_bytes: int | None = None,
    ) -> None:
        if instruction_set != "auto" and instruction_set not in instruction_sets():
            known = ", ".join(("auto", *instruction_sets()))
            raise UsageError(
                f"This processor has the instruction sets {known}; got {instruction_set!r}."
            )
        if dense_dtype not in DENSE_DTYPES:
            raise UsageError(f"dense_dtype takes int8 or bf16; got {dense_dtype!r}.")
        if not isinstance(exact, bool):
            raise UsageError(f"exact takes True or False; got {exact!r}.")
        cores = usable_cores()
        if num_threads is not None and not (_is_integer(num_threads) and 1 <= num_threads <= cores):
            raise UsageError(
                f"The number of threads must be a whole number from 1 to {cores}, the cores this "
                f"process may use; got {num_threads!r}."
            )
        if expert_bytes is not None and not (
            _is_integer(expert_bytes) and 1 <= expert_bytes <= _MOST_BYTES
        ):
            raise UsageError(
                "expert_bytes (--expert-memory) must be a whole number of bytes, from 1 to "
                f"{_MOST_BYTES}; got {expert_bytes!r}."
            )
        self.exact = exact
        self.num_threads = num_threads or cores
        self.dense_dtype = "as stored" if exact else dense_dtype
        self._context = _native.Context(instruction_set, self.num_threads, exact)
        self._pages_experts = expert_bytes is not None
        if expert_bytes is not None:
            self._context.set_pager(expert_bytes)
        self._quantises_dense = not exact and dense_dtype == "int8"
        self._angles: dict[Rope, _Angles] = {}
        self._lock = threading.RLock()
        # The step being recorded borrows these.
        self._alive: list[Any] = []
        self._indices: dict[tuple[int, ...], Any] = {}

    @property
    def instruction_set(self) -> str:
        return self._context.instruction_set

    @property
    def cache_itemsize(self) -> int:
        return 4 if self.exact else 2

    # -- Weights and cache ---------------------------------------------------------------------

    @_op
    def prepare(self, part: Part, tensors: Mapping[str, HostTensor], dims: Dims) -> NativeWeight:
        _check_shapes(part, tensors, dims)
        kept: list[Any] = []

        def vector(name: str) -> np.ndarray:
            array = np.ascontiguousarray(_array(part, name, tensors[name]), np.float32)
            kept.append(array)
            return array

        def plain(name: str) -> Any:
            return self._plain(_array(part, name, tensors[name])[None], kept)

        def dense(name: str) -> Any:
            values = _array(part, name, tensors[name])
            return self._packed(values[None], kept) if self._quantises_dense else plain(name)

        def experts(name: str) -> Any:
            tensor = tensors[name]
            if not isinstance(tensor, Mxfp4Tensor):
                tensor = _array(part, name, tensor)
            if isinstance(tensor, Mxfp4Tensor):
                blocks = np.ascontiguousarray(tensor.blocks)
                scales = np.ascontiguousarray(tensor.scales)
                kept.extend((blocks, scales))
                if not self._pages_experts:
                    for array in (blocks, scales):
                        self._context.populate(array.reshape(-1))
                return _native.Matrix.mxfp4(blocks, scales)
            return (
                self._packed(tensor, kept) if self._quantises_dense else self._plain(tensor, kept)
            )

        match part:
            case Part.EMBEDDING:
                made = _native.EmbeddingWeights.of(plain("weight"))
                table = _array(part, "weight", tensors["weight"])
                return NativeWeight(made, tuple(kept), FileRows.of(table))
            case Part.HEAD:
                made = _native.HeadWeights.of(
                    eps=dims.rms_norm_eps, norm=vector("norm"), head=dense("weight")
                )
            case Part.ATTENTION:
                made = _native.AttentionWeights.of(
                    heads=dims.num_heads,
                    kv_heads=dims.num_kv_heads,
                    d=dims.head_dim,
                    eps=dims.rms_norm_eps,
                    **{name: vector(name) for name in ("norm", "sinks")},
                    **{name: dense(name) for name in "qkvo"},
                    **{f"{name}_bias": vector(f"{name}_bias") for name in "qkvo"},
                )
            case Part.MOE:
                made = _native.MoeWeights.of(
                    experts_per_token=dims.experts_per_token,
                    eps=dims.rms_norm_eps,
                    limit=dims.swiglu_limit,
                    alpha=dims.swiglu_alpha,
                    norm=vector("norm"),
                    router=plain("router"),
                    router_bias=vector("router_bias"),
                    gate_up=experts("gate_up"),
                    down=experts("down"),
                    gate_up_bias=vector("gate_up_bias"),
                    down_bias=vector("down_bias"),
                )
        return NativeWeight(made, tuple(kept))

    def _plain(self, values: np.ndarray, kept: list[Any]) -> Any:
        """A stack [count, rows, cols] as it is, copied only if it does not lie in order."""
        values = np.require(values, requirements=("C", "A"))
        kept.append(values)
        if values.dtype == ml_dtypes.bfloat16:
            return _native.Matrix.bf16(values.view(np.uint16))
        return _native.Matrix.f32(values)

    def _packed(self, values: np.ndarray, kept: list[Any]) -> Any:
        """A stack [count, rows, cols] as int8 panels; mapped source pages are released."""
        count, rows, cols = values.shape
        matrix = _native.Matrix.q8(count, rows, cols)
        chunk = max(_PACK_CHUNK_BYTES // max(cols * values.itemsize, 1) // 16, 1) * 16
        for index in range(count):
            for first in range(0, rows, chunk):
                source = values[index, first : first + chunk]
                piece = np.require(source, requirements=("C", "A"))
                bits = piece.view(np.uint16) if piece.dtype == ml_dtypes.bfloat16 else piece
                self._context.pack_rows(matrix, index, first, bits)
                if source.flags.c_contiguous:
                    release_pages(source)
            release_pages(values[index])
        kept.append(matrix)
        return matrix

    def allocate_cache(self, spec: CacheSpec) -> Any:
        if spec.block_size != _native.KEY_TILE:
            raise KernelError(
                f"The native kernels keep keys in blocks of {_native.KEY_TILE} tokens; got "
                f"block_size={spec.block_size}. Leave it at its default, or use other kernels."
            )
        blocks = [
            spec.num_sliding_blocks if sliding else spec.num_full_blocks
            for sliding in spec.sliding_layers
        ]
        return _native.Cache(blocks, spec.num_kv_heads, spec.head_dim, self.exact)

    # -- The ops -------------------------------------------------------------------------------

    @_op
    def embed(self, ids_T: np.ndarray, weight: NativeWeight) -> Any:
        self._alive += (ids_T, weight)
        if weight.rows is None or not weight.rows.has(ids_T):  # then refused in the same words
            return self._context.embed(ids_T, weight.part)
        kept: list[Any] = []
        table = _native.EmbeddingWeights.of(self._plain(weight.rows.read(ids_T)[None], kept))
        within = np.arange(len(ids_T), dtype=np.int32)
        self._alive += (table, kept, within)
        return self._context.embed(within, table)

    @_op
    def attn_in(
        self,
        x: Any,
        weight: NativeWeight,
        *,
        positions_T: np.ndarray,
        rope: Rope,
        cache: Any,
        layer: int,
        index: PagedIndex | None,
    ) -> Any:
        angles = self._angles.get(rope)
        if angles is None:
            angles = self._angles[rope] = _Angles(rope)
        slots = None if cache is None or index is None else index.slot_mapping_T
        key = (id(positions_T), id(slots))
        where = self._indices.get(key)
        if where is None:
            angles.reach(positions_T)
            where = self._indices[key] = _native.TokenIndex(positions_T, None, slots, None)
            self._alive += (positions_T, index, angles.cos, angles.sin)
        self._alive += (weight, cache)
        return self._context.attn_in(x, weight.part, angles.cos, angles.sin, where, cache, layer)

    @_op
    def attention(
        self,
        qkv: Any,
        weight: NativeWeight,
        *,
        positions_T: np.ndarray,
        cu_seqlens_S1: np.ndarray,
        window: int | None,
        cache: Any,
        layer: int,
        index: PagedIndex | None,
    ) -> Any:
        if cache is None:
            index = None
        key = (id(positions_T), id(cu_seqlens_S1), id(index))
        where = self._indices.get(key)
        if where is None:
            slots = None if index is None else index.slot_mapping_T
            tables = None if index is None else index.block_tables_SB
            where = _native.TokenIndex(positions_T, cu_seqlens_S1, slots, tables)
            self._indices[key] = where
            self._alive += (positions_T, cu_seqlens_S1, index)
        self._alive += (weight, cache)
        return self._context.attention(qkv, weight.part, window or 0, where, cache, layer)

    @_op
    def attn_out(self, x: Any, attended: Any, weight: NativeWeight) -> Any:
        self._alive.append(weight)
        return self._context.attn_out(x, attended, weight.part)

    @_op
    def moe(self, x: Any, weight: NativeWeight) -> Any:
        self._alive.append(weight)
        return self._context.moe(x, weight.part)

    @_op
    def logits(self, x: Any, weight: NativeWeight, rows: np.ndarray) -> Any:
        self._alive += (weight, rows)
        return self._context.logits(x, weight.part, rows)

    @_op
    def sample(self, logits: Any, batch: SamplingBatch) -> SampledTokens:
        return sample_rows_native(_native, self.instruction_set, self.to_host(logits), batch)

    @_op
    def to_host(self, handle: Any) -> np.ndarray:
        try:
            self._context.run()
        finally:  # what was recorded has run, or was given up with an error
            self._alive.clear()
            self._indices.clear()
        return self._context.to_numpy(handle)

    # -- Measuring -----------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How many tasks took each path through the products so far."""
        return self._context.counts()

    def paged_experts(self) -> dict[str, int]:
        """Of a model larger than memory: experts found in the hot set, those read, bytes read."""
        return self._context.pager_counts()

    def tune(
        self,
        *,
        mxfp4_row_tokens: int | None = None,
        rows_prefetch: int | None = None,
        panel_prefetch: int | None = None,
    ) -> None:
        """Move the points at which paths are chosen, and how far ahead memory is fetched. Results
        stay equal bit for bit.
        """
        for name, value in (
            ("mxfp4_row_tokens", mxfp4_row_tokens),
            ("rows_prefetch", rows_prefetch),
            ("panel_prefetch", panel_prefetch),
        ):
            if value is not None and not (_is_integer(value) and 0 <= value < 2**31):
                raise UsageError(f"{name} must be a whole number from 0 on; got {value!r}.")
        self._context.tune(
            mxfp4_row_tokens=mxfp4_row_tokens,
            rows_prefetch=rows_prefetch,
            panel_prefetch=panel_prefetch,
        )

    def read_seconds(self, array: np.ndarray) -> float:
        """Time to read a contiguous array once, with the same threads and no arithmetic."""
        return self._context.read_seconds(array.reshape(-1).view(np.uint8))

    def dot_peak(self, instructions: int = 1 << 26) -> float:
        """int8 multiply-adds per second over all threads, operands in registers."""
        done, seconds = self._context.dot_peak(instructions)
        return done / seconds


def _check_shapes(part: Part, tensors: Mapping[str, HostTensor], dims: Dims) -> None:
    for name, shape in part_shapes(part, dims).items():
        if name not in tensors:
            raise KernelError(f"[prepare] {part.value} expected a tensor {name}, got none")
        if tensors[name].shape != shape:
            raise KernelError(
                f"[prepare] expected {part.value}.{name} of shape {list(shape)}, "
                f"got {list(tensors[name].shape)}"
            )


def _array(part: Part, name: str, tensor: HostTensor) -> np.ndarray:
    if isinstance(tensor, Mxfp4Tensor):
        raise KernelError(f"[prepare] expected {part.value}.{name} as an array, got MXFP4")
    if tensor.dtype not in (np.float32, ml_dtypes.bfloat16):
        raise KernelError(
            f"[prepare] expected {part.value}.{name} in float32 or bfloat16, got {tensor.dtype}"
        )
    return tensor


class _Angles:
    """cos and sin of one `Rope` for all positions so far, [P, d/2] float32. Angles are products of
    float32 numbers, as in the published implementations; their cosine is taken in float64, so that
    it is the same on every machine.
    """

    def __init__(self, rope: Rope) -> None:
        self._rope = rope
        self._extend(4096)

    def reach(self, positions_T: np.ndarray) -> None:
        last = int(positions_T.max(initial=0))
        if last >= len(self.cos):
            self._extend(2 * last)

    def _extend(self, length: int) -> None:
        inv_freq = np.array(self._rope.inv_freq, np.float32)
        self.cos = np.empty((length, len(inv_freq)), np.float32)
        self.sin = np.empty_like(self.cos)
        for at in range(0, length, _ANGLES_CHUNK):
            positions_P = np.arange(at, min(at + _ANGLES_CHUNK, length), dtype=np.float32)
            angles = np.outer(positions_P, inv_freq).astype(np.float64)
            here = slice(at, at + len(positions_P))
            self.cos[here] = np.cos(angles) * self._rope.concentration
            self.sin[here] = np.sin(angles) * self._rope.concentration

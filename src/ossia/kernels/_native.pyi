"""What csrc/bindings.cc offers, by hand; a test holds the names of both against each other.

Arrays are C-contiguous and borrowed: whoever passes one keeps it alive until the step that uses it
has run. What a function does not take raises ValueError("[op] expected …, got …").
"""

from collections.abc import Sequence
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

_Bytes: TypeAlias = NDArray[np.uint8]
_Bf16Bits: TypeAlias = NDArray[np.uint16]
_Floats: TypeAlias = NDArray[np.float32]
_Ints: TypeAlias = NDArray[np.int32]

KEY_TILE: int
"""Tokens of a cache block."""

def instruction_sets() -> list[str]: ...
def sample(
    instruction_set: str, logits: _Floats, **arrays: Any
) -> tuple[_Ints, NDArray[np.float64], _Ints, NDArray[np.float64]]: ...

@final
class Matrix:
    """A stack of equal matrices, [count, rows, cols]."""

    @staticmethod
    def mxfp4(blocks: _Bytes, scales: _Bytes) -> Matrix: ...
    @staticmethod
    def bf16(values: _Bf16Bits) -> Matrix: ...
    @staticmethod
    def f32(values: _Floats) -> Matrix: ...
    @staticmethod
    def q8(count: int, rows: int, cols: int) -> Matrix: ...
    @property
    def packed_bytes(self) -> int: ...

@final
class AttentionWeights:
    @staticmethod
    def of(
        *,
        heads: int,
        kv_heads: int,
        d: int,
        eps: float,
        norm: _Floats,
        # Matrix; but callers unpack dictionaries here, whose types pyright does not tell apart.
        q: Any,
        k: Any,
        v: Any,
        o: Any,
        q_bias: _Floats,
        k_bias: _Floats,
        v_bias: _Floats,
        o_bias: _Floats,
        sinks: _Floats,
    ) -> AttentionWeights: ...

@final
class MoeWeights:
    @staticmethod
    def of(
        *,
        experts_per_token: int,
        eps: float,
        limit: float,
        alpha: float,
        norm: _Floats,
        router: Matrix,
        router_bias: _Floats,
        gate_up: Matrix,
        down: Matrix,
        gate_up_bias: _Floats,
        down_bias: _Floats,
    ) -> MoeWeights: ...

@final
class HeadWeights:
    @staticmethod
    def of(*, eps: float, norm: _Floats, head: Matrix) -> HeadWeights: ...

@final
class EmbeddingWeights:
    @staticmethod
    def of(table: Matrix, /) -> EmbeddingWeights: ...

@final
class Cache:
    def __init__(
        self, blocks_per_layer: Sequence[int], kv_heads: int, head_dim: int, f32: bool
    ) -> None: ...

@final
class TokenIndex:
    def __init__(
        self,
        positions: _Ints,
        cu_seqlens: _Ints | None,
        slots: _Ints | None,
        block_tables: _Ints | None,
    ) -> None: ...

@final
class Value:
    """float32 [rows, cols], computed when the context runs."""

    @property
    def shape(self) -> tuple[int, int]: ...

@final
class Context:
    def __init__(self, instruction_set: str, num_threads: int, exact: bool) -> None: ...
    @property
    def instruction_set(self) -> str: ...
    @property
    def num_threads(self) -> int: ...
    def tune(
        self,
        *,
        mxfp4_row_tokens: int | None = None,
        rows_prefetch: int | None = None,
        panel_prefetch: int | None = None,
    ) -> None: ...
    def pack_rows(
        self, into: Matrix, index: int, first_row: int, rows: _Bf16Bits | _Floats
    ) -> None: ...
    def embed(self, ids: _Ints, weights: EmbeddingWeights) -> Value: ...
    def attn_in(
        self,
        x: Value,
        weights: AttentionWeights,
        cos: _Floats,
        sin: _Floats,
        index: TokenIndex,
        cache: Cache | None,
        layer: int,
    ) -> Value: ...
    def attention(
        self,
        qkv: Value,
        weights: AttentionWeights,
        window: int,
        index: TokenIndex,
        cache: Cache | None,
        layer: int,
    ) -> Value: ...
    def attn_out(self, x: Value, attended: Value, weights: AttentionWeights) -> Value: ...
    def moe(self, x: Value, weights: MoeWeights) -> Value: ...
    def logits(self, x: Value, weights: HeadWeights, rows: _Ints) -> Value: ...
    def run(self) -> None: ...
    def populate(self, bytes: _Bytes) -> bool: ...
    def set_pager(self, budget_bytes: int) -> None: ...
    def pager_counts(self) -> dict[str, int]: ...
    def to_numpy(self, value: Value) -> _Floats: ...
    def counts(self) -> dict[str, int]: ...
    def read_seconds(self, bytes: _Bytes) -> float: ...
    def dot_peak(self, instructions: int) -> tuple[int, float]: ...

"""The contract between the model and the arithmetic: coarse ops over opaque handles.

`model/transformer.py` states the forward pass once against `Kernels`. What an op returns is a
handle that only the same `Kernels` object can consume: the model never does arithmetic on it,
indexes it or looks inside.

Legend: T tokens of the step, S sequences, D model width, H query heads, K kv heads, d head width, E
experts, I expert width, V vocabulary, B blocks of a sequence, N blocks of the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import numpy as np

from ossia.kernels.mxfp4 import Mxfp4Tensor

Handle = Any
"""An intermediate value (activations, logits), opaque: of use to the `Kernels` that made it."""

Weight = Any
"""The prepared parameters of one part of the model. Opaque likewise."""

Cache = Any
"""The key-value storage of all layers. Opaque likewise."""

HostTensor = np.ndarray | Mxfp4Tensor
"""A parameter as the checkpoint holds it: float32 or bfloat16 (ml_dtypes) array, or MXFP4 blocks
and scales.
"""

NO_BLOCK = -1
"""Entry of a block table whose block is not there: past the end, or freed because the window has
left it.
"""


class Part(Enum):
    """The groups of tensors that `Kernels.prepare` takes together, with the names and shapes in
    each.
    """

    EMBEDDING = "embedding"
    """weight [V, D]"""
    ATTENTION = "attention"
    """norm [D]; q [H·d, D], q_bias [H·d]; k, v [K·d, D], k_bias, v_bias [K·d]; o [D, H·d], o_bias
    [D]; sinks [H]
    """
    MOE = "moe"
    """norm [D]; router [E, D], router_bias [E]; gate_up [E, 2I, D] (rows interleaved gate, up,
    gate, …), gate_up_bias [E, 2I]; down [E, D, I], down_bias [E, D]. gate_up and down may be
    `Mxfp4Tensor`s.
    """
    HEAD = "head"
    """norm [D]; weight [V, D]"""


@dataclass(frozen=True)
class Dims:
    """The sizes and constants that the ops need; `ModelConfig.dims()` makes it."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int
    experts_per_token: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    swiglu_limit: float
    swiglu_alpha: float


def part_shapes(part: Part, dims: Dims) -> dict[str, tuple[int, ...]]:
    """Names and decoded shapes of the tensors of a part, as `Part` lists them."""
    D, d = dims.hidden_size, dims.head_dim
    q, kv = dims.num_heads * d, dims.num_kv_heads * d
    E, intermediate = dims.num_experts, dims.intermediate_size
    match part:
        case Part.EMBEDDING:
            return {"weight": (dims.vocab_size, D)}
        case Part.HEAD:
            return {"norm": (D,), "weight": (dims.vocab_size, D)}
        case Part.ATTENTION:
            projections = {"q": (q, D), "k": (kv, D), "v": (kv, D), "o": (D, q)}
            biases = {f"{name}_bias": shape[:1] for name, shape in projections.items()}
            return {"norm": (D,), **projections, **biases, "sinks": (dims.num_heads,)}
        case Part.MOE:
            return {
                "norm": (D,),
                "router": (E, D),
                "router_bias": (E,),
                "gate_up": (E, 2 * intermediate, D),
                "gate_up_bias": (E, 2 * intermediate),
                "down": (E, D, intermediate),
                "down_bias": (E, D),
            }


@dataclass(frozen=True)
class Rope:
    """Rotary embedding, half-split: angle[p, j] = p · inv_freq[j]; cos and sin are both multiplied
    by `concentration`.
    """

    inv_freq: tuple[float, ...]
    """[d / 2], to be rounded to float32 as the published implementations do."""
    concentration: float


@dataclass(frozen=True)
class CacheSpec:
    """Storage for keys and values: per layer `[N, K, 2, block_size, d]`, N by the group that the
    layer belongs to.
    """

    sliding_layers: tuple[bool, ...]
    """One per layer: True = sliding group, False = full group."""
    num_full_blocks: int
    num_sliding_blocks: int
    num_kv_heads: int
    head_dim: int
    block_size: int = 32


@dataclass(frozen=True)
class PagedIndex:
    """Where the tokens of this step go and where their sequences' keys live, for one cache group.
    int32.
    """

    slot_mapping_T: np.ndarray
    """block · block_size + offset at which each token's key and value are stored."""
    block_tables_SB: np.ndarray
    """Block of positions [i · block_size, (i + 1) · block_size) of each sequence, or `NO_BLOCK`."""


@dataclass(frozen=True)
class SamplingBatch:
    """How to draw the next token of each row. One entry per row everywhere.

    Order: penalties and bias, mask, temperature, top-k, top-p, min-p; then inverse CDF in token-id
    order of one Philox uniform keyed by (seed, position). Nothing else influences a draw. Reported
    log-probabilities are those of the unmodified logits.
    """

    temperature: Sequence[float]
    """0 = greedy (the lowest id among equals)."""
    top_k: Sequence[int]
    """0 = off."""
    top_p: Sequence[float]
    min_p: Sequence[float]
    seed: Sequence[int]
    """64 bits."""
    position: Sequence[int]
    """Position in its sequence of the token to be drawn."""
    repetition_penalty: Sequence[float]
    """Divides positive and multiplies negative logits of every token seen (prompt and output); 1 =
    off.
    """
    presence_penalty: Sequence[float]
    """Subtracted once from the logit of each token of the output so far; 0 = off."""
    frequency_penalty: Sequence[float]
    """Subtracted per occurrence in the output so far; 0 = off."""
    prompt_ids: Sequence[Sequence[int]]
    output_ids: Sequence[Sequence[int]]
    """Read only for rows with a penalty."""
    logit_bias: Sequence[Mapping[int, float]]
    top_logprobs: Sequence[int]
    """How many alternatives to report per row; -1 = not even the drawn token's own log-probability.
    """
    masks_SW: np.ndarray | None = None
    """uint32 bit masks of allowed tokens, [S, ceil(V / 32)], bit i of word w = token 32·w + i; None
    = all allowed.
    """


@dataclass(frozen=True)
class SampledTokens:
    """What was drawn: one entry per row."""

    ids: list[int]
    """-1 where no token could be drawn, because the row's logits hold NaN or allow nothing."""
    logprobs: list[float | None]
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    """(token id, log-probability), the most probable first."""


class Kernels(Protocol):
    """One set of kernels. Ops may be lazy; `sample` and `to_host` wait for the values."""

    name: str

    @property
    def cache_itemsize(self) -> int:
        """Bytes of one stored key or value element, from which the engine sizes the cache."""
        ...

    def prepare(self, part: Part, tensors: Mapping[str, HostTensor], dims: Dims) -> Weight:
        """Take the tensors of one part (names and shapes: `Part`) into this backend's
        representation.

        Raises KernelError when a tensor is missing or misshapen. MXFP4 experts are used in place,
        not copied.
        """
        ...

    def allocate_cache(self, spec: CacheSpec) -> Cache:
        """Storage for `spec`; its contents are undefined until stored."""
        ...

    def embed(self, ids_T: np.ndarray, weight: Weight) -> Handle:
        """Rows `ids_T` (int32) of the embedding: x [T, D]."""
        ...

    def attn_in(
        self,
        x: Handle,
        weight: Weight,
        *,
        positions_T: np.ndarray,
        rope: Rope,
        cache: Cache | None,
        layer: int,
        index: PagedIndex | None,
    ) -> Handle:
        """RMSNorm, q/k/v projections with bias, RoPE on q and k; with a cache, stores k and v at
        `index.slot_mapping_T`.

        Returns a handle for `attention` (q, and without a cache k and v too).
        """
        ...

    def attention(
        self,
        qkv: Handle,
        weight: Weight,
        *,
        positions_T: np.ndarray,
        cu_seqlens_S1: np.ndarray,
        window: int | None,
        cache: Cache | None,
        layer: int,
        index: PagedIndex | None,
    ) -> Handle:
        """softmax over the visible keys and the head's sink of (q·k)/√d, times v: [T, H·d].

        Query head h reads kv head h // (H / K). Token t sees keys at positions p with `q - window <
        p <= q` (`window=None`: all `p <= q`) of its own sequence. With a cache, keys and values are
        read back from it, also those of this step; without one, `cu_seqlens_S1` alone delimits them
        and positions restart in each sequence.
        """
        ...

    def attn_out(self, x: Handle, attended: Handle, weight: Weight) -> Handle:
        """x + (attended · oᵀ + o_bias): [T, D]."""
        ...

    def moe(self, x: Handle, weight: Weight) -> Handle:
        """x + Σ_k w_k · expert_k(norm(x)): RMSNorm, router, top-k by logit (ties: the lowest
        index), softmax over those k.

        expert: h = n · gate_upᵀ + bias; gate = min(h[0::2], limit), up = clamp(h[1::2], ±limit);
        y = (gate · sigmoid(alpha · gate) · (up + 1)) · downᵀ + down_bias.
        """
        ...

    def logits(self, x: Handle, weight: Weight, rows: np.ndarray) -> Handle:
        """Final RMSNorm and unembedding of the given rows (int32 indices into T): float32
        [len(rows), V].
        """
        ...

    def sample(self, logits: Handle, batch: SamplingBatch) -> SampledTokens:
        """Draw one token per row of `logits` as `batch` says."""
        ...

    def to_host(self, handle: Handle) -> np.ndarray:
        """The values of a handle as float32 numpy, for tests, evaluation and diagnosis."""
        ...

"""The forward pass of gpt-oss, stated once against the `Kernels` protocol; every kernel set and
training run this function.

Values are opaque handles: nothing here does arithmetic on them. Shapes and formulas stand at the
ops in `kernels/interface.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ossia.kernels.interface import (
    Cache,
    CacheSpec,
    Dims,
    Handle,
    HostTensor,
    Kernels,
    Part,
    Rope,
    Weight,
)
from ossia.model.config import ModelConfig
from ossia.model.inputs import ForwardInput
from ossia.model.rope import yarn

PartSource = Callable[[Part, int | None], Mapping[str, HostTensor]]
"""Gives the tensors of a part; the layer number is None for the embedding and the head."""


@dataclass(frozen=True)
class LayerWeights:
    attention: Weight
    moe: Weight


@dataclass(frozen=True)
class Weights:
    """The prepared parameters of a whole model."""

    embedding: Weight
    layers: tuple[LayerWeights, ...]
    head: Weight


@dataclass(frozen=True)
class Architecture:
    """What the forward pass must know of a configuration, derived once."""

    dims: Dims
    rope: Rope
    windows: tuple[int | None, ...]
    """One per layer: the sliding window, or None for full attention."""

    @classmethod
    def of(cls, config: ModelConfig) -> Architecture:
        return cls(
            dims=config.dims(), rope=yarn(config.rope, config.head_dim), windows=config.windows()
        )

    def cache_spec(
        self, *, num_full_blocks: int, num_sliding_blocks: int, block_size: int
    ) -> CacheSpec:
        return CacheSpec(
            sliding_layers=tuple(window is not None for window in self.windows),
            num_full_blocks=num_full_blocks,
            num_sliding_blocks=num_sliding_blocks,
            num_kv_heads=self.dims.num_kv_heads,
            head_dim=self.dims.head_dim,
            block_size=block_size,
        )


def prepare_weights(
    architecture: Architecture,
    kernels: Kernels,
    tensors: PartSource,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Weights:
    """Hand every part to `kernels.prepare`, one at a time; `progress(done, total)` after each."""
    dims, num_layers = architecture.dims, len(architecture.windows)
    total, done = 2 * num_layers + 2, 0

    def prepare(part: Part, layer: int | None = None) -> Weight:
        nonlocal done
        weight = kernels.prepare(part, tensors(part, layer), dims)
        done += 1
        if progress is not None:
            progress(done, total)
        return weight

    return Weights(
        embedding=prepare(Part.EMBEDDING),
        layers=tuple(
            LayerWeights(attention=prepare(Part.ATTENTION, n), moe=prepare(Part.MOE, n))
            for n in range(num_layers)
        ),
        head=prepare(Part.HEAD),
    )


def forward(
    architecture: Architecture,
    kernels: Kernels,
    weights: Weights,
    inputs: ForwardInput,
    *,
    cache: Cache | None = None,
) -> Handle:
    """Next-token logits at `inputs.logit_rows`: a handle of [rows, V] for `kernels.sample` or
    `kernels.to_host`.

    With `cache=None` the sequences are whole documents (training, scoring); else keys and values go
    through the cache.
    """
    x = kernels.embed(inputs.ids_T, weights.embedding)
    for n, layer in enumerate(weights.layers):
        x = layer_forward(architecture, kernels, layer, n, x, inputs, cache=cache)
    return kernels.logits(x, weights.head, inputs.logit_rows)


def layer_forward(
    architecture: Architecture,
    kernels: Kernels,
    layer: LayerWeights,
    n: int,
    x: Handle,
    inputs: ForwardInput,
    *,
    cache: Cache | None = None,
) -> Handle:
    """Layer `n` alone, for a caller that holds its weights no longer than this: x [T, D] → the
    same."""
    window = architecture.windows[n]
    index = inputs.full if window is None else inputs.sliding
    qkv = kernels.attn_in(
        x,
        layer.attention,
        positions_T=inputs.positions_T,
        rope=architecture.rope,
        cache=cache,
        layer=n,
        index=index,
    )
    attended = kernels.attention(
        qkv,
        layer.attention,
        positions_T=inputs.positions_T,
        cu_seqlens_S1=inputs.cu_seqlens_S1,
        window=window,
        cache=cache,
        layer=n,
        index=index,
    )
    x = kernels.attn_out(x, attended, layer.attention)
    return kernels.moe(x, layer.moe)

"""A small random model on native kernels, and the ways in which its tokens may be cut into steps:
what several test modules of the native kernels share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ossia.kernels.native import NativeKernels
from ossia.model.inputs import packed_input
from ossia.model.selftest import Paging, RandomModel
from ossia.model.transformer import Architecture, Weights, forward, prepare_weights
from random_models import tiny_config

Chunks = Mapping[int, int]
"""One step: sequence → how many of its tokens come next, in the order of the batch."""


@dataclass(frozen=True)
class Prepared:
    """A model and kernels that hold its weights."""

    architecture: Architecture
    kernels: NativeKernels
    weights: Weights

    @classmethod
    def of(cls, model: RandomModel, **settings) -> Prepared:
        settings = {"num_threads": 1} | settings
        architecture, kernels = Architecture.of(model.config), NativeKernels(**settings)
        return cls(architecture, kernels, prepare_weights(architecture, kernels, model.part))

    def uncached(self, documents: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Logits [T, V] of every document."""
        inputs = packed_input(documents)
        handle = forward(self.architecture, self.kernels, self.weights, inputs)
        return np.split(self.kernels.to_host(handle).copy(), inputs.cu_seqlens_S1[1:-1])

    def in_steps(
        self, documents: Sequence[Sequence[int]], steps: Sequence[Chunks], *, seed: int = 0
    ) -> list[np.ndarray]:
        """The same through a cache. `seed`: where in the cache the blocks lie."""
        paging = Paging(self.architecture, list(map(len, documents)), seed=seed)
        cache = self.kernels.allocate_cache(paging.spec)
        done = [0] * len(documents)
        logits: list[list[np.ndarray]] = [[] for _ in documents]
        for step in steps:
            chunks = {
                s: (done[s], list(documents[s][done[s] : done[s] + n])) for s, n in step.items()
            }
            inputs = paging.inputs(chunks)
            handle = forward(self.architecture, self.kernels, self.weights, inputs, cache=cache)
            rows = np.split(self.kernels.to_host(handle).copy(), inputs.cu_seqlens_S1[1:-1])
            for (s, n), values in zip(step.items(), rows, strict=True):
                done[s] += n
                logits[s].append(values)
        assert done == list(map(len, documents)), "the steps do not cover the documents"
        return [np.concatenate(values) for values in logits]

    def paths(self) -> set[str]:
        """Those that products and attention took so far."""
        counts = self.kernels.counts()
        return {path for path, count in counts.items() if count and path != "experts"}


def random_documents(model: RandomModel, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, model.config.vocab_size, n).tolist() for n in lengths]


def in_chunks(lengths: Sequence[int], size: int) -> list[Chunks]:
    """All sequences side by side, `size` tokens of each at a time."""
    return [
        {s: min(size, n - at) for s, n in enumerate(lengths) if n > at}
        for at in range(0, max(lengths), size)
    ]


def small_model(**changes) -> RandomModel:
    """Widths that are no multiple of 64 or 128, kv heads shared by three."""
    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "vocab_size": 83,
        "sliding_window": 40,
    }
    return RandomModel(tiny_config(**(sizes | changes)), seed=3)

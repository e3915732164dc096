"""Does a set of kernels compute gpt-oss? A small random model goes through the real path, with and
without the paged cache, and its logits are held against a forward pass in float64 that stands at
the end of this file, straight from the formulas, and shares no code with any kernels.

The model is made so that everything matters: sinks, biases and activations beyond the clamp are
large, sequences cross the window several times, kv heads are shared. The test knows of no
particular fault; it sees that the numbers differ, and by how much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from ossia.errors import OssiaError
from ossia.kernels.interface import (
    NO_BLOCK,
    HostTensor,
    Kernels,
    PagedIndex,
    Part,
    SamplingBatch,
    part_shapes,
)
from ossia.kernels.mxfp4 import Mxfp4Tensor
from ossia.kernels.philox import uniform
from ossia.model.config import ModelConfig, RopeConfig
from ossia.model.inputs import ForwardInput, packed_input
from ossia.model.transformer import Architecture, PartSource, Weights, forward, prepare_weights

TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the range of the logits."""

# A normal number in a block of 32 is rounded to a step of max / 127, and the largest of 32 is 2.4
# standard deviations: an error of 2.4 / 127 / sqrt(12) = 0.55 % of them. On its way through a layer
# a value passes six roundings (qkv and o: activation and weight; the experts' two: activation), in
# the head two: of two layers sqrt(14) * 0.55 % = 2.1 %. Half the tokens may have twice that; the
# worst of them six times, because softmax and SwiGLU amplify.
QUANTISED_MEDIAN = 0.04
QUANTISED_LARGEST = 0.12
"""Root mean square error of a token's logits, as a share of their standard deviation: its median
and its largest value over all tokens, with int8 activations and int8 dense tensors.
"""

_CONFIG = ModelConfig(
    num_hidden_layers=4,
    hidden_size=96,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    num_local_experts=8,
    num_experts_per_tok=4,
    vocab_size=160,
    sliding_window=128,
    sliding_layers=(True, False, True, False),
    max_position_embeddings=131072,
)
_LENGTHS = (401, 45)  # beyond three windows; and one that never leaves its first
_CHUNKS = (1, 31, 32, 33, 64, 127, 128)  # around the edges of blocks and windows
_DECODED = 24  # tokens decoded one by one at the end of each sequence
_BLOCK_SIZE = 32


@dataclass(frozen=True)
class Check:
    """One way through the kernels, and how far its result lies from that of the formulas."""

    name: str
    error: float
    """Largest difference as a share of the range of the logits; infinite where the check raised."""
    tolerance: float = TOLERANCE
    message: str = ""
    """The error that a kernel raised."""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # NaN does not pass


def self_test(kernels: Kernels) -> list[Check]:
    """Every check, passed or not; takes about a second on CPU."""
    packed = RandomModel(_CONFIG, seed=1)
    architecture = Architecture.of(_CONFIG)
    documents = _documents()
    expected = [plain_logits(_CONFIG, packed.part, ids) for ids in documents]
    logit_range = np.ptp(np.concatenate(expected))

    def through(source: PartSource, run: Callable[[_Run], list[np.ndarray]]) -> float:
        weights = prepare_weights(architecture, kernels, source)
        actual = run(_Run(architecture, kernels, weights, documents))
        pairs = zip(actual, expected, strict=True)
        return float(max(np.abs(a - e).max() for a, e in pairs) / logit_range)

    checks: dict[str, Callable[[], float]] = {
        "whole sequences without a cache": lambda: through(packed.part, _Run.uncached),
        "prefill in one step": lambda: through(packed.part, _Run.prefilled),
        "prefill in chunks": lambda: through(packed.part, _Run.chunked),
        "decoding side by side": lambda: through(packed.part, _Run.decoded),
        "experts in bfloat16": lambda: through(packed.dense_part, _Run.prefilled),
        "sampling": lambda: _sampling_error(kernels, packed, documents[1], expected[1]),
    }
    return [_checked(name, check) for name, check in checks.items()]


def quantised_self_test(exact: Kernels, quantised: Kernels) -> list[Check]:
    """Kernels that quantise activations, against the same kernels without that, which `self_test`
    has found right. Takes about half a second.

    Every expert is chosen here: then no difference, however small, can send a token elsewhere, and
    a bound holds for all tokens. That it does not matter how a sequence is cut into steps is
    checked with routing, bit for bit.
    """
    config = replace(
        _CONFIG,
        num_hidden_layers=2,
        sliding_layers=_CONFIG.sliding_layers[:2],
        num_experts_per_tok=_CONFIG.num_local_experts,
    )
    documents = _documents()

    def logits(kernels: Kernels, config: ModelConfig, run: Callable[[_Run], list[np.ndarray]]):
        architecture, model = Architecture.of(config), RandomModel(config, seed=1)
        weights = prepare_weights(architecture, kernels, model.part)
        return np.concatenate(run(_Run(architecture, kernels, weights, documents)))

    def error(quantile: float) -> float:
        expected, actual = (logits(k, config, _Run.prefilled) for k in (exact, quantised))
        rms_T = np.sqrt(((actual - expected) ** 2).mean(axis=1)) / expected.std(axis=1)
        return float(np.quantile(rms_T, quantile))

    def changed() -> float:
        """Share of the logits that are not the same bits in every way through the kernels."""
        first = logits(quantised, _CONFIG, _Run.uncached)
        others = [logits(quantised, _CONFIG, run) for run in (_Run.chunked, _Run.decoded)]
        return float(max(np.mean(other != first) for other in others))

    return [
        _checked("int8, median error of a token", lambda: error(0.5), QUANTISED_MEDIAN),
        _checked("int8, largest error of a token", lambda: error(1.0), QUANTISED_LARGEST),
        _checked("int8, the same bits in steps of any size", changed, 0.0),
    ]


def _documents() -> list[list[int]]:
    rng = np.random.default_rng(2)
    return [rng.integers(0, _CONFIG.vocab_size, n).tolist() for n in _LENGTHS]


def _checked(name: str, check: Callable[[], float], tolerance: float = TOLERANCE) -> Check:
    try:
        return Check(name, check(), tolerance)
    except OssiaError as error:
        return Check(name, math.inf, tolerance, message=str(error))
    except Exception as error:  # whatever broken kernels raise is a finding, not our failure
        return Check(name, math.inf, tolerance, message=f"{type(error).__name__}: {error}")


# -- The ways through the kernels -------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """The documents through one prepared model. Each way gives all logits of each: [T, V]."""

    architecture: Architecture
    kernels: Kernels
    weights: Weights
    documents: list[list[int]]

    def uncached(self) -> list[np.ndarray]:
        inputs = packed_input(self.documents)
        logits = forward(self.architecture, self.kernels, self.weights, inputs)
        return np.split(self.kernels.to_host(logits), inputs.cu_seqlens_S1[1:-1])

    def prefilled(self) -> list[np.ndarray]:
        return self._in_steps([{s: len(ids) for s, ids in enumerate(self.documents)}])

    def chunked(self) -> list[np.ndarray]:
        return self._in_steps(_chunked_steps(list(map(len, self.documents))))

    def decoded(self) -> list[np.ndarray]:
        prefill = {s: len(ids) - _DECODED for s, ids in enumerate(self.documents)}
        return self._in_steps([prefill] + [dict.fromkeys(prefill, 1)] * _DECODED)

    def _in_steps(self, steps: list[dict[int, int]]) -> list[np.ndarray]:
        """`steps`: how many tokens each sequence advances."""
        paging = Paging(self.architecture, list(map(len, self.documents)))
        cache = self.kernels.allocate_cache(paging.spec)
        done = [0] * len(self.documents)
        logits: list[list[np.ndarray]] = [[] for _ in self.documents]
        for step in steps:
            chunks = {
                s: (done[s], self.documents[s][done[s] : done[s] + n]) for s, n in step.items()
            }
            inputs = paging.inputs(chunks)
            handle = forward(self.architecture, self.kernels, self.weights, inputs, cache=cache)
            rows = np.split(self.kernels.to_host(handle), inputs.cu_seqlens_S1[1:-1])
            for (s, n), values in zip(step.items(), rows, strict=True):
                done[s] += n
                logits[s].append(values)
        return [np.concatenate(values) for values in logits]


def _chunked_steps(lengths: list[int]) -> list[dict[int, int]]:
    """Steps of uneven chunks; the order of the sequences changes from step to step."""
    remaining = dict(enumerate(lengths))
    steps: list[dict[int, int]] = []
    while any(remaining.values()):
        size = _CHUNKS[len(steps) % len(_CHUNKS)]
        order = [s for s in remaining if remaining[s]]
        step = {s: min(size, remaining[s]) for s in (order if len(steps) % 2 else order[::-1])}
        for s, n in step.items():
            remaining[s] -= n
        steps.append(step)
    return steps


def _sampling_error(
    kernels: Kernels, model: RandomModel, ids: list[int], expected_TV: np.ndarray
) -> float:
    """Share of draws that are not the inverse CDF of the expected probabilities. Draws that fall
    close to the border between two tokens, where rounding may decide, are left out.
    """
    architecture = Architecture.of(_CONFIG)
    weights = prepare_weights(architecture, kernels, model.part)
    logits = forward(architecture, kernels, weights, packed_input([ids]))
    T = len(ids)
    greedy = [row % 4 == 0 for row in range(T)]
    drawn = kernels.sample(
        logits,
        SamplingBatch(
            temperature=[0.0 if row else 1.5 for row in greedy],
            top_k=[0] * T,
            top_p=[1.0] * T,
            min_p=[0.0] * T,
            seed=[2**63 + row for row in range(T)],
            position=list(range(T)),
            repetition_penalty=[1.0] * T,
            presence_penalty=[0.0] * T,
            frequency_penalty=[0.0] * T,
            prompt_ids=[()] * T,
            output_ids=[()] * T,
            logit_bias=[{}] * T,
            top_logprobs=[-1] * T,
        ),
    ).ids
    misses = compared = 0
    for row, token in enumerate(drawn):
        cumulative_V = np.cumsum(_softmax(expected_TV[row] / 1.5))
        u = uniform(2**63 + row, row)
        best = int(expected_TV[row].argmax())
        wanted = best if greedy[row] else int(np.argmax(cumulative_V > u))
        if greedy[row] or np.abs(cumulative_V - u).min() > 10 * TOLERANCE:
            compared += 1
            misses += token != wanted
    return misses / compared


# -- The random model and its paging ----------------------------------------------------------


@dataclass(frozen=True)
class RandomModel:
    """Random tensors for any configuration, the same for the same seed; nothing is kept."""

    config: ModelConfig
    seed: int = 0

    def part(self, part: Part, layer: int | None) -> dict[str, HostTensor]:
        """A `PartSource`: MXFP4 experts, everything else bfloat16."""
        rng = np.random.default_rng((self.seed, list(Part).index(part), (layer or 0) + 1))
        return {
            name: self._tensor(part, name, shape, rng)
            for name, shape in part_shapes(part, self.config.dims()).items()
        }

    def dense_part(self, part: Part, layer: int | None) -> dict[str, HostTensor]:
        """The same values, the experts decoded into bfloat16 (which holds them exactly)."""
        tensors = self.part(part, layer)
        return {name: _values(t).astype(ml_dtypes.bfloat16) for name, t in tensors.items()}

    def _tensor(
        self, part: Part, name: str, shape: tuple[int, ...], rng: np.random.Generator
    ) -> HostTensor:
        if name in ("gate_up", "down"):
            # The 16 values of a nibble, all equally likely, have a root mean square of 2.9. The
            # factor 4 takes the hidden activations beyond the limit of 7 on both sides.
            wanted = (4 if name == "gate_up" else 1) / math.sqrt(shape[-1])
            exponent = 127 + round(math.log2(wanted / 2.9))
            groups = (*shape[:-1], shape[-1] // 32)
            return Mxfp4Tensor(
                blocks=rng.integers(0, 256, (*groups, 16), np.uint8),
                scales=rng.integers(exponent - 1, exponent + 2, groups, np.uint8),
            )
        values = rng.standard_normal(shape)
        if name == "norm":
            values = 1 + 0.3 * values
        elif name == "sinks":
            values = 1 + 2 * values
        elif part is not Part.EMBEDDING and not name.endswith("_bias"):
            values /= math.sqrt(shape[-1])
        return values.astype(ml_dtypes.bfloat16)


class Paging:
    """Block tables made by hand: scattered blocks, of which sliding layers lose those that the
    window has passed.
    """

    def __init__(self, architecture: Architecture, lengths: list[int], *, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        blocks = [-(-length // _BLOCK_SIZE) for length in lengths]
        total = sum(blocks) + 3  # a few that nobody owns
        splits = np.cumsum(blocks)
        self._full = np.split(rng.permutation(total).astype(np.int32), splits)[:-1]
        self._sliding = np.split(rng.permutation(total).astype(np.int32), splits)[:-1]
        self._window = next((w for w in architecture.windows if w is not None), None)
        self.spec = architecture.cache_spec(
            num_full_blocks=total, num_sliding_blocks=total, block_size=_BLOCK_SIZE
        )

    def inputs(self, chunks: Mapping[int, tuple[int, list[int]]]) -> ForwardInput:
        """One step. `chunks`: sequence → position of its first token, and its tokens. Every row
        gives logits.
        """
        tokens = [ids for _, ids in chunks.values()]
        step = packed_input(tokens)
        starts = np.repeat([start for start, _ in chunks.values()], list(map(len, tokens)))
        return replace(
            step,
            positions_T=step.positions_T + starts.astype(np.int32),
            full=self._index(self._full, None, chunks),
            sliding=self._index(self._sliding, self._window, chunks),
        )

    def _index(
        self,
        tables: list[np.ndarray],
        window: int | None,
        chunks: Mapping[int, tuple[int, list[int]]],
    ) -> PagedIndex:
        width = max(-(-(start + len(ids)) // _BLOCK_SIZE) for start, ids in chunks.values())
        block_tables_SB = np.full((len(chunks), width), NO_BLOCK, np.int32)
        slots: list[np.ndarray] = []
        for row, (sequence, (start, ids)) in enumerate(chunks.items()):
            first_seen = 0 if window is None else max(start - window + 1, 0)
            held = slice(first_seen // _BLOCK_SIZE, -(-(start + len(ids)) // _BLOCK_SIZE))
            block_tables_SB[row, held] = tables[sequence][held]
            positions = np.arange(start, start + len(ids), dtype=np.int32)
            blocks = block_tables_SB[row, positions // _BLOCK_SIZE]
            slots.append(blocks * _BLOCK_SIZE + positions % _BLOCK_SIZE)
        return PagedIndex(np.concatenate(slots), block_tables_SB)


# -- The formulas, once more: slow, in float64, one head and one token at a time --------------

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def plain_logits(config: ModelConfig, source: PartSource, ids: list[int]) -> np.ndarray:
    """Logits [T, V] of one whole sequence, from the published formulas alone."""
    x = _values(source(Part.EMBEDDING, None)["weight"])[ids]
    for layer, sliding in enumerate(config.sliding_layers):
        weights = {name: _values(t) for name, t in source(Part.ATTENTION, layer).items()}
        x = x + _attention(config, weights, x, config.sliding_window if sliding else None)
        weights = {name: _values(t) for name, t in source(Part.MOE, layer).items()}
        normed = _norm(config, x, weights["norm"])
        x = x + np.stack([_experts(config, weights, token) for token in normed])
    weights = {name: _values(t) for name, t in source(Part.HEAD, None).items()}
    return _norm(config, x, weights["norm"]) @ weights["weight"].T


def _values(tensor: HostTensor) -> np.ndarray:
    if not isinstance(tensor, Mxfp4Tensor):
        return tensor.astype(np.float64)
    nibbles = np.stack([tensor.blocks % 16, tensor.blocks // 16], axis=-1)
    scales = np.exp2(tensor.scales.astype(np.float64) - 127)
    return (_E2M1[nibbles] * scales[..., None, None]).reshape(tensor.shape)


def _norm(config: ModelConfig, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.rms_norm_eps)


def _attention(
    config: ModelConfig, weights: dict[str, np.ndarray], x: np.ndarray, window: int | None
) -> np.ndarray:
    d, T = config.head_dim, len(x)
    normed = _norm(config, x, weights["norm"])
    q, k, v = (normed @ weights[name].T + weights[f"{name}_bias"] for name in "qkv")
    turned = np.exp(1j * np.outer(np.arange(T), _inverse_frequencies(config.rope, d)))
    turned *= 0.1 * math.log(config.rope.factor) + 1
    distance = np.arange(T)[:, None] - np.arange(T)
    visible = (distance >= 0) & (distance < (window or math.inf))
    heads: list[np.ndarray] = []
    for head in range(config.num_attention_heads):
        kv_head = head // (config.num_attention_heads // config.num_key_value_heads)
        own, shared = slice(head * d, head * d + d), slice(kv_head * d, kv_head * d + d)
        scores = _rotated(q[:, own], turned) @ _rotated(k[:, shared], turned).T / math.sqrt(d)
        sink = np.full((T, 1), weights["sinks"][head])
        shares = _softmax(np.hstack([np.where(visible, scores, -np.inf), sink]))
        heads.append(shares[:, :T] @ v[:, shared])
    return np.hstack(heads) @ weights["o"].T + weights["o_bias"]


def _rotated(x: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """Element j and element j + d/2 are the real and imaginary part of a complex number."""
    half = x.shape[1] // 2
    product = (x[:, :half] + 1j * x[:, half:]) * turned
    return np.hstack([product.real, product.imag])


def _inverse_frequencies(rope: RopeConfig, d: int) -> np.ndarray:
    """YaRN with the ramp of the published models, whose bounds are not rounded to integers."""
    frequency = rope.theta ** (2 * np.arange(d // 2) / d)

    def dimension(turns: float) -> float:
        wavelength = rope.original_max_position_embeddings / (turns * 2 * math.pi)
        return d / 2 * math.log(wavelength) / math.log(rope.theta)

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    ramp = np.clip((np.arange(d // 2) - low) / (high - low), 0, 1)
    return ramp / (rope.factor * frequency) + (1 - ramp) / frequency


def _experts(config: ModelConfig, weights: dict[str, np.ndarray], token: np.ndarray) -> np.ndarray:
    logits = weights["router"] @ token + weights["router_bias"]
    chosen = sorted(range(len(logits)), key=lambda expert: -logits[expert])
    chosen = chosen[: config.num_experts_per_tok]
    total = np.zeros(len(token))
    for share, expert in zip(_softmax(logits[chosen]), chosen, strict=True):
        pairs = (weights["gate_up"][expert] @ token + weights["gate_up_bias"][expert]).reshape(
            -1, 2
        )
        gate = np.minimum(pairs[:, 0], config.swiglu_limit)
        up = np.clip(pairs[:, 1], -config.swiglu_limit, config.swiglu_limit)
        hidden = gate / (1 + np.exp(-config.swiglu_alpha * gate)) * (up + 1)
        total += share * (weights["down"][expert] @ hidden + weights["down_bias"][expert])
    return total


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)

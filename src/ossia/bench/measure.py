"""Prefill and decode of a loaded model, each beside the limit of the machine as it was in the same
moment: the int8 dot-product peak, and the bandwidth at which the model's own experts are read.

Both limits drift on a shared machine, bandwidth by half within a minute. So they are probed between
the samples, and what counts is the median of the paired ratios, with its spread.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ossia.bench.stepper import Stepper
from ossia.engine.config import EngineConfig
from ossia.engine.memory_plan import KernelMemory
from ossia.errors import UsageError
from ossia.loading import OpenedModel
from ossia.model.config import ModelConfig
from ossia.model.cost import FLOAT_PRICE, WeightFormat, WeightFormats, step_cost
from ossia.model.transformer import Weights

if TYPE_CHECKING:
    from ossia.kernels.native import NativeKernels

WINDOWS = 10
"""Samples of every decode measurement, alternating with probes."""
_WARM_UP_STEPS = 2
_LEAST_STEPS = 4
_MOST_STEPS = 48
_DECODE_ROOM = _WARM_UP_STEPS + WINDOWS * _LEAST_STEPS
_WINDOW_SECONDS = 0.02  # of a tiny model: enough steps to tell time by
_PROBE_BYTES = 512 << 20
_CACHE_BYTES = 256 << 20  # an array below this may be read from the processor's caches


@dataclass(frozen=True)
class Plan:
    """What to measure. Lengths that the model's context does not hold are left out;
    `first_too_long` finds them.
    """

    prompt_tokens: tuple[int, ...] = (512, 2048)
    depths: tuple[int, ...] = (0, 4096)
    """Tokens in the cache when one sequence begins to decode."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Sequences that decode together, from an empty cache."""
    repeat: int = 3
    """How often each prompt is read."""

    def __post_init__(self) -> None:
        for name, least in (("prompt_tokens", 1), ("depths", 0), ("batches", 1)):
            if any(value < least for value in getattr(self, name)):
                raise UsageError(
                    f"{name} must be {least} or more; got {list(getattr(self, name))}."
                )
        if self.repeat < 1:
            raise UsageError(f"repeat must be at least 1; got {self.repeat}.")


@dataclass(frozen=True)
class Sample:
    seconds: float
    work: float
    """Bytes to be read, or multiply-adds at the price of int8."""
    limit: float | None
    """The machine's rate for that work, probed around the sample, per second."""

    @property
    def share(self) -> float | None:
        return None if self.limit is None else self.work / self.seconds / self.limit


@dataclass(frozen=True)
class Result:
    """One measurement."""

    kind: str
    """prefill, decode or batch."""
    tokens: int
    """Of a sample, over all sequences."""
    depth: int
    sequences: int
    samples: tuple[Sample, ...]
    experts_per_layer: float | None = None
    """That got a token in a step, counted; None where the kernels do not say."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / statistics.median(sample.seconds for sample in self.samples)

    @property
    def shares(self) -> list[float]:
        """Of the limit, sample by sample, ascending."""
        return sorted(sample.share for sample in self.samples if sample.share is not None)

    @property
    def share(self) -> float | None:
        return statistics.median(self.shares) if self.shares else None

    @property
    def limit(self) -> float | None:
        limits = [sample.limit for sample in self.samples if sample.limit is not None]
        return statistics.median(limits) if limits else None

    @property
    def bytes_per_token(self) -> float | None:
        if self.kind == "prefill":
            return None
        return statistics.median(sample.work for sample in self.samples) / self.tokens


class Bench:
    """One loaded model, ready to be measured."""

    def __init__(self, opened: OpenedModel, weights: Weights, *, seed: int = 0) -> None:
        self._opened, self._weights = opened, weights
        self._config = opened.checkpoint.config
        self._rng = np.random.default_rng(seed)
        self._limits = _Limits(opened, weights)

    @property
    def probes_memory(self) -> bool:
        """False where the experts are too small to be read from memory, or cannot be probed."""
        return self._limits.probes_memory

    def first_token(self, prompt_tokens: int = 16) -> None:
        """What the first request of a process costs beyond loading."""
        length = min(prompt_tokens, self._config.max_position_embeddings - 1)
        self._stepper([length]).advance(length)

    def run(self, plan: Plan) -> Iterator[Result | str]:
        """Each result as soon as it is there; before each, what is being measured."""
        longest = self._config.max_position_embeddings - 1
        room = _DECODE_ROOM
        for length in sorted({n for n in plan.prompt_tokens if n <= longest}):
            yield f"prefill of {length} tokens"
            yield self.prefill(length, plan.repeat)
        for depth in sorted({n for n in plan.depths if n + room <= longest}):
            yield f"decode at depth {depth}"
            yield self.decode(1, depth, "decode")
        for count in sorted(set(plan.batches)):
            if room <= longest:
                yield f"decode of {count} sequences"
                yield self.decode(count, 0, "batch")

    def prefill(self, length: int, repeat: int) -> Result:
        stepper = self._stepper([length])
        samples: list[Sample] = []
        chunks = [(at, min(512, length - at)) for at in range(0, length, 512)]
        costs = [
            step_cost(self._config, [chunk], logit_rows=int(sum(chunk) == length))
            for chunk in chunks
        ]
        price = FLOAT_PRICE if self._limits.is_float else 1
        work = sum(
            price * (cost.product_multiply_adds + cost.head_multiply_adds)
            + FLOAT_PRICE * cost.attention_multiply_adds
            for cost in costs
        )
        before = self._limits.dot_peak()
        for _ in range(repeat):
            stepper.restart()
            start = time.perf_counter()
            stepper.advance(length)
            seconds = time.perf_counter() - start
            after = self._limits.dot_peak()
            samples.append(Sample(seconds, work, _mean(before, after)))
            before = after
        return Result("prefill", length, 0, 1, tuple(samples))

    def decode(self, sequences: int, depth: int, kind: str) -> Result:
        longest = self._config.max_position_embeddings - 1
        most = (longest - depth - _WARM_UP_STEPS) // WINDOWS
        stepper = self._stepper(
            [min(longest, depth + _WARM_UP_STEPS + WINDOWS * _MOST_STEPS)] * sequences
        )
        if depth:
            stepper.advance(depth)
        start = time.perf_counter()
        for _ in range(_WARM_UP_STEPS):
            stepper.advance(1)
        per_step = (time.perf_counter() - start) / _WARM_UP_STEPS
        steps = max(_LEAST_STEPS, min(most, _MOST_STEPS, int(_WINDOW_SECONDS / per_step)))
        samples: list[Sample] = []
        experts = 0.0
        before = self._limits.bandwidth()
        for _ in range(WINDOWS):
            first, counted = stepper.position, self._limits.experts()
            start = time.perf_counter()
            for _ in range(steps):
                stepper.advance(1)
            seconds = time.perf_counter() - start
            after, now = self._limits.bandwidth(), self._limits.experts()
            read = None if counted is None or now is None else (now - counted) / steps
            experts += read or 0.0
            work = sum(
                self._step_bytes(sequences, position, read)
                for position in range(first, first + steps)
            )
            samples.append(Sample(seconds, work, _mean(before, after)))
            before = after
        per_layer = experts / WINDOWS / self._config.num_hidden_layers
        return Result(kind, steps * sequences, depth, sequences, tuple(samples), per_layer or None)

    def _step_bytes(self, sequences: int, position: int, experts: float | None) -> int:
        return step_cost(
            self._config,
            [(position, 1)] * sequences,
            logit_rows=sequences,
            formats=self._limits.formats,
            kv_itemsize=self._opened.kernels.cache_itemsize,
            experts_read=experts,
        ).read_bytes

    def _stepper(self, lengths: Sequence[int]) -> Stepper:
        tokens = [self._rng.integers(0, self._config.vocab_size, n).tolist() for n in lengths]
        return Stepper(self._config, self._opened.kernels, self._weights, tokens)


class _Limits:
    """What the machine can do at most, probed with the kernels' own threads; None for kernels that
    have no probes.
    """

    def __init__(self, opened: OpenedModel, weights: Weights) -> None:
        self._kernels: NativeKernels | None = None
        arrays: list[np.ndarray] = []
        if opened.kernels.name == "native":
            from ossia.kernels.native import NativeKernels

            assert isinstance(opened.kernels, NativeKernels)
            self._kernels = opened.kernels
            arrays = list(_expert_blocks(weights))
        self.is_float = self._kernels is None or self._kernels.exact
        self._total = sum(array.nbytes for array in arrays)
        self._arrays = itertools.cycle(arrays)
        dense = WeightFormat.BF16
        if self._kernels is not None and KernelMemory.of(self._kernels).repacks:
            dense = WeightFormat.INT8
        self.formats = WeightFormats(dense=dense, experts=WeightFormat.MXFP4 if arrays else dense)

    @property
    def probes_memory(self) -> bool:
        return self._total > _CACHE_BYTES

    def dot_peak(self) -> float | None:
        return None if self._kernels is None else self._kernels.dot_peak()

    def bandwidth(self) -> float | None:
        """Bytes per second of reading the mapped experts, some hundred MB of them, other layers
        each time; None where they are so few that they may lie in the processor's caches.
        """
        if self._kernels is None or not self.probes_memory:
            return None
        done, seconds = 0, 0.0
        while done < min(_PROBE_BYTES, self._total):
            array = next(self._arrays)
            seconds += self._kernels.read_seconds(array)
            done += array.nbytes
        return done / seconds

    def experts(self) -> int | None:
        """How many experts have been read so far, over all layers."""
        return None if self._kernels is None else self._kernels.counts().get("experts")


def _expert_blocks(weights: Weights) -> Iterator[np.ndarray]:
    """The nibbles of all experts, one layer after the other, where the kernels read them."""
    for layer in weights.layers:
        for kept in layer.moe.kept:
            if isinstance(kept, np.ndarray) and kept.dtype == np.uint8 and kept.ndim == 4:
                yield kept


def _mean(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else (before + after) / 2


def first_too_long(lengths: Sequence[int], config: ModelConfig, *, decodes: bool) -> str | None:
    """What is wrong with the first length that `config`'s context does not hold, or None."""
    context = config.max_position_embeddings
    most = context - 1 - (_DECODE_ROOM if decodes else 0)
    for length in lengths:
        if length > most:
            return f"at most {most} for this model, whose context is {context}; got {length}."
    return None


def engine_needed(plan: Plan, config: ModelConfig) -> EngineConfig:
    """An engine whose cache is as large as the largest measurement needs."""
    decoded = _WARM_UP_STEPS + WINDOWS * _MOST_STEPS
    ends = (*plan.prompt_tokens, *(depth + decoded for depth in plan.depths))
    longest = min(max((2, *ends)) + 1, config.max_position_embeddings)
    sequences = max((1, *plan.batches))
    return EngineConfig(
        max_num_seqs=sequences,
        max_model_len=longest,
        cache_tokens=max(longest, sequences * min(decoded + 1, longest)),
    )

"""Each op of the native kernels at gpt-oss-20b shape, beside the same op of `reference` and the
time that its bytes or multiply-adds take at the machine's limits, probed in the same run.

    python benchmarks/ops.py [--threads N] [--repeat 5] [--no-reference]

The bound of an op is the larger of two: bytes of weights (of the experts that were routed to) and
of the cache over the read bandwidth, multiply-adds over the int8 peak (a quarter of it for
attention, which is float32). Random weights of a few layers, so that no cache holds them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from random_model import shape_config

from ossia.kernels.interface import HostTensor, Kernels, Part
from ossia.kernels.native import NativeKernels
from ossia.kernels.reference import ReferenceKernels
from ossia.model.selftest import Paging, RandomModel
from ossia.model.transformer import Architecture

CASES = ((1, 0), (1, 4096), (16, 0), (128, 0), (512, 0), (512, 1536))
"""(tokens of one sequence, position of the first)."""
_Q8 = 34 / 32  # bytes of a dense weight
_FP4 = 17 / 32
_OTHER = np.ones(400 << 20, np.uint8)


@dataclass(frozen=True)
class Bound:
    weight_bytes: float
    cache_bytes: float
    multiply_adds: float
    """In units of an int8 one."""

    def seconds(self, read: float, peak: float) -> float:
        return max((self.weight_bytes + self.cache_bytes) / read, self.multiply_adds / peak)


class Ops:
    """One layer's ops of one kernel set on one step."""

    def __init__(self, kernels: Kernels, parts: Mapping[Part, Mapping[str, HostTensor]]) -> None:
        self.kernels = kernels
        self.weights = {
            part: kernels.prepare(part, parts[part], _ARCHITECTURE.dims) for part in parts
        }

    def timed(self, tokens: int, start: int, repeat: int) -> dict[str, float]:
        """Seconds of each op, the median of `repeat`."""
        kernels, weights = self.kernels, self.weights
        paging = Paging(_ARCHITECTURE, [start + tokens])
        cache = kernels.allocate_cache(paging.spec)
        ids = np.random.default_rng(start).integers(0, 201_000, tokens).tolist()
        inputs = paging.inputs({0: (start, ids)})
        x = kernels.embed(inputs.ids_T, weights[Part.EMBEDDING])
        where = {
            "positions_T": inputs.positions_T,
            "cache": cache,
            "layer": 1,
            "index": inputs.full,
        }
        attention = weights[Part.ATTENTION]
        qkv = kernels.attn_in(x, attention, rope=_ARCHITECTURE.rope, **where)
        attended = kernels.attention(
            qkv, attention, cu_seqlens_S1=inputs.cu_seqlens_S1, window=None, **where
        )
        last = np.array([tokens - 1], np.int32)
        ops: dict[str, Callable[[], object]] = {
            "attn_in": lambda: kernels.attn_in(x, attention, rope=_ARCHITECTURE.rope, **where),
            "attention": lambda: kernels.attention(
                qkv, attention, cu_seqlens_S1=inputs.cu_seqlens_S1, window=None, **where
            ),
            "attn_out": lambda: kernels.attn_out(x, attended, attention),
            "moe": lambda: kernels.moe(x, weights[Part.MOE]),
            "logits": lambda: kernels.logits(x, weights[Part.HEAD], last),
        }
        self._median(lambda: kernels.moe(x, weights[Part.MOE]), 1)
        return {name: self._median(op, repeat) for name, op in ops.items()}

    def _median(self, op: Callable[[], object], repeat: int) -> float:
        seconds: list[float] = []
        for _ in range(repeat):
            if isinstance(self.kernels, NativeKernels):
                self.kernels.read_seconds(_OTHER)  # as other layers do, it empties the caches
            begin = time.perf_counter()
            value = op()
            if isinstance(self.kernels, NativeKernels):  # the only lazy ones here
                self.kernels.to_host(value)
            seconds.append(time.perf_counter() - begin)
        return float(np.median(seconds))


def bounds(tokens: int, start: int, experts: float) -> dict[str, Bound]:
    """`experts`: how many were routed to."""
    dims = _ARCHITECTURE.dims
    D, q = dims.hidden_size, dims.num_heads * dims.head_dim
    kv = dims.num_kv_heads * dims.head_dim
    expert = 3 * D * dims.intermediate_size
    keys = sum(range(start + 1, start + tokens + 1))
    routed = tokens * dims.experts_per_token
    return {
        "attn_in": Bound((q + 2 * kv) * D * _Q8, 0, tokens * (q + 2 * kv) * D),
        "attention": Bound(0, 4 * kv * (start + tokens), 4 * 2 * q * keys),
        "attn_out": Bound(q * D * _Q8, 0, tokens * q * D),
        "moe": Bound(experts * expert * _FP4, 0, routed * expert),
        "logits": Bound(dims.vocab_size * D * _Q8, 0, dims.vocab_size * D),
    }


_CONFIG = shape_config("20b", 2)  # one sliding layer and one that sees all
_ARCHITECTURE = Architecture.of(_CONFIG)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--no-reference", action="store_true")
    args = parser.parse_args()
    model = RandomModel(_CONFIG)
    layers = {Part.EMBEDDING: None, Part.ATTENTION: 1, Part.MOE: 1, Part.HEAD: None}
    parts = {part: model.part(part, layer) for part, layer in layers.items()}
    kernels = NativeKernels(num_threads=args.threads)
    native = Ops(kernels, parts)
    reference = None if args.no_reference else Ops(ReferenceKernels(), parts)
    print(f"{kernels.instruction_set}, {kernels.num_threads} threads; milliseconds, one layer")
    print(
        f"{'tokens':>6} {'from':>5} {'op':10} {'native':>9} {'bound':>9} {'share':>6} "
        f"{'reference':>10}"
    )
    for tokens, start in CASES:
        before = kernels.counts()["experts"]
        seconds = native.timed(tokens, start, args.repeat)
        experts = (kernels.counts()["experts"] - before) / (args.repeat + 1)  # one to warm up
        read = np.median([_OTHER.nbytes / kernels.read_seconds(_OTHER) for _ in range(5)])
        peak = max(kernels.dot_peak(1 << 24) for _ in range(5))
        limits = bounds(tokens, start, experts)
        plain = reference.timed(tokens, start, 1) if reference and tokens <= 16 else {}
        for name, took in seconds.items():
            bound = limits[name].seconds(float(read), peak)
            beside = f"{plain[name] * 1e3:10.1f}" if name in plain else f"{'':>10}"
            print(
                f"{tokens:6} {start:5} {name:10} {took * 1e3:9.3f} {bound * 1e3:9.3f} "
                f"{bound / took:6.0%} {beside}",
                flush=True,
            )


if __name__ == "__main__":
    main()

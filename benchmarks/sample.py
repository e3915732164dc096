"""How long does the next token of a row take at the vocabulary of gpt-oss, native against the plain
form? The native sets take turns setting by setting; one thread, logits that are already in cache.

    python benchmarks/sample.py [--deviation 3] [--repeats 51] [--sets avx512 avx2 scalar] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ossia.kernels import _native
from ossia.kernels.interface import SamplingBatch
from ossia.kernels.native_sampling import sample_rows_native
from ossia.kernels.sampling import sample_rows

VOCABULARY = 201_088
PLAIN_REPEATS = 5

OFF: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "seed": 0,
    "position": 0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "prompt_ids": (),
    "output_ids": (),
    "logit_bias": {},
    "top_logprobs": -1,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {},
    "temperature 0.7": {"temperature": 0.7},
    "top-k 50": {"temperature": 0.7, "top_k": 50},
    "top-p 0.9": {"temperature": 0.7, "top_p": 0.9},
    "min-p 0.05": {"temperature": 0.7, "min_p": 0.05},
    "top-k 50, top-p 0.9, min-p 0.05": {
        "temperature": 0.7,
        "top_k": 50,
        "top_p": 0.9,
        "min_p": 0.05,
    },
    "top-p 0.9, min-p 0.05": {"temperature": 0.7, "top_p": 0.9, "min_p": 0.05},
    "greedy, log-probability": {"temperature": 0.0, "top_logprobs": 0},
    "top-k 50, 20 log-probabilities": {"temperature": 0.7, "top_k": 50, "top_logprobs": 20},
    "top-p 0.9, 20 log-probabilities": {"temperature": 0.7, "top_p": 0.9, "top_logprobs": 20},
    "temperature 1, mask": {"mask": True},
    "penalties of 4,096 tokens": {
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.1,
        "prompt_ids": np.arange(4096, dtype=np.int32),
        "output_ids": np.arange(4096, dtype=np.int32),
    },
}


def batch_of(options: dict[str, Any], rng: np.random.Generator) -> SamplingBatch:
    """One row; half of the tokens allowed where there is a mask."""
    values = {**OFF, **options}
    masked = values.pop("mask", False)
    words = (1, -(-VOCABULARY // 32))
    masks_SW = rng.integers(0, 2**32, words, dtype=np.uint32) if masked else None
    return SamplingBatch(**{name: [value] for name, value in values.items()}, masks_SW=masks_SW)


def seconds(call: Callable[[], object], repeats: int) -> list[float]:
    """Of each of `repeats` calls, after one that does not count."""
    call()
    taken: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def measure(deviation: float, repeats: int, sets: list[str]) -> list[dict[str, Any]]:
    """One record per setting: milliseconds per row, median and lowest, packing included."""
    rng = np.random.default_rng(0)
    logits_SV = (rng.standard_normal((1, VOCABULARY)) * deviation).astype(np.float32)
    records: list[dict[str, Any]] = []
    for name, options in SETTINGS.items():
        batch = batch_of(options, rng)

        def native(chosen: str, batch: SamplingBatch = batch) -> object:
            return sample_rows_native(_native, chosen, logits_SV, batch)

        def plain(batch: SamplingBatch = batch) -> object:
            return sample_rows(logits_SV, batch)

        taken = {chosen: seconds(lambda chosen=chosen: native(chosen), repeats) for chosen in sets}
        taken["plain"] = seconds(plain, PLAIN_REPEATS)
        records.append(
            {
                "setting": name,
                **{chosen: statistics.median(values) * 1e3 for chosen, values in taken.items()},
                **{f"{chosen}_lowest": min(values) * 1e3 for chosen, values in taken.items()},
            }
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deviation", type=float, default=3.0, help="of the normal logits")
    parser.add_argument("--repeats", type=int, default=51)
    parser.add_argument("--sets", nargs="+", default=_native.instruction_sets()[::-1])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    records = measure(options.deviation, options.repeats, options.sets)
    if options.json:
        print(json.dumps({"deviation": options.deviation, "milliseconds": records}))
        return
    columns = [*options.sets, "plain"]
    print(f"{'milliseconds per row (lowest)':34}" + "".join(f"{name:>18}" for name in columns))
    for record in records:
        cells = [f"{record[name]:8.3f} ({record[f'{name}_lowest']:.3f})" for name in columns]
        print(f"{record['setting']:34}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()

"""The two limits that speed is judged by: how fast this machine reads memory, and how many int8
multiply-adds it does.

    python benchmarks/peak.py [--file CHECKPOINT.safetensors] [--threads N] [--seconds 5]

Reading: the mapped file (or memory of our own) from front to back with all threads, each line once,
no arithmetic but what keeps the loads. Arithmetic: dot-product instructions with operands in
registers. Both drift on a shared machine: medians and ranges over windows that take turns.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from ossia.kernels.native import NativeKernels

_WINDOW_BYTES = 400 << 20


def windows(kernels: NativeKernels, data: np.ndarray, seconds: float) -> np.ndarray:
    """Rows of (bytes, multiply-adds) per second, one per window; walks through `data`."""
    samples: list[tuple[float, float]] = []
    at = 0
    stop = time.perf_counter() + seconds
    while len(samples) < 3 or time.perf_counter() < stop:
        if at + _WINDOW_BYTES > len(data):
            at = 0
        window = data[at : at + _WINDOW_BYTES]
        at += len(window)
        samples.append((window.nbytes / kernels.read_seconds(window), kernels.dot_peak(1 << 24)))
    return np.array(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--file", type=Path, help="a large file to read; default: own memory")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    kernels = NativeKernels(num_threads=args.threads)
    if args.file is None:
        data = np.ones(2 * _WINDOW_BYTES, np.uint8)
    else:
        data = np.memmap(args.file, np.uint8, mode="r")
    windows(kernels, data, 0)  # the first touch of the pages
    samples = windows(kernels, data, args.seconds)
    names = ("read, GB/s", "int8 multiply-adds, G/s")
    print(f"{kernels.instruction_set}, {kernels.num_threads} threads, {len(samples)} windows")
    for name, values in zip(names, samples.T / 1e9, strict=True):
        low, middle, high = np.percentile(values, [0, 50, 100])
        print(f"{name:24} {middle:7.1f}  ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()

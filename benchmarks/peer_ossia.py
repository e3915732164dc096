"""Ossia's side of benchmarks/peers.py: what `ossia bench` steps with, on tokens that are given.

Options of the plan: `kernels`, the name of the kernel set.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence as Rows
from typing import Any

import numpy as np
from peer_plan import Plan, run

from ossia import __version__
from ossia.bench.stepper import Stepper
from ossia.errors import OssiaError
from ossia.kernels.choose import choose_kernels
from ossia.kernels.interface import Kernels, Part
from ossia.kernels.mxfp4 import Mxfp4Tensor
from ossia.model.checkpoint import open_checkpoint
from ossia.model.transformer import Architecture, prepare_weights

_PROBE_BYTES = 600_000_000  # far beyond any cache; two layers of 20b


class OssiaEngine:
    """A `peer_plan.Engine`."""

    def __init__(self, plan: Plan) -> None:
        self._chunk = plan.chunk
        self._checkpoint = checkpoint = open_checkpoint(plan.model)
        self._config = checkpoint.config
        self._kernels, self._why = _kernels(
            plan.options["kernels"], plan.threads, checkpoint.total_bytes
        )
        self._weights = prepare_weights(
            Architecture.of(self._config), self._kernels, checkpoint.part
        )
        self._stepper: Stepper | None = None
        self._probed: list[np.ndarray] = []

    def describe(self) -> dict[str, Any]:
        return {
            "name": "ossia",
            "version": __version__,
            "kernels": self._kernels.name,
            "why": self._why,
            "chunk": self._chunk,
        }

    def open(self, sequences: Rows[Rows[int]]) -> None:
        self._stepper = None  # gives the last cache back before the next is allocated
        self._stepper = Stepper(
            self._config, self._kernels, self._weights, sequences, chunk=self._chunk
        )

    def reset(self) -> None:
        assert self._stepper is not None
        self._stepper.restart()

    def advance(self, start: int, count: int) -> list[int]:
        assert self._stepper is not None and self._stepper.position == start
        return self._stepper.advance(count)

    def read_gb_per_s(self) -> float | None:
        """By the native kernels' own threads, over the mapped experts of a few layers."""
        read_seconds = getattr(self._kernels, "read_seconds", None)
        if read_seconds is None:
            return None
        if not self._probed:
            self._probed = self._expert_arrays()
            for array in self._probed:  # a page's first touch costs more than reading it
                read_seconds(array)
        seconds = sum(map(read_seconds, self._probed))
        return sum(array.nbytes for array in self._probed) / seconds / 1e9

    def _expert_arrays(self) -> list[np.ndarray]:
        arrays: list[np.ndarray] = []
        for layer in range(self._config.num_hidden_layers):
            moe = self._checkpoint.part(Part.MOE, layer)
            arrays += [
                tensor.blocks if isinstance(tensor, Mxfp4Tensor) else tensor
                for tensor in (moe["gate_up"], moe["down"])
            ]
            if sum(array.nbytes for array in arrays) >= _PROBE_BYTES:
                break
        return arrays


def _kernels(name: str, threads: int, model_bytes: int) -> tuple[Kernels, str]:
    """Only the native set takes a number of threads; the others follow OMP_NUM_THREADS, which
    peers.py sets."""
    given = {"threads": threads} if name == "native" else {}
    return choose_kernels(name, model_bytes=model_bytes, **given)


if __name__ == "__main__":
    sys.exit(run(OssiaEngine, (OssiaError, MemoryError)))

"""Ossia's side of benchmarks/peers.py: the model runner and the block tables of the engine, with
tokens that are given instead of drawn.

Options of the plan: `kernels`, the name of the kernel set.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence as Rows
from typing import Any

import numpy as np
from peer_plan import Plan, run

from ossia import __version__
from ossia.engine.block_manager import BlockManager
from ossia.engine.config import EngineConfig, plan
from ossia.engine.model_runner import ModelRunner
from ossia.engine.request import Request, SamplingParams
from ossia.engine.scheduler import ScheduledChunk, SchedulerOutput
from ossia.engine.sequence import Sequence
from ossia.errors import OssiaError
from ossia.kernels.choose import choose_kernels
from ossia.kernels.interface import Kernels, Part
from ossia.kernels.mxfp4 import Mxfp4Tensor
from ossia.model.checkpoint import open_checkpoint
from ossia.model.transformer import Architecture, prepare_weights

_GREEDY = SamplingParams(temperature=0.0)
_PROBE_BYTES = 600_000_000  # far beyond any cache; two layers of 20b


class OssiaEngine:
    """A `peer_plan.Engine`."""

    def __init__(self, plan: Plan) -> None:
        self._chunk = plan.chunk
        self._checkpoint = checkpoint = open_checkpoint(plan.model)
        self._config = checkpoint.config
        self._architecture = Architecture.of(checkpoint.config)
        self._kernels, self._why = _kernels(
            plan.options["kernels"], plan.threads, checkpoint.total_bytes
        )
        self._weights = prepare_weights(self._architecture, self._kernels, checkpoint.part)
        self._sequences: list[Sequence] = []
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
        length = max(map(len, sequences)) + 1  # the engine wants room for one token of answer
        config = EngineConfig(
            max_num_seqs=len(sequences),
            max_num_batched_tokens=max(self._chunk, len(sequences)),
            max_model_len=length,
            cache_tokens=len(sequences) * (length + EngineConfig.block_size),
        )
        self._plan = plan(config, self._config, cache_itemsize=self._kernels.cache_itemsize)
        self._sequences = [
            Sequence.of(Request(str(n), tuple(ids), sampling=_GREEDY), self._plan)
            for n, ids in enumerate(sequences)
        ]
        self._runner = None  # gives the last cache back before the next is allocated
        self._runner = ModelRunner(self._architecture, self._kernels, self._weights, self._plan)
        self.reset()

    def reset(self) -> None:
        self._blocks = BlockManager(self._plan)
        for sequence in self._sequences:
            self._blocks.admit(sequence.request_id, sequence.max_positions)

    def advance(self, start: int, count: int) -> list[int]:
        assert self._runner is not None
        share = max(self._chunk // len(self._sequences), 1)
        ids: list[int] = []
        for at in range(start, start + count, share):
            end = min(at + share, start + count)
            chunks = tuple(
                self._scheduled(sequence, at, end, samples=end == start + count)
                for sequence in self._sequences
            )
            ids = self._runner.run(SchedulerOutput(chunks)).ids
            for sequence in self._sequences:
                self._blocks.forget(sequence.request_id, end)
        return ids

    def _scheduled(
        self, sequence: Sequence, start: int, end: int, *, samples: bool
    ) -> ScheduledChunk:
        self._blocks.extend(sequence.request_id, end)
        return ScheduledChunk(
            sequence=sequence,
            start=start,
            num_tokens=end - start,
            num_samples=int(samples),
            full_blocks=self._blocks.full.tables[sequence.request_id].blocks,
            sliding_blocks=self._blocks.sliding.tables[sequence.request_id].blocks,
        )

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

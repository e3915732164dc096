"""A loaded model that computes given tokens step by step: the engine's own runner and block tables,
without its queue. What is timed is what a request waits for, drawing the greedy token included.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

from ossia.engine.block_manager import BlockManager
from ossia.engine.config import EngineConfig, plan
from ossia.engine.model_runner import ModelRunner
from ossia.engine.request import Request, SamplingParams
from ossia.engine.scheduler import ScheduledChunk, SchedulerOutput
from ossia.engine.sequence import Sequence
from ossia.kernels.interface import Kernels
from ossia.model.config import ModelConfig
from ossia.model.transformer import Architecture, Weights

_GREEDY = SamplingParams(temperature=0.0)


class Stepper:
    """Some sequences side by side, whose tokens are known beforehand. Made for one measurement; the
    cache is allocated here.
    """

    def __init__(
        self,
        model: ModelConfig,
        kernels: Kernels,
        weights: Weights,
        sequences: Rows[Rows[int]],
        *,
        chunk: int = EngineConfig.max_num_batched_tokens,
    ) -> None:
        """`chunk`: tokens that are computed together at most."""
        length = max(map(len, sequences)) + 1  # the engine wants room for one token of answer
        self._chunk = max(chunk, len(sequences))
        config = EngineConfig(
            max_num_seqs=len(sequences),
            max_num_batched_tokens=self._chunk,
            max_model_len=min(length, model.max_position_embeddings),
            cache_tokens=len(sequences) * (length + EngineConfig.block_size),
        )
        resolved = plan(config, model, cache_itemsize=kernels.cache_itemsize)
        self._runner = ModelRunner(Architecture.of(model), kernels, weights, resolved)
        self._blocks = BlockManager(resolved)
        self._sequences = [
            Sequence.of(Request(str(n), tuple(ids), sampling=_GREEDY), resolved)
            for n, ids in enumerate(sequences)
        ]
        for sequence in self._sequences:
            self._blocks.admit(sequence.request_id, sequence.max_positions)
        self.position = 0
        """Tokens of each sequence that stand in the cache."""

    def restart(self) -> None:
        """Forget all keys and values."""
        for sequence in self._sequences:
            self._blocks.release(sequence.request_id)
            self._blocks.admit(sequence.request_id, sequence.max_positions)
        self.position = 0

    def advance(self, count: int) -> list[int]:
        """Compute the next `count` tokens of every sequence, in chunks as the engine cuts them, and
        draw the greedy token after the last of them, which is returned and not used.
        """
        drawn: list[int] = []
        end = self.position + count
        share = max(self._chunk // len(self._sequences), 1)
        for start in range(self.position, end, share):
            stop = min(start + share, end)
            chunks = tuple(
                self._scheduled(sequence, start, stop, draws=stop == end)
                for sequence in self._sequences
            )
            drawn = self._runner.run(SchedulerOutput(chunks)).ids
            for sequence in self._sequences:
                self._blocks.forget(sequence.request_id, stop)
        self.position = end
        return drawn

    def _scheduled(
        self, sequence: Sequence, start: int, end: int, *, draws: bool
    ) -> ScheduledChunk:
        self._blocks.extend(sequence.request_id, end)
        return ScheduledChunk(
            sequence=sequence,
            start=start,
            num_tokens=end - start,
            num_samples=int(draws),
            full_blocks=self._blocks.full.tables[sequence.request_id].blocks,
            sliding_blocks=self._blocks.sliding.tables[sequence.request_id].blocks,
        )

"""One step of the model: `SchedulerOutput` → `ForwardInput` → logits → the tokens drawn.

Holds what a step needs beside its input: kernels, weights and cache. It decides nothing and
remembers nothing between steps but the keys and values.

Legend as in `kernels.interface`: T tokens of the step, S sequences, B blocks of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np

from ossia.engine.config import EnginePlan
from ossia.engine.scheduler import ScheduledChunk, SchedulerOutput
from ossia.engine.sequence import Sequence
from ossia.kernels.interface import NO_BLOCK, Kernels, PagedIndex, SampledTokens, SamplingBatch
from ossia.model.inputs import ForwardInput
from ossia.model.transformer import Architecture, Weights, forward


class ModelRunner:
    """Runs steps on one set of kernels; allocates the cache that `plan` describes."""

    def __init__(
        self, architecture: Architecture, kernels: Kernels, weights: Weights, plan: EnginePlan
    ) -> None:
        self._architecture = architecture
        self._kernels = kernels
        self._weights = weights
        self._block_size = plan.block_size
        self._cache = kernels.allocate_cache(
            architecture.cache_spec(
                num_full_blocks=plan.num_full_blocks,
                num_sliding_blocks=plan.num_sliding_blocks,
                block_size=plan.block_size,
            )
        )

    def run(self, step: SchedulerOutput) -> SampledTokens:
        """Compute the step's tokens and draw one token per row that gives logits, in the order of
        the chunks. Also waits for a step that draws nothing.
        """
        logits = forward(
            self._architecture,
            self._kernels,
            self._weights,
            forward_input(step, self._block_size),
            cache=self._cache,
        )
        return self._kernels.sample(logits, sampling_batch(step))


def forward_input(step: SchedulerOutput, block_size: int) -> ForwardInput:
    """The step as int32 arrays; the block tables end with the last block of the longest chunk."""
    chunks = step.chunks
    starts_S = np.array([chunk.start for chunk in chunks], np.int32)
    lengths_S = np.array([chunk.num_tokens for chunk in chunks], np.int32)
    cu_seqlens_S1 = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum(lengths_S, out=cu_seqlens_S1[1:])

    # Row t belongs to sequence rows_T[t], which lies `t - cu_seqlens[s]` tokens behind its start.
    rows_T = np.repeat(np.arange(len(chunks), dtype=np.int32), lengths_S)
    positions_T = np.arange(cu_seqlens_S1[-1], dtype=np.int32)
    positions_T += (starts_S - cu_seqlens_S1[:-1])[rows_T]
    ids_T = np.empty(cu_seqlens_S1[-1], np.int32)
    row = 0
    for chunk in chunks:
        ids_T[row : row + chunk.num_tokens] = chunk.sequence.token_ids(chunk.start, chunk.end)
        row += chunk.num_tokens

    num_blocks = -(-max(chunk.end for chunk in chunks) // block_size)
    full = [chunk.full_blocks for chunk in chunks]
    sliding = [chunk.sliding_blocks for chunk in chunks]
    return ForwardInput(
        ids_T=ids_T,
        positions_T=positions_T,
        cu_seqlens_S1=cu_seqlens_S1,
        logit_rows=_logit_rows(chunks, cu_seqlens_S1),
        full=_paged_index(full, num_blocks, rows_T, positions_T, block_size),
        sliding=_paged_index(sliding, num_blocks, rows_T, positions_T, block_size),
    )


def _logit_rows(chunks: Rows[ScheduledChunk], cu_seqlens_S1: np.ndarray) -> np.ndarray:
    """The last `num_samples` rows of each chunk."""
    return np.array(
        [
            row
            for chunk, end in zip(chunks, cu_seqlens_S1[1:].tolist(), strict=True)
            for row in range(end - chunk.num_samples, end)
        ],
        np.int32,
    )


def _paged_index(
    tables: Rows[np.ndarray],
    num_blocks: int,
    rows_T: np.ndarray,
    positions_T: np.ndarray,
    block_size: int,
) -> PagedIndex:
    block_tables_SB = np.full((len(tables), num_blocks), NO_BLOCK, np.int32)
    for row, table in enumerate(tables):
        known = table[:num_blocks]
        block_tables_SB[row, : len(known)] = known
    blocks_T, offsets_T = np.divmod(positions_T, np.int32(block_size))
    slot_mapping_T = block_tables_SB[rows_T, blocks_T] * np.int32(block_size) + offsets_T
    return PagedIndex(slot_mapping_T=slot_mapping_T, block_tables_SB=block_tables_SB)


def sampling_batch(step: SchedulerOutput) -> SamplingBatch:
    """How the token after each of the step's logit rows is drawn."""
    sequences = [chunk.sequence for chunk in step.chunks if chunk.num_samples]
    params = [sequence.request.sampling for sequence in sequences]
    return SamplingBatch(
        temperature=[p.temperature for p in params],
        top_k=[p.top_k for p in params],
        top_p=[p.top_p for p in params],
        min_p=[p.min_p for p in params],
        seed=[sequence.seed for sequence in sequences],
        position=[sequence.num_tokens for sequence in sequences],
        repetition_penalty=[p.repetition_penalty for p in params],
        presence_penalty=[p.presence_penalty for p in params],
        frequency_penalty=[p.frequency_penalty for p in params],
        prompt_ids=[sequence.request.prompt_ids for sequence in sequences],
        output_ids=[sequence.output_ids for sequence in sequences],
        logit_bias=[p.logit_bias for p in params],
        top_logprobs=[_alternatives(sequence) for sequence in sequences],
    )


def _alternatives(sequence: Sequence) -> int:
    sampling = sequence.request.sampling
    return sampling.top_logprobs if sampling.logprobs else -1

"""One step of the model: `SchedulerOutput` → `ForwardInput` → logits → the tokens drawn.

Holds what a step needs beside its input: kernels, weights and cache. It decides nothing and
remembers nothing between steps but the keys and values. What constrained requests may draw is known
before the step runs, so their masks are filled by another thread while it does.

Legend as in `kernels.interface`: T tokens of the step, S sequences, B blocks of a sequence, W words
of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ossia.engine.config import EnginePlan
from ossia.engine.scheduler import ScheduledChunk, SchedulerOutput
from ossia.engine.sequence import Sequence
from ossia.kernels.interface import (
    NO_BLOCK,
    Handle,
    Kernels,
    PagedIndex,
    SampledTokens,
    SamplingBatch,
)
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
        self._vocab_size = plan.vocab_size
        # One thread: it competes with the kernels' own for the cores. Started by its first use.
        self._mask_thread = ThreadPoolExecutor(1, "ossia-masks")
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
        masks = self._begin_masks(step)
        if masks is None:
            return self._kernels.sample(self._forward(step), sampling_batch(step))
        try:
            logits = self._forward(step)
            self._kernels.to_host(logits)  # an op may be lazy: it is to run now, beside the masks
        finally:  # a constraint is never left in two threads' hands
            masks_SW = masks.result()
        return self._kernels.sample(logits, sampling_batch(step, masks_SW))

    def _forward(self, step: SchedulerOutput) -> Handle:
        return forward(
            self._architecture,
            self._kernels,
            self._weights,
            forward_input(step, self._block_size),
            cache=self._cache,
        )

    def _begin_masks(self, step: SchedulerOutput) -> Future[np.ndarray] | None:
        """The masks of the step's rows in the making; None when every token may come next."""
        rows = [chunk.sequence for chunk in step.chunks if chunk.num_samples]
        if all(sequence.request.constraint is None for sequence in rows):
            return None
        return self._mask_thread.submit(fill_masks, rows, self._vocab_size)


def fill_masks(rows: Rows[Sequence], vocab_size: int) -> np.ndarray:
    """`SamplingBatch.masks_SW` for the next token of each sequence."""
    masks_SW = np.full((len(rows), -(-vocab_size // 32)), 0xFFFFFFFF, np.uint32)
    for mask_W, sequence in zip(masks_SW, rows, strict=True):
        if sequence.request.constraint is not None:
            sequence.request.constraint.fill(mask_W)
    return masks_SW


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


def sampling_batch(step: SchedulerOutput, masks_SW: np.ndarray | None = None) -> SamplingBatch:
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
        masks_SW=masks_SW,
    )


def _alternatives(sequence: Sequence) -> int:
    sampling = sequence.request.sampling
    return sampling.top_logprobs if sampling.logprobs else -1

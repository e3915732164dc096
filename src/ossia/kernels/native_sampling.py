"""A `SamplingBatch` → flat arrays → the native `sample` → `SampledTokens`: what `sample_rows` does,
without sorting the vocabulary.

Draws equal those of `sample_rows` unless the uniform lies within rounding of the border between two
tokens (csrc/sample.h states the bound). All instruction sets give the same bits.

Legend: S rows, V vocabulary, W = ceil(V / 32) words of a mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from ossia.errors import KernelError
from ossia.kernels.interface import SampledTokens, SamplingBatch

_MASK_64 = 2**64 - 1


def sample_rows_native(
    native_module: Any, instruction_set: str, logits_SV: np.ndarray, batch: SamplingBatch
) -> SampledTokens:
    """Draw one token per row of `logits_SV` (float32, rows without gaps) on the calling thread.

    `native_module` is `ossia.kernels._native`, `instruction_set` one that the processor has. Raises
    KernelError when the batch does not belong to logits of this shape, when a token id lies outside
    of the vocabulary, or for a temperature below 0 or not finite.
    """
    if len(batch.temperature) != len(logits_SV):
        raise KernelError(
            f"[sample] expected a batch of {len(logits_SV)} rows, got {len(batch.temperature)}"
        )
    try:
        ids, logprobs, top_ids, top_logprobs = native_module.sample(
            instruction_set, logits_SV, **_columns(batch), **_ids(batch), masks=_masks(batch)
        )
    except ValueError as error:
        raise KernelError(str(error)) from error
    return _tokens(ids.tolist(), logprobs.tolist(), top_ids, top_logprobs, logits_SV, batch)


def _columns(batch: SamplingBatch) -> dict[str, np.ndarray]:
    """One number per row each."""
    return {
        "temperature": np.array(batch.temperature, np.float64),
        "top_k": np.array(batch.top_k, np.int64),
        "top_p": np.array(batch.top_p, np.float64),
        "min_p": np.array(batch.min_p, np.float64),
        "seed": np.array([seed & _MASK_64 for seed in batch.seed], np.uint64),
        "position": np.array([position & _MASK_64 for position in batch.position], np.uint64),
        "repetition_penalty": np.array(batch.repetition_penalty, np.float64),
        "presence_penalty": np.array(batch.presence_penalty, np.float64),
        "frequency_penalty": np.array(batch.frequency_penalty, np.float64),
        "top_logprobs": np.array(batch.top_logprobs, np.int64),
    }


def _ids(batch: SamplingBatch) -> dict[str, np.ndarray]:
    """The token lists of all rows end to end; of rows without a penalty they are not read."""
    repeated = [repetition != 1 for repetition in batch.repetition_penalty]
    counted = [
        bool(presence or frequency)
        for presence, frequency in zip(batch.presence_penalty, batch.frequency_penalty, strict=True)
    ]
    prompts = [ids if read else () for ids, read in zip(batch.prompt_ids, repeated, strict=True)]
    outputs = [
        ids if read or count else ()
        for ids, read, count in zip(batch.output_ids, repeated, counted, strict=True)
    ]
    biases = [tuple(bias) for bias in batch.logit_bias]
    values = chain.from_iterable(bias.values() for bias in batch.logit_bias)
    return {
        "prompt_ids": _joined(prompts),
        "prompt_offsets": _offsets(prompts),
        "output_ids": _joined(outputs),
        "output_offsets": _offsets(outputs),
        "bias_ids": _joined(biases),
        "bias_offsets": _offsets(biases),
        "bias_values": np.array(list(values), np.float64),
    }


def _joined(rows: Sequence[Sequence[int]]) -> np.ndarray:
    used = [np.asarray(ids, np.int32) for ids in rows if len(ids)]
    return np.concatenate(used) if used else np.zeros(0, np.int32)


def _offsets(rows: Sequence[Sequence[int]]) -> np.ndarray:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(ids) for ids in rows], out=offsets[1:])
    return offsets


def _masks(batch: SamplingBatch) -> np.ndarray | None:
    return None if batch.masks_SW is None else np.ascontiguousarray(batch.masks_SW)


def _tokens(
    ids: list[int],
    logprobs: list[float],
    top_ids: np.ndarray,
    top_logprobs: np.ndarray,
    logits_SV: np.ndarray,
    batch: SamplingBatch,
) -> SampledTokens:
    """Alternatives come end to end, min(top_logprobs, V) per row, also where no token is."""
    alternatives: list[list[tuple[int, float]]] = []
    end = 0
    for token, report in zip(ids, batch.top_logprobs, strict=True):
        begin, end = end, end + min(max(report, 0), logits_SV.shape[1])
        span = slice(begin, end if token >= 0 else begin)
        alternatives.append(
            list(zip(top_ids[span].tolist(), top_logprobs[span].tolist(), strict=True))
        )
    return SampledTokens(
        ids=ids,
        logprobs=[None if math.isnan(value) else value for value in logprobs],
        top_logprobs=alternatives,
    )

"""Logits → the next token of each row, as `SamplingBatch` says: the plain numpy form, which the
`reference` and `torch` kernels share.

All of it runs in float64 on one row at a time, so that a draw depends on nothing but its row. A row
that allows no token, or holds NaN, gives the id −1 and never raises.

Legend: S rows, V vocabulary, W = ceil(V / 32) words of a mask.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from ossia.errors import KernelError
from ossia.kernels.interface import SampledTokens, SamplingBatch
from ossia.kernels.philox import uniform

NO_TOKEN = -1


def sample_rows(logits_SV: np.ndarray, batch: SamplingBatch) -> SampledTokens:
    """Draw one token per row of `logits_SV` (any floating type).

    Raises KernelError when the batch or its masks do not belong to logits of this shape.
    """
    S, V = logits_SV.shape
    if len(batch.temperature) != S:
        raise KernelError(f"[sample] expected a batch of {S} rows, got {len(batch.temperature)}")
    masks_SW = batch.masks_SW
    if masks_SW is not None and masks_SW.shape != (S, -(-V // 32)):
        raise KernelError(
            f"[sample] expected masks of shape {[S, -(-V // 32)]}, got {list(masks_SW.shape)}"
        )
    ids: list[int] = []
    logprobs: list[float | None] = []
    alternatives: list[list[tuple[int, float]]] = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for row in range(S):
            logits_V = logits_SV[row].astype(np.float64)
            has_nan = math.isnan(logits_V.max())
            token = NO_TOKEN if has_nan else _draw(_modified(logits_V, batch, row), batch, row)
            report = batch.top_logprobs[row]
            wanted = report >= 0 and token != NO_TOKEN
            logprobs_V = _log_softmax(logits_V) if wanted else logits_V
            ids.append(token)
            logprobs.append(float(logprobs_V[token]) if wanted else None)
            alternatives.append(_most_probable(logprobs_V, report) if wanted else [])
    return SampledTokens(ids=ids, logprobs=logprobs, top_logprobs=alternatives)


def _draw(logits_V: np.ndarray, batch: SamplingBatch, row: int) -> int:
    """The token drawn from logits that penalties, bias and mask have already changed."""
    best = int(logits_V.argmax())  # of equals the lowest id; NaN (∞ with a bias of −∞) before all
    largest = logits_V[best]
    if not largest > -math.inf:
        return NO_TOKEN
    if batch.temperature[row] == 0:
        return best
    # The distance from the largest is finite or −∞, so that no temperature can overflow it.
    weights_V = np.exp(_below_largest(logits_V, largest) / batch.temperature[row])
    if 0 < batch.top_k[row] < len(weights_V):
        _keep_top_k(weights_V, batch.top_k[row])
    if batch.top_p[row] < 1:
        _keep_top_p(weights_V, batch.top_p[row])
    if batch.min_p[row] > 0:
        weights_V[weights_V < batch.min_p[row]] = 0  # the largest weight is 1
    cumulative_V = weights_V.cumsum()
    target = uniform(batch.seed[row], batch.position[row]) * cumulative_V[-1]
    # Tokens of weight 0 do not raise the sum, so the first sum above the target is never theirs.
    return int(cumulative_V.searchsorted(target, side="right"))


def _log_softmax(logits_V: np.ndarray) -> np.ndarray:
    """Log-probabilities of logits of which one at least is above −∞; those at +∞ share all."""
    below_V = _below_largest(logits_V, logits_V.max())
    return below_V - math.log(np.exp(below_V).sum())


def _below_largest(logits_V: np.ndarray, largest: float) -> np.ndarray:
    if largest == math.inf:
        return np.where(logits_V == math.inf, 0.0, -math.inf)
    return logits_V - largest


def _modified(logits_V: np.ndarray, batch: SamplingBatch, row: int) -> np.ndarray:
    """Penalties, bias and mask applied to a copy, or the logits themselves where there are none."""
    repetition, presence = batch.repetition_penalty[row], batch.presence_penalty[row]
    frequency, bias = batch.frequency_penalty[row], batch.logit_bias[row]
    if repetition == 1 and not (presence or frequency or bias) and batch.masks_SW is None:
        return logits_V
    logits_V = logits_V.copy()
    if repetition != 1:
        seen = list({*batch.prompt_ids[row], *batch.output_ids[row]})
        values = logits_V[seen]
        logits_V[seen] = np.where(values > 0, values / repetition, values * repetition)
    if presence or frequency:
        for token, count in Counter(batch.output_ids[row]).items():
            logits_V[token] -= presence + frequency * count
    for token, value in bias.items():
        logits_V[token] += value
    if batch.masks_SW is not None:
        bits = np.unpackbits(batch.masks_SW[row].astype("<u4").view(np.uint8), bitorder="little")
        logits_V[bits[: len(logits_V)] == 0] = -math.inf
    return logits_V


def _keep_top_k(weights_V: np.ndarray, k: int) -> None:
    """Zero all but the k largest weights; of equals at the edge the lowest ids stay."""
    edge = np.partition(weights_V, -k)[-k]
    room = k - np.count_nonzero(weights_V > edge)
    at_edge = np.flatnonzero(weights_V == edge)
    weights_V[weights_V < edge] = 0
    weights_V[at_edge[room:]] = 0


def _keep_top_p(weights_V: np.ndarray, p: float) -> None:
    """Zero all but the smallest set that holds the share p of the weight: the largest weights, and
    of equals the lowest ids.
    """
    total = weights_V.sum()
    # Weights below (1 − p) · total / V cannot be needed: all of them together are less than the
    # share 1 − p. Leaving them out spares sorting most of a large vocabulary.
    candidates = np.flatnonzero(weights_V >= (1 - p) * total / len(weights_V))
    order = candidates[np.argsort(-weights_V[candidates], kind="stable")]
    reaches = int(weights_V[order].cumsum().searchsorted(p * total))
    kept = order[: reaches + 1]
    values = weights_V[kept]
    weights_V[:] = 0
    weights_V[kept] = values


def _most_probable(logprobs_V: np.ndarray, count: int) -> list[tuple[int, float]]:
    """The `count` best, the most probable first, of equals the lowest id first."""
    if count == 0:
        return []
    count = min(count, len(logprobs_V))
    edge = np.partition(logprobs_V, -count)[-count]
    candidates = np.flatnonzero(logprobs_V >= edge)
    best = candidates[np.argsort(-logprobs_V[candidates], kind="stable")][:count]
    return [(int(token), float(logprobs_V[token])) for token in best]

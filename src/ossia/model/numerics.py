"""How far one set of kernels computes from another on the same model and text: KL divergence,
agreement of the most probable token, perplexity.

What is lost by int8 activations and int8 dense tensors is known only for the model at hand, so it
is measured on it and printed beside every figure of speed. On random weights the distance says
little: their router's choices are nearly ties, which a rounding decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ossia.errors import UsageError
from ossia.kernels.interface import Kernels, PagedIndex
from ossia.model.inputs import ForwardInput
from ossia.model.transformer import Architecture, Weights, forward

_CHUNK = 32  # tokens at a time: of a large vocabulary, 0.8 MB of logits each
_BLOCK_SIZE = 32
_GUESSING = 4  # a perplexity above 1/4 of the vocabulary is hardly better than none


@dataclass(frozen=True)
class Prepared:
    """A model on one set of kernels."""

    kernels: Kernels
    weights: Weights


@dataclass(frozen=True)
class Rows:
    """What is compared, one entry per token: two rows of logits, and the token that came next."""

    kl: np.ndarray
    """D(exact ‖ other) of the next-token distributions, in nats."""
    same_top: np.ndarray
    """Whether both find the same token most probable."""
    loss_exact: np.ndarray
    """−log p of the token that came next, in nats; NaN where none did."""
    loss: np.ndarray

    @classmethod
    def of(cls, exact_TV: np.ndarray, other_TV: np.ndarray, next_T: np.ndarray) -> Rows:
        """`next_T`: ids, −1 where a document ends."""
        exact_TV, other_TV = exact_TV.astype(np.float64), other_TV.astype(np.float64)
        log_p_TV, log_q_TV = _log_softmax(exact_TV), _log_softmax(other_TV)
        rows = np.arange(len(next_T))
        unknown_T = next_T < 0
        return cls(
            kl=(np.exp(log_p_TV) * (log_p_TV - log_q_TV)).sum(axis=1),
            same_top=exact_TV.argmax(axis=1) == other_TV.argmax(axis=1),
            loss_exact=np.where(unknown_T, np.nan, -log_p_TV[rows, next_T]),
            loss=np.where(unknown_T, np.nan, -log_q_TV[rows, next_T]),
        )

    def where(self, counted_T: np.ndarray) -> Rows:
        """Those rows that count, by a truth value each."""
        return Rows(
            self.kl[counted_T],
            self.same_top[counted_T],
            self.loss_exact[counted_T],
            self.loss[counted_T],
        )

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        names = ("kl", "same_top", "loss_exact", "loss")
        return cls(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})


@dataclass(frozen=True)
class Distance:
    """The distance of a set of kernels from the exact one, over some tokens. KL in nats."""

    tokens: int
    kl_mean: float
    kl_99: float
    """99 % of the tokens lie below."""
    kl_max: float
    top1: float
    """Share of the tokens with the same most probable successor."""
    perplexity_exact: float
    perplexity: float
    vocab_size: int

    @classmethod
    def of(cls, rows: Rows, vocab_size: int) -> Distance:
        kl = np.maximum(rows.kl, 0)  # a divergence; float64 rounds equal distributions below 0
        return cls(
            tokens=len(kl),
            kl_mean=float(kl.mean()),
            kl_99=float(np.quantile(kl, 0.99)),
            kl_max=float(kl.max()),
            top1=float(rows.same_top.mean()),
            perplexity_exact=math.exp(np.nanmean(rows.loss_exact)),
            perplexity=math.exp(np.nanmean(rows.loss)),
            vocab_size=vocab_size,
        )

    @property
    def is_meaningful(self) -> bool:
        """False where the model itself finds the text no more likely than noise."""
        return self.perplexity_exact < self.vocab_size / _GUESSING

    def __str__(self) -> str:
        change = self.perplexity / self.perplexity_exact - 1
        text = (
            f"over {self.tokens:,} tokens KL mean {self.kl_mean:.2g}, 99 % {self.kl_99:.2g}, max "
            f"{self.kl_max:.2g} nats; top-1 agreement {self.top1:.1%}; perplexity "
            f"{self.perplexity_exact:.4g} → {self.perplexity:.4g} ({change:+.2%})"
        )
        if self.is_meaningful:
            return text
        return (
            f"{text}. The model knows nothing of this text (random weights, or another "
            "vocabulary): for a trained model these figures mean nothing"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"is_meaningful": self.is_meaningful}


def distance(
    architecture: Architecture,
    exact: Prepared,
    other: Prepared,
    documents: Sequence[Sequence[int]],
    *,
    counted: Sequence[Sequence[bool]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Distance:
    """Of `other` from `exact` over the tokens of the documents (ids), each read on its own through
    a cache. `counted`: for each token whether what follows it is something that the model was
    taught to write; None = all. `progress(done, total)` counts tokens.
    """
    if not any(len(document) > 1 for document in documents):
        raise UsageError("The distance of two kernel sets needs a document of two tokens or more.")
    parts: list[Rows] = []
    done, total = 0, sum(map(len, documents))
    for n, document in enumerate(documents):
        readers = [_Reader(architecture, prepared, len(document)) for prepared in (exact, other)]
        for start in range(0, len(document), _CHUNK):
            ids = list(document[start : start + _CHUNK])
            next_T = np.array([*document[start + 1 : start + 1 + len(ids)], -1][: len(ids)])
            exact_TV, other_TV = (reader.read(start, ids) for reader in readers)
            rows = Rows.of(exact_TV, other_TV, next_T)
            if counted is not None:
                rows = rows.where(np.array(counted[n][start : start + len(ids)], bool))
            parts.append(rows)
            done += len(ids)
            if progress is not None:
                progress(done, total)
    return Distance.of(Rows.joined(parts), architecture.dims.vocab_size)


class _Reader:
    """One document through one set of kernels; block i of its cache holds positions 32 i to
    32 i + 31 in both groups.
    """

    def __init__(self, architecture: Architecture, prepared: Prepared, length: int) -> None:
        self._architecture, self._prepared = architecture, prepared
        blocks = -(-length // _BLOCK_SIZE)
        self._table_SB = np.arange(blocks, dtype=np.int32)[None]
        self._cache = prepared.kernels.allocate_cache(
            architecture.cache_spec(
                num_full_blocks=blocks, num_sliding_blocks=blocks, block_size=_BLOCK_SIZE
            )
        )

    def read(self, start: int, ids: Sequence[int]) -> np.ndarray:
        """Logits [T, V] of all the tokens."""
        positions_T = np.arange(start, start + len(ids), dtype=np.int32)
        index = PagedIndex(slot_mapping_T=positions_T, block_tables_SB=self._table_SB)
        inputs = ForwardInput(
            ids_T=np.array(ids, np.int32),
            positions_T=positions_T,
            cu_seqlens_S1=np.array([0, len(ids)], np.int32),
            logit_rows=np.arange(len(ids), dtype=np.int32),
            full=index,
            sliding=index,
        )
        kernels, weights = self._prepared.kernels, self._prepared.weights
        handle = forward(self._architecture, kernels, weights, inputs, cache=self._cache)
        return kernels.to_host(handle)


def _log_softmax(logits_TV: np.ndarray) -> np.ndarray:
    shifted = logits_TV - logits_TV.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

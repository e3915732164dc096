"""What one forward pass runs on: a ragged batch of tokens and where their keys and values live.
int32 numpy throughout.

The sequences of a step lie one after another; sequence s owns rows `cu_seqlens_S1[s] :
cu_seqlens_S1[s + 1]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ossia.kernels.interface import PagedIndex


@dataclass(frozen=True)
class ForwardInput:
    """One step. `full` and `sliding` are None when there is no cache (training, scoring)."""

    ids_T: np.ndarray
    positions_T: np.ndarray
    cu_seqlens_S1: np.ndarray
    logit_rows: np.ndarray
    """Rows whose next-token logits are wanted."""
    full: PagedIndex | None = None
    sliding: PagedIndex | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.ids_T)


def packed_input(
    documents: Sequence[Sequence[int]], *, logit_rows: Sequence[int] | None = None
) -> ForwardInput:
    """Whole documents side by side without a cache; positions restart in each. All rows give logits
    unless named.
    """
    lengths = [len(document) for document in documents]
    ids_T = np.array([token for document in documents for token in document], np.int32)
    return ForwardInput(
        ids_T=ids_T,
        positions_T=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        cu_seqlens_S1=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        logit_rows=np.arange(len(ids_T), dtype=np.int32)
        if logit_rows is None
        else np.asarray(logit_rows, np.int32),
    )

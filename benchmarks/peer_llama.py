"""llama.cpp's side of benchmarks/peers.py, through the low-level API of llama-cpp-python; runs in
an interpreter that has it, and needs nothing of Ossia.

Options of the plan: `flash_attention` ("auto", "on", "off") and `repack` (whether weights may be
copied into another order at load, llama.cpp's default). Everything else is left as llama.cpp has
it, but for what costs it nothing here and saves: outputs are reserved only for the tokens that
need them, sliding layers keep only their window, sequences have streams of their own.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from peer_plan import Plan, run

try:
    import llama_cpp
    from llama_cpp import llama_cpp as api
except ImportError:
    sys.exit(f"error: {sys.executable} has no llama-cpp-python; pip install llama-cpp-python.")

_BATCH = 2048  # tokens handed over at once; computed `Plan.chunk` at a time
_FLASH_ATTENTION = {
    "auto": api.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": api.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": api.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
_LOG_LINES = 20
_log: list[str] = []  # the last lines, for the sentence that says what failed


@api.llama_log_callback
def _keep_log(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    _log.append(text.decode(errors="replace").rstrip())
    del _log[:-_LOG_LINES]


class LlamaError(RuntimeError):
    """llama.cpp refused; carries the end of its log."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; its log ends with: {' | '.join(filter(None, _log))}")


class LlamaEngine:
    """A `peer_plan.Engine`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        api.llama_log_set(_keep_log, ctypes.c_void_p(0))
        api.llama_backend_init()
        params = api.llama_model_default_params()
        params.use_extra_bufts = plan.options["repack"]
        params.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(plan.model.encode(), params)
        if not self._model:
            raise LlamaError(f"{plan.model}: llama.cpp cannot load it")
        vocab = api.llama_model_get_vocab(self._model)
        self._vocab_size = api.llama_vocab_n_tokens(vocab)
        self._batch = api.llama_batch_init(_BATCH, 0, 1)
        self._context: Any = None
        self._sequences: Sequence[Sequence[int]] = ()

    def describe(self) -> dict[str, Any]:
        return {
            "name": "llama.cpp",
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "system": api.llama_print_system_info().decode(),
            "chunk": self._plan.chunk,
            **self._plan.options,
        }

    def open(self, sequences: Sequence[Sequence[int]]) -> None:
        if self._context is not None:
            api.llama_free(self._context)
        self._sequences = sequences
        params = api.llama_context_default_params()
        params.n_ctx = len(sequences) * _padded(max(map(len, sequences)))  # of all sequences
        params.n_batch = _BATCH
        params.n_ubatch = self._plan.chunk
        params.n_seq_max = len(sequences)
        params.n_outputs_max = len(sequences)
        params.n_threads = params.n_threads_batch = self._plan.threads
        params.flash_attn_type = _FLASH_ATTENTION[self._plan.options["flash_attention"]]
        params.swa_full = False
        params.kv_unified = False
        params.no_perf = True
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise LlamaError(f"{self._plan.model}: llama.cpp makes no context for it")

    def reset(self) -> None:
        api.llama_memory_clear(api.llama_get_memory(self._context), False)

    def advance(self, start: int, count: int) -> list[int]:
        share = max(_BATCH // len(self._sequences), 1)
        rows: list[int] = []
        for at in range(start, start + count, share):
            end = min(at + share, start + count)
            rows = self._fill(at, end, last=end == start + count)
            status = api.llama_decode(self._context, self._batch)
            if status:
                raise LlamaError(f"llama_decode failed at position {at} with status {status}")
        return [self._greedy(row) for row in rows]

    def _fill(self, start: int, end: int, *, last: bool) -> list[int]:
        """Put positions [start, end) of every sequence into the batch; its rows with logits."""
        batch, row, rows = self._batch, 0, list[int]()
        for number, ids in enumerate(self._sequences):
            for position in range(start, end):
                batch.token[row] = ids[position]
                batch.pos[row] = position
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = number
                batch.logits[row] = last and position == end - 1
                row += 1
            rows.append(row - 1)
        batch.n_tokens = row
        return rows if last else []

    def _greedy(self, row: int) -> int:
        logits = api.llama_get_logits_ith(self._context, row)
        return int(np.argmax(np.ctypeslib.as_array(logits, (self._vocab_size,))))

    def read_gb_per_s(self) -> float | None:
        return None


def _padded(length: int) -> int:
    """llama.cpp's caches come in multiples of 256 positions."""
    return -(-length // 256) * 256


if __name__ == "__main__":
    sys.exit(run(LlamaEngine, (LlamaError,)))

"""A model for the engine's tests: no arithmetic, but a real cache that is written and read through
slots and block tables, so that any block given to two owners or freed too early is found out.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ossia.engine.config import EngineConfig, EnginePlan, plan
from ossia.engine.engine import Engine
from ossia.engine.model_runner import forward_input, sampling_batch
from ossia.engine.request import Request, SamplingParams, TokenOutput
from ossia.engine.scheduler import SchedulerOutput
from ossia.engine.sequence import Sequence as EngineSequence
from ossia.kernels.interface import NO_BLOCK, PagedIndex, SampledTokens
from ossia.model.config import ModelConfig

VOCAB = 97
WINDOW = 10


def tiny_model(**changes: object) -> ModelConfig:
    values: dict[str, object] = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": VOCAB,
        "sliding_window": WINDOW,
        "sliding_layers": (True, False),
        "max_position_embeddings": 200,
    }
    return ModelConfig(**{**values, **changes})  # type: ignore[arg-type]


def tiny_plan(model: ModelConfig | None = None, **config: object) -> EnginePlan:
    values: dict[str, object] = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "block_size": 4}
    engine_config = EngineConfig(**{**values, **config})  # type: ignore[arg-type]
    return plan(engine_config, model or tiny_model(), cache_itemsize=4)


def next_state(state: int, token: int) -> int:
    """What the scripted model knows after one more token: all of them matter, and their order. It
    says the state modulo VOCAB.
    """
    return (state * 31 + token + 1) % 1_000_003


FIRST_STATE = 7


def expected_answer(request: Request, context: int) -> tuple[int, ...]:
    """The answer by the definition: one token after another until a limit."""
    tokens, sampling = list(request.prompt_ids), request.sampling
    limit = min(context, len(tokens) + (sampling.max_tokens or context))
    state = FIRST_STATE
    for token in tokens:
        state = next_state(state, token)
    while len(tokens) < limit:
        tokens.append(state % VOCAB)
        state = next_state(state, tokens[-1])
        if tokens[-1] in sampling.stop_token_ids:
            break
    return tuple(tokens[len(request.prompt_ids) :])


class ScriptedRunner:
    """Stores what each position knows of the tokens before it and of their salt, as keys and values
    do, and checks all that a step reads back: a block that is another's, or too old, or was written
    behind other tokens, is found out.
    """

    def __init__(self, plan: EnginePlan) -> None:
        self.plan = plan
        self.steps: list[SchedulerOutput] = []
        self.num_tokens = 0
        """Those that ran."""
        self.before: Callable[[SchedulerOutput], None] = lambda step: None
        """Called at the start of each step; may raise, block or record."""
        self.nan_requests: set[str] = set()
        nothing = np.full((1, 4), -1)  # token, position, state, salt
        self._full = np.tile(nothing, (plan.num_full_blocks * plan.block_size, 1))
        self._sliding = np.tile(nothing, (plan.num_sliding_blocks * plan.block_size, 1))
        self._known: dict[str, tuple[EngineSequence, list[list[int]]]] = {}

    def run(self, step: SchedulerOutput) -> SampledTokens:
        self.steps.append(step)
        self.before(step)
        inputs = forward_input(step, self.plan.block_size)
        assert inputs.num_tokens == step.num_tokens <= self.plan.max_num_batched_tokens
        assert inputs.full is not None and inputs.sliding is not None
        self.num_tokens += inputs.num_tokens
        rows = [self._rows(chunk.sequence) for chunk in step.chunks]
        stored = np.array(
            [
                row
                for known, chunk in zip(rows, step.chunks, strict=True)
                for row in known[chunk.start : chunk.end]
            ]
        )
        assert (stored[:, 0] == inputs.ids_T).all() and (stored[:, 1] == inputs.positions_T).all()
        for cache, index in ((self._full, inputs.full), (self._sliding, inputs.sliding)):
            slots = index.slot_mapping_T
            assert slots.min() >= 0 and len(set(slots.tolist())) == len(slots)
            cache[slots] = stored
        ids: list[int] = []
        for row, (known, chunk) in enumerate(zip(rows, step.chunks, strict=True)):
            self._check(self._full, inputs.full, row, known, 0, chunk.end)
            first = max(chunk.start - self.plan.window + 1, 0)
            self._check(self._sliding, inputs.sliding, row, known, first, chunk.end)
            if chunk.num_samples:
                failed = chunk.sequence.request_id in self.nan_requests
                ids.append(-1 if failed else known[-1][2] % VOCAB)
        batch = sampling_batch(step)
        assert len(batch.seed) == len(ids) == len(inputs.logit_rows)
        alternatives = batch.top_logprobs
        return SampledTokens(
            ids=ids,
            logprobs=[None if n < 0 else -float(i) for i, n in zip(ids, alternatives, strict=True)],
            top_logprobs=[
                [(i + k, -float(i + k)) for k in range(max(n, 0))]
                for i, n in zip(ids, alternatives, strict=True)
            ],
        )

    def _rows(self, sequence: EngineSequence) -> list[list[int]]:
        """What is stored for each token of a sequence."""
        name = sequence.request_id
        if len(self._known) > 200:
            self._known.clear()
        if name not in self._known or self._known[name][0] is not sequence:
            self._known[name] = (sequence, [])
        known = self._known[name][1]
        salt = zlib.crc32(sequence.request.cache_salt.encode())
        state = known[-1][2] if known else FIRST_STATE
        for token in sequence.token_ids(len(known), sequence.num_tokens):
            state = next_state(state, token)
            known.append([token, len(known), state, salt])
        return known

    def _check(
        self,
        cache: np.ndarray,
        index: PagedIndex,
        row: int,
        known: list[list[int]],
        start: int,
        end: int,
    ) -> None:
        blocks, offsets = np.divmod(np.arange(start, end), self.plan.block_size)
        blocks = index.block_tables_SB[row, blocks]
        assert (blocks != NO_BLOCK).all(), "a position was freed or never stored"
        read = cache[blocks * self.plan.block_size + offsets]
        assert (read == known[start:end]).all(), "a position was written by another"


class Recorder:
    """A sink that keeps everything by request and insists on one terminal output for each."""

    def __init__(self) -> None:
        self.outputs: dict[str, list[TokenOutput]] = {}
        self.calls: list[list[TokenOutput]] = []

    def __call__(self, outputs: list[TokenOutput]) -> None:
        self.calls.append(outputs)
        for output in outputs:
            earlier = self.outputs.setdefault(output.request_id, [])
            assert not earlier or earlier[-1].finish_reason is None, "an output after the end"
            earlier.append(output)

    def tokens(self, request_id: str) -> tuple[int, ...]:
        return tuple(i for output in self.outputs.get(request_id, []) for i in output.token_ids)

    def end(self, request_id: str) -> TokenOutput:
        last = self.outputs[request_id][-1]
        assert last.finish_reason is not None
        return last

    def ended(self) -> set[str]:
        return {name for name, outputs in list(self.outputs.items()) if outputs[-1].finish_reason}


def request(name: str, prompt: Sequence[int], **sampling: object) -> Request:
    return Request(name, tuple(prompt), SamplingParams(**sampling))  # type: ignore[arg-type]


def salted(name: str, prompt: Sequence[int], salt: str, **sampling: object) -> Request:
    return replace(request(name, prompt, **sampling), cache_salt=salt)


def drain(engine: Engine, limit: int = 10_000) -> None:
    """Step by hand until nothing is left, with all tables checked after each step."""
    for _ in range(limit):
        if not engine.has_work:
            return
        engine.step()
        engine.check_integrity()
    raise AssertionError("the engine does not come to an end")

"""Constrained and free requests side by side in the engine, on native kernels and on reference."""

from __future__ import annotations

import functools
import json
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.fakes import Recorder, drain
from ossia.agent.turn_constraint import TurnConstraints
from ossia.engine.config import EngineConfig
from ossia.engine.constraint import TokenConstraint
from ossia.engine.engine import Engine
from ossia.engine.request import FinishReason, Request, SamplingParams
from ossia.errors import RequestError
from ossia.harmony.grammar import JsonSchemaFormat, Opening, RegexFormat, TurnOptions
from ossia.harmony.messages import Conversation
from ossia.kernels.choose import choose_kernels
from ossia.kernels.interface import Kernels, SampledTokens, SamplingBatch
from ossia.kernels.reference import ReferenceKernels
from ossia.model.selftest import RandomModel
from ossia.model.transformer import Architecture, prepare_weights
from random_models import tiny_config
from support import small_tokenizer

TOKENIZER = small_tokenizer(True)
CONFIG = tiny_config(
    num_hidden_layers=2, vocab_size=TOKENIZER.vocab_size + 5, max_position_embeddings=400
)
STOPS = (*TOKENIZER.control.turn_end_ids, TOKENIZER.control.endoftext)
SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "ok": {"type": "boolean"},
    },
    "required": ["n", "ok"],
    "additionalProperties": False,
}


@functools.cache
def constraints() -> TurnConstraints:
    return TurnConstraints(TOKENIZER, CONFIG.vocab_size)


@functools.cache
def prepared(name: str) -> tuple[Kernels, Any]:
    kernels = choose_kernels(name, threads=1)[0] if name == "native" else ReferenceKernels()
    weights = prepare_weights(Architecture.of(CONFIG), kernels, RandomModel(CONFIG, seed=3).part)
    return kernels, weights


def engine(name: str, kernels: Kernels | None = None) -> Engine:
    made, weights = prepared(name)
    config = EngineConfig(max_num_seqs=8, max_num_batched_tokens=64)
    return Engine.for_model(CONFIG, kernels or made, weights, config)


def run(engine: Engine, *requests: Request) -> Recorder:
    recorder = Recorder()
    for request in requests:
        engine.submit(request, recorder)
    drain(engine)
    return recorder


def free_requests() -> list[Request]:
    rng = np.random.default_rng(8)
    samplings = (
        {"temperature": 0.0},
        {"seed": 1, "top_p": 0.9},
        {"seed": 2, "top_k": 40, "frequency_penalty": 0.5},
        {"seed": 3, "min_p": 0.01, "logprobs": True, "top_logprobs": 3},
    )
    return [
        Request(
            f"free-{i}",
            tuple(rng.integers(0, CONFIG.vocab_size, 20 + 40 * i).tolist()),
            SamplingParams(max_tokens=30, **sampling),  # type: ignore[arg-type]
        )
        for i, sampling in enumerate(samplings)
    ]


def constrained(name: str, constraint: TokenConstraint, **sampling: object) -> Request:
    values = {"max_tokens": 200, "stop_token_ids": STOPS, "seed": 7} | sampling
    return Request(name, (1, 2, 3), SamplingParams(**values), constraint=constraint)  # type: ignore[arg-type]


def answer_as(output_format: RegexFormat | JsonSchemaFormat) -> TokenConstraint:
    options = TurnOptions(output_format=output_format, opening=Opening.FINAL)
    return constraints().for_turn(Conversation(), options)


def text_of(recorder: Recorder, name: str) -> str:
    *ids, last = recorder.tokens(name)
    assert last == TOKENIZER.control.return_
    return TOKENIZER.decode(ids)


@pytest.mark.parametrize("name", ["native", "reference"])
def test_free_requests_keep_their_tokens_beside_constrained_ones(name: str) -> None:
    free = free_requests()[: 4 if name == "native" else 2]
    alone = run(engine(name), *free)
    mixed = run(
        engine(name),
        free[0],
        constrained("digits", answer_as(RegexFormat("[0-9]{4}"))),
        *free[1:],
        constrained("json", answer_as(JsonSchemaFormat(SCHEMA)), temperature=0.0),
    )
    for request in free:
        assert mixed.outputs[request.request_id] == alone.outputs[request.request_id]
    assert text_of(mixed, "digits").isdecimal() and len(text_of(mixed, "digits")) == 4
    value = json.loads(text_of(mixed, "json"))
    assert 0 <= value["n"] <= 99 and value["ok"] in (True, False)
    assert mixed.end("json").finish_reason is FinishReason.STOP


def test_a_constrained_request_is_the_same_alone_and_in_a_batch() -> None:
    def request() -> Request:
        return constrained("json", answer_as(JsonSchemaFormat(SCHEMA)))

    alone = run(engine("native"), request())
    assert (
        run(engine("native"), *free_requests(), request()).outputs["json"]
        == (alone.outputs["json"])
    )


def test_a_grammar_that_is_satisfied_ends_a_request_without_stop_tokens() -> None:
    constraint = constraints().for_completion(RegexFormat("a{3}"))
    recorder = run(engine("reference"), constrained("a", constraint, stop_token_ids=()))
    assert TOKENIZER.decode(recorder.tokens("a")) == "aaa"
    assert recorder.end("a").finish_reason is FinishReason.STOP


class FailingConstraint(TokenConstraint):
    """Gives up at its third token."""

    def __init__(self) -> None:
        self.vocab_size, self.num_accepted = CONFIG.vocab_size, 0

    def fill(self, mask_W: np.ndarray) -> None:
        mask_W[:] = 0 if self.num_accepted == 2 else 0xFF

    def accept(self, token_id: int) -> bool:
        self.num_accepted += 1
        return True

    @property
    def finished(self) -> bool:
        return False

    @property
    def failure(self) -> str | None:
        return "The grammar cannot be followed any further." if self.num_accepted == 2 else None


def test_a_grammar_that_gives_up_ends_its_own_request_only() -> None:
    free = free_requests()[0]
    alone = run(engine("reference"), free)
    mixed = run(engine("reference"), constrained("bad", FailingConstraint()), free)
    assert mixed.outputs[free.request_id] == alone.outputs[free.request_id]
    assert mixed.end("bad").finish_reason is FinishReason.ERROR
    assert mixed.end("bad").diagnostics == ("The grammar cannot be followed any further.",)
    assert len(mixed.tokens("bad")) == 2


class WatchedKernels(ReferenceKernels):
    """Notes when the forward pass is over, and the masks that it is to sample with."""

    def __init__(self) -> None:
        super().__init__()
        self.forward_done = threading.Event()
        self.masked: list[bool] = []

    def to_host(self, handle: np.ndarray) -> np.ndarray:
        self.forward_done.set()
        return super().to_host(handle)

    def sample(self, logits: np.ndarray, batch: SamplingBatch) -> SampledTokens:
        self.masked.append(batch.masks_SW is not None)
        return super().sample(logits, batch)


class PatientConstraint(FailingConstraint):
    """Is filled only once the forward pass is over, which a mask filled before it never sees."""

    def __init__(self, forward_done: threading.Event) -> None:
        super().__init__()
        self.forward_done = forward_done

    def fill(self, mask_W: np.ndarray) -> None:
        assert threading.current_thread() is not threading.main_thread()
        mask_W[:] = 0xFF if self.forward_done.wait(60) else 0
        self.forward_done.clear()


def test_masks_are_filled_while_the_forward_pass_runs() -> None:
    kernels = WatchedKernels()
    free = replace(free_requests()[0], prompt_ids=tuple(range(100)))
    constraint = PatientConstraint(kernels.forward_done)
    recorder = run(
        engine("reference", kernels), constrained("patient", constraint, max_tokens=2), free
    )
    assert recorder.end("patient").finish_reason is FinishReason.LENGTH
    # Once the constrained request has ended, and while nothing is drawn, there is no mask at all.
    assert sum(kernels.masked) == 2 and not kernels.masked[-1]


def test_a_constraint_of_another_vocabulary_or_request_is_refused() -> None:
    with pytest.raises(RequestError, match="is made for"):
        other = TurnConstraints(TOKENIZER, CONFIG.vocab_size - 1)
        wrong = other.for_completion(RegexFormat("a"))
        engine("reference").submit(constrained("x", wrong), Recorder())
    used = constraints().for_completion(RegexFormat("aa"))
    assert used.accept(*TOKENIZER.encode("a"))
    with pytest.raises(RequestError, match="has served another request"):
        engine("reference").submit(constrained("x", used), Recorder())

"""An engine that says what a test tells it to, and helpers to write completions as text."""

from __future__ import annotations

import functools
import random
import re
import tempfile
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from ossia.engine.request import FinishReason, Request, SamplingParams, TokenOutput
from ossia.harmony.messages import (
    Conversation,
    DeveloperContent,
    Message,
    Role,
    SystemContent,
    Tool,
    ToolNamespace,
)
from ossia.harmony.tokenizer import Tokenizer
from support import trained_tokenizer_json, write_tokenizer_json

_CONTROL = re.compile(r"(<\|\w+\|>)")

# How messages of the assistant begin: the first goes on from the prompt.
ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"


def turn_sampling(tokenizer: Tokenizer) -> SamplingParams:
    """Defaults, ended by what ends a turn."""
    control = tokenizer.control
    return SamplingParams(stop_token_ids=(*control.turn_end_ids, control.endoftext))


def conversation(*tools: Tool, text: str = "hello") -> Conversation:
    """A system message, a developer's with the tools as functions, and what the user says."""
    functions = (ToolNamespace("functions", tools=tools),) if tools else ()
    return Conversation(
        (
            Message(Role.SYSTEM, (SystemContent(),)),
            Message(Role.DEVELOPER, (DeveloperContent(None, functions),)),
            Message.of_text(Role.USER, text),
        )
    )


@functools.cache
def small_tokenizer() -> Tokenizer:
    """A byte-level vocabulary of about a thousand tokens, Harmony's control tokens at its end."""
    with tempfile.TemporaryDirectory() as folder:
        return Tokenizer.load(write_tokenizer_json(Path(folder), trained_tokenizer_json()))


def tokens_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """`<|…|>` as control tokens, everything else as ordinary ones."""
    return [
        token
        for piece in _CONTROL.split(text)
        if piece
        for token in (
            [tokenizer.encode_control(piece)]
            if _CONTROL.fullmatch(piece)
            else tokenizer.encode(piece)
        )
    ]


def oddly_tokenized(tokenizer: Tokenizer, text: str, seed: int) -> list[int]:
    """As `tokens_of`, but of ordinary text seldom the tokens that an encoder gives."""
    rng = random.Random(seed)
    ids: list[int] = []
    for piece in filter(None, _CONTROL.split(text)):
        if _CONTROL.fullmatch(piece):
            ids.append(tokenizer.encode_control(piece))
            continue
        while piece:
            size = rng.randint(1, 5)
            ids += tokenizer.encode(piece[:size])
            piece = piece[size:]
    return ids


def logprob_of(token_id: int) -> float:
    """Made up, another one for each token."""
    return -(1 + token_id) / 64


class ScriptedEngine:
    """Answers each request with the next of its completions, `chunk` tokens at a time.

    A completion that ends in a stop token of the request ends with STOP, another one with LENGTH.
    Log-probabilities, if asked for, are `logprob_of` each token.
    """

    def __init__(self, *completions: Sequence[int], chunk: int = 1) -> None:
        self._completions = list(completions)
        self._chunk = chunk
        self.requests: list[Request] = []
        self.open_streams = 0

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        self.requests.append(request)
        tokens = list(self._completions.pop(0))
        stopped = bool(tokens) and tokens[-1] in request.sampling.stop_token_ids
        self.open_streams += 1
        try:
            for at in range(0, len(tokens), self._chunk):
                ids = tuple(tokens[at : at + self._chunk])
                logprobs = tuple(map(logprob_of, ids)) if request.sampling.logprobs else ()
                top = tuple(((i, logprob_of(i)),) for i in ids)
                yield TokenOutput(
                    request.request_id,
                    ids,
                    logprobs=logprobs,
                    top_logprobs=top if request.sampling.top_logprobs else (),
                )
            reason = FinishReason.STOP if stopped else FinishReason.LENGTH
            yield TokenOutput(request.request_id, finish_reason=reason)
        finally:
            self.open_streams -= 1

    def close(self, timeout: float | None = None) -> None: ...

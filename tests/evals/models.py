"""Turns made by hand, and models that say what a test tells them to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

from checkpoints import TINY
from ossia.agent.events import Diagnostic, ToolCall, Turn, TurnFinish, Usage
from ossia.engine.request import FinishReason, Request, TokenOutput
from ossia.errors import RequestError
from ossia.llm import LLM, ModelCard
from ossia.model.config import GenerationConfig
from scripted import small_tokenizer, tokens_of

TOKENIZER = small_tokenizer()
FINAL = "<|channel|>final<|message|>{}<|return|>"
THOUGHT = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant" + FINAL
CALL = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}<|call|>"
PYTHON_CALL = "<|channel|>analysis to=python code<|message|>{}<|call|>"


def turn(
    content: str | None = None,
    *calls: tuple[str, str],
    finish: TurnFinish = TurnFinish.STOP,
    diagnostics: tuple[Diagnostic, ...] = (),
    **fields: Any,
) -> Turn:
    """A turn that says `content` and makes `calls`, each a name and its arguments."""
    return Turn(
        reasoning=fields.get("reasoning", ""),
        preamble=fields.get("preamble", ""),
        content=content,
        tool_calls=tuple(
            ToolCall(f"call_{i}", name, arguments, f"functions.{name}", "commentary")
            for i, (name, arguments) in enumerate(calls)
        ),
        finish=finish,
        messages=(),
        token_ids=(),
        usage=Usage(0, 0),
        diagnostics=diagnostics,
    )


class AnsweringEngine:
    """Completes each prompt with what `answer` makes of its text; None is a failed step. A
    completion without a stop token at its end was cut by length."""

    def __init__(self, answer: Callable[[str], str | None], context: int = 10_000) -> None:
        self._answer, self._context = answer, context
        self.prompts: list[str] = []
        self.requests: list[Request] = []

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        if len(request.prompt_ids) > self._context:
            raise RequestError("The prompt is too long.")
        self.requests.append(request)
        self.prompts.append(TOKENIZER.decode(request.prompt_ids))
        answer = self._answer(self.prompts[-1])
        if answer is None:
            yield TokenOutput(
                request.request_id, diagnostics=("It broke.",), finish_reason=FinishReason.ERROR
            )
            return
        tokens = tuple(tokens_of(TOKENIZER, answer))
        stopped = tokens[-1] in request.sampling.stop_token_ids
        reason = FinishReason.STOP if stopped else FinishReason.LENGTH
        yield TokenOutput(request.request_id, tokens, finish_reason=reason)

    def close(self, timeout: float | None = None) -> None: ...


def model(engine: AnsweringEngine, identity: str = "You are nobody.") -> LLM:
    return LLM(
        name="scripted",
        config=TINY,
        generation=GenerationConfig(),
        tokenizer=TOKENIZER,
        engine=engine,  # type: ignore[arg-type]
        card=ModelCard(model_identity=identity),
        kernels_name="scripted",
    )

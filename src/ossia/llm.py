"""The Python API: `load(model) -> LLM`; `LLM.chat(…) -> Turn`, `LLM.generate(…) -> Completion`.

Each comes in four forms: blocking, streaming, and both again asynchronous. One `LLM` may serve any
number of threads and event loops at once; its engine runs in a thread of its own.
"""

from __future__ import annotations

import codecs
import datetime
import json
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict, Unpack

from ossia.agent.blocking import BlockingRunner
from ossia.agent.budget import Budget
from ossia.agent.events import Turn, TurnEnd, TurnEvent
from ossia.agent.history import History
from ossia.agent.stop_strings import StopStrings
from ossia.agent.turn import run_turn
from ossia.agent.turn_constraint import TurnConstraints
from ossia.agent.watchdog import RepetitionLimits
from ossia.engine.async_engine import AsyncEngine
from ossia.engine.config import EngineConfig
from ossia.engine.engine import Engine
from ossia.engine.request import FinishReason, Request, SamplingParams, TokenOutput
from ossia.errors import CheckpointError, ConversationError, RequestError, UsageError
from ossia.harmony.grammar import (
    NamedTool,
    OutputFormat,
    ToolChoice,
    TurnOptions,
    shown_formats,
    tool_choice_of,
)
from ossia.harmony.messages import (
    Conversation,
    DeveloperContent,
    Effort,
    Message,
    Role,
    SystemContent,
    Tool,
    ToolNamespace,
)
from ossia.harmony.tokenizer import Tokenizer
from ossia.loading import KernelSettings, OpenedModel, open_model
from ossia.model.config import GenerationConfig, ModelConfig

Prompt = str | Sequence[int]
Messages = str | Conversation | Sequence[Message | Mapping[str, Any]]


DEFAULT_REPETITION = RepetitionLimits()

CLOSE_TIMEOUT_S = 2.0
"""How long `LLM.close` waits for the step in progress."""


class ChatOptions(TypedDict, total=False):
    """Options of `chat` in all its forms; `LLM.astream_chat` explains them."""

    effort: Effort | str
    instructions: str | None
    tools: Sequence[Tool]
    tool_choice: ToolChoice | NamedTool | str
    allowed_tools: Sequence[str] | None
    strict: bool
    response_format: OutputFormat | None
    date: datetime.date | str | None
    sampling: SamplingParams | None
    stop: Sequence[str]
    reasoning_budget: int | None
    """Tokens of reasoning after which the model is led on to its answer; None = no bound."""
    answer_reserve: int
    """Tokens of `max_tokens`, and of the context, that are kept for the answer, so that a bound
    never leaves none; 0 = none."""
    repetition: RepetitionLimits | None
    """When a turn that goes in circles is ended; None = never."""
    exact_history: bool
    """Whether earlier turns stand in the prompt in the very tokens that the model wrote."""
    scope: str
    """Whoever must not see what others wrote: only turns of the same scope are remembered."""
    message_ids: Mapping[int, str] | None
    """Ids of messages, by index into the whole conversation, where they have any: of a tool call
    its `call_id`, of another message its `Turn.message_ids`."""


class GenerateOptions(TypedDict, total=False):
    """Options of `generate` in all its forms; `LLM.astream_generate` explains them."""

    response_format: OutputFormat | None
    sampling: SamplingParams | None
    stop: Sequence[str]
    control_tokens: bool


@dataclass(frozen=True)
class Completion:
    """What `generate` gives: the tokens that followed a prompt."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """As sampled; the last one is the stop token where one ended the completion."""
    text: str
    """The tokens as text, control tokens by their spelling; ends before a stop string."""
    finish_reason: FinishReason
    stop: str | None = None
    """The stop string that was reached."""
    logprobs: tuple[float, ...] | None = None
    """One per token, of the unmodified distribution; None unless asked for."""
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None
    """Per token: (token id, log-probability), the most probable first."""
    diagnostics: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The completion as plain JSON values."""
        values: dict[str, Any] = {
            "prompt_tokens": list(self.prompt_ids),
            "tokens": list(self.token_ids),
            "text": self.text,
            "finish_reason": str(self.finish_reason),
            "stop": self.stop,
            "diagnostics": list(self.diagnostics),
        }
        if self.logprobs is not None:
            alternatives = self.top_logprobs or ((),) * len(self.logprobs)
            values["logprobs"] = [
                {
                    "token": token,
                    "logprob": logprob,
                    "top_logprobs": [{"token": i, "logprob": value} for i, value in top],
                }
                for token, logprob, top in zip(
                    self.token_ids, self.logprobs, alternatives, strict=True
                )
            ]
        return values


@dataclass(frozen=True)
class CompletionChunk:
    """A piece of a completion while it is generated; the last one carries the whole."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    diagnostics: tuple[str, ...] = ()
    completion: Completion | None = None


class LLM:
    """A loaded model. Made by `ossia.load`; close it, or use it in a `with` statement."""

    def __init__(
        self,
        *,
        name: str,
        config: ModelConfig,
        generation: GenerationConfig,
        tokenizer: Tokenizer,
        engine: AsyncEngine,
        card: ModelCard,
        kernels_name: str,
        context: int | None = None,
    ) -> None:
        """`context`: the most tokens that the engine takes, prompt and answer together."""
        self.name = name
        self.constraints = TurnConstraints(tokenizer, config.vocab_size)
        self.config = config
        self.tokenizer = tokenizer
        self.card = card
        self.kernels_name = kernels_name
        self.default_sampling = _default_sampling(generation, tokenizer)
        self.history = History()
        """The tokens of earlier turns, for when their messages come back."""
        self._engine = engine
        self._context = context
        self._blocking = BlockingRunner()

    # -- Conversation --------------------------------------------------------------------------

    def conversation(
        self,
        messages: Messages,
        *,
        effort: Effort | str = Effort.MEDIUM,
        instructions: str | None = None,
        tools: Sequence[Tool] = (),
        response_format: OutputFormat | None = None,
        date: datetime.date | str | None = None,
    ) -> Conversation:
        """The conversation that `chat` renders: system and developer messages before `messages`.

        A `Conversation` is taken as it is: it holds its own system message, and any other option
        with it is a ConversationError. `date` is the `Current date` of the system message
        (default: today); keep the conversation to keep its date.
        """
        if isinstance(messages, Conversation):
            if instructions is not None or tools or date is not None or effort != Effort.MEDIUM:
                raise ConversationError(
                    "A whole Conversation carries its own effort, instructions, tools and date; "
                    "give either that, or messages with options."
                )
            return messages
        if isinstance(messages, str):
            messages = [Message.of_text(Role.USER, messages)]
        start = str(date) if date is not None else datetime.date.today().isoformat()
        system = SystemContent(
            model_identity=self.card.model_identity,
            reasoning_effort=_effort(effort),
            conversation_start_date=start,
        )
        head = [Message(Role.SYSTEM, (system,))]
        formats = shown_formats(response_format)
        if instructions is not None or tools or formats:
            functions = (ToolNamespace("functions", tools=tuple(tools)),) if tools else ()
            content = DeveloperContent(instructions, functions, formats)
            head.append(Message(Role.DEVELOPER, (content,)))
        return Conversation((*head, *map(_message, messages)))

    def chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Turn:
        """One turn of the assistant, when it is complete. Options: those of `astream_chat`."""
        return self._blocking.run(self.achat(messages, **options))

    def stream_chat(
        self, messages: Messages, **options: Unpack[ChatOptions]
    ) -> Iterator[TurnEvent]:
        """The turn's events as they happen; leaving the loop early cancels the turn."""
        return self._blocking.iterate(self.astream_chat(messages, **options))

    async def achat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Turn:
        """`chat` for asynchronous callers."""
        async with aclosing(self.astream_chat(messages, **options)) as events:
            async for event in events:
                if isinstance(event, TurnEnd):
                    return event.turn
        raise AssertionError("a turn ends with TurnEnd")

    def astream_chat(
        self,
        messages: Messages,
        *,
        effort: Effort | str = Effort.MEDIUM,
        instructions: str | None = None,
        tools: Sequence[Tool] = (),
        tool_choice: ToolChoice | NamedTool | str = ToolChoice.AUTO,
        allowed_tools: Sequence[str] | None = None,
        strict: bool = True,
        response_format: OutputFormat | None = None,
        date: datetime.date | str | None = None,
        sampling: SamplingParams | None = None,
        stop: Sequence[str] = (),
        reasoning_budget: int | None = None,
        answer_reserve: int = 0,
        repetition: RepetitionLimits | None = DEFAULT_REPETITION,
        exact_history: bool = True,
        scope: str = "",
        message_ids: Mapping[int, str] | None = None,
    ) -> AsyncGenerator[TurnEvent, None]:
        """`stream_chat` for asynchronous callers.

        `messages`: the user's text; or messages, ours or dicts with `role` and `content`; or a
        whole `Conversation`. `tools` are functions offered to the model: their calls come back in
        `Turn.tool_calls`, nothing is run. `sampling` defaults to `default_sampling`; its stop
        tokens come on top of the model's own. `stop` are strings before which the answer (not the
        reasoning) ends.

        Where tools are offered, the turn follows a grammar: legal headers, and calls only to those
        tools with arguments that satisfy their schema; `strict=False` leaves the model free.
        `tool_choice`: "auto", "none", "required", or the tool to call by its name; `allowed_tools`:
        the names of those that may be called. `response_format`: the form of the answer; a JSON
        schema is also shown to the model, unless a whole `Conversation` is given. Any of the three
        brings a grammar by itself.

        How a turn is bounded and goes on from earlier ones stands at `ChatOptions`.

        Raises ConversationError for what cannot be rendered, RequestError for what the engine
        refuses, such as a prompt longer than the context.
        """
        conversation = self.conversation(
            messages,
            effort=effort,
            instructions=instructions,
            tools=tools,
            response_format=response_format,
            date=date,
        )
        options = TurnOptions(
            tool_choice=tool_choice_of(tool_choice),
            allowed_tools=None if allowed_tools is None else tuple(allowed_tools),
            strict=strict,
            output_format=response_format,
        )
        budget = Budget(reasoning_budget, answer_reserve)
        _check_budget(budget, options)
        return run_turn(
            self.constraints.constrained(self._engine, conversation, options),
            self.tokenizer,
            conversation,
            sampling=self._sampling(sampling),
            stop=stop,
            budget=budget,
            repetition=repetition,
            context=self._context,
            history=self.history if exact_history else None,
            scope=scope,
            message_ids=message_ids,
        )

    # -- Raw completion ------------------------------------------------------------------------

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Completion:
        """What follows a prompt, when it is complete. Options: those of `astream_generate`."""
        return self._blocking.run(self.agenerate(prompt, **options))

    def stream_generate(
        self, prompt: Prompt, **options: Unpack[GenerateOptions]
    ) -> Iterator[CompletionChunk]:
        """The completion in pieces; leaving the loop early cancels it."""
        return self._blocking.iterate(self.astream_generate(prompt, **options))

    async def agenerate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Completion:
        """`generate` for asynchronous callers."""
        async with aclosing(self.astream_generate(prompt, **options)) as chunks:
            async for chunk in chunks:
                if chunk.completion is not None:
                    return chunk.completion
        raise AssertionError("a completion's last chunk carries it whole")

    async def astream_generate(
        self,
        prompt: Prompt,
        *,
        response_format: OutputFormat | None = None,
        sampling: SamplingParams | None = None,
        stop: Sequence[str] = (),
        control_tokens: bool = False,
    ) -> AsyncGenerator[CompletionChunk, None]:
        """`stream_generate` for asynchronous callers.

        `prompt`: token ids, or text. Spellings of control tokens in a text are mere text unless
        `control_tokens=True`: pass that for prompts of your own, never for what others wrote.
        `response_format`: the form of the completion, from its first token to the end.
        """
        if isinstance(prompt, str):
            encode = (
                self.tokenizer.encode_with_controls if control_tokens else self.tokenizer.encode
            )
            prompt = encode(prompt)
        request = Request(
            request_id=f"generate-{uuid.uuid4().hex}",
            prompt_ids=tuple(prompt),
            sampling=self._sampling(sampling),
            constraint=None
            if response_format is None
            else self.constraints.for_completion(response_format),
        )
        collector = _CompletionCollector(self.tokenizer, request, stop)
        stream = self._engine.generate(request)
        try:
            async for output in stream:
                yield collector.feed(output)
                if collector.done:
                    return
        finally:
            await stream.aclose()

    def _sampling(self, given: SamplingParams | None) -> SamplingParams:
        """As given, and the model's own end tokens end it in any case."""
        if given is None:
            return self.default_sampling
        stop_ids = {*given.stop_token_ids, *self.default_sampling.stop_token_ids}
        return replace(given, stop_token_ids=tuple(sorted(stop_ids)))

    # -- Life ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends the engine; requests in flight end as cancelled. Idempotent.

        A step in progress is waited for, but not for long: leaving a program must not take as long
        as a large prompt does.
        """
        self._engine.close(CLOSE_TIMEOUT_S)
        self._blocking.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LLM({self.name!r}, kernels={self.kernels_name!r})"


@dataclass(frozen=True)
class ModelCard:
    """What a model folder's optional `ossia.json` says of the model to those who talk to it."""

    model_identity: str = SystemContent().model_identity or ""
    description: str | None = None
    """Shown by `ossia chat` before the conversation."""

    @classmethod
    def read(cls, folder: Path) -> ModelCard:
        path = folder / "ossia.json"
        if not path.exists():
            return cls()
        try:
            values = json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(f"{path} is not JSON: {error}.") from error
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) - known:
            raise CheckpointError(f"{path}: expected an object with the keys {sorted(known)}.")
        for name, value in values.items():
            if not isinstance(value, str):
                raise CheckpointError(f"{path}: {name} must be a string; got {value!r:.40}.")
        return cls(**values)


def load(
    model: str | Path = "nano",
    *,
    kernels: str = "auto",
    threads: int | None = None,
    exact: bool = False,
    dense_dtype: str | None = None,
    instruction_set: str | None = None,
    engine: EngineConfig | None = None,
    tokenizer: str | Path | None = None,
    use_mmap: bool = True,
    allow_slow: bool = False,
    expert_memory: int | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LLM:
    """Load a model and start its engine.

    `model`: `nano` (built in), a hub name such as `openai/gpt-oss-20b` that `ossia pull` has
    fetched, or the folder of a checkpoint in the Hugging Face or the `original/` layout. No network
    is used. `kernels`: `auto`, `native`, `reference` or `torch`; auto is `native` where it was
    built. `tokenizer`: a vocabulary to use in place of the one beside the weights. `allow_slow`:
    run a large model on the `reference` kernels all the same. `progress(done, total)` is called
    while the weights load.

    Settings of the `native` kernels: `threads`, by default all cores this process may use; `exact`:
    no activation and no tensor is quantised beyond what the checkpoint holds, slower;
    `dense_dtype`: `int8` (the default) or `bf16`, which keeps all but the experts as stored;
    `instruction_set`: one that this processor has, for tests.

    A model that does not fit into memory gets a shorter context, if `engine` names none, and is
    refused where that does not help. `expert_memory`: keep at most so many bytes of its experts in
    memory, or what is left ("auto"), and read the others from disk when they are needed.

    Raises ModelNotFoundError, CheckpointError, ConfigError, TokenizerError, UnsupportedError,
    MissingDependencyError, UsageError.
    """
    opened = open_model(
        model,
        KernelSettings(kernels, threads, exact, dense_dtype, instruction_set),
        engine=engine,
        tokenizer=tokenizer,
        use_mmap=use_mmap,
        allow_slow=allow_slow,
        expert_memory=expert_memory,
    )
    return load_opened(opened, progress=progress)


def load_opened(opened: OpenedModel, *, progress: Callable[[int, int], None] | None = None) -> LLM:
    """The second half of `load`. Raises UnsupportedError for a model too large for the memory."""
    checkpoint, kernels = opened.checkpoint, opened.kernels
    assert opened.tokenizer is not None
    weights = opened.prepare(progress)
    engine = Engine.for_model(checkpoint.config, kernels, weights, opened.engine)
    return LLM(
        name=opened.name,
        config=checkpoint.config,
        generation=checkpoint.generation,
        tokenizer=opened.tokenizer,
        engine=AsyncEngine(engine),
        card=ModelCard.read(checkpoint.folder),
        kernels_name=kernels.name,
        context=engine.plan.context,
    )


def _default_sampling(generation: GenerationConfig, tokenizer: Tokenizer) -> SamplingParams:
    """What the model asks for; a turn also ends at Harmony's own end tokens, which early uploads of
    generation_config.json lack.
    """
    control = tokenizer.control
    stop_ids = {*generation.eos_token_ids, *control.turn_end_ids, control.endoftext}
    return SamplingParams(
        temperature=generation.temperature if generation.do_sample else 0.0,
        top_p=generation.top_p,
        top_k=generation.top_k,
        min_p=generation.min_p,
        repetition_penalty=generation.repetition_penalty,
        stop_token_ids=tuple(sorted(stop_ids)),
    )


def _effort(effort: Effort | str) -> Effort:
    try:
        return Effort(effort)
    except ValueError:
        raise UsageError(f"effort must be low, medium or high; got {effort!r}.") from None


def _check_budget(budget: Budget, options: TurnOptions) -> None:
    if budget.leads_on and options.must_call:
        raise RequestError(
            f"tool_choice {options.tool_choice!s} ends the turn with a call, so it cannot be led "
            "on to an answer; leave out reasoning_budget and answer_reserve."
        )


def _message(message: Message | Mapping[str, Any]) -> Message:
    """One of ours as it is; or a dict in the form of the Chat Completions API: role and content."""
    if isinstance(message, Message):
        return message
    unknown = set(message) - {"role", "content"}
    if unknown or not isinstance(message.get("content"), str):
        raise ConversationError(
            "A message given as a dict has the keys `role` and `content`, both strings; got "
            f"{dict(message)!r:.120}. Use ossia.Message for anything else."
        )
    role = message.get("role")
    if role == Role.USER:
        return Message.of_text(Role.USER, message["content"])
    if role == Role.ASSISTANT:
        return Message.of_text(Role.ASSISTANT, message["content"], channel="final")
    raise ConversationError(
        f"A message given as a dict has the role `user` or `assistant`; got {role!r}. For a system "
        "prompt pass instructions=…, for tool results ossia.Message."
    )


class _CompletionCollector:
    """Turns the engine's outputs into chunks of text and, at the end, the completion."""

    def __init__(self, tokenizer: Tokenizer, request: Request, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._request = request
        self._stops = StopStrings(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._outputs: list[TokenOutput] = []
        self._texts: list[str] = []
        self.done = False

    def feed(self, output: TokenOutput) -> CompletionChunk:
        self._outputs.append(output)
        ended = output.finish_reason is not None
        decoded = self._decoder.decode(self._tokenizer.decode_bytes(output.token_ids), final=ended)
        text = self._stops.feed(decoded)
        reason = output.finish_reason
        if self._stops.hit is not None:
            reason = FinishReason.STOP
        elif ended:
            text += self._stops.finish()
        self._texts.append(text)
        self.done = reason is not None
        return CompletionChunk(
            text=text,
            token_ids=output.token_ids,
            diagnostics=output.diagnostics,
            completion=None if reason is None else self._completion(reason),
        )

    def _completion(self, reason: FinishReason) -> Completion:
        asked = self._request.sampling
        return Completion(
            prompt_ids=self._request.prompt_ids,
            token_ids=tuple(token for output in self._outputs for token in output.token_ids),
            text="".join(self._texts),
            finish_reason=reason,
            stop=self._stops.hit,
            logprobs=tuple(value for output in self._outputs for value in output.logprobs)
            if asked.logprobs
            else None,
            top_logprobs=tuple(top for output in self._outputs for top in output.top_logprobs)
            if asked.top_logprobs
            else None,
            diagnostics=tuple(line for output in self._outputs for line in output.diagnostics),
        )

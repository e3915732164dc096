"""One turn: render the conversation, generate, parse, and tell what happens as events.

The model is reached through one method, `generate(Request) -> AsyncIterator[TokenOutput]`, so that
tests pass a scripted engine. Nothing between the prompt's tokens and the model's is computed here:
the tokens of a turn are those that `generate` gives for the rendered prompt.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from ossia.agent.events import (
    Diagnostic,
    PreambleDelta,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolCallEvent,
    Turn,
    TurnEnd,
    TurnEvent,
    TurnFinish,
    Usage,
)
from ossia.agent.stop_strings import StopStrings
from ossia.engine.request import FinishReason, Request, SamplingParams, TokenOutput
from ossia.harmony.events import (
    ContentDelta,
    HarmonyEvent,
    MessageEnd,
    MessageKind,
    MessageStart,
    Repair,
)
from ossia.harmony.messages import (
    Channel,
    Conversation,
    DeveloperContent,
    Message,
    Role,
    SystemContent,
    ToolNamespace,
)
from ossia.harmony.parser import HarmonyParser
from ossia.harmony.render import render_for_completion
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.turn import MESSAGE_SEPARATOR

MAX_IN_BAND_ANSWERS = 2
"""How often a call of something that was not offered is answered with an error for the model."""


class TokenSource(Protocol):
    """What a turn needs of an engine. Closing the iterator cancels the request."""

    def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]: ...


def offered_tools(conversation: Conversation) -> tuple[ToolNamespace, ...]:
    """The tools that the conversation's system and developer messages declare."""
    return tuple(
        namespace
        for message in conversation.messages
        for part in message.content
        if isinstance(part, SystemContent | DeveloperContent)
        for namespace in part.tools
    )


async def run_turn(
    engine: TokenSource,
    tokenizer: Tokenizer,
    conversation: Conversation,
    *,
    sampling: SamplingParams,
    stop: Sequence[str] = (),
) -> AsyncGenerator[TurnEvent, None]:
    """The assistant's next turn. Every turn ends with exactly one `TurnEnd`.

    `stop` are strings before which the answer ends; reasoning and calls are not searched. A call of
    something that was not offered is answered in-band, at most twice, and never told to the caller
    as a call. Raises ConversationError for what cannot be rendered and RequestError for what the
    engine refuses, both before the first event. Closing the iterator cancels the request.
    """
    writer = TurnWriter(tokenizer, offered_tools(conversation), stop)
    for answers_left in reversed(range(MAX_IN_BAND_ANSWERS + 1)):
        asked = Conversation((*conversation.messages, *writer.messages))
        prompt_ids = render_for_completion(tokenizer, asked).token_ids
        request = Request(f"turn-{uuid.uuid4().hex}", prompt_ids, writer.remaining(sampling))
        writer.begin(len(prompt_ids), may_answer=answers_left > 0)
        stream = engine.generate(request)
        try:
            async for output in stream:
                for event in writer.feed(output):
                    yield event
                if writer.generation_ended:
                    break
        finally:
            await stream.aclose()
        if writer.turn_ended:
            return


class TurnWriter:
    """Turns the engine's outputs into the events of one turn and gathers what its `Turn` holds."""

    def __init__(
        self, tokenizer: Tokenizer, tools: Sequence[ToolNamespace], stop: Sequence[str] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._tools = tools
        self._stops = StopStrings(stop)
        self._usage: Usage | None = None
        self._texts: dict[MessageKind, list[str]] = {kind: [] for kind in MessageKind}
        self._is_new_message = dict.fromkeys(MessageKind, True)
        self._calls: list[ToolCall] = []
        self._token_ids: list[int] = []
        self._diagnostics: list[Diagnostic] = []
        self.messages: list[Message] = []
        """The turn so far, as the next rendering takes it."""
        self.generation_ended = False
        self.turn_ended = False

    def remaining(self, sampling: SamplingParams) -> SamplingParams:
        """The sampling with the tokens that the turn has used so far taken off its bound."""
        if sampling.max_tokens is None:
            return sampling
        return replace(sampling, max_tokens=max(sampling.max_tokens - len(self._token_ids), 1))

    def begin(self, prompt_tokens: int, *, may_answer: bool) -> None:
        """A generation begins. `may_answer`: a further one may follow to answer in-band."""
        if self._usage is None:
            self._usage = Usage(prompt_tokens, 0)
        self._parser = HarmonyParser(self._tokenizer, tools=self._tools)
        self._may_answer = may_answer
        self._unoffered: Message | None = None
        self._cut_call = False
        self.generation_ended = False

    def feed(self, output: TokenOutput) -> Iterator[TurnEvent]:
        """The events of an output; the last event of the turn is `TurnEnd`."""
        assert self._usage is not None
        self._token_ids += output.token_ids
        self._usage = replace(
            self._usage,
            completion_tokens=len(self._token_ids),
            cached_tokens=max(self._usage.cached_tokens, output.cached_tokens),
        )
        for line in output.diagnostics:
            yield self._diagnostic(line, line)
        yield from self._translate(self._parser.feed(output.token_ids))
        reason = output.finish_reason
        if self._stops.hit is None and reason is not None:
            yield from self._translate(self._parser.finish(cut=reason is not FinishReason.STOP))
        if self._stops.hit is not None:
            yield self._end(FinishReason.STOP)
        elif reason is None and self._parser.void:
            # The model speaks for somebody else: whatever it goes on to say is dropped (R12).
            yield from self._translate(self._parser.finish(cut=False))
            yield self._end(FinishReason.STOP)
        elif reason is not None and self._is_answerable(reason):
            yield self._answer_in_band()
        elif reason is not None:
            yield self._end(reason)

    def _translate(self, events: Sequence[HarmonyEvent]) -> Iterator[TurnEvent]:
        for event in events:
            match event:
                case MessageStart(kind=kind):
                    self._is_new_message[kind] = True
                case ContentDelta(kind=kind, text=text):
                    yield from self._delta(kind, text)
                case MessageEnd():
                    yield from self._end_message(event)
                case Repair(rule=rule, text=text):
                    yield self._diagnostic(
                        f"{rule}: {text}", f"The model's output was repaired ({rule})."
                    )
            if self._stops.hit is not None:
                return  # what follows a stop string was not asked for

    def _delta(self, kind: MessageKind, text: str) -> Iterator[TurnEvent]:
        if kind is MessageKind.CONTENT:
            text = self._stops.feed(text)
            if self._stops.hit is not None:
                yield from self._say(kind, text)
                said = "".join(self._texts[kind])
                self.messages.append(Message.of_text(Role.ASSISTANT, said, channel=Channel.FINAL))
                return
        yield from self._say(kind, text)

    def _say(self, kind: MessageKind, text: str) -> Iterator[TurnEvent]:
        if not text:
            return
        if self._is_new_message[kind] and self._texts[kind]:
            text = MESSAGE_SEPARATOR + text
        self._is_new_message[kind] = False
        self._texts[kind].append(text)
        match kind:
            case MessageKind.REASONING:
                yield ReasoningDelta(text)
            case MessageKind.PREAMBLE:
                yield PreambleDelta(text)
            case MessageKind.CONTENT:
                yield TextDelta(text)
            case _:
                pass  # arguments are told whole, in ToolCallEvent

    def _end_message(self, event: MessageEnd) -> Iterator[TurnEvent]:
        if event.kind is MessageKind.CONTENT:
            yield from self._say(event.kind, self._stops.finish())
        if not event.complete:
            self._cut_call = True
            return  # arguments cut short are not to be run, nor to be read as if they were whole
        if event.kind is MessageKind.TOOL_CALL:
            recipient = event.message.recipient or ""
            call = ToolCall(
                call_id=f"call_{uuid.uuid4().hex}",
                name=recipient.removeprefix("functions."),
                arguments=event.message.text,
                recipient=recipient,
                channel=event.message.channel,
            )
            self._calls.append(call)
            yield ToolCallEvent(call)
        elif event.kind is MessageKind.UNOFFERED_CALL:
            self._unoffered = event.message
            return  # it joins the turn only with an answer behind it
        self.messages.append(event.message)

    def _is_answerable(self, reason: FinishReason) -> bool:
        return (
            self._unoffered is not None
            and not self._calls
            and self._may_answer
            and reason is FinishReason.STOP
        )

    def _answer_in_band(self) -> Diagnostic:
        """Put the call and an error as its result behind it, for a further generation."""
        assert self._unoffered is not None
        # The name is the model's invention and may hold what no header can.
        name = re.sub(r"[^\w.-]", "", self._unoffered.recipient or "") or "unknown"
        offered = ", ".join(_full_names(self._tools)) or "none"
        self.messages += [
            replace(self._unoffered, recipient=name),
            Message.of_text(
                Role.TOOL,
                f"Error: there is no tool named {name}. Tools you can call: {offered}.",
                name=name,
                recipient=Role.ASSISTANT,
                channel=self._unoffered.channel,
            ),
        ]
        self.generation_ended = True
        return self._diagnostic(
            f"The model called {name}, which was not offered; it was told so.",
            "The model called a tool that was not offered; it was told so.",
        )

    def _diagnostic(self, text: str, summary: str) -> Diagnostic:
        diagnostic = Diagnostic(text, summary)
        self._diagnostics.append(diagnostic)
        return diagnostic

    def _end(self, reason: FinishReason) -> TurnEnd:
        assert self._usage is not None
        self.generation_ended = self.turn_ended = True
        content = self._texts[MessageKind.CONTENT]
        return TurnEnd(
            Turn(
                reasoning="".join(self._texts[MessageKind.REASONING]),
                preamble="".join(self._texts[MessageKind.PREAMBLE]),
                content="".join(content) if content else None,
                tool_calls=tuple(self._calls),
                finish=self._finish(reason),
                messages=tuple(self.messages),
                token_ids=tuple(self._token_ids),
                usage=self._usage,
                diagnostics=tuple(self._diagnostics),
            )
        )

    def _finish(self, reason: FinishReason) -> TurnFinish:
        match reason:
            case FinishReason.CANCELLED | FinishReason.DEADLINE:
                return TurnFinish.CANCELLED
            case FinishReason.ERROR:
                return TurnFinish.ERROR
            case FinishReason.STOP | FinishReason.LENGTH if self._calls:
                return TurnFinish.TOOL_CALLS
            case FinishReason.LENGTH:
                return TurnFinish.LENGTH
            case FinishReason.STOP:
                return TurnFinish.LENGTH if self._cut_call else TurnFinish.STOP


def _full_names(tools: Sequence[ToolNamespace]) -> Iterator[str]:
    for namespace in tools:
        if not namespace.tools:
            yield namespace.name
        for tool in namespace.tools:
            yield f"{namespace.name}.{tool.name}"

"""The engine's outputs into the events of one turn, and all that its `Turn` holds.

Tokens are taken one by one, so that where a turn is ended or led on depends on them alone and not
on how many came at once; what was sampled beyond that point is dropped.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from enum import Enum, auto

from ossia.agent.budget import Budget, lead_to_answer
from ossia.agent.events import (
    Diagnostic,
    PreambleDelta,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallEvent,
    Turn,
    TurnEnd,
    TurnEvent,
    TurnFinish,
    TurnLogprobs,
    Usage,
)
from ossia.agent.history import WrittenMessage
from ossia.agent.logprobs import LogprobAligner, SampledToken
from ossia.agent.stop_strings import StopStrings
from ossia.agent.watchdog import RepetitionLimits, Watchdog
from ossia.engine.request import FinishReason, SamplingParams, TokenOutput
from ossia.harmony.events import (
    ContentDelta,
    HarmonyEvent,
    MessageEnd,
    MessageKind,
    MessageStart,
    Repair,
    Span,
    Stop,
)
from ossia.harmony.messages import Channel, Message, Role, ToolNamespace
from ossia.harmony.parser import HarmonyParser
from ossia.harmony.render import Rendered
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.turn import MESSAGE_SEPARATOR

_DELTA = {
    MessageKind.REASONING: ReasoningDelta,
    MessageKind.PREAMBLE: PreambleDelta,
    MessageKind.CONTENT: TextDelta,
}
"""Arguments are told whole, in ToolCallEvent."""

_STOPS = (Stop.END, Stop.RETURN, Stop.CALL)


class Phase(Enum):
    """Where a turn stands."""

    GENERATING = auto()
    LED_ON = auto()
    """The generation was ended, its message too; the same tokens go on with an answer."""
    ANSWERED_IN_BAND = auto()
    """The generation ended with a call that has got an error as its result."""
    ENDED = auto()


class TurnWriter:
    """Of one turn: feed it the outputs of each generation, act on `phase` in between."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        tools: Sequence[ToolNamespace],
        sampling: SamplingParams,
        *,
        stop: Sequence[str],
        budget: Budget,
        repetition: RepetitionLimits | None,
        context: int | None,
        notes: Iterable[Diagnostic],
        remember: Callable[[list[WrittenMessage]], object] | None = None,
    ) -> None:
        """`notes` are told with the first output. `remember` is given what the model wrote when a
        generation ends. For the others see `run_turn`.
        """
        self._tokenizer = tokenizer
        self._tools = tools
        self._sampling = sampling
        self._stops = StopStrings(stop)
        self._budget = budget
        self._lead = lead_to_answer(tokenizer)
        self._watchdog = None if repetition is None else Watchdog(tokenizer, repetition)
        self._context = context
        self._notes = tuple(notes)
        self._remember = remember
        self._usage: Usage | None = None
        self._texts: dict[MessageKind, list[str]] = {kind: [] for kind in MessageKind}
        self._aligners = (
            {kind: LogprobAligner(tokenizer) for kind in _DELTA} if sampling.logprobs else {}
        )
        self._logprobs: dict[MessageKind, list[TokenLogprob]] = {kind: [] for kind in _DELTA}
        self._has_text: set[MessageKind] = set()
        """The kinds of which some text came, shown or held back for a stop string."""
        self._is_new_message = dict.fromkeys(MessageKind, True)
        self._open: MessageKind | None = None
        self._reasoning_tokens = 0
        self._calls: list[ToolCall] = []
        self._token_ids: list[int] = []
        self._diagnostics: list[Diagnostic] = []
        self._step_begin = 0
        self.written: list[WrittenMessage] = []
        """The turn so far, as the next rendering takes it."""
        self.phase = Phase.GENERATING

    # -- Generations ---------------------------------------------------------------------------

    def begin(self, prompt: Rendered, *, may_answer: bool) -> Rendered:
        """A generation begins with this prompt, which is returned. `may_answer`: a further one may
        follow to answer in-band.
        """
        if self._usage is None:
            self._usage = Usage(len(prompt.token_ids), 0)
        self._prompt = prompt
        self._parser = HarmonyParser(self._tokenizer, tools=self._tools)
        self._sampled: list[SampledToken] = []
        """The parser's tokens, when log-probabilities are asked for."""
        self._may_answer = may_answer
        self._unoffered: Message | None = None
        self._cut_call = False
        self._open = None
        self._begin = 0
        self._repaired = False
        self.phase = Phase.GENERATING
        return prompt

    def resume(self) -> Rendered:
        """The generation goes on after it was led on; the prompt that it goes on with."""
        self.phase = Phase.GENERATING
        token_ids = (*self._prompt.token_ids, *self._parser.tokens)
        end = len(token_ids) - len(self._lead) + 1  # behind the lead's first token, `<|end|>`
        return Rendered(token_ids, (*self._prompt.boundaries, end))

    def remaining_sampling(self) -> SamplingParams:
        """The sampling with the tokens that the turn has used so far taken off its bound."""
        bound = self._sampling.max_tokens
        if bound is None:
            return self._sampling
        return replace(self._sampling, max_tokens=max(bound - len(self._token_ids), 1))

    # -- Outputs -------------------------------------------------------------------------------

    def feed(self, output: TokenOutput) -> Iterator[TurnEvent]:
        """The events of an output; the last event of the turn is `TurnEnd`."""
        assert self._usage is not None
        cached = max(self._usage.cached_tokens, output.cached_tokens)
        self._usage = replace(self._usage, cached_tokens=cached)
        notes, self._notes = self._notes, ()
        self._diagnostics += notes
        yield from notes
        for line in output.diagnostics:
            yield self._diagnostic(line, line)
        reason = output.finish_reason
        can_go_on = reason in (None, FinishReason.STOP, FinishReason.LENGTH)
        for index, token_id in enumerate(output.token_ids):
            yield from self._take(_sampled(output, index))
            if self.phase is Phase.GENERATING:
                yield from self._watch(token_id)
            if self.phase is Phase.GENERATING and can_go_on:
                yield from self._lead_on()
            if self.phase is not Phase.GENERATING:
                return
        if reason is not None:
            yield from self._finish_generation(reason)

    def _take(self, token: SampledToken) -> Iterator[TurnEvent]:
        """A token, and the end of the turn where the model's part of it is over."""
        open_before = self._open
        yield from self._read([token])
        if open_before is self._open is MessageKind.REASONING:
            self._reasoning_tokens += 1
        if self._stops.hit is not None:
            yield from self._end(TurnFinish.STOP)
        elif self._parser.void:
            # The model speaks for somebody else: whatever it goes on to say is dropped (R12).
            yield from self._translate(self._parser.finish(cut=False))
            yield from self._end(self._finish(FinishReason.STOP))

    def _read(self, tokens: Sequence[SampledToken]) -> Iterator[TurnEvent]:
        ids = [token.token_id for token in tokens]
        self._token_ids += ids
        if self._aligners:
            self._sampled += tokens
        events = self._parser.feed(ids)
        # Only here can a message be ended without cutting a character, or what may be a header.
        self._at_boundary = any(isinstance(e, ContentDelta | MessageStart) for e in events)
        yield from self._translate(events)

    def _watch(self, token_id: int) -> Iterator[TurnEvent]:
        repetition = self._watchdog and self._watchdog.feed(token_id)
        if repetition:
            yield from self._translate(self._parser.finish(cut=True))
            line = f"The turn was ended because it repeats itself: {repetition}."
            yield self._diagnostic(line, line)
            yield from self._end(TurnFinish.REPETITION)

    def _finish_generation(self, reason: FinishReason) -> Iterator[TurnEvent]:
        yield from self._translate(self._parser.finish(cut=reason is not FinishReason.STOP))
        if self._stops.hit is not None:
            yield from self._end(TurnFinish.STOP)
        elif self._is_answerable(reason):
            yield self._answer_in_band()
        else:
            yield from self._end(self._finish(reason))

    # -- Budgets -------------------------------------------------------------------------------

    def _lead_on(self) -> Iterator[TurnEvent]:
        """Where a budget is used up: end the message and begin the answer in the model's place."""
        why = self._why_answer_now()
        if why is None:
            return
        yield self._diagnostic(why, why)
        if MessageKind.CONTENT in self._has_text:  # it has answered, and thinks again
            yield from self._translate(self._parser.finish(cut=True))
            yield from self._end(TurnFinish.STOP)
            return
        yield from self._read([SampledToken(token_id) for token_id in self._lead])
        self.phase = Phase.LED_ON

    def _why_answer_now(self) -> str | None:
        if self._open not in (MessageKind.REASONING, MessageKind.PREAMBLE):
            return None
        left = self._tokens_left()
        if not self._at_boundary or self._calls or (left is not None and left <= len(self._lead)):
            return None
        bound, reserve = self._budget.reasoning, self._budget.answer_reserve
        thinks = self._open is MessageKind.REASONING
        if thinks and bound is not None and self._reasoning_tokens >= bound:
            return f"The reasoning budget of {bound} tokens is used up; the answer follows."
        answered = MessageKind.CONTENT in self._has_text
        if reserve and left is not None and not answered and left <= reserve + len(self._lead):
            return (
                f"{len(self._token_ids)} tokens were written without an answer; it follows now, in "
                f"the {reserve} tokens reserved for it."
            )
        return None

    def _tokens_left(self) -> int | None:
        """How many more tokens the turn may have."""
        bounds: list[int] = []
        if self._sampling.max_tokens is not None:
            bounds.append(self._sampling.max_tokens - len(self._token_ids))
        if self._context is not None:
            used = len(self._prompt.token_ids) + len(self._parser.tokens)
            bounds.append(self._context - used)
        return min(bounds, default=None)

    # -- Messages ------------------------------------------------------------------------------

    def _translate(self, events: Sequence[HarmonyEvent]) -> Iterator[TurnEvent]:
        for event in events:
            match event:
                case MessageStart(kind=kind, span=span):
                    self._is_new_message[kind] = True
                    self._open = kind
                    self._begin, self._repaired = span[0], False
                case ContentDelta(kind=kind, text=text, span=span):
                    yield from self._delta(kind, text, span)
                case MessageEnd():
                    self._open = None
                    yield from self._end_message(event)
                case Repair(rule=rule, text=text):
                    self._repaired = True
                    yield self._diagnostic(
                        f"{rule}: {text}", f"The model's output was repaired ({rule})."
                    )
            if self._stops.hit is not None:
                return  # what follows a stop string was not asked for

    def _delta(self, kind: MessageKind, text: str, span: Span) -> Iterator[TurnEvent]:
        if kind not in _DELTA:
            return
        aligner = self._aligners.get(kind)
        if text and self._is_new_message[kind]:
            self._is_new_message[kind] = False
            if kind in self._has_text:
                if aligner is not None:
                    aligner.put_text(MESSAGE_SEPARATOR)
                yield from self._show(kind, MESSAGE_SEPARATOR)
                if self._stops.hit is not None:
                    return
            self._has_text.add(kind)
        if aligner is not None:
            aligner.put(self._sampled[span[0] : span[1]], text)
        yield from self._show(kind, text)

    def _show(self, kind: MessageKind, text: str) -> Iterator[TurnEvent]:
        """Further text, of the answer what of it is no stop string."""
        if kind is MessageKind.CONTENT:
            text = self._stops.feed(text)
        yield from self._say(kind, text)
        if self._stops.hit is not None:
            self._cut_answer()

    def _say(self, kind: MessageKind, text: str) -> Iterator[TurnEvent]:
        aligner = self._aligners.get(kind)
        logprobs = () if aligner is None else aligner.show(text)
        if aligner is not None and self._stops.hit is not None:
            logprobs += aligner.cut()
        if text or logprobs:
            self._texts[kind].append(text)
            self._logprobs[kind] += logprobs
            yield _DELTA[kind](text, logprobs)

    def _cut_answer(self) -> None:
        """The answer ends before a stop string, which may have begun messages ago."""
        told = self.written[: self._step_begin]
        self._step_begin -= sum(_is_answer(written.message) for written in told)
        self.written = [w for w in self.written if not _is_answer(w.message)]
        said = "".join(self._texts[MessageKind.CONTENT])
        self._write(Message.of_text(Role.ASSISTANT, said, channel=Channel.FINAL), None)

    def _end_message(self, event: MessageEnd) -> Iterator[TurnEvent]:
        if not event.complete:
            self._cut_call = True
            return  # arguments cut short are not to be run, nor to be read as if they were whole
        if event.kind is MessageKind.UNOFFERED_CALL:
            self._unoffered = event.message
            return  # it joins the turn only with an answer behind it
        if event.kind is not MessageKind.TOOL_CALL:
            self._write(event.message, self._tokens_of(event))
            return
        recipient = event.message.recipient or ""
        call = ToolCall(
            call_id=f"call_{uuid.uuid4().hex}",
            name=recipient.removeprefix("functions."),
            arguments=event.message.text,
            recipient=recipient,
            channel=event.message.channel,
        )
        self._calls.append(call)
        self._write(event.message, self._tokens_of(event), call.call_id)
        yield ToolCallEvent(call)

    def _tokens_of(self, event: MessageEnd) -> tuple[int, ...] | None:
        """The message as it was sampled; None when that is not what it has become."""
        if self._repaired or event.stop not in _STOPS:
            return None
        ids = self._parser.tokens[self._begin : event.span[1]]
        if event.stop is Stop.RETURN:
            ids = (*ids[:-1], self._tokenizer.control.end)
        return ids

    def _write(
        self, message: Message, token_ids: tuple[int, ...] | None, message_id: str | None = None
    ) -> None:
        message_id = message_id or f"msg_{uuid.uuid4().hex}"
        self.written.append(WrittenMessage(message, token_ids, message_id))

    # -- Calls of what was not offered ---------------------------------------------------------

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
        self._write(replace(self._unoffered, recipient=name), None)
        self._write(
            Message.of_text(
                Role.TOOL,
                f"Error: there is no tool named {name}. Tools you can call: {offered}.",
                name=name,
                recipient=Role.ASSISTANT,
                channel=self._unoffered.channel,
            ),
            None,
        )
        self.phase = Phase.ANSWERED_IN_BAND
        self._end_step()
        return self._diagnostic(
            f"The model called {name}, which was not offered; it was told so.",
            "The model called a tool that was not offered; it was told so.",
        )

    # -- The end -------------------------------------------------------------------------------

    def _diagnostic(self, text: str, summary: str) -> Diagnostic:
        diagnostic = Diagnostic(text, summary)
        self._diagnostics.append(diagnostic)
        return diagnostic

    def _end(self, finish: TurnFinish) -> Iterator[TurnEvent]:
        assert self._usage is not None
        self.phase = Phase.ENDED
        self._end_step()
        if self._stops.hit is None:
            yield from self._say(MessageKind.CONTENT, self._stops.finish())
        content = self._texts[MessageKind.CONTENT]
        yield TurnEnd(
            Turn(
                reasoning="".join(self._texts[MessageKind.REASONING]),
                preamble="".join(self._texts[MessageKind.PREAMBLE]),
                content="".join(content) if content else None,
                tool_calls=tuple(self._calls),
                finish=finish,
                messages=tuple(written.message for written in self.written),
                token_ids=tuple(self._token_ids),
                usage=replace(self._usage, completion_tokens=len(self._token_ids)),
                diagnostics=tuple(self._diagnostics),
                message_ids=tuple(written.message_id or "" for written in self.written),
                logprobs=self._turn_logprobs(),
            )
        )

    def _end_step(self) -> None:
        """A generation is over."""
        step, self._step_begin = self.written[self._step_begin :], len(self.written)
        if self._remember is not None:
            self._remember([each for each in step if each.message.role == Role.ASSISTANT])

    def _turn_logprobs(self) -> TurnLogprobs | None:
        if not self._aligners:
            return None
        of = self._logprobs
        return TurnLogprobs(
            reasoning=tuple(of[MessageKind.REASONING]),
            preamble=tuple(of[MessageKind.PREAMBLE]),
            content=tuple(of[MessageKind.CONTENT]),
        )

    def _finish(self, reason: FinishReason) -> TurnFinish:
        match reason:
            case FinishReason.CANCELLED | FinishReason.DEADLINE:
                return TurnFinish.CANCELLED
            case FinishReason.ERROR:
                return TurnFinish.ERROR
            case FinishReason.NAN:
                return TurnFinish.NAN
            case FinishReason.STOP | FinishReason.LENGTH if self._calls:
                return TurnFinish.TOOL_CALLS
            case FinishReason.LENGTH:
                return TurnFinish.LENGTH
            case FinishReason.STOP:
                return TurnFinish.LENGTH if self._cut_call else TurnFinish.STOP


def _sampled(output: TokenOutput, index: int) -> SampledToken:
    return SampledToken(
        output.token_ids[index],
        output.logprobs[index] if output.logprobs else None,
        output.top_logprobs[index] if output.top_logprobs else (),
    )


def _is_answer(message: Message) -> bool:
    return (
        message.role == Role.ASSISTANT
        and message.recipient is None
        and message.channel not in (Channel.ANALYSIS, Channel.COMMENTARY)
    )


def _full_names(tools: Sequence[ToolNamespace]) -> Iterator[str]:
    for namespace in tools:
        if not namespace.tools:
            yield namespace.name
        for tool in namespace.tools:
            yield f"{namespace.name}.{tool.name}"

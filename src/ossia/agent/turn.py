"""One turn: render the conversation, generate, parse, and tell what happens as events.

The model is reached through one method, `generate(Request) -> AsyncIterator[TokenOutput]`, so that
tests pass a scripted engine. A turn takes several generations where it is led on to its answer, or
where a call of something that was not offered is answered in-band.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

from ossia.agent.advice import sampling_advice
from ossia.agent.budget import Budget
from ossia.agent.events import Diagnostic, TurnEvent
from ossia.agent.history import History, Recalled, WrittenMessage
from ossia.agent.watchdog import RepetitionLimits
from ossia.agent.writer import Phase, TurnWriter
from ossia.engine.request import Request, SamplingParams, TokenOutput
from ossia.errors import ConversationError
from ossia.harmony.messages import (
    Conversation,
    DeveloperContent,
    SystemContent,
    ToolNamespace,
)
from ossia.harmony.render import Rendered, render_for_completion
from ossia.harmony.tokenizer import Tokenizer

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
    budget: Budget | None = None,
    repetition: RepetitionLimits | None = None,
    context: int | None = None,
    history: History | None = None,
    scope: str = "",
    message_ids: Mapping[int, str] | None = None,
) -> AsyncGenerator[TurnEvent, None]:
    """The assistant's next turn. Every turn ends with exactly one `TurnEnd`.

    `stop` are strings before which the answer ends; reasoning and calls are not searched. A call of
    something that was not offered is answered in-band, at most twice, and never told to the caller
    as a call. `budget` leads the turn on to its answer; `repetition` says when it is ended because
    it repeats itself, None never. `context` is the most tokens that the engine takes, prompt and
    answer together; without it, `budget` knows of `max_tokens` only.

    `history` has the tokens of earlier messages, and takes those of this turn; nothing of another
    `scope` (an API key, say) is found, nor taken from the engine's cache. `message_ids`: by index,
    the ids that messages came with.

    Raises ConversationError for what cannot be rendered and RequestError for what the engine
    refuses, both before the first event. Closing the iterator cancels the request.
    """
    budget = budget or Budget()
    budget.check(sampling.max_tokens)
    known = Recalled(conversation, {})
    if history is not None:
        known = history.recall(scope, conversation, message_ids)
    writer = TurnWriter(
        tokenizer,
        offered_tools(conversation),
        sampling,
        stop=stop,
        budget=budget,
        repetition=repetition,
        context=context,
        notes=_notes(sampling, known),
        remember=None if history is None else partial(history.remember, scope),
    )
    answers_left = MAX_IN_BAND_ANSWERS
    prompt = writer.begin(_first_prompt(tokenizer, conversation, known), may_answer=True)
    while writer.phase is not Phase.ENDED:
        request = Request(
            f"turn-{uuid.uuid4().hex}",
            prompt.token_ids,
            writer.remaining_sampling(),
            cache_salt=scope,
            checkpoints=prompt.boundaries,
        )
        stream = engine.generate(request)
        try:
            async for output in stream:
                for event in writer.feed(output):
                    yield event
                if writer.phase is not Phase.GENERATING:
                    break
        finally:
            await stream.aclose()
        if writer.phase is Phase.LED_ON:
            prompt = writer.resume()
        elif writer.phase is Phase.ANSWERED_IN_BAND:
            answers_left -= 1
            prompt = _prompt(tokenizer, known, writer.written)
            writer.begin(prompt, may_answer=answers_left > 0)


def _first_prompt(tokenizer: Tokenizer, conversation: Conversation, known: Recalled) -> Rendered:
    try:
        return _prompt(tokenizer, known, ())
    except ConversationError:
        render_for_completion(tokenizer, conversation)  # names the message by the caller's count
        raise


def _prompt(tokenizer: Tokenizer, known: Recalled, turn: Sequence[WrittenMessage]) -> Rendered:
    """The conversation and the turn so far, in the model's own tokens as far as they are known."""
    before = known.conversation.messages
    sampled = dict(known.sampled)
    for index, written in enumerate(turn, len(before)):
        if written.token_ids is not None:
            sampled[index] = written.token_ids
    asked = Conversation((*before, *(written.message for written in turn)))
    return render_for_completion(tokenizer, asked, sampled=sampled)


def _notes(sampling: SamplingParams, known: Recalled) -> Iterator[Diagnostic]:
    """What there is to say before a turn begins."""
    for line in sampling_advice(sampling, known.conversation):
        yield Diagnostic(line, line)
    if known.unknown:
        line = (
            f"{_messages(known.unknown)} of the model could not be found in the exact-token "
            "history (edited, forgotten, or from elsewhere); rendered anew."
        )
        yield Diagnostic(line, line)
    if known.restored:
        line = f"{_messages(known.restored)} that the client had left out: put back."
        yield Diagnostic(line, line)


def _messages(count: int) -> str:
    return "1 earlier message" if count == 1 else f"{count} earlier messages"

"""The turn over a scripted engine: events, stop strings, calls, in-band answers, exact prompts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from ossia.agent.events import (
    Diagnostic,
    PreambleDelta,
    ReasoningDelta,
    TextDelta,
    ToolCallEvent,
    Turn,
    TurnEnd,
    TurnEvent,
    TurnFinish,
)
from ossia.agent.turn import run_turn
from ossia.engine.request import FinishReason, Request, SamplingParams, TokenOutput
from ossia.errors import ConversationError
from ossia.harmony.messages import (
    Conversation,
    Message,
    Role,
    SystemContent,
    Tool,
)
from ossia.harmony.render import Drop, render_for_completion
from scripted import (
    ANALYSIS,
    FINAL,
    ScriptedEngine,
    conversation,
    oddly_tokenized,
    small_tokenizer,
    tokens_of,
    turn_sampling,
)

TOKENIZER = small_tokenizer()
CONTROL = TOKENIZER.control
SAMPLING = turn_sampling(TOKENIZER)


def take_turn(
    *completions: str,
    asked: Conversation | None = None,
    stop: Sequence[str] = (),
    chunk: int = 1,
    sampling: SamplingParams = SAMPLING,
) -> tuple[list[TurnEvent], Turn, ScriptedEngine]:
    engine = ScriptedEngine(*(tokens_of(TOKENIZER, text) for text in completions), chunk=chunk)

    async def collect() -> list[TurnEvent]:
        stream = run_turn(engine, TOKENIZER, asked or conversation(), sampling=sampling, stop=stop)
        return [event async for event in stream]

    events = asyncio.run(collect())
    assert isinstance(events[-1], TurnEnd)
    assert not any(isinstance(event, TurnEnd) for event in events[:-1])
    assert engine.open_streams == 0
    return events, events[-1].turn, engine


def joined(events: Sequence[TurnEvent], kind: type) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
def test_reasoning_and_answer_come_apart(chunk: int) -> None:
    completion = f"{ANALYSIS}They greet.<|end|>{FINAL}Hello to you!<|return|>"
    events, turn, engine = take_turn(completion, chunk=chunk)
    assert joined(events, ReasoningDelta) == turn.reasoning == "They greet."
    assert joined(events, TextDelta) == turn.content == "Hello to you!"
    assert turn.finish is TurnFinish.STOP
    assert turn.tool_calls == () and turn.diagnostics == ()
    assert turn.token_ids == tuple(tokens_of(TOKENIZER, completion))
    assert turn.usage.completion_tokens == len(turn.token_ids)
    assert turn.usage.prompt_tokens == len(engine.requests[0].prompt_ids)


def test_the_prompt_is_the_rendered_conversation_and_nothing_else() -> None:
    asked = conversation(text="What is 2 + 2?")
    _, _, engine = take_turn(f"{ANALYSIS}4<|end|>{FINAL}4<|return|>", asked=asked)
    assert engine.requests[0].prompt_ids == render_for_completion(TOKENIZER, asked).token_ids
    assert engine.requests[0].sampling == SAMPLING


def test_messages_carry_the_conversation_on() -> None:
    """What a turn leaves behind renders to the very tokens that were sampled."""
    completion = f"{ANALYSIS}Think.<|end|>{FINAL}Done.<|return|>"
    asked = conversation()
    _, turn, _ = take_turn(completion, asked=asked)
    prompt = render_for_completion(TOKENIZER, asked).token_ids
    full = Conversation((*asked.messages, *turn.messages))
    again = render_for_completion(TOKENIZER, full, drop=Drop.NONE).token_ids
    sampled = [CONTROL.end if t == CONTROL.return_ else t for t in turn.token_ids]
    assert list(again[: len(prompt) + len(sampled)]) == [*prompt, *sampled]


def test_an_offered_call() -> None:
    asked = conversation(Tool("get_weather", "", {"type": "object", "properties": {"city": {}}}))
    events, turn, _ = take_turn(
        f"{ANALYSIS}Look.<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>One moment.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json"
        '<|message|>{"city":"Paris"}<|call|>',
        asked=asked,
    )
    assert joined(events, PreambleDelta) == turn.preamble == "One moment."
    (call,) = turn.tool_calls
    assert [e.call for e in events if isinstance(e, ToolCallEvent)] == [call]
    assert (call.name, call.arguments) == ("get_weather", '{"city":"Paris"}')
    assert turn.content is None and turn.finish is TurnFinish.TOOL_CALLS
    # The result goes back to the model as its own tool's message.
    asked = Conversation((*asked.messages, *turn.messages, call.result("18 degrees")))
    text = TOKENIZER.decode(render_for_completion(TOKENIZER, asked).token_ids)
    assert text.endswith(
        "<|call|><|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>"
        "18 degrees<|end|><|start|>assistant"
    )


def test_generation_stops_when_the_model_speaks_for_somebody_else() -> None:
    completion = f"{FINAL}Answer<|end|><|start|>user<|message|>And then? And then? And then?"
    _, turn, engine = take_turn(completion)
    assert turn.content == "Answer" and turn.finish is TurnFinish.STOP
    assert len(turn.token_ids) < len(tokens_of(TOKENIZER, completion))
    assert engine.open_streams == 0


def test_messages_of_one_kind_are_parted_in_the_stream_as_in_the_turn() -> None:
    events, turn, _ = take_turn(
        f"{ANALYSIS}One.<|end|><|start|>assistant{ANALYSIS}Two.<|end|>{FINAL}Done.<|return|>"
    )
    assert joined(events, ReasoningDelta) == turn.reasoning == "One.\n\nTwo."


def test_a_call_cut_short_is_not_a_call() -> None:
    asked = conversation(Tool("f", "", {"type": "object", "properties": {"a": {}}}))
    events, turn, _ = take_turn(
        '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": [1, 2', asked=asked
    )
    assert turn.tool_calls == ()
    assert not any(isinstance(event, ToolCallEvent) for event in events)
    assert turn.finish is TurnFinish.LENGTH
    assert turn.diagnostics


def test_an_unoffered_call_is_answered_in_band() -> None:
    call = '<|channel|>commentary to=functions.rm <|constrain|>json<|message|>{"p":"/"}<|call|>'
    answer = f"{ANALYSIS}No such tool.<|end|>{FINAL}I cannot.<|return|>"
    events, turn, engine = take_turn(call, answer)
    assert turn.content == "I cannot." and turn.tool_calls == ()
    assert not any(isinstance(event, ToolCallEvent) for event in events)
    assert any("not offered" in diagnostic.text for diagnostic in turn.diagnostics)
    second = TOKENIZER.decode(engine.requests[1].prompt_ids)
    assert "there is no tool named functions.rm" in second
    assert len(turn.token_ids) == sum(len(tokens_of(TOKENIZER, t)) for t in (call, answer))


def test_unoffered_calls_are_answered_twice_at_most() -> None:
    call = "<|channel|>analysis to=browser.search code<|message|>{}<|call|>"
    _, turn, engine = take_turn(call, call, call)
    assert len(engine.requests) == 3
    assert turn.content is None and turn.tool_calls == ()
    assert turn.finish is TurnFinish.STOP


def test_in_band_answers_do_not_add_tokens_to_the_bound() -> None:
    call = "<|channel|>analysis to=browser.search code<|message|>{}<|call|>"
    used = len(tokens_of(TOKENIZER, call))
    sampling = SamplingParams(max_tokens=used + 5, stop_token_ids=SAMPLING.stop_token_ids)
    _, _, engine = take_turn(call, f"{FINAL}x", sampling=sampling)
    assert [r.sampling.max_tokens for r in engine.requests] == [used + 5, 5]


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_a_stop_string_ends_the_answer_only(chunk: int) -> None:
    completion = f"{ANALYSIS}STOP is a word.<|end|>{FINAL}One STOP two<|return|>"
    events, turn, engine = take_turn(completion, stop=["STOP"], chunk=chunk)
    assert turn.reasoning == "STOP is a word."
    assert joined(events, TextDelta) == turn.content == "One "
    assert turn.messages[-1].text == "One " and turn.messages[-1].channel == "final"
    assert turn.finish is TurnFinish.STOP
    assert engine.open_streams == 0


def test_text_held_back_for_a_stop_string_is_given_out_at_the_end() -> None:
    _, turn, _ = take_turn(f"{FINAL}An ST<|return|>", stop=["STOP"])
    assert turn.content == "An ST"


def test_cut_while_reasoning() -> None:
    _, turn, _ = take_turn(f"{ANALYSIS}We need to")
    assert (turn.reasoning, turn.content, turn.finish) == ("We need to", None, TurnFinish.LENGTH)


def test_repairs_are_told() -> None:
    events, turn, _ = take_turn(f"{ANALYSIS}think<|end|>{FINAL}Answer<|end|><|return|>")
    assert turn.content == "Answer"
    told = [event for event in events if isinstance(event, Diagnostic)]
    assert told == list(turn.diagnostics) != []


def test_summaries_of_diagnostics_quote_nothing() -> None:
    """They stand where reasoning must not appear; the texts may quote it."""
    stray = "<|end|>secret thought<|start|>assistant<|channel|>final<|message|>ok<|return|>"
    _, turn, _ = take_turn(f"{ANALYSIS}think{stray}")
    assert any("secret" in diagnostic.text for diagnostic in turn.diagnostics)
    assert not any("secret" in diagnostic.summary for diagnostic in turn.diagnostics)


def test_what_cannot_be_rendered_is_refused_before_any_request() -> None:
    engine = ScriptedEngine([])
    broken = Conversation((Message(Role.USER, (SystemContent(),)),))

    async def start() -> None:
        async for _ in run_turn(engine, TOKENIZER, broken, sampling=SAMPLING):
            raise AssertionError("no event may come")

    with pytest.raises(ConversationError):
        asyncio.run(start())
    assert engine.requests == []


def test_leaving_early_closes_the_request() -> None:
    engine = ScriptedEngine(tokens_of(TOKENIZER, f"{ANALYSIS}a b c d e f<|end|>"))

    async def leave() -> None:
        stream = run_turn(engine, TOKENIZER, conversation(), sampling=SAMPLING)
        await anext(stream)
        assert engine.open_streams == 1
        await stream.aclose()

    asyncio.run(leave())
    assert engine.open_streams == 0


# -- Stop strings on what is shown ----------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_a_stop_string_over_several_tokens(chunk: int) -> None:
    text = f"{FINAL.removeprefix('<|start|>assistant')}no stop here, stop there<|return|>"
    ids = oddly_tokenized(TOKENIZER, text, 3)
    engine = ScriptedEngine(ids, chunk=chunk)
    turn = last_turn(engine, stop=["stop t"])
    assert turn.content == "no stop here, "


def last_turn(engine: ScriptedEngine, stop: Sequence[str]) -> Turn:
    async def last() -> Turn:
        stream = run_turn(engine, TOKENIZER, conversation(), sampling=SAMPLING, stop=stop)
        events = [event async for event in stream]
        assert isinstance(events[-1], TurnEnd)
        return events[-1].turn

    return asyncio.run(last())


@pytest.mark.parametrize("chunk", [1, 2, 1000])
@pytest.mark.parametrize("stop", ["one.\n\nT", "\n\n", "e.\n\nTwo."])
def test_a_stop_string_over_two_messages_of_the_answer(stop: str, chunk: int) -> None:
    """Between them stands a blank line, which is shown, so it counts."""
    completion = f"{ANALYSIS}x<|end|>{FINAL}Well, one.<|end|>{FINAL}Two. Three.<|return|>"
    events, turn, _ = take_turn(completion, stop=[stop], chunk=chunk)
    shown = "Well, one.\n\nTwo. Three."
    shown = shown[: shown.index(stop)]
    assert joined(events, TextDelta) == turn.content == shown
    # What goes on in the conversation is what was shown, as one message.
    assert [m.text for m in turn.messages] == ["x", shown]
    assert turn.finish is TurnFinish.STOP


def test_two_messages_of_the_answer_are_shown_whole_without_a_hit() -> None:
    completion = f"{FINAL}One.\n<|end|>{FINAL}\nTwo.<|return|>"
    _, turn, _ = take_turn(completion, stop=["\n\n\n\n\n"])
    assert turn.content == "One.\n\n\n\nTwo."


@pytest.mark.parametrize("stop", ["assistant", "<|end|>", "final", "analysis", "<|"])
def test_headers_and_control_tokens_are_not_searched(stop: str) -> None:
    completion = f"{ANALYSIS}think<|end|>{FINAL}Answer.<|return|>"
    _, turn, _ = take_turn(completion, stop=[stop])
    assert turn.content == "Answer."


@pytest.mark.parametrize("reason", FinishReason)
def test_every_end_of_a_generation_ends_the_turn(reason: FinishReason) -> None:
    class Ending(ScriptedEngine):
        async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
            ids = tuple(tokens_of(TOKENIZER, f"{ANALYSIS}x<|end|>{FINAL}Half an"))
            yield TokenOutput(request.request_id, ids)
            yield TokenOutput(request.request_id, diagnostics=("Why.",), finish_reason=reason)

    turn = last_turn(Ending(), stop=[])
    ended_from_outside = (FinishReason.CANCELLED, FinishReason.DEADLINE)
    assert turn.finish == ("cancelled" if reason in ended_from_outside else reason.value)
    assert turn.content == "Half an"
    assert turn.finish.failed is reason.failed
    assert "Why." in [line.text for line in turn.diagnostics]

"""Budgets: where a turn is led on to its answer, what it costs, and what is never cut."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from ossia.agent.budget import Budget, lead_to_answer
from ossia.agent.events import TextDelta, Turn, TurnEnd, TurnEvent, TurnFinish
from ossia.agent.history import History
from ossia.agent.turn import run_turn
from ossia.engine.request import FinishReason, Request, TokenOutput
from ossia.errors import RequestError
from ossia.harmony.messages import (
    Conversation,
    Tool,
)
from scripted import (
    ANALYSIS,
    ScriptedEngine,
    conversation,
    small_tokenizer,
    tokens_of,
    turn_sampling,
)

TOKENIZER = small_tokenizer()
CONTROL = TOKENIZER.control
SAMPLING = turn_sampling(TOKENIZER)
LEAD = "<|end|><|start|>assistant<|channel|>final<|message|>"
HEADER = len(tokens_of(TOKENIZER, ANALYSIS))
THOUGHT = "one two three four five six seven eight nine ten"
ASKED = conversation(Tool("f"), text="go")


class BoundedEngine(ScriptedEngine):
    """Ends with LENGTH where the request's bound is, as the engine does."""

    async def generate(self, request: Request):
        bound = request.sampling.max_tokens
        if bound is not None and bound < len(self._completions[0]):
            self._completions[0] = self._completions[0][:bound]
        async for output in super().generate(request):
            yield output


def take(
    *completions: str | Sequence[int],
    budget: Budget,
    max_tokens: int | None = None,
    chunk: int = 1,
    context: int | None = None,
    history: History | None = None,
    asked: Conversation = ASKED,
    stop: Sequence[str] = (),
) -> tuple[Turn, list[Request], list[TurnEvent]]:
    engine = BoundedEngine(
        *(tokens_of(TOKENIZER, c) if isinstance(c, str) else c for c in completions), chunk=chunk
    )

    async def collect() -> list[TurnEvent]:
        stream = run_turn(
            engine,
            TOKENIZER,
            asked,
            sampling=replace(SAMPLING, max_tokens=max_tokens),
            budget=budget,
            context=context,
            history=history,
            stop=stop,
        )
        return [event async for event in stream]

    events = asyncio.run(collect())
    assert isinstance(events[-1], TurnEnd)
    assert engine.open_streams == 0
    return events[-1].turn, engine.requests, events


def about(turn: Turn, word: str) -> list[str]:
    return [line.text for line in turn.diagnostics if word in line.text]


def test_the_lead_is_legal_harmony() -> None:
    assert TOKENIZER.decode(lead_to_answer(TOKENIZER)) == LEAD


@pytest.mark.parametrize("chunk", [1, 2, 3, 1000])
@pytest.mark.parametrize("bound", [0, 1, 5, 9])
def test_reasoning_ends_at_its_budget_and_the_answer_follows(bound: int, chunk: int) -> None:
    """At the same token whatever comes at once; what was sampled beyond it is dropped."""
    completion = f"{ANALYSIS}{THOUGHT}<|end|>"
    turn, requests, events = take(
        completion, "Here.<|return|>", budget=Budget(reasoning=bound), chunk=chunk
    )
    kept = tokens_of(TOKENIZER, completion)[: HEADER + bound]
    led = [*kept, *tokens_of(TOKENIZER, LEAD)]
    assert requests[1].prompt_ids == (*requests[0].prompt_ids, *led)
    # What the engine keeps for other prompts: where messages end, the one cut short among them.
    end = len(requests[0].prompt_ids) + len(kept) + 1
    assert requests[1].checkpoints == (*requests[0].checkpoints, end)
    assert len(requests[0].checkpoints) == len(ASKED.messages)
    assert turn.reasoning == TOKENIZER.decode(kept[HEADER:])
    assert turn.content == "Here." and turn.finish is TurnFinish.STOP
    assert [e.text for e in events if isinstance(e, TextDelta)]
    assert list(turn.token_ids) == [*led, *tokens_of(TOKENIZER, "Here.<|return|>")]
    assert turn.usage.completion_tokens == len(turn.token_ids)
    assert turn.usage.prompt_tokens == len(requests[0].prompt_ids)
    assert len(about(turn, "reasoning budget")) == 1 == len(turn.diagnostics)


def test_a_turn_within_its_budget_is_left_alone() -> None:
    completion = f"{ANALYSIS}{THOUGHT}{LEAD}Here.<|return|>"
    used = len(tokens_of(TOKENIZER, THOUGHT))
    turn, requests, _ = take(completion, budget=Budget(reasoning=used + 1))
    assert len(requests) == 1 and turn.diagnostics == () and turn.reasoning == THOUGHT


def test_the_budget_is_one_for_all_the_reasoning_of_a_turn() -> None:
    two = f"{ANALYSIS}one two<|end|><|start|>assistant{ANALYSIS}"
    used = len(tokens_of(TOKENIZER, "one two"))
    turn, requests, _ = take(
        f"{two}{THOUGHT}<|end|>", "Here.<|return|>", budget=Budget(reasoning=used + 2)
    )
    second = tokens_of(TOKENIZER, THOUGHT)[:2]
    assert turn.reasoning == f"one two\n\n{TOKENIZER.decode(second)}"
    led = [*tokens_of(TOKENIZER, two), *second, *tokens_of(TOKENIZER, LEAD)]
    assert requests[1].prompt_ids == (*requests[0].prompt_ids, *led)


@pytest.mark.parametrize("channel", ["commentary", "analysis"])
def test_a_tool_call_is_never_cut(channel: str) -> None:
    call = f'<|channel|>{channel} to=functions.f <|constrain|>json<|message|>{{"a": "{THOUGHT}"}}'
    turn, requests, _ = take(
        f"{ANALYSIS}one<|end|><|start|>assistant{call}<|call|>",
        budget=Budget(reasoning=8, answer_reserve=20),
        max_tokens=200,
    )
    assert len(requests) == 1 and turn.finish is TurnFinish.TOOL_CALLS


def test_a_character_is_not_cut() -> None:
    text = "x\u65e5\u672c\u8a9e"
    ids = [i for byte in text.encode() for i in _byte_token(byte)]
    turn, requests, _ = take(
        [*tokens_of(TOKENIZER, ANALYSIS), *ids], "Here.<|return|>", budget=Budget(reasoning=2)
    )
    assert turn.reasoning == "x\u65e5" and about(turn, "R0") == []
    assert len(requests) == 2


def _byte_token(byte: int) -> list[int]:
    return [next(i for i in TOKENIZER.ordinary_ids if TOKENIZER.token_bytes(i) == bytes([byte]))]


def test_reasoning_after_the_answer_ends_the_turn() -> None:
    turn, requests, _ = take(
        f"{ANALYSIS}{THOUGHT}",
        f"Here.<|end|><|start|>assistant{ANALYSIS}{THOUGHT}",
        budget=Budget(reasoning=3),
    )
    assert len(requests) == 2
    assert turn.content == "Here." and turn.finish is TurnFinish.STOP


def test_what_was_led_on_is_kept_in_the_exact_history() -> None:
    history = History()
    turn, _, _ = take(
        f"{ANALYSIS}{THOUGHT}", "Here.<|return|>", budget=Budget(reasoning=3), history=history
    )
    known = history.recall("", Conversation((*ASKED.messages, *turn.messages)))
    assert sorted(known.sampled) == [3, 4]
    final = tokens_of(TOKENIZER, f"{LEAD}Here.<|end|>")[1:]
    assert list(known.sampled[4]) == final


# -- Tokens reserved for the answer ---------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("by_context", [False, True])
def test_a_bound_leaves_room_for_an_answer(by_context: bool, chunk: int) -> None:
    completion = f"{ANALYSIS}{THOUGHT * 20}"
    answer = "This is what there is to say about it, in full and at length.<|return|>"
    reserve, bound = 6, 60
    prompt = len(take(completion, budget=Budget(), max_tokens=5)[1][0].prompt_ids)
    turn, requests, _ = take(
        completion,
        tokens_of(TOKENIZER, answer)[: reserve if by_context else None],
        budget=Budget(answer_reserve=reserve),
        max_tokens=None if by_context else bound,
        context=prompt + bound if by_context else None,
        chunk=chunk,
    )
    assert turn.content and TOKENIZER.encode(turn.content) == tokens_of(TOKENIZER, answer)[:reserve]
    assert turn.finish is TurnFinish.LENGTH
    assert len(turn.token_ids) == bound == turn.usage.completion_tokens
    assert len(about(turn, "reserved")) == 1
    if not by_context:
        assert requests[1].sampling.max_tokens == reserve


def test_without_a_reserve_the_answer_is_empty() -> None:
    turn, _, _ = take(f"{ANALYSIS}{THOUGHT * 20}", budget=Budget(), max_tokens=60)
    assert (turn.content, turn.finish, len(turn.token_ids)) == (None, TurnFinish.LENGTH, 60)


def test_an_answer_begun_needs_no_reserve() -> None:
    turn, requests, _ = take(
        f"{ANALYSIS}one{LEAD}{THOUGHT * 20}", budget=Budget(answer_reserve=20), max_tokens=60
    )
    assert len(requests) == 1 and turn.finish is TurnFinish.LENGTH


def test_too_late_for_an_answer_nothing_is_done() -> None:
    """The header alone would not fit any more."""
    lead = len(tokens_of(TOKENIZER, LEAD))
    turn, requests, _ = take(
        f"{ANALYSIS}{THOUGHT}", budget=Budget(reasoning=4), max_tokens=HEADER + 4 + lead
    )
    assert len(requests) == 1 and len(turn.token_ids) <= HEADER + 4 + lead


def test_stop_strings_hold_in_an_answer_that_was_led_to() -> None:
    turn, _, _ = take(
        f"{ANALYSIS}{THOUGHT}", "Yes. END no", budget=Budget(reasoning=2), stop=["END"]
    )
    assert turn.content == "Yes. " and turn.finish is TurnFinish.STOP


def test_a_cancelled_generation_is_not_led_on() -> None:
    class Cancelled(ScriptedEngine):
        async def generate(self, request: Request):
            self.requests.append(request)
            ids = tokens_of(TOKENIZER, f"{ANALYSIS}{THOUGHT}")
            yield TokenOutput(request.request_id, tuple(ids), finish_reason=FinishReason.CANCELLED)

    engine = Cancelled()

    async def last() -> Turn:
        stream = run_turn(engine, TOKENIZER, ASKED, sampling=SAMPLING, budget=Budget(reasoning=2))
        events = [event async for event in stream]
        assert isinstance(events[-1], TurnEnd)
        return events[-1].turn

    turn = asyncio.run(last())
    assert turn.finish is TurnFinish.CANCELLED and len(engine.requests) == 1


def test_budgets_that_cannot_be_meant() -> None:
    with pytest.raises(RequestError, match="negative"):
        Budget(reasoning=-1)
    with pytest.raises(RequestError, match="reserved"):
        take(ANALYSIS, budget=Budget(answer_reserve=60), max_tokens=60)

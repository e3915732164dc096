"""Settings known to make gpt-oss loop are told, once a turn; the recommended ones are not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ossia.agent.advice import sampling_advice
from ossia.agent.events import Diagnostic
from ossia.agent.turn import run_turn
from ossia.engine.request import SamplingParams
from ossia.harmony.messages import Conversation, Effort, Message, Role, SystemContent
from scripted import ScriptedEngine, small_tokenizer, tokens_of


def asked(effort: Effort | None) -> Conversation:
    system = SystemContent(reasoning_effort=effort)
    return Conversation((Message(Role.SYSTEM, (system,)), Message.of_text(Role.USER, "hello")))


@pytest.mark.parametrize(
    ("effort", "settings", "words"),
    [
        (Effort.HIGH, {}, []),
        (Effort.HIGH, {"temperature": 0}, ["temperature of 0 "]),
        (Effort.HIGH, {"temperature": 0.6}, []),
        (Effort.MEDIUM, {"temperature": 0}, []),
        (None, {"temperature": 0}, []),
        (Effort.LOW, {"repetition_penalty": 1.1}, ["repetition_penalty"]),
        (Effort.LOW, {"presence_penalty": -1, "frequency_penalty": 0.5}, ["presence_penalty, fre"]),
        (Effort.HIGH, {"temperature": 0.1, "presence_penalty": 1}, ["temperature", "presence"]),
    ],
)
def test_advice(effort: Effort | None, settings: dict[str, Any], words: list[str]) -> None:
    lines = list(sampling_advice(SamplingParams(**settings), asked(effort)))
    assert len(lines) == len(words)
    assert all(word in line for word, line in zip(words, lines, strict=True))


def test_it_is_told_once_though_a_turn_asks_twice() -> None:
    tokenizer = small_tokenizer()
    call = "<|channel|>analysis to=browser.search code<|message|>{}<|call|>"
    final = "<|channel|>final<|message|>x<|return|>"
    engine = ScriptedEngine(*(tokens_of(tokenizer, text) for text in (call, final)))
    sampling = SamplingParams(temperature=0, stop_token_ids=(*tokenizer.control.turn_end_ids,))

    async def collect() -> list[object]:
        stream = run_turn(engine, tokenizer, asked(Effort.HIGH), sampling=sampling)
        return [event async for event in stream]

    events = asyncio.run(collect())
    assert len(engine.requests) == 2
    told = [e for e in events if isinstance(e, Diagnostic) and "temperature" in e.text]
    assert len(told) == 1 and events[0] is told[0]

"""The watchdog: held against counting by brute force, and against what may rightly repeat."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.agent.events import Turn, TurnEnd, TurnFinish
from ossia.agent.turn import run_turn
from ossia.agent.watchdog import RepetitionLimits, Watchdog
from ossia.engine.request import SamplingParams
from ossia.errors import UsageError
from ossia.harmony.messages import Conversation, Message, Role
from scripted import ScriptedEngine, small_tokenizer, tokens_of

TOKENIZER = small_tokenizer()
A, B, C = (TOKENIZER.encode(text)[0] for text in ("alpha", "beta", "gamma"))


def first_hit(ids: list[int], limits: RepetitionLimits) -> int | None:
    watchdog = Watchdog(TOKENIZER, limits)
    return next((at for at, token in enumerate(ids) if watchdog.feed(token)), None)


def hit_by_brute_force(ids: list[int], limits: RepetitionLimits) -> int | None:
    """All bounds of words equal: the first token where some period has come round often enough."""
    for end in range(1, len(ids) + 1):
        for period in range(1, limits.max_period + 1):
            run = 0
            while end - run - 1 - period >= 0 and ids[end - run - 1] == ids[end - run - 1 - period]:
                run += 1
            if run >= limits.min_tokens and run >= limits.min_repeats * period:
                return end - 1
    return None


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([A, B, C]), max_size=5), max_size=4),
    st.lists(st.integers(1, 12), min_size=4, max_size=4),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(1, 9),
)
def test_equals_brute_force(
    pieces: list[list[int]], times: list[int], period: int, repeats: int, tokens: int
) -> None:
    limits = RepetitionLimits(period, repeats, tokens, tokens)
    ids = [i for piece, n in zip(pieces, times, strict=False) for _ in range(n) for i in piece]
    assert first_hit(ids, limits) == hit_by_brute_force(ids, limits)


@pytest.mark.parametrize("period", [1, 7, 60, 150, 256])
def test_a_circle_is_recognised(period: int) -> None:
    rng = random.Random(period)
    ordinary = sorted(TOKENIZER.ordinary_ids)
    before = rng.choices(ordinary, k=500)
    circle = rng.choices(ordinary, k=period - 1) + TOKENIZER.encode(" wait")[-1:]
    hit = first_hit([*before, *circle * 2000], RepetitionLimits())
    assert hit is not None
    repeated = hit - len(before) - period + 1
    assert max(600, 8 * period) - 2 <= repeated <= max(600, 8 * period)


def rightly_repeated() -> Iterator[str]:
    """Texts that repeat much and are what was asked for."""
    yield "\n".join(f"{n} + {n} = {2 * n}" for n in range(400))
    yield "[" + ", ".join(["0"] * 400) + "]"
    yield "[" + ", ".join(["null", "true"] * 150) + "]"
    yield "\n".join("| " + " | ".join(["0"] * 8) + " |" for _ in range(40))
    yield "| name | value |\n" + "|------|-------|\n" + "\n".join(f"| x | {n} |" for n in range(99))
    yield (
        "[\n" + ",\n".join(f'  {{"id": {n}, "name": "item", "ok": true}}' for n in range(80)) + "]"
    )
    yield "\n".join(["- [ ] todo"] * 40)
    yield "\n".join("0 " * 16 for _ in range(16))
    yield "ha" * 100
    yield "=" * 500
    yield " " * 500


@pytest.mark.parametrize("text", [*rightly_repeated()], ids=[*map(str, range(11))])
def test_what_rightly_repeats_is_left_alone(text: str) -> None:
    assert first_hit(TOKENIZER.encode(text), RepetitionLimits()) is None


@pytest.mark.parametrize("text", ["0, ", "| 0 | 1 |\n", "null, "])
def test_data_that_goes_on_for_ever_is_a_circle_too(text: str) -> None:
    ids = TOKENIZER.encode(text * 3000)
    hit = first_hit(ids, RepetitionLimits())
    assert hit is not None and hit >= 4096


def take(text: str, limits: RepetitionLimits | None) -> Turn:
    engine = ScriptedEngine(tokens_of(TOKENIZER, text), chunk=7)
    asked = Conversation((Message.of_text(Role.USER, "go"),))

    async def last() -> Turn:
        stream = run_turn(engine, TOKENIZER, asked, sampling=SamplingParams(), repetition=limits)
        events = [event async for event in stream]
        assert isinstance(events[-1], TurnEnd)
        return events[-1].turn

    turn = asyncio.run(last())
    assert engine.open_streams == 0
    return turn


@pytest.mark.parametrize("channel", ["analysis", "final"])
def test_a_turn_that_repeats_itself_is_ended_and_keeps_its_text(channel: str) -> None:
    text = f"<|channel|>{channel}<|message|>Well. " + "We must think again. " * 400
    turn = take(text, RepetitionLimits())
    assert turn.finish is TurnFinish.REPETITION
    assert (turn.content or turn.reasoning).startswith("Well. We must think again. ")
    assert len(turn.token_ids) < len(tokens_of(TOKENIZER, text))
    assert any("repeats itself" in line.text for line in turn.diagnostics)
    assert len(turn.messages) == 1


def test_switched_off() -> None:
    text = "<|channel|>final<|message|>" + "We must think again. " * 400
    turn = take(text, None)
    assert turn.finish is TurnFinish.LENGTH
    assert len(turn.token_ids) == len(tokens_of(TOKENIZER, text))


def test_limits_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="min_repeats"):
        RepetitionLimits(min_repeats=0)

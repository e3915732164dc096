"""Log-probabilities beside the text: the tokens' bytes are those of the text that is shown."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.agent.events import (
    PreambleDelta,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    Turn,
    TurnEnd,
    TurnEvent,
)
from ossia.agent.logprobs import LogprobAligner, SampledToken
from ossia.agent.turn import run_turn
from ossia.harmony.messages import (
    Conversation,
    DeveloperContent,
    Message,
    Role,
    Tool,
    ToolNamespace,
)
from scripted import (
    ANALYSIS,
    FINAL,
    ScriptedEngine,
    logprob_of,
    oddly_tokenized,
    small_tokenizer,
    tokens_of,
    turn_sampling,
)

TOKENIZER = small_tokenizer()
CONTROL = TOKENIZER.control
SAMPLING = replace(turn_sampling(TOKENIZER), logprobs=True, top_logprobs=1)
START = "<|start|>assistant"
FUNCTIONS = ToolNamespace("functions", tools=(Tool("f"),))
ASKED = Conversation(
    (
        Message(Role.DEVELOPER, (DeveloperContent(None, (FUNCTIONS,)),)),
        Message.of_text(Role.USER, "go"),
    )
)


def take(
    ids: Sequence[int], *, stop: Sequence[str] = (), chunk: int = 1, asked: bool = True
) -> tuple[Turn, list[TurnEvent]]:
    engine = ScriptedEngine(ids, chunk=chunk)
    sampling = SAMPLING if asked else replace(SAMPLING, logprobs=False, top_logprobs=0)

    async def collect() -> list[TurnEvent]:
        stream = run_turn(engine, TOKENIZER, ASKED, sampling=sampling, stop=stop)
        return [event async for event in stream]

    events = asyncio.run(collect())
    assert isinstance(events[-1], TurnEnd)
    return events[-1].turn, events


def check(turn: Turn, events: Sequence[TurnEvent]) -> None:
    """The law, for each kind of text, in the stream and in the turn."""
    assert turn.logprobs is not None
    for kind, text, logprobs in (
        (ReasoningDelta, turn.reasoning, turn.logprobs.reasoning),
        (PreambleDelta, turn.preamble, turn.logprobs.preamble),
        (TextDelta, turn.content or "", turn.logprobs.content),
    ):
        streamed = tuple(e for event in events if isinstance(event, kind) for e in event.logprobs)
        assert streamed == logprobs
        assert _bytes(logprobs).decode(errors="replace") == text
        for entry in logprobs:
            assert entry.text == entry.bytes.decode(errors="replace") and entry.bytes
            if entry.token_id is None:
                assert entry.logprob is None and entry.top == ()
                continue
            assert not TOKENIZER.is_control(entry.token_id)
            assert entry.bytes in TOKENIZER.token_bytes(entry.token_id)
            assert entry.logprob == logprob_of(entry.token_id)
            assert [a.token_id for a in entry.top] == [entry.token_id]
            assert entry.top[0].bytes == TOKENIZER.token_bytes(entry.token_id)


def _bytes(logprobs: Sequence[TokenLogprob]) -> bytes:
    return b"".join(entry.bytes for entry in logprobs)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_text_and_reasoning_without_headers(chunk: int) -> None:
    text = f"{ANALYSIS}They greet.<|end|>{FINAL}Hello to you!<|return|>"
    turn, events = take(tokens_of(TOKENIZER, text), chunk=chunk)
    check(turn, events)
    assert turn.logprobs is not None
    assert [e.token_id for e in turn.logprobs.content] == TOKENIZER.encode("Hello to you!")
    assert [e.token_id for e in turn.logprobs.reasoning] == TOKENIZER.encode("They greet.")


def test_not_asked_for_not_given() -> None:
    ids = tokens_of(TOKENIZER, f"{ANALYSIS}a<|end|>{FINAL}b<|return|>")
    turn, events = take(ids, asked=False)
    assert turn.logprobs is None
    assert not any(event.logprobs for event in events if isinstance(event, TextDelta))


def test_a_character_in_several_tokens() -> None:
    ids = [
        next(i for i in TOKENIZER.ordinary_ids if TOKENIZER.token_bytes(i) == bytes([byte]))
        for byte in "日本".encode()
    ]
    turn, events = take([*tokens_of(TOKENIZER, FINAL[len(START) :]), *ids, CONTROL.return_])
    check(turn, events)
    assert turn.content == "日本" and turn.logprobs is not None
    assert [e.token_id for e in turn.logprobs.content] == ids
    deltas = [event for event in events if isinstance(event, TextDelta)]
    assert [(d.text, len(d.logprobs)) for d in deltas] == [("日", 3), ("本", 3)]


def test_a_stop_string_cuts_inside_a_token() -> None:
    (token,) = TOKENIZER.encode(" self")  # one token of this vocabulary
    ids = tokens_of(TOKENIZER, f"{FINAL[len(START) :]}x self<|return|>")
    turn, events = take(ids, stop=["lf"])
    check(turn, events)
    assert turn.content == "x se" and turn.logprobs is not None
    assert turn.logprobs.content[-1].text == " se"
    assert turn.logprobs.content[-1].token_id == token


def test_messages_of_one_kind_are_parted_by_no_token() -> None:
    text = f"{ANALYSIS}One.<|end|>{START}{ANALYSIS}Two.<|end|>{FINAL}Done.<|return|>"
    turn, events = take(tokens_of(TOKENIZER, text))
    check(turn, events)
    assert turn.logprobs is not None and turn.reasoning == "One.\n\nTwo."
    assert [e.text for e in turn.logprobs.reasoning if e.token_id is None] == ["\n\n"]


@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>finalThe answer.<|return|>",  # no <|message|>
        "Just words.<|return|>",
        f"{ANALYSIS}a<|start|>b<|end|>{FINAL}c<|channel|>d<|return|>",  # controls inside
        f"{ANALYSIS}a<|end|>loose<|end|>{FINAL}c<|return|>",
        f"<|channel|>commentary<|message|>Now.<|end|>{START}<|channel|>commentary to=functions.f"
        " <|constrain|>json<|message|>{}<|call|>",
    ],
)
def test_malformed_turns(text: str) -> None:
    check(*take(tokens_of(TOKENIZER, text)))


pieces = st.sampled_from([
    ANALYSIS, FINAL, "<|end|>", "<|return|>", "<|message|>", "<|channel|>", START, "final",
    "analysis", "STOP", "ST", "日本語", "é", "text and", "\n\n", " to=functions.f", "{}",
    "<|call|>",
])  # fmt: skip
stops = st.lists(st.sampled_from(["STOP", "語", "\n\nt", "d", "xt a", "zz"]), max_size=2)


@settings(deadline=None)
@given(st.lists(pieces, max_size=12), st.integers(0, 99), stops, st.sampled_from([1, 2, 99]))
def test_the_law_holds_for_any_turn(
    parts: list[str], seed: int, stop: list[str], chunk: int
) -> None:
    ids = oddly_tokenized(TOKENIZER, "".join(parts), seed)
    check(*take(ids, stop=stop, chunk=chunk))


@settings(deadline=None)
@given(st.binary(max_size=12), st.integers(0, 99), st.lists(st.integers(0, 12), max_size=4))
def test_any_bytes_shown_in_any_pieces(raw: bytes, seed: int, cuts: list[int]) -> None:
    """Also bytes that are no UTF-8, each U+FFFD standing for as many as it was decoded from."""
    rng = random.Random(seed)
    by_byte = {TOKENIZER.token_bytes(i): i for i in TOKENIZER.ordinary_ids}
    ids = [by_byte[bytes([byte])] for byte in raw]
    text = raw.decode(errors="replace")
    aligner = LogprobAligner(TOKENIZER)
    aligner.put([SampledToken(i, -1.0) for i in ids], text)
    bounds = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    end = rng.choice(bounds)
    shown: list[TokenLogprob] = []
    for begin, until in itertools.pairwise(bounds):
        if until <= end:
            shown += aligner.show(text[begin:until])
    shown += aligner.cut()
    assert _bytes(shown).decode(errors="replace") == text[:end]
    assert raw.startswith(_bytes(shown))


def test_logprobs_are_those_of_the_engine() -> None:
    ids = tokens_of(TOKENIZER, f"{FINAL[len(START) :]}one two three<|return|>")
    turn, _ = take(ids)
    assert turn.logprobs is not None
    told = [e.logprob for e in turn.logprobs.content if e.logprob is not None]
    assert math.isclose(sum(told), sum(map(logprob_of, TOKENIZER.encode("one two three"))))

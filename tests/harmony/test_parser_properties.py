"""What must hold of the parser whatever the tokens: it is total, loses nothing, leaks no reasoning,
does not mind how its input is cut, and reads back what it made of it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence

import pytest

from completions import (
    VOCABULARIES,
    chunked,
    joined,
    not_utf8,
    parse,
    tokens_of,
    vocabulary,
)
from ossia.harmony.events import (
    ContentDelta,
    HarmonyEvent,
    MessageEnd,
    MessageKind,
    MessageStart,
    Repair,
)
from ossia.harmony.messages import Message, Role
from ossia.harmony.render import render_message
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.turn import assemble
from support import CONTROLS

TOOLS = ["get_weather", "bash", "f", "browser.search", "python"]
TOOL_RECIPIENTS = {"functions.get_weather", "functions.bash", "functions.f", "browser.search"}

WORDS = [
    *("assistant", "user", "system", "tool", "functions.f", "functions.get_weather", "bash", "f"),
    *("analysis", "commentary", "final", "final_answer", "comment", "??", "––commentary"),
    *(" to=", " to=functions.f", " to=bash", " to=python", " to=browser.search", " to=assistant"),
    *(" to=functions.unknown", "to=", "functions..f", " json", " code", "json", " ", "\n", "  "),
    *('{"a":1}', '{"name":"f","parameters":{"a":1}}', '{"a":[', "]", "}", "{}", "[[[[", '"'),
    *("Hello", " world", "The answer is 4.", "é", "日本", "👍🏽", "\u00a0", "\u200b", "\ufffd"),
    *("<|channel|>", "<|start|>assistant", "<|message|>", "<|", "|>", ".", "..", ":bob", ","),
]


def assert_sound(tokenizer: Tokenizer, ids: Sequence[int], events: list[HarmonyEvent]) -> None:
    """Every token in one place; messages whole; no tool but those offered."""
    at = 0
    kind: MessageKind | None = None
    text = ""
    for event in events:
        if not isinstance(event, Repair) or event.dropped:
            assert event.span[0] == at, (event, at)
            assert event.span[1] >= at
            at = event.span[1]
        assert 0 <= event.span[0] <= event.span[1] <= len(ids)
        match event:
            case MessageStart():
                assert kind is None
                kind, text = event.kind, ""
            case ContentDelta():
                assert event.kind is kind
                text += event.text
            case MessageEnd():
                assert event.kind is kind
                kind = None
                if event.kind is MessageKind.TOOL_CALL:
                    assert event.message.recipient in {*TOOL_RECIPIENTS, "python"}
                else:
                    assert event.message.text == text
            case Repair():
                assert event.text
    assert at == len(ids)
    assert kind is None


def random_ids(tokenizer: Tokenizer, rng: random.Random, length: int) -> list[int]:
    """35 % control tokens; the rest header words, JSON and pieces of characters."""
    main = [tokenizer.encode_control(c) for c in CONTROLS[:7]]
    other = [tokenizer.control.endoftext, -1, tokenizer.vocab_size, 2**70]
    ids: list[int] = []
    while len(ids) < length:
        draw = rng.random()
        if draw < 0.34:
            ids.append(rng.choice(main))
        elif draw < 0.35:
            ids.append(rng.choice(other))
        elif draw < 0.37:
            ids.append(not_utf8(tokenizer))
        else:
            word = tokenizer.encode(rng.choice(WORDS))
            cut = rng.randrange(len(word)) if rng.random() < 0.1 else len(word)
            ids += word[:cut] or word[:1]
            ids += [rng.choice(main)] * (rng.random() < 0.4)
    return ids[:length]


def random_sequences(tokenizer: Tokenizer, seed: str, count: int) -> Iterator[list[int]]:
    rng = random.Random(seed)
    for n in range(count):
        length = rng.randint(1, 40) if n % 8 else rng.randint(40, 4000)
        yield random_ids(tokenizer, rng, length)


@pytest.mark.parametrize("vocabulary_name", VOCABULARIES)
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("role", [Role.ASSISTANT, None])
def test_random_tokens(vocabulary_name: str, parallel: bool, role: Role | None) -> None:
    """No exception, no token lost, the same events under any chunking."""
    tokenizer = vocabulary(vocabulary_name)
    rng = random.Random(vocabulary_name)
    for ids in random_sequences(tokenizer, f"{vocabulary_name} {parallel} {role}", 300):
        options = {"tools": TOOLS, "parallel": parallel, "role": role}
        events = parse(tokenizer, [ids], **options)
        assert_sound(tokenizer, ids, events)
        in_pieces = parse(tokenizer, chunked(ids, rng), **options)
        assert_sound(tokenizer, ids, in_pieces)
        assert joined(in_pieces) == joined(events)
        if len(ids) < 200:
            one_by_one = parse(tokenizer, [[i] for i in ids], **options)
            assert joined(one_by_one) == joined(events)


def rendered(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    return [token for message in messages for token in render_message(tokenizer, message).token_ids]


def messages_of(events: Sequence[HarmonyEvent]) -> list[Message]:
    return [event.message for event in events if isinstance(event, MessageEnd)]


@pytest.mark.parametrize("vocabulary_name", VOCABULARIES)
def test_parsing_what_was_rendered_from_a_parse_changes_nothing(vocabulary_name: str) -> None:
    tokenizer = vocabulary(vocabulary_name)
    for ids in random_sequences(tokenizer, f"idempotence {vocabulary_name}", 600):
        options = {"tools": TOOLS, "parallel": True}
        events = parse(tokenizer, [ids], **options)
        once = messages_of(events)
        again = parse(tokenizer, [rendered(tokenizer, once)], **options, role=None)
        assert messages_of(again) == once
        first, second = assemble(events, cut=False), assemble(again, cut=False)
        assert (first.reasoning, first.preamble, first.content) == (
            (second.reasoning, second.preamble, second.content)
        )
        assert [c.arguments for c in first.tool_calls] == [c.arguments for c in second.tool_calls]


THOUGHT = "Zeta thought"  # words that stand nowhere else
VALID_TURNS = {
    "answer": f"<|channel|>analysis<|message|>{THOUGHT}<|end|>"
    "<|start|>assistant<|channel|>final<|message|>It is 4.<|return|>",
    "call": f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>commentary"
    ' to=functions.f <|constrain|>json<|message|>{"a":1}<|call|>',
    "preamble and call": f"<|channel|>analysis<|message|>{THOUGHT}<|end|>"
    "<|start|>assistant<|channel|>commentary<|message|>Let me look.<|end|>"
    '<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"a":1}<|call|>',
    "call in analysis": f"<|channel|>analysis<|message|>{THOUGHT}<|end|>"
    '<|start|>assistant<|channel|>analysis to=browser.search code<|message|>{"q":"x"}<|call|>',
    "two thoughts": f"<|channel|>analysis<|message|>{THOUGHT}<|end|>"
    f"<|start|>assistant<|channel|>analysis<|message|>{THOUGHT}<|end|>"
    "<|start|>assistant<|channel|>final<|message|>It is 4.<|return|>",
    "two calls": f"<|channel|>analysis<|message|>{THOUGHT}<|end|>"
    '<|start|>assistant<|channel|>commentary to=functions.f json<|message|>{"a":1}<|call|>'
    '<|start|>assistant<|channel|>commentary to=functions.bash json<|message|>{"c":2}<|call|>',
    "only a thought": f"<|channel|>analysis<|message|>{THOUGHT}<|end|>",
    "thought about final": "<|channel|>analysis<|message|>final Zeta to=functions.f<|end|>"
    "<|start|>assistant<|channel|>final<|message|>It is 4.<|return|>",
}
REPLACEMENTS = (*CONTROLS[:8], "<|reserved_0|>")

# The mutants that may show reasoning: `<|channel|>` before the word `analysis` is gone, and what
# took its place made the word content. Nothing is left that tells the thought from an answer.
LEAKS = {(turn, "replaced by <|message|>", "<|channel|>") for turn in VALID_TURNS}


def mutants(tokenizer: Tokenizer, ids: list[int]) -> Iterator[tuple[str, int, list[int]]]:
    """Each control token of the turn dropped, doubled, or replaced by each other one."""
    for at, token in enumerate(ids):
        if not tokenizer.is_control(token):
            continue
        yield "dropped", at, ids[:at] + ids[at + 1 :]
        yield "doubled", at, [*ids[:at], token, *ids[at:]]
        for other in REPLACEMENTS:
            replacement = (
                tokenizer.encode_control(other)
                if other != "<|reserved_0|>"
                else tokenizer.vocab_size
            )
            if replacement != token:
                yield f"replaced by {other}", at, [*ids[:at], replacement, *ids[at + 1 :]]


@pytest.mark.parametrize("vocabulary_name", VOCABULARIES)
@pytest.mark.parametrize("turn_name", VALID_TURNS)
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("role", [Role.ASSISTANT, None])
def test_mutants(turn_name: str, vocabulary_name: str, parallel: bool, role: Role | None) -> None:
    tokenizer = vocabulary(vocabulary_name)
    start = "" if role else "<|start|>assistant"
    ids = tokens_of(tokenizer, start + VALID_TURNS[turn_name])
    analysis = tokenizer.encode("analysis")
    leaked = set[tuple[str, str, str]]()
    for mutation, at, mutant in mutants(tokenizer, ids):
        events = parse(tokenizer, [mutant], tools=TOOLS, parallel=parallel, role=role)
        assert_sound(tokenizer, mutant, events)
        parsed = assemble(events, cut=False)
        assert {call.name for call in parsed.tool_calls} <= {"f", "bash", "browser.search"}
        if "Zeta" in (parsed.content or "") + parsed.preamble:
            marker = tokenizer.decode(ids[at : at + 1])
            assert ids[at + 1 : at + 1 + len(analysis)] == analysis, (mutation, at, parsed)
            leaked.add((turn_name, mutation, marker))
    assert leaked == {leak for leak in LEAKS if leak[0] == turn_name}


def test_time_grows_with_the_tokens_not_with_their_square() -> None:
    """Sequences made to be looked at again and again."""
    tokenizer = vocabulary("scrambled")
    channel, start = tokenizer.control.channel, tokenizer.control.start
    final = [channel, *tokenizer.encode("final")]
    opened = [*final, tokenizer.control.message]
    spaces, dots = tokenizer.encode(" " * 9 + "x"), tokenizer.encode("..")
    patterns = [[channel], [start], final, [start, *tokenizer.encode("assistant")], spaces, dots]
    for pattern in patterns:
        for prefix in ([], opened, opened[:-1]):
            small, large = (
                _seconds(tokenizer, prefix + pattern * repeats) for repeats in (2_000, 16_000)
            )
            assert large < max(24 * small, 0.5), (pattern, prefix)


def _seconds(tokenizer: Tokenizer, ids: list[int]) -> float:
    """Of this process's own computing, which a busy machine does not change; the best of two."""

    def once() -> float:
        begin = time.process_time()
        parse(tokenizer, [ids], tools=TOOLS)
        return time.process_time() - begin

    return min(once(), once())

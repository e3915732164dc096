"""Every known malformed turn, on o200k and on a scrambled vocabulary, in several chunkings.

cases.jsonl holds the turns; what must come of each is written down here, from its `must_produce`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from completions import VOCABULARIES, chunked, joined, parse, tokens_of, vocabulary
from ossia.harmony.parser import HarmonyParser
from ossia.harmony.turn import ParsedTurn, assemble, parse_turn

CASES = {
    case["id"]: case
    for line in (Path(__file__).parent / "cases.jsonl").read_text().splitlines()
    for case in [json.loads(line)]
}

PARIS = '{"city":"Paris"}'
OFFERED = [
    *("get_weather", "grep", "f", "manage_cart", "bash", "HassTurnOn", "Write", "apply_patch"),
    *("X", "rm", "browser.search", "python"),
]

# R reasoning, P preamble, C content, T calls, F finish; what is absent must be empty.
Expected = dict[str, object]
WEATHER: Expected = {"T": [("get_weather", PARIS)], "F": "tool_calls"}
THINK_ANSWER: Expected = {"R": "think", "C": "Answer", "F": "stop"}
BASH: Expected = {"T": [("bash", '{"cmd":"ls"}')], "F": "tool_calls"}
F_EMPTY: Expected = {"T": [("f", "{}")], "F": "tool_calls"}
EXPECTED: dict[str, Expected] = {
    "V1": WEATHER,
    "V2": WEATHER,
    "V3": WEATHER,
    "V4": {"T": [("grep", '{"pattern":"foo"}')], "F": "tool_calls"},
    "V5": WEATHER | {"R": "Need weather.", "P": "Let me look that up."},
    "M01": WEATHER,
    "M02": WEATHER,
    "M03": WEATHER,
    "M04": {"T": [("f", '{"a":1}')], "C": "Done.", "F": "tool_calls"},
    "M05": {"C": "Answer", "F": "stop"},
    "M07": THINK_ANSWER,
    "M08": THINK_ANSWER,
    "M10": THINK_ANSWER,
    "M12": THINK_ANSWER,
    "M13": BASH | {"R": "think"},
    "M14": {"R": "think", "T": [("manage_cart", '{"id":1}')], "F": "tool_calls"},
    "M16": BASH | {"R": "think"},
    "M18": BASH,
    "M19": BASH,
    "M21": BASH,
    "M23": {"C": '{"result":true}', "F": "stop"},
    "M24": {"C": '{"answer":42}', "F": "stop"},
    "M25": {"C": '{"answer": 42}', "F": "stop"},
    "M27": {"C": "Answer", "F": "stop"},
    "M28": {"C": "Answer", "F": "stop"},
    "M29": {"C": "I'm sorry, but I can't help with that.", "F": "stop"},
    "M30": {
        "R": "This is disallowed. We must refuse.\n\nrefuse",
        "C": "I'm sorry.",
        "F": "stop",
    },
    "M32": {
        "R": '2? The request "turn on the light" ambiguous.',
        "T": [("HassTurnOn", '{"name":"Light"}')],
        "F": "tool_calls",
    },
    "M34": {"R": "??", "C": "ok", "F": "stop"},
    "M36": F_EMPTY,
    "M38": WEATHER,
    "M39": WEATHER,
    "M40": F_EMPTY,
    "M42": {"T": [("get_weather", "{}")], "F": "tool_calls"},
    "M43": {"F": "stop"},
    "M44": {"F": "stop"},
    "M46": F_EMPTY,
    "M47": {"T": [("Write", '{"file_path":"a","content":"b"}')], "F": "tool_calls"},
    "M48": {"T": [("apply_patch", '{"input":"*** Begin Patch"}')], "F": "tool_calls"},
    "M50": {"R": "We need to", "F": "length"},
    "M52": {"C": "ok \ufffd tail", "F": "stop"},
    "M54": {"C": '<|channel|>commentary to=functions.X<|message|>{"a":1}', "F": "stop"},
    "M55": {"T": [("f", '{"a":1}')], "F": "tool_calls"},
    "M56": {"C": "Answer", "F": "stop"},
    "M58": {"C": "AB", "F": "stop"},
    "M59": THINK_ANSWER,
    "M61": {"R": "x", "C": '{"p":"/"}', "F": "stop"},
}
BOTH_CALLS = [("f", '{"a":1}'), ("f", '{"a":2}')]
EXPECTED_PARALLEL: dict[str, Expected] = {
    "M04": EXPECTED["M04"] | {"T": BOTH_CALLS},
    "M55": EXPECTED["M55"] | {"T": BOTH_CALLS},
}
# Turns in which there is nothing to repair.
CLEAN = {"V1", "V2", "V3", "V4", "V5", "M23", "M54"}


def offered(case_id: str) -> list[str]:
    return ["get_weather", "bash"] if case_id in ("M43", "M44") else OFFERED


def summary(turn: ParsedTurn) -> Expected:
    calls = [(call.name, call.arguments) for call in turn.tool_calls]
    found = {"R": turn.reasoning, "P": turn.preamble, "T": calls, "F": turn.finish}
    content = {} if turn.content is None else {"C": turn.content}
    return {key: value for key, value in found.items() if value} | content


def test_every_case_has_an_expectation() -> None:
    assert CASES.keys() == EXPECTED.keys()


@pytest.mark.parametrize("case_id", CASES)
def test_notation_gives_the_tokens_of_o200k(case_id: str) -> None:
    case = CASES[case_id]
    expected = case["tokens_o200k_harmony"]
    found = tokens_of(vocabulary("o200k"), case["completion"])
    if "{id " in case["completion"]:  # ours is another token that is not UTF-8
        assert len(found) == len(expected)
    else:
        assert found == expected


@pytest.mark.parametrize("vocabulary_name", VOCABULARIES)
@pytest.mark.parametrize("case_id", CASES)
def test_case(case_id: str, vocabulary_name: str) -> None:
    tokenizer = vocabulary(vocabulary_name)
    ids = tokens_of(tokenizer, CASES[case_id]["completion"])
    turn = parse_turn(tokenizer, ids, tools=offered(case_id))
    assert summary(turn) == EXPECTED[case_id]
    assert (not turn.diagnostics) == (case_id in CLEAN)


@pytest.mark.parametrize("case_id", CASES)
def test_case_with_the_given_tokens(case_id: str) -> None:
    tokenizer = vocabulary("o200k")
    ids = CASES[case_id]["tokens_o200k_harmony"]
    turn = parse_turn(tokenizer, ids, tools=offered(case_id), parallel=True)
    assert summary(turn) == EXPECTED_PARALLEL.get(case_id, EXPECTED[case_id])


@pytest.mark.parametrize("vocabulary_name", VOCABULARIES)
@pytest.mark.parametrize("case_id", CASES)
def test_case_in_any_chunking(case_id: str, vocabulary_name: str) -> None:
    tokenizer = vocabulary(vocabulary_name)
    ids = tokens_of(tokenizer, CASES[case_id]["completion"])
    whole = parse(tokenizer, [ids], tools=offered(case_id))
    one_by_one = parse(tokenizer, [[token] for token in ids], tools=offered(case_id))
    assert joined(one_by_one) == joined(whole)
    rng = random.Random(case_id)
    for _ in range(5):
        assert joined(parse(tokenizer, chunked(ids, rng), tools=offered(case_id))) == joined(whole)


@pytest.mark.parametrize("vocabulary_name", VOCABULARIES)
@pytest.mark.parametrize("case_id", CASES)
def test_case_after_a_prompt_that_ends_before_start(case_id: str, vocabulary_name: str) -> None:
    """With role None the stream begins with `<|start|>assistant`; nothing else changes."""
    tokenizer = vocabulary(vocabulary_name)
    ids = tokens_of(tokenizer, "<|start|>assistant" + CASES[case_id]["completion"])
    turn = parse_turn(tokenizer, ids, tools=offered(case_id), role=None)
    assert summary(turn) == EXPECTED[case_id]


@pytest.mark.parametrize("case_id", ["M43", "M44"])
def test_tools_not_offered_are_told_apart(case_id: str) -> None:
    tokenizer = vocabulary("scrambled")
    ids = tokens_of(tokenizer, CASES[case_id]["completion"])
    turn = parse_turn(tokenizer, ids, tools=offered(case_id))
    names = {"M43": ("browser.search", '{"query":"x"}'), "M44": ("python", "print(1)")}
    assert [(c.name, c.arguments) for c in turn.unoffered] == [names[case_id]]
    assert summary(parse_turn(tokenizer, ids, tools=OFFERED))["T"] == [names[case_id]]


def test_case_cut_by_length_is_flagged_incomplete() -> None:
    tokenizer = vocabulary("scrambled")
    ids = tokens_of(tokenizer, CASES["M03"]["completion"])
    turn = parse_turn(tokenizer, ids, tools=OFFERED, cut=True)
    assert turn.finish == "length"
    assert summary(turn)["T"] == [("get_weather", PARIS)]
    parser = HarmonyParser(tokenizer, tools=OFFERED)
    events = parser.feed(ids[:-2]) + parser.finish()  # in the middle of the arguments
    turn = assemble(events, cut=parser.cut)
    assert turn.finish == "length"
    assert [call.complete for call in turn.tool_calls] == [False]

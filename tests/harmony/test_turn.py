"""What a parser's events add up to."""

from __future__ import annotations

import json

import pytest

from completions import scrambled, tokens_of
from ossia.harmony.messages import Role
from ossia.harmony.turn import parse_turn

ANSWER = "<|channel|>analysis<|message|>think<|end|><|start|>assistant<|channel|>final<|message|>ok"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a":1}'


@pytest.mark.parametrize(
    ("notation", "cut", "finish"),
    [
        (ANSWER + "<|return|>", None, "stop"),
        (ANSWER + "<|return|>", True, "stop"),  # the limit fell on the last token
        (ANSWER + "<|end|>", None, "stop"),
        (ANSWER + "<|end|>", True, "length"),  # another message may have been to come
        (ANSWER + "<|endoftext|>", None, "stop"),
        (ANSWER, None, "length"),
        (ANSWER, False, "stop"),  # the engine took the stop token away
        (ANSWER + "<|return|>stray", None, "stop"),
        (ANSWER + "<|end|>assist", None, "length"),
        (CALL + "<|call|>", None, "tool_calls"),
        (CALL + "<|call|>", True, "tool_calls"),
        (CALL, None, "tool_calls"),
        (CALL, False, "tool_calls"),
        (CALL, True, "length"),
        (CALL[:-1], None, "length"),
        (CALL + "<|call|><|start|>assistant" + ANSWER, None, "length"),
        ("", None, "length"),
        ("", False, "stop"),
    ],
)
def test_finish(notation: str, cut: bool | None, finish: str) -> None:
    turn = parse_turn(scrambled(), tokens_of(scrambled(), notation), tools=["f"], cut=cut)
    assert turn.finish == finish


def test_a_cut_call_is_not_to_be_run() -> None:
    for notation, complete in ((CALL[:-1], False), (CALL, True), (CALL[:-1] + "<|call|>", True)):
        ids = tokens_of(scrambled(), notation)
        turn = parse_turn(scrambled(), ids, tools=["f"])
        assert [call.complete for call in turn.tool_calls] == [complete]


def test_cut_source_code_is_not_to_be_run() -> None:
    ids = tokens_of(scrambled(), "<|channel|>analysis to=python code<|message|>rm(")
    for cut, complete in ((None, False), (True, False), (False, True)):
        turn = parse_turn(scrambled(), ids, tools=["python"], cut=cut)
        assert [call.complete for call in turn.tool_calls] == [complete]
        assert turn.finish == ("tool_calls" if complete else "length")


def test_messages_of_a_kind_are_joined_by_a_blank_line() -> None:
    ids = tokens_of(scrambled(), ANSWER + "<|end|><|start|>assistant" + ANSWER + "<|return|>")
    turn = parse_turn(scrambled(), ids)
    assert (turn.reasoning, turn.content) == ("think\n\nthink", "ok\n\nok")
    assert [message.text for message in turn.messages] == ["think", "ok", "think", "ok"]


def test_no_answer_and_an_empty_one_differ() -> None:
    def content(notation: str) -> str | None:
        return parse_turn(scrambled(), tokens_of(scrambled(), notation)).content

    assert content("<|channel|>analysis<|message|>think<|end|>") is None
    assert content("<|channel|>final<|message|><|return|>") == ""


def test_of_a_conversation_the_turn_is_what_was_said_last() -> None:
    notation = "<|start|>user<|message|>Hi<|end|><|start|>assistant" + ANSWER + "<|end|>"
    notation += "<|start|>user<|message|>And?<|end|><|start|>assistant" + CALL + "<|call|>"
    turn = parse_turn(scrambled(), tokens_of(scrambled(), notation), tools=["f"], role=None)
    assert turn.content is None
    assert [(call.name, call.arguments) for call in turn.tool_calls] == [("f", '{"a":1}')]
    assert [m.role for m in turn.messages] == [
        *(Role.USER, Role.ASSISTANT, Role.ASSISTANT, Role.USER, Role.ASSISTANT)
    ]
    assert turn.diagnostics == ()


def test_as_json() -> None:
    ids = tokens_of(scrambled(), "<|end|>" + CALL + "<|call|>")
    document = parse_turn(scrambled(), ids, tools=["f"]).to_dict()
    assert json.loads(json.dumps(document)) == {
        "messages": [
            {
                "role": "assistant",
                "name": None,
                "channel": "commentary",
                "recipient": "functions.f",
                "content_type": "<|constrain|>json",
                "content": '{"a":1}',
            }
        ],
        "diagnostics": [
            {"rule": "R6", "span": [0, 1], "text": "A header without a message: "},
            {
                "rule": "R2",
                "span": [1, 1],
                "text": "The message begins without <|start|>assistant.",
            },
        ],
        "turn": {
            "reasoning": "",
            "preamble": "",
            "content": None,
            "tool_calls": [{"name": "f", "arguments": '{"a":1}'}],
            "finish": "tool_calls",
        },
    }

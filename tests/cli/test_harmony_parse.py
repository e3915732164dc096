"""`ossia harmony parse`: JSON lines of tokens in, messages out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from completions import scrambled, tokens_of
from ossia.cli.harmony import app
from ossia.errors import ConversationError, UsageError
from ossia.harmony.turn import parse_turn
from support import scrambled_tokenizer_json, write_tokenizer_json

TURN = "<|channel|>analysis<|message|>naïve<|end|>Sure!<|start|>assistant"
CALL = '<|channel|>commentary to=functions.f json<|message|>{"a":1}<|call|>'
IDS = tokens_of(scrambled(), TURN + CALL)


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer_json(folder, scrambled_tokenizer_json())
    return folder


def run(vocab: Path, *arguments: str, text: str) -> Result:
    return CliRunner().invoke(app, ["parse", "--vocab", str(vocab), *arguments], input=text)


def lines(*documents: dict[str, Any]) -> str:
    return "".join(json.dumps(document) + "\n" for document in documents)


def test_each_line_is_parsed(vocab: Path) -> None:
    started = tokens_of(scrambled(), "<|start|>assistant") + IDS
    text = lines(
        {"tokens": IDS},
        {"tokens": started, "role": None, "id": 7},
        {"tokens": IDS[:-1], "role": "assistant", "finish_reason": "length"},
        {"tokens": IDS * 2, "finish_reason": "stop"},
    )
    result = run(vocab, "--tools", "f, g", "--jsonl", text=text)
    assert result.exception is None
    printed = [json.loads(line) for line in result.stdout.splitlines()]
    tools, tokenizer = ["f", "g"], scrambled()
    assert printed == [
        parse_turn(tokenizer, IDS, tools=tools).to_dict(),
        {"id": 7} | parse_turn(tokenizer, started, tools=tools, role=None).to_dict(),
        parse_turn(tokenizer, IDS[:-1], tools=tools, cut=True).to_dict(),
        parse_turn(tokenizer, IDS * 2, tools=tools).to_dict(),
    ]
    assert [len(p["turn"]["tool_calls"]) for p in printed] == [1, 1, 1, 1]
    assert [p["turn"]["finish"] for p in printed] == ["tool_calls"] * 2 + ["length", "tool_calls"]


def test_parallel_and_tools_are_taken_as_given(vocab: Path) -> None:
    text = lines({"tokens": IDS * 2})
    result = run(vocab, "--tools", "f", "--parallel", "--jsonl", text=text)
    assert len(json.loads(result.stdout)["turn"]["tool_calls"]) == 2
    for other in ("--tools=g", "--tools="):
        result = run(vocab, other, "--jsonl", text=text)
        assert json.loads(result.stdout)["turn"]["tool_calls"] == []
    result = run(vocab, "--tools", "f,,g", text=text)
    assert isinstance(result.exception, UsageError)


def test_one_document_is_shown_event_by_event(vocab: Path) -> None:
    result = run(vocab, "--tools", "f", text=json.dumps({"tokens": IDS}))
    assert result.exception is None
    assert "reasoning: assistant channel=analysis" in result.stdout
    assert '"naïve"' in result.stdout
    assert "R3, dropped: Text between messages: Sure!" in result.stdout
    assert "tool_call: assistant channel=commentary recipient=functions.f" in result.stdout


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"tokens": [1, "a"]}, 'line 2: tokens[1]: expected a token id, an integer; got "a".'),
        ({"tokens": [True]}, "line 2: tokens[0]: expected a token id, an integer; got true."),
        ({"tokens": [1.5]}, "line 2: tokens[0]: expected a token id, an integer; got 1.5."),
        ({"tokens": "a"}, "line 2: tokens: expected a list of token ids."),
        ({"ids": []}, 'line 2: expected an object such as {"tokens": [...]}.'),
        ([1], 'line 2: expected an object such as {"tokens": [...]}.'),
        ({"tokens": [], "role": "user"}, "line 2: role: expected one of assistant, null; got"),
        ({"tokens": [], "finish_reason": 1}, "line 2: finish_reason: expected one of stop, length"),
        ({"tokens": [], "rôle": None}, "line 2: unknown key 'rôle'; known: tokens, role,"),
    ],
)
def test_what_is_malformed_is_refused_by_its_line(
    vocab: Path, document: Any, sentence: str
) -> None:
    text = lines({"tokens": [-5, 10**12]}) + json.dumps(document)
    result = run(vocab, "--jsonl", text=text)
    assert len(result.stdout.splitlines()) == 1
    assert isinstance(result.exception, ConversationError)
    assert str(result.exception).startswith(sentence)

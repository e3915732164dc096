"""`ossia harmony render`: JSON lines in, tokens and text out, as the functions give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from ossia.cli.harmony import app
from ossia.errors import ConversationError, TokenizerError
from ossia.harmony.messages import Conversation, Message, Role
from ossia.harmony.render import Drop, render_for_completion, render_for_training
from support import scrambled_tokenizer_json, small_tokenizer, write_tokenizer_json

CONVERSATION = Conversation(
    (
        Message.of_text(Role.USER, "naïve?"),
        Message.of_text(Role.ASSISTANT, "Think.", channel="analysis"),
        Message.of_text(Role.ASSISTANT, "Yes.", channel="final"),
    )
)


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tokenizer_json(folder, scrambled_tokenizer_json())
    return folder


def run(*arguments: str | Path, text: str = "") -> Result:
    return CliRunner().invoke(app, ["render", *map(str, arguments)], input=text)


def line(**options: Any) -> str:
    return json.dumps(CONVERSATION.to_dict() | options) + "\n"


def test_each_line_is_rendered_as_it_asks(vocab: Path) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"for": "completion", "drop": "none"},
        {"drop": "library"},
        {"for": "training"},
        {"for": "training", "drop": "library"},
    ]
    text = "\n".join(line(**option) for option in options)  # a blank line after each
    result = run("--vocab", vocab, "--jsonl", text=text)
    assert result.exception is None
    printed = [json.loads(printed) for printed in result.stdout.splitlines()]
    tokenizer = small_tokenizer(True)
    assert len(printed) == len(options)
    for option, rendered in zip(options, printed, strict=True):
        drop = Drop(option.get("drop", "completed"))
        if option.get("for") == "training":
            example = render_for_training(tokenizer, CONVERSATION, drop=drop)
            assert rendered.pop("weights") == list(example.loss_weights)
            ids = example.token_ids
        else:
            ids = render_for_completion(tokenizer, CONVERSATION, drop=drop).token_ids
        assert rendered == {"tokens": list(ids), "text": tokenizer.decode(ids)}
    assert "Think." in printed[1]["text"] and "Think." not in printed[0]["text"]


def test_one_document_prints_for_people(vocab: Path, tmp_path: Path) -> None:
    file = tmp_path / "conversation.json"
    file.write_text(json.dumps(CONVERSATION.to_dict(), indent=2))
    result = run(file, "--vocab", vocab)
    ids = render_for_completion(small_tokenizer(True), CONVERSATION).token_ids
    assert result.stdout == f"{small_tokenizer(True).decode(ids)}\ntokens: {json.dumps(ids)}\n"


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ("{", "line 2: This is not JSON"),
        ("[]", "line 2: The conversation: expected an object, got []."),
        (line(drop="some"), "line 2: drop: expected one of completed, library, none"),
        (line(**{"for": None}), "line 2: for: expected one of completion, training; got null."),
        (line(id=5), "line 2: id is not a field of openai-harmony's form."),
        (
            '{"messages": [{"role": "tool", "content": "x"}]}',
            "line 2: messages[0]: a tool's message needs the tool's name",
        ),
    ],
)
def test_the_first_bad_line_ends_it_and_is_named(vocab: Path, bad: str, sentence: str) -> None:
    result = run("--vocab", vocab, "--jsonl", text=f"{line()}{bad}\n{line()}")
    assert isinstance(result.exception, ConversationError)
    assert str(result.exception).startswith(sentence)
    assert len(result.stdout.splitlines()) == 1


def test_a_missing_vocabulary_is_one_sentence(tmp_path: Path) -> None:
    result = run("--vocab", tmp_path / "nowhere", text=line())
    assert isinstance(result.exception, TokenizerError)
    assert "There is no vocabulary at" in str(result.exception)

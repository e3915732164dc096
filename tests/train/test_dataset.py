"""A user's data: both forms become the conversation that was meant, and whatever is malformed is
told with its file, its line and the mend."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ossia.errors import TrainingError
from ossia.harmony.messages import (
    Conversation,
    DeveloperContent,
    Effort,
    Message,
    Role,
    SystemContent,
    TextContent,
    Tool,
    ToolNamespace,
)
from ossia.train.dataset import Unfit, load_examples, read_conversations
from support import small_tokenizer

USER = {"role": "user", "content": "What is the weather in Köln?"}
ANSWER = {"role": "assistant", "content": "12 °C."}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Now.", "parameters": PARAMETERS},
}
CLOCK = {"type": "function", "function": {"name": "clock"}}


def call(name: str, arguments: Any, call_id: str | None = None) -> dict[str, Any]:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def chat(*messages: Any, **keys: Any) -> dict[str, Any]:
    return {"messages": list(messages), **keys}


def write(folder: Path, *documents: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


def read_one(folder: Path, document: Any, **options: Any) -> Conversation:
    [conversation] = read_conversations(write(folder, document), **options)
    return conversation


# -- The chat form --------------------------------------------------------------------------------


def test_a_whole_chat_becomes_harmony(tmp_path):
    document = chat(
        {"role": "system", "content": "Be brief."},
        USER,
        {
            "role": "assistant",
            "content": "Let me look.",
            "thinking": "Ask the tool.",
            "tool_calls": [call("weather", '{"city":"Köln"}', "c1")],
        },
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "12 C"},
        {"role": "assistant", "content": "12 °C.", "reasoning_content": "It is 12."},
        tools=[WEATHER],
        reasoning_effort="high",
        date="2026-01-31",
    )
    functions = ToolNamespace("functions", tools=(Tool("weather", "Now.", PARAMETERS),))
    expected = (
        Message(
            Role.SYSTEM,
            (
                SystemContent(
                    model_identity="You are a test.",
                    reasoning_effort=Effort.HIGH,
                    conversation_start_date="2026-01-31",
                ),
            ),
        ),
        Message(Role.DEVELOPER, (DeveloperContent("Be brief.", (functions,)),)),
        Message(Role.USER, (TextContent("What is the weather in Köln?"),)),
        Message(Role.ASSISTANT, (TextContent("Ask the tool."),), channel="analysis"),
        Message(Role.ASSISTANT, (TextContent("Let me look."),), channel="commentary"),
        Message(
            Role.ASSISTANT,
            (TextContent('{"city":"Köln"}'),),
            channel="commentary",
            recipient="functions.weather",
            content_type="<|constrain|>json",
        ),
        Message(
            Role.TOOL,
            (TextContent("12 C"),),
            name="functions.weather",
            recipient="assistant",
            channel="commentary",
        ),
        Message(Role.ASSISTANT, (TextContent("It is 12."),), channel="analysis"),
        Message(Role.ASSISTANT, (TextContent("12 °C."),), channel="final"),
    )
    assert read_one(tmp_path, document, identity="You are a test.").messages == expected


def test_what_the_model_learns_is_what_it_writes(tmp_path):
    """Token by token: the text under the loss, spelled out by hand from Harmony's rules."""
    document = chat(
        USER,
        {"role": "assistant", "thinking": "Ask.", "tool_calls": [call("weather", {"city": "Ü"})]},
        {"role": "tool", "content": "12 C"},
        {"role": "assistant", "thinking": "So 12.", "content": "12."},
        tools=[WEATHER],
    )
    for scrambled in (False, True):
        tokenizer = small_tokenizer(scrambled)
        [example] = load_examples(write(tmp_path, document), tokenizer, max_tokens=10_000)
        learnt = [
            token if weight else tokenizer.control.endoftext
            for token, weight in zip(example.token_ids, example.loss_weights, strict=True)
        ]
        runs = re.split(r"(?:<\|endoftext\|>)+", tokenizer.decode(learnt))
        assert runs == [
            "",
            "<|channel|>analysis<|message|>Ask.<|end|>"
            "<|start|>assistant to=functions.weather<|channel|>commentary <|constrain|>json"
            '<|message|>{"city": "Ü"}<|call|>',
            "<|channel|>analysis<|message|>So 12.<|end|>"
            "<|start|>assistant<|channel|>final<|message|>12.<|return|>",
        ]
        text = tokenizer.decode(example.token_ids)
        assert (
            "<|start|>functions.weather to=assistant<|channel|>commentary<|message|>12 C<|end|>"
            in text
        )


def test_several_calls_of_one_message_are_made_one_after_another(tmp_path):
    document = chat(
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [call("weather", "{}", "a"), call("clock", "{}", "b")],
        },
        {"role": "tool", "tool_call_id": "b", "content": "noon"},
        {"role": "tool", "tool_call_id": "a", "content": "12 C"},
        ANSWER,
        tools=[WEATHER, CLOCK],
    )
    messages = read_one(tmp_path, document).messages
    assert [(m.recipient or m.channel, m.name, m.text) for m in messages[3:]] == [
        ("functions.weather", None, "{}"),
        ("assistant", "functions.weather", "12 C"),
        ("functions.clock", None, "{}"),
        ("assistant", "functions.clock", "noon"),
        ("final", None, "12 °C."),
    ]


def test_a_row_of_multilingual_thinking(tmp_path):
    """Its columns beside `messages` repeat them; columns without a value are null."""
    document = {
        "reasoning_language": "French",
        "developer": "You are terse.",
        "user": "Hello",
        "analysis": "Il salue.",
        "final": "Hi.",
        "messages": [
            {
                "content": "reasoning language: French\n\nYou are terse.",
                "role": "system",
                "thinking": None,
            },
            {"content": "Hello", "role": "user", "thinking": None},
            {"content": "Hi.", "role": "assistant", "thinking": "Il salue."},
        ],
    }
    messages = read_one(tmp_path, document).messages
    developer = DeveloperContent("reasoning language: French\n\nYou are terse.")
    assert messages[1].content == (developer,)
    assert [(m.channel, m.text) for m in messages[2:]] == [
        (None, "Hello"),
        ("analysis", "Il salue."),
        ("final", "Hi."),
    ]


def test_content_in_parts_and_no_instructions(tmp_path):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = read_one(tmp_path, chat({"role": "user", "content": parts}, ANSWER)).messages
    assert [message.role for message in messages] == [Role.SYSTEM, Role.USER, Role.ASSISTANT]
    assert messages[1].text == "ab"
    assert messages[0].content == (SystemContent(),)  # medium effort, no date


def test_an_unanswered_call_may_end_a_conversation(tmp_path):
    asked = {"role": "assistant", "tool_calls": [call("clock", "{}")]}
    messages = read_one(tmp_path, chat(USER, asked, tools=[CLOCK])).messages
    assert messages[-1].recipient == "functions.clock"


# -- Harmony's own form ---------------------------------------------------------------------------


def test_harmonys_form_is_recognised_and_kept(tmp_path):
    conversations = [
        Conversation((Message(Role.SYSTEM, (SystemContent(),)), Message.of_text(Role.USER, "a"))),
        Conversation(
            (
                Message.of_text(Role.USER, "b"),
                Message.of_text(Role.ASSISTANT, "c", channel="final"),
            )
        ),
    ]
    path = write(tmp_path, *(conversation.to_dict() for conversation in conversations))
    assert list(read_conversations(path, identity="not used")) == conversations


def test_blank_lines_a_byte_order_mark_and_crlf_are_no_matter(tmp_path):
    path = tmp_path / "data.jsonl"
    line = json.dumps(chat(USER, ANSWER)).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n \t\n" + line)
    assert len(list(read_conversations(path))) == 2


# -- What is refused ------------------------------------------------------------------------------

ASKED = {"role": "assistant", "tool_calls": [call("clock", "{}", "a")]}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "noon"}
HARMONY = {"role": "assistant", "channel": "final", "content": "x"}

MALFORMED: dict[str, tuple[Any, str]] = {
    "no object": ([1], "got a list"),
    "no messages": ({"prompt": "x"}, "there are no messages"),
    "empty messages": (chat(), "there are no messages"),
    "messages of a wrong type": ({"messages": "hi"}, "messages: expected a list"),
    "a message that is none": (chat("hi"), "messages[0]: expected an object"),
    "unknown role": (chat({"role": "bot", "content": "x"}), "messages[0].role: expected one of"),
    "a role that is no string": (chat({"role": [], "content": "x"}), "messages[0].role"),
    "no role": (chat({"content": "x"}), "messages[0].role"),
    "content of a wrong type": (chat({"role": "user", "content": 3}), "messages[0].content"),
    "no content": (chat({"role": "user"}), "messages[0].content: expected a string"),
    "a part that is no text": (
        chat({"role": "user", "content": [{"type": "image_url"}]}),
        "messages[0].content[0]",
    ),
    "a part with an unknown key": (
        chat({"role": "user", "content": [{"type": "text", "text": "", "cache": 1}]}),
        "messages[0].content[0].cache is not a key",
    ),
    "a part without text": (
        chat({"role": "user", "content": [{"type": "text"}]}),
        "messages[0].content[0].text",
    ),
    "unknown top key": (chat(USER, ANSWER, extra=1), "extra is not a key"),
    "a key that would drive a terminal": (
        chat(USER, ANSWER, **{"\x1b[2J": 1}),
        "\\u001b[2J is not",
    ),
    "unknown key": (chat(USER, ANSWER | {"score": 1}), "messages[1].score is not a key"),
    "a key of another role": (chat(USER | {"thinking": "x"}), "messages[0].thinking: a user"),
    "a late system message": (
        chat(USER, {"role": "system", "content": "x"}),
        "messages[1]: a system message has to be the first",
    ),
    "an empty answer": (chat(USER, {"role": "assistant", "content": ""}), "neither content nor"),
    "reasoning alone": (chat(USER, {"role": "assistant", "thinking": "x"}), "neither content nor"),
    "reasoning twice": (
        chat(USER, ANSWER | {"thinking": "x", "reasoning": "y"}),
        "thinking and reasoning both",
    ),
    "rendered text": (
        chat(USER, {"role": "assistant", "content": "<|channel|>final<|message|>x"}),
        "messages[1].content spells the control token <|channel|>",
    ),
    "weight 0": (chat(USER, ANSWER | {"weight": 0}), "messages[1].weight: expected 1"),
    "a result without a call": (chat(USER, RESULT), "messages[1]: this tool result"),
    "a result with another id": (
        chat(USER, ASKED, RESULT | {"tool_call_id": "z"}, tools=[CLOCK]),
        "has no call before it",
    ),
    "a result with another name": (
        chat(USER, ASKED, RESULT | {"name": "weather"}, tools=[CLOCK]),
        "messages[2].name: expected the name of the called function",
    ),
    "two results of one call": (
        chat(USER, ASKED, RESULT, RESULT, tools=[CLOCK]),
        "messages[3]: this tool result",
    ),
    "a result of either call": (
        chat(
            USER,
            {"role": "assistant", "tool_calls": [call("clock", "{}"), call("clock", "{}")]},
            {"role": "tool", "content": "noon"},
            tools=[CLOCK],
        ),
        "may belong to several calls",
    ),
    "a call without a result": (chat(USER, ASKED, USER, tools=[CLOCK]), "has no result"),
    "two calls at the end": (
        chat(
            USER,
            {"role": "assistant", "tool_calls": [call("clock", "{}"), call("clock", "{}")]},
            tools=[CLOCK],
        ),
        "messages[1].tool_calls: the call of 'clock' has no result",
    ),
    "two calls of one id": (
        chat(
            USER,
            {
                "role": "assistant",
                "tool_calls": [call("clock", "{}", "a"), call("clock", "{}", "a")],
            },
            tools=[CLOCK],
        ),
        "share an id",
    ),
    "a call of what is not offered": (chat(USER, ASKED), "'clock' is not among"),
    "a call without function": (
        chat(USER, {"role": "assistant", "tool_calls": [{"name": "clock"}]}),
        "messages[1].tool_calls[0]: expected an object",
    ),
    "calls of a wrong type": (
        chat(USER, {"role": "assistant", "tool_calls": {}}),
        "messages[1].tool_calls: expected a list",
    ),
    "tools of a wrong type": (chat(USER, ANSWER, tools={}), "tools: expected a list"),
    "a tool that is none": (chat(USER, ANSWER, tools=[{"name": "x"}]), "tools[0]: expected"),
    "a tool of another type": (chat(USER, ANSWER, tools=[CLOCK | {"type": "x"}]), "tools[0].type"),
    "parameters of a wrong type": (
        chat(
            USER,
            ANSWER,
            tools=[{"type": "function", "function": {"name": "x", "parameters": []}}],
        ),
        "tools[0].function.parameters",
    ),
    "a tool twice": (chat(USER, ANSWER, tools=[CLOCK, CLOCK]), "tools[1]: the function 'clock'"),
    "an unknown effort": (chat(USER, ANSWER, reasoning_effort="max"), "reasoning_effort"),
    "no date": (chat(USER, ANSWER, date="yesterday"), "date: expected a date"),
    "a date of a wrong type": (chat(USER, ANSWER, date=2026), "date: expected a date"),
    "an unknown role in Harmony's form": (chat(HARMONY | {"role": "bot"}), "messages[0].role"),
    "a chat key in Harmony's form": (chat(HARMONY | {"thinking": "x"}), "messages[0].thinking"),
    "a top key in Harmony's form": (chat(HARMONY, tools=[]), "tools is not a field"),
} | {
    f"arguments {arguments!r}": (
        chat(
            USER,
            {"role": "assistant", "tool_calls": [call("clock", arguments)]},
            tools=[CLOCK],
        ),
        "messages[1].tool_calls[0].function.arguments: expected a JSON object",
    )
    for arguments in ("", "now", "[1]", '"{}"', '{"a": NaN}', '{"a": 1, "a": 2}', None, [1], 3)
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_conversations_are_refused(tmp_path, case):
    document, said = MALFORMED[case]
    path = write(tmp_path, chat(USER, ANSWER), document)
    with pytest.raises(TrainingError) as refused:
        list(read_conversations(path))
    sentence = str(refused.value)
    assert sentence.startswith(f"{path}, line 2: ")
    assert said in sentence
    assert re.search(r"correct|take|give|write|expected|keep|add|join|declare|needs", sentence)
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"not json", "line 1: this is not JSON (Expecting value at character 1 of 8)"),
        (b'{"messages": [\n', "line 1: this is not JSON"),  # one object over several lines
        (b'{"messages": [], "messages": []}', "line 1: This is not JSON"),
        (b"[" * 100_000, "line 1: The JSON is nested too deeply"),
        (b"", "the file is empty"),
        (b"\n \r\n", "the file is empty"),
        (b"\n\xff\xfe", "line 2: expected text, but byte 1 is not UTF-8"),
        (b"PAR1\x00\x00", "line 1: expected text, but it holds a zero byte"),
        (b"\x1f\x8b\x08", "line 1: expected text, but byte 2 is not UTF-8"),
        (b"null", "line 1: expected an object"),
    ],
)
def test_files_that_hold_something_else_are_refused(tmp_path, data, said):
    path = tmp_path / "data.jsonl"
    path.write_bytes(data)
    with pytest.raises(TrainingError, match=re.escape(said)) as refused:
        list(read_conversations(path))
    assert str(path) in str(refused.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    for path, said in ((tmp_path / "absent", "no such file"), (tmp_path, "this is a folder")):
        with pytest.raises(TrainingError, match=said) as refused:
            list(read_conversations(path))
        assert str(path) in str(refused.value)


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    def refuse(self, *_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)  # root reads whatever the mode says
    with pytest.raises(TrainingError, match="cannot be read \\(Permission denied\\)"):
        list(read_conversations(tmp_path / "data.jsonl"))


def test_lines_are_read_one_by_one(tmp_path):
    path = write(tmp_path, chat(USER, ANSWER), "no conversation")
    conversations = read_conversations(path)
    assert next(conversations).messages[-1].text == "12 °C."
    with pytest.raises(TrainingError, match="line 2"):
        next(conversations)


# -- Training examples ----------------------------------------------------------------------------


def test_examples_that_cannot_be_learnt_from(tmp_path):
    """Rendering counts the tokens here; the limit between two lengths takes one and not the
    other."""
    tokenizer = small_tokenizer(False)
    long = {"role": "assistant", "content": "word " * 200}
    path = write(tmp_path, chat(USER, ANSWER), chat(USER, long), chat(USER), chat(USER, ANSWER))
    [short] = load_examples(write_one(tmp_path, chat(USER, ANSWER)), tokenizer, max_tokens=9999)
    limit = len(short.token_ids)

    examples = load_examples(path, tokenizer, max_tokens=limit, on_error="skip")
    assert list(examples) == [short, short]
    assert examples.skipped.counts == {Unfit.TOO_LONG: 1, Unfit.NOTHING_TO_LEARN: 1}
    reported = examples.skipped.to_json()
    assert f"{path}, line 2: " in reported["too long"]["lines"][0]
    assert f"{path}, line 3: " in reported["nothing to learn"]["lines"][0]
    assert reported["too long"]["count"] == 1

    with pytest.raises(TrainingError, match=rf"line 2: .* more than the {limit} that"):
        list(load_examples(path, tokenizer, max_tokens=limit))
    with pytest.raises(TrainingError, match=r"line 3: there is nothing to learn.*role user"):
        list(load_examples(path, tokenizer, max_tokens=9999))
    with pytest.raises(TrainingError, match=r"line 1: .* more than"):
        list(load_examples(path, tokenizer, max_tokens=limit - 1))


def write_one(folder: Path, document: Any) -> Path:
    path = folder / "one.jsonl"
    path.write_text(json.dumps(document))
    return path


def test_malformed_lines_are_never_skipped(tmp_path):
    path = write(tmp_path, chat(USER, ANSWER), chat({"role": "bot"}))
    with pytest.raises(TrainingError, match="line 2"):
        list(load_examples(path, small_tokenizer(False), max_tokens=9999, on_error="skip"))


def test_what_cannot_be_rendered_names_its_line(tmp_path):
    path = write(tmp_path, chat({"role": "user", "content": "\ud800"}, ANSWER))
    with pytest.raises(TrainingError, match=r"line 1: messages\[1\]: the text holds a lone surr"):
        list(load_examples(path, small_tokenizer(False), max_tokens=9999))

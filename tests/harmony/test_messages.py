"""Conversations in openai-harmony's JSON form, both ways; everything else is refused by name."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import openai_harmony as library
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.errors import ConversationError
from ossia.harmony.builtin_tools import BROWSER, PYTHON
from ossia.harmony.messages import (
    Conversation,
    DeveloperContent,
    Effort,
    Message,
    ResponseFormat,
    Role,
    SystemContent,
    TextContent,
    Tool,
    ToolNamespace,
)

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "default": "Zürich"}, "days": {"type": "integer"}},
    "required": ["city"],
}


def library_conversation() -> library.Conversation:
    """Every field that openai-harmony's own classes have."""
    message, role = library.Message, library.Role
    system = (
        library.SystemContent.new()
        .with_model_identity("You are Ossia.")
        .with_reasoning_effort(library.ReasoningEffort.HIGH)
        .with_conversation_start_date("2026-01-31")
        .with_knowledge_cutoff("2025-01")
        .with_channel_config(
            library.ChannelConfig(valid_channels=["analysis"], channel_required=False)
        )
        .with_browser_tool()
        .with_python_tool()
    )
    developer = (
        library.DeveloperContent.new()
        .with_instructions("Be brief – “kurz”.")
        .with_function_tools(
            [
                library.ToolDescription.new("weather", "Tells it.", parameters=WEATHER),
                library.ToolDescription.new("where", ""),
            ]
        )
        .with_tools(library.ToolNamespaceConfig(name="b", description="Bee", tools=[]))
    )
    call = message.from_role_and_content(role.ASSISTANT, '{"city": "Bern"}')
    call.with_channel("commentary").with_recipient("functions.weather")
    output = message.from_author_and_content(
        library.Author.new(role.TOOL, "functions.weather"), "7 °C"
    ).with_channel("commentary")
    return library.Conversation.from_messages(
        [
            message.from_role_and_content(role.SYSTEM, system),
            message.from_role_and_content(role.SYSTEM, library.SystemContent(channel_config=None)),
            message.from_role_and_content(role.DEVELOPER, developer),
            message.from_role_and_content(role.DEVELOPER, library.DeveloperContent()),
            message.from_author_and_content(library.Author.new(role.USER, "Bob"), "Hi <|end|>"),
            message.from_role_and_contents(
                role.USER, [library.TextContent(text="a"), library.TextContent(text="")]
            ),
            call.with_content_type("<|constrain|>json"),
            output.with_recipient("assistant"),
            message.from_role_and_content(role.ASSISTANT, "7 °C.").with_channel("final"),
        ]
    )


def our_conversation() -> Conversation:
    functions = ToolNamespace(
        "functions", None, (Tool("weather", "Tells it.", WEATHER), Tool("where"))
    )
    return Conversation(
        (
            Message(
                Role.SYSTEM,
                (
                    SystemContent(
                        model_identity="You are Ossia.",
                        reasoning_effort=Effort.HIGH,
                        conversation_start_date="2026-01-31",
                        knowledge_cutoff="2025-01",
                        valid_channels=("analysis",),
                        channel_required=False,
                        tools=(BROWSER, PYTHON),
                    ),
                ),
            ),
            Message(Role.SYSTEM, (SystemContent(valid_channels=None),)),
            Message(
                Role.DEVELOPER,
                (DeveloperContent("Be brief – “kurz”.", (functions, ToolNamespace("b", "Bee"))),),
            ),
            Message(Role.DEVELOPER, (DeveloperContent(),)),
            Message.of_text(Role.USER, "Hi <|end|>", name="Bob"),
            Message(Role.USER, (TextContent("a"), TextContent(""))),
            Message.of_text(
                Role.ASSISTANT,
                '{"city": "Bern"}',
                channel="commentary",
                recipient="functions.weather",
                content_type="<|constrain|>json",
            ),
            Message.of_text(
                Role.TOOL,
                "7 °C",
                name="functions.weather",
                channel="commentary",
                recipient="assistant",
            ),
            Message.of_text(Role.ASSISTANT, "7 °C.", channel="final"),
        )
    )


def test_json_is_openai_harmonys_to_the_character() -> None:
    assert our_conversation().to_json() == library_conversation().to_json()


def test_openai_harmonys_json_reads_as_the_same_conversation() -> None:
    assert Conversation.from_json(library_conversation().to_json()) == our_conversation()
    assert Conversation.from_json(library_conversation().to_json().encode()) == our_conversation()


def test_openai_harmony_reads_our_json() -> None:
    theirs = library.Conversation.from_json(our_conversation().to_json())
    # Its own from_json brings back the default of a field that is left out: not so for those set.
    assert theirs.messages[0].to_dict() == library_conversation().messages[0].to_dict()
    assert theirs.messages[2:] == library_conversation().messages[2:]


def test_the_defaults_are_openai_harmonys() -> None:
    ours = Conversation((Message(Role.SYSTEM, (SystemContent(),)),))
    theirs = library.Message.from_role_and_content(library.Role.SYSTEM, library.SystemContent())
    assert ours.to_json() == library.Conversation.from_messages([theirs]).to_json()


def test_the_builtin_tools_are_declared_as_trained() -> None:
    system = library.SystemContent().with_browser_tool().with_python_tool()
    theirs = library.Message.from_role_and_content(library.Role.SYSTEM, system)
    ours = Message(Role.SYSTEM, (SystemContent(tools=(BROWSER, PYTHON)),))
    assert Conversation((ours,)).to_dict()["messages"] == [theirs.to_dict()]


def test_response_formats_are_our_addition() -> None:
    formats = (ResponseFormat("list", {"type": "object"}, "A list."), ResponseFormat("b", {}))
    ours = Conversation((Message(Role.DEVELOPER, (DeveloperContent(response_formats=formats),)),))
    assert Conversation.from_json(ours.to_json()) == ours
    (content,) = ours.to_dict()["messages"][0]["content"]
    assert [f["name"] for f in content["response_formats"]] == ["list", "b"]


@pytest.mark.parametrize("value", [float("nan"), object(), "\ud800"])
def test_a_schema_is_json(value: object) -> None:
    tool = {"name": "f", "description": "", "parameters": {"default": value}}
    tools = {"functions": {"name": "functions", "tools": [tool]}}
    content = [{"type": "developer_content", "tools": tools}]
    with pytest.raises(ConversationError, match=r"functions\.tools\[0\]\.parameters"):
        Conversation.from_dict({"messages": [{"role": "developer", "content": content}]})


def test_a_single_text_may_be_a_plain_string() -> None:
    """As the library's Rust side writes it."""
    read = Conversation.from_json('{"messages": [{"role": "user", "content": "hi"}]}')
    assert read == Conversation((Message.of_text(Role.USER, "hi"),))


def test_null_stands_for_an_absent_field() -> None:
    document = our_conversation().to_dict()
    with_nulls = copy.deepcopy(document)
    for message in with_nulls["messages"]:
        for field in ("name", "channel", "recipient", "content_type"):
            message.setdefault(field, None)
    assert Conversation.from_dict(with_nulls) == Conversation.from_dict(document)


# -- Refusals -------------------------------------------------------------------------------------

Change = Callable[[list[dict[str, Any]]], object]

MALFORMED: list[tuple[Change, str]] = [
    (lambda m: m[4].pop("role"), "messages[4].role is missing."),
    (
        lambda m: m[4].update(role="bot"),
        'messages[4].role: expected one of system, developer, user, assistant, tool, got "bot".',
    ),
    (lambda m: m[4].update(role=["user"]), "messages[4].role: expected one of"),
    (lambda m: m[4].update(name=5), "messages[4].name: expected a string, got 5."),
    (lambda m: m[8].update(channel=[]), "messages[8].channel: expected a string, got []."),
    (lambda m: m[6].update(recipient={}), "messages[6].recipient: expected a string"),
    (lambda m: m[6].update(content_type=1), "messages[6].content_type: expected a string"),
    (
        lambda m: m[6].update(author={"role": "user"}),
        "messages[6].author is not a field of openai-harmony's form.",
    ),
    (lambda m: m[5].update(content=None), "messages[5].content: expected a list, got null."),
    (lambda m: m[5].pop("content"), "messages[5].content is missing."),
    (
        lambda m: m[5]["content"][1].update(text=None),
        "messages[5].content[1].text: expected a string, got null.",
    ),
    (
        lambda m: m[5]["content"][1].update(text="\ud800"),
        "messages[5].content[1].text: expected Unicode text",
    ),
    (
        lambda m: m[5]["content"][0].update(type="image"),
        'messages[5].content[0].type: expected "text", "system_content" or '
        '"developer_content", got "image".',
    ),
    (lambda m: m[5]["content"][0].update(x=1), "messages[5].content[0].x is not a field"),
    (lambda m: m[5]["content"].append("b"), "messages[5].content[2]: expected an object"),
    (
        lambda m: m[0]["content"][0].update(reasoning_effort="high"),
        'messages[0].content[0].reasoning_effort: expected "Low", "Medium" or "High", got "high".',
    ),
    (
        lambda m: m[0]["content"][0]["channel_config"].pop("channel_required"),
        "messages[0].content[0].channel_config.channel_required is missing.",
    ),
    (
        lambda m: m[0]["content"][0]["channel_config"].update(channel_required=1),
        "messages[0].content[0].channel_config.channel_required: expected true or false, got 1.",
    ),
    (
        lambda m: m[0]["content"][0]["channel_config"].update(valid_channels=["a", 1]),
        "messages[0].content[0].channel_config.valid_channels[1]: expected a string, got 1.",
    ),
    (
        lambda m: m[0]["content"][0].update(instructions="x"),
        "messages[0].content[0].instructions is not a field",
    ),
    (
        lambda m: m[2]["content"][0].update(tools=[]),
        "messages[2].content[0].tools: expected an object of tool namespaces, got [].",
    ),
    (
        lambda m: m[2]["content"][0]["tools"]["functions"].update(name="f"),
        "messages[2].content[0].tools.functions.name: expected its key 'functions', got \"f\".",
    ),
    (
        lambda m: m[2]["content"][0]["tools"]["functions"].pop("tools"),
        "messages[2].content[0].tools.functions.tools is missing.",
    ),
    (
        lambda m: m[2]["content"][0]["tools"]["functions"]["tools"][1].pop("description"),
        "messages[2].content[0].tools.functions.tools[1].description is missing.",
    ),
    (
        lambda m: m[2]["content"][0]["tools"]["functions"]["tools"][0].update(parameters=True),
        "messages[2].content[0].tools.functions.tools[0].parameters: expected a JSON schema",
    ),
    (
        lambda m: m[2]["content"][0]["tools"]["functions"]["tools"][0].update(strict=True),
        "messages[2].content[0].tools.functions.tools[0].strict is not a field",
    ),
    (
        lambda m: m[2]["content"][0].update(response_formats=[{"name": "x"}]),
        "messages[2].content[0].response_formats[0].schema is missing.",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), MALFORMED, ids=[s for _, s in MALFORMED])
def test_what_is_malformed_is_refused_by_index_and_field(change: Change, sentence: str) -> None:
    document = json.loads(library_conversation().to_json())
    change(document["messages"])
    with pytest.raises(ConversationError) as caught:
        Conversation.from_json(json.dumps(document))
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "This is not JSON: Expecting value"),
        ("{", "This is not JSON"),
        (b"\xff", "This is not JSON"),
        ("[]", "The conversation: expected an object, got []."),
        ("{}", "messages is missing."),
        ('{"messages": {}}', "messages: expected a list, got {}."),
        ('{"messages": [], "model": "x"}', "model is not a field"),
        ('{"messages": [], "messages": []}', "has the key 'messages' twice"),
        ('{"messages": [NaN]}', "NaN is not a JSON number"),
        ('{"messages": ' + "[" * 200_000, "The JSON is nested too deeply."),
    ],
)
def test_what_is_no_conversation_is_refused(text: str | bytes, sentence: str) -> None:
    with pytest.raises(ConversationError) as caught:
        Conversation.from_json(text)
    assert sentence in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "tools", "name", "messages", "x"]),
            children,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(document=json_values)
def test_any_json_reads_or_is_refused(document: Any) -> None:
    try:
        conversation = Conversation.from_dict(document)
    except ConversationError:
        return
    assert Conversation.from_json(conversation.to_json()) == conversation


@given(seed=st.integers(0, 2**32), value=json_values)
def test_any_damage_reads_or_is_refused(seed: int, value: Any) -> None:
    rng = random.Random(seed)
    document: Any = json.loads(library_conversation().to_json())
    node = document
    while True:
        key = rng.choice(sorted(node)) if isinstance(node, dict) else rng.randrange(len(node))
        if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.1:
            break
        node = node[key]
    node[key] = value
    try:
        conversation = Conversation.from_dict(document)
    except ConversationError as error:
        assert str(error)
    else:
        assert Conversation.from_json(conversation.to_json()) == conversation

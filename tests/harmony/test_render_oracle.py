"""Rendering against openai-harmony itself: token for token, on thousands of conversations.

The generator writes that library's JSON form and knows nothing of our renderer. It stays within
what the library gets right; where it does not, test_render.py says what is right.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from ossia.harmony.messages import Conversation
from ossia.harmony.render import (
    Drop,
    render_for_completion,
    render_for_training,
    render_message,
)
from support import o200k, openai_harmony_encoding, segments, small_tokenizer

CONVERSATIONS = 3000

# fmt: off
WORDS = [
    "weather", "Paris", "48", "*", "37", "=", "1776", "naïve", "日本語", "👩🏽\u200d🚀", "don't",
    "I'LL", "﷽", "Ωmega", "", "\n", "\n\n\t\r\n", "—", "…", "«x»", "a/b\\c", '"q"', "e\u0301",
    "\u200b", "\u00a0", "\x00", "1e-7", "if:", "//", "*/", "{", "}", ";", "</s>", "<|", "|>",
    "<|start|>",
    "<|end|>", "<|message|>", "<|channel|>final", "<|constrain|>json", "<|return|>", "<|call|>",
    "<|endoftext|>", "<|reserved_200000|>",
]
# fmt: on


def text(rng: random.Random, most: int = 12) -> str:
    return rng.choice(["", " "]).join(rng.choices(WORDS, k=rng.randint(0, most)))


def line(rng: random.Random) -> str:
    return " ".join(text(rng, 8).split())


def name(rng: random.Random) -> str:
    return rng.choice(["get_weather", "search", "x", "lookup2", "Größe", "$a", "café", "a_b"])


def maybe(rng: random.Random, fields: dict[str, Any], **options: Any) -> None:
    fields |= {key: value for key, value in options.items() if rng.random() < 0.3}


def scalar(rng: random.Random) -> dict[str, Any]:
    kind = rng.choice(["string", "number", "integer", "boolean", "enum", "list", "any"])
    match kind:
        case "enum":
            return {"type": "string", "enum": rng.sample(["a", "celsius", "日", "x y", ""], 3)}
        case "list":
            return {"type": rng.sample(["string", "number", "boolean", "integer"], 2)}
        case "any":
            return rng.choice([{}, {"type": "geometry"}])
        case _:
            return {"type": kind}


def schema(rng: random.Random, depth: int) -> dict[str, Any]:
    if depth and rng.random() < 0.3:
        return object_schema(rng, depth - 1)
    if depth and rng.random() < 0.3:
        items = schema(rng, depth - 1)
        union = "enum" in items or isinstance(items.get("type"), list) or "oneOf" in items
        return {"type": "array"} if union else {"type": "array", "items": items}
    return scalar(rng)


def default(rng: random.Random) -> Any:
    return rng.choice(
        [
            "a",
            "日",
            1,
            -1,
            1.0,
            2.5e-7,
            1e-5,
            1e16,
            123456.789,
            True,
            None,
            [],
            [1, "b"],
            {"k": 1.5},
        ]
    )


def variant(rng: random.Random) -> dict[str, Any]:
    chosen = scalar(rng) if rng.random() < 0.8 else object_schema(rng, 0)
    maybe(rng, chosen, default=default(rng))
    if chosen.get("type") != "object":
        maybe(rng, chosen, nullable=True, description=f"variant {line(rng)}")
    return chosen


def object_schema(rng: random.Random, depth: int) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for key in rng.sample(
        ["a", "b2", "city", "unit", "名前", "$ref_", "_x", "from"], rng.randint(0, 4)
    ):
        value = schema(rng, depth)
        if rng.random() < 0.2:
            value = {"oneOf": [variant(rng) for _ in range(rng.randint(1, 3))]}
        elif isinstance(value.get("type"), str) and value["type"] not in ("object", "array"):
            maybe(rng, value, nullable=True)
        # The library prints the description of a nested object twice.
        if value.get("type") != "object":
            maybe(rng, value, description=line(rng))
        maybe(rng, value, default=default(rng), title=line(rng))
        maybe(rng, value, examples=rng.choice([[], [3], ["p", "日本"]]))
        properties[key] = value
    result: dict[str, Any] = {"type": "object", "properties": properties}
    maybe(rng, result, required=rng.sample(sorted(properties), len(properties) // 2))
    maybe(rng, result, additionalProperties=False)
    return result


def tool(rng: random.Random) -> dict[str, Any]:
    declared: dict[str, Any] = {"name": name(rng), "description": text(rng).replace("\r\n", "\n")}
    parameters = rng.choice([None, {}, object_schema(rng, 2), object_schema(rng, 2)])
    if parameters is None:
        return declared
    if parameters and rng.random() < 0.2:
        parameters["description"] = line(rng)
    if rng.random() < 0.1:
        parameters = {"oneOf": [variant(rng), {"type": "null_"}]}
    return declared | {"parameters": parameters}


def namespaces(rng: random.Random, names: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key in rng.sample(names, rng.randint(0, len(names))):
        result[key] = {"name": key, "tools": [tool(rng) for _ in range(rng.randint(0, 3))]}
        maybe(rng, result[key], description=text(rng))
    return result


def system(rng: random.Random) -> dict[str, Any]:
    content: dict[str, Any] = {"type": "system_content"}
    maybe(rng, content, model_identity=text(rng), knowledge_cutoff="2024-06")
    maybe(
        rng, content, conversation_start_date="2026-01-31", tools=namespaces(rng, ["python", "b"])
    )
    if rng.random() < 0.8:
        content["reasoning_effort"] = rng.choice(["Low", "Medium", "High"])
        channels = rng.choice([[], ["analysis", "commentary", "final"], ["one"]])
        content["channel_config"] = {
            "valid_channels": channels,
            "channel_required": rng.random() < 0.5,
        }
    return {"role": "system", "content": [content]}


def developer(rng: random.Random) -> dict[str, Any]:
    content: dict[str, Any] = {"type": "developer_content"}
    maybe(rng, content, instructions=text(rng))
    if rng.random() < 0.7:
        content["tools"] = namespaces(rng, ["functions", "zeta", "Alpha", "ähnlich"])
    return {"role": "developer", "name": None, "content": [content]}


def parts(rng: random.Random) -> Any:
    if rng.random() < 0.5:
        return text(rng)
    return [{"type": "text", "text": text(rng)} for _ in range(rng.randint(0, 3))]


def call(rng: random.Random) -> list[dict[str, Any]]:
    """A tool call and its output, on the same channel."""
    recipient = rng.choice(["functions.x", "browser.search", "python", "functions.get_weather"])
    asked: dict[str, Any] = {"role": "assistant", "content": parts(rng), "recipient": recipient}
    answered: dict[str, Any] = {"role": "tool", "name": recipient, "content": parts(rng)}
    channel = rng.choice(["analysis", "commentary", None])
    if channel:
        asked["channel"] = answered["channel"] = channel
    maybe(
        rng, asked, content_type=rng.choice(["<|constrain|>json", "json", "code", "<|constrain|>"])
    )
    maybe(rng, answered, recipient="assistant")
    return [asked, answered]


def turn(rng: random.Random) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts(rng)}]
    maybe(rng, messages[0], name="Bob", recipient=rng.choice(["all", "assistant"]))
    for _ in range(rng.randint(0, 3)):
        match rng.choice(["analysis", "preamble", "call"]):
            case "call":
                messages += call(rng)
            case "preamble":
                said = {"role": "assistant", "channel": "commentary", "content": parts(rng)}
                messages.append(said)
            case _:
                thought = {"role": "assistant", "channel": "analysis", "content": parts(rng)}
                messages.append(thought)
    if rng.random() < 0.7:
        final = {"role": "assistant", "content": parts(rng), "channel": "final"}
        maybe(rng, final, name="bot", content_type="<|constrain|>json")
        messages.append(final)
    return messages


def conversation(rng: random.Random) -> dict[str, Any]:
    messages = [m for m in (system(rng), developer(rng)) if rng.random() < 0.6]
    for _ in range(rng.randint(0, 3)):
        messages += turn(rng)
    return {"messages": messages}


@pytest.fixture(scope="module")
def conversations() -> list[dict[str, Any]]:
    return [conversation(random.Random(seed)) for seed in range(CONVERSATIONS)]


def difference(seed: int, ours: Any, theirs: list[int]) -> str:
    decode = o200k().decode
    return f"conversation {seed}:\n--- ours\n{decode(ours)}\n--- theirs\n{decode(theirs)}"


@pytest.mark.parametrize("auto_drop", [True, False])
def test_prompts_equal_the_librarys(conversations: list[dict[str, Any]], auto_drop: bool) -> None:
    library = openai_harmony_encoding()._inner
    drop = Drop.LIBRARY if auto_drop else Drop.NONE
    for seed, document in enumerate(conversations):
        theirs = library.render_conversation_for_completion(
            conversation_json=json.dumps(document),
            next_turn_role="assistant",
            config={"auto_drop_analysis": auto_drop},
        )
        ours = render_for_completion(o200k(), Conversation.from_dict(document), drop=drop)
        assert list(ours.token_ids) == theirs, difference(seed, ours.token_ids, theirs)


@pytest.mark.parametrize("auto_drop", [True, False])
def test_training_tokens_equal_the_librarys(
    conversations: list[dict[str, Any]], auto_drop: bool
) -> None:
    library = openai_harmony_encoding()._inner
    drop = Drop.LIBRARY if auto_drop else Drop.NONE
    for seed, document in enumerate(conversations):
        theirs = library.render_conversation_for_training(
            conversation_json=json.dumps(document), config={"auto_drop_analysis": auto_drop}
        )
        ours = render_for_training(o200k(), Conversation.from_dict(document), drop=drop)
        assert list(ours.token_ids) == theirs, difference(seed, ours.token_ids, theirs)
        assert len(ours.loss_weights) == len(theirs)


def test_single_messages_equal_the_librarys(conversations: list[dict[str, Any]]) -> None:
    library = openai_harmony_encoding()._inner
    for seed, document in enumerate(conversations[:1000]):
        for raw in document["messages"]:
            (message,) = Conversation.from_dict({"messages": [raw]}).messages
            for functions in (False, True):
                theirs = library.render(
                    message_json=json.dumps(raw),
                    render_options={"conversation_has_function_tools": functions},
                )
                ours = render_message(o200k(), message, has_function_tools=functions)
                assert list(ours.token_ids) == theirs, difference(seed, ours.token_ids, theirs)


def test_completed_equals_the_librarys_rule_where_the_two_coincide(
    conversations: list[dict[str, Any]],
) -> None:
    """They do when nothing is reasoning, and when the only final is the last that was said."""
    library = openai_harmony_encoding()._inner
    coincided = 0
    for seed, document in enumerate(conversations):
        channels = [m.get("channel") for m in document["messages"]]
        said = [m.get("channel") for m in document["messages"] if m["role"] == "assistant"]
        if "analysis" in channels and not (said[-1:] == ["final"] and said.count("final") == 1):
            continue
        coincided += "analysis" in channels
        theirs = library.render_conversation_for_completion(
            conversation_json=json.dumps(document),
            next_turn_role="assistant",
            config={"auto_drop_analysis": True},
        )
        ours = render_for_completion(o200k(), Conversation.from_dict(document))
        assert list(ours.token_ids) == theirs, difference(seed, ours.token_ids, theirs)
    assert coincided > 100


def test_structure_does_not_depend_on_the_vocabulary(
    conversations: list[dict[str, Any]],
) -> None:
    """Where o200k has been held against the library, any other vocabulary must say the same."""
    for document in conversations[:1000]:
        read = Conversation.from_dict(document)
        for drop in Drop:
            forms = [
                segments(tokenizer, render_for_completion(tokenizer, read, drop=drop).token_ids)
                for tokenizer in (o200k(), small_tokenizer(True))
            ]
            assert forms[0] == forms[1]


def test_the_generator_reaches_every_feature(conversations: list[dict[str, Any]]) -> None:
    """Or else the equality above would mean less than it says."""
    written = json.dumps(conversations, ensure_ascii=False)
    features = (
        '"oneOf"', '"nullable"', '"examples"', '"title"', '"enum"', '"items"', '"required"',
        '"default": null', '"functions"', '"content_type": "<|constrain|>json"', '"recipient"',
        '"channel": "analysis"', '"Low"', '"name": "Bob"', "<|return|>", "\\u0000", "👩🏽‍🚀",
    )  # fmt: skip
    assert [feature for feature in features if written.count(feature) < 20] == []

"""JSON schemas to TypeScript where openai-harmony is no guide: docs/harmony.md's differences, and
schemas made to break out.

Equality with the library where it is right is test_render_oracle.py's matter.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.errors import ConversationError
from ossia.harmony.messages import (
    Conversation,
    DeveloperContent,
    Message,
    Role,
    Tool,
    ToolNamespace,
)
from ossia.harmony.render import render_for_completion
from ossia.harmony.tool_schema import json_schema_to_typescript, tools_section
from support import o200k, openai_harmony_encoding, small_tokenizer

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "harmony.md"

EXAMPLE = re.compile(
    r"```json\n(?P<input>.*?)\n```\n"
    r"openai-harmony 0\.0\.8:\n```\w+\n(?P<theirs>.*?)\n```\n"
    r"Ossia:\n```\w+\n(?P<ours>.*?)\n```",
    re.DOTALL,
)

_TEXT = DOCUMENT.read_text()
DIFFERENCES = [
    pytest.param(
        json.loads(match["input"]),
        match["ours"],
        match["theirs"],
        id=f"line {_TEXT.count(chr(10), 0, match.start()) + 1}",
    )
    for match in EXAMPLE.finditer(_TEXT)
]


def with_tool(parameters: Any) -> Conversation:
    functions = ToolNamespace("functions", None, (Tool("f", "", parameters),))
    return Conversation((Message(Role.DEVELOPER, (DeveloperContent(tools=(functions,)),)),))


def parameters_of(prompt: str) -> str:
    _, _, rest = prompt.partition("type f = (_: ")
    return rest.rpartition(") => any;")[0]


def test_the_document_has_its_examples() -> None:
    assert len(DIFFERENCES) == _TEXT.count("openai-harmony 0.0.8:\n") > 10


@pytest.mark.parametrize(("document", "ours", "theirs"), DIFFERENCES)
def test_documented_differences_are_ours(document: Any, ours: str, theirs: str) -> None:
    if "messages" not in document:
        assert json_schema_to_typescript(document) == ours
        return
    conversation = Conversation.from_dict(document)
    ids = render_for_completion(small_tokenizer(True), conversation).token_ids
    assert small_tokenizer(True).decode(ids) == ours
    assert ours != theirs


@pytest.mark.parametrize(("document", "ours", "theirs"), DIFFERENCES)
def test_documented_differences_are_the_librarys(document: Any, ours: str, theirs: str) -> None:
    is_schema = "messages" not in document
    given_json = with_tool(document).to_json() if is_schema else json.dumps(document)
    ids = openai_harmony_encoding()._inner.render_conversation_for_completion(
        conversation_json=given_json, next_turn_role="assistant", config={}
    )
    prompt = o200k().decode(ids)
    assert (parameters_of(prompt) if is_schema else prompt) == theirs


CASES: dict[str, tuple[Any, str]] = {
    "true": (True, "any"),
    "false": (False, "never"),
    "nothing": ({}, "any"),
    "unknown type": ({"type": "geometry"}, "any"),
    "unknown in a list": ({"type": ["geometry\n}", "string"]}, "any | string"),
    "empty oneOf": ({"oneOf": [], "type": "string"}, "string"),
    "anyOf beside a type": ({"type": "string", "anyOf": [{"minLength": 1}]}, "string"),
    "anyOf of one": ({"anyOf": [{"enum": ["a", "b"]}]}, '"a" | "b"'),
    "union in an array": (
        {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "number"}]}},
        "(string | number)[]",
    ),
    "array of arrays of unions": (
        {"items": {"items": {"type": ["string", "boolean"]}}},
        "(string | boolean)[][]",
    ),
    "one literal in an array": ({"items": {"const": "a"}}, '"a"[]'),
    "commented variants in an array": (
        {"items": {"oneOf": [{"type": "string"}, {"type": "null", "description": "x"}]}},
        "(\n | string\n | null // x\n)[]",
    ),
    "nullable after a comment": (
        {"nullable": True, "oneOf": [{"type": "string", "description": "x"}]},
        "\n | string // x\n | null",
    ),
    "already nullable": ({"nullable": True, "type": ["string", "null"]}, "string | null"),
    "nullable is not truthy": ({"nullable": "yes", "type": "string"}, "string"),
    "enum in a list of types": (
        {"type": ["string", "integer", "null"], "enum": ["a", 1, 2.5, None]},
        '"a" | 1 | null',
    ),
    "enum against its types": ({"type": ["string"], "enum": [1]}, "1"),
    "true is no number": ({"type": ["integer", "boolean"], "enum": [True]}, "true"),
    "literals of any kind": (
        {"enum": ["é\u2028", 1.0, 1e-5, -2e-7, 1e16, True, None, [1, {"a": "b"}]]},
        '"é\\u2028" | 1.0 | 0.00001 | -2e-7 | 1e16 | true | null | [1,{"a":"b"}]',
    ),
    "allOf of one": ({"allOf": [{"type": "string"}], "description": "x"}, "string"),
    "allOf that contradicts": (
        {"allOf": [{"enum": ["a", "b"]}, {"type": "string"}, {"oneOf": [{"const": 1}]}]},
        '("a" | "b") & string & (\n | 1)',
    ),
    "allOf with the same property twice": (
        {
            "allOf": [
                {"properties": {"a": {"type": "string"}}},
                {"properties": {"a": {"description": "x"}}, "required": ["a"]},
            ]
        },
        "{\n// x\na: string,\n}",
    ),
    "reference with keys beside": (
        {"$ref": "#/$defs/a", "nullable": True, "$defs": {"a": {"type": "string"}}},
        "string | null",
    ),
    "reference with escapes": (
        {"items": {"$ref": "#/$defs/a~1b~0c%20d"}, "$defs": {"a/b~c d": {"type": "number"}}},
        "number[]",
    ),
    "reference into a list": (
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"$ref": "#/anyOf/0"}}]},
        "string | string[]",
    ),
    "reference to itself": (
        {"items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"$ref": "#/$defs/a"}}},
        "any /* recursive */[]",
    ),
    "reference to the root": ({"items": {"$ref": "#"}}, "any /* recursive */[]"),
    "recursion by two": (
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": {"properties": {"b": {"$ref": "#/$defs/b"}}},
                "b": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]},
            },
        },
        "{\nb?: any /* recursive */ | null,\n}",
    ),
    "recursion through allOf": (
        {"properties": {"a": {"allOf": [{"$ref": "#"}]}}},
        "{\na?: any /* recursive */,\n}",
    ),
    "a schema used twice is not recursive": (
        {
            "properties": {"a": {"$ref": "#/$defs/x"}, "b": {"$ref": "#/$defs/x"}},
            "$defs": {"x": {"type": "string", "description": "X"}},
        },
        "{\n// X\na?: string,\n// X\nb?: string,\n}",
    ),
    "properties that are schemas of truth": (
        {"properties": {"a": True, "b": False}, "required": ["a", 5]},
        "{\na: any,\nb?: never,\n}",
    ),
    "malformed parts": (
        {"type": "object", "properties": [], "required": "a", "description": 5},
        "{\n}",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_schemas(name: str) -> None:
    schema, expected = CASES[name]
    assert json_schema_to_typescript(schema) == expected


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ({"$ref": "#/$defs/missing"}, "the $ref '#/$defs/missing' does not lead to a part"),
        ({"$ref": "https://example.org/schema"}, "does not lead to a part of the same schema"),
        ({"$ref": "#/type/0", "type": "x"}, "does not lead to a part"),
        ({"const": float("inf")}, "holds inf, which JSON cannot express"),
        ({"const": object()}, "holds a object, which JSON cannot express"),
    ],
)
def test_what_cannot_be_written_is_refused(schema: Any, sentence: str) -> None:
    with pytest.raises(ConversationError) as caught:
        tools_section([ToolNamespace("functions", None, (Tool("f", "", schema),))])
    assert sentence in str(caught.value)


def test_the_error_names_the_tool() -> None:
    with pytest.raises(ConversationError, match=r"Tool functions\.f: the \$ref"):
        tools_section([ToolNamespace("functions", None, (Tool("f", "", {"$ref": "x"}),))])


def test_a_schema_that_grows_without_bound_is_refused() -> None:
    """Thirty levels, each used twice by the one above: 2^30 parts when written out."""
    level = {
        f"l{i}": {"properties": {k: {"$ref": f"#/$defs/l{i + 1}"} for k in "ab"}} for i in range(30)
    }
    with pytest.raises(ConversationError, match="more than 20000 parts"):
        json_schema_to_typescript({"$ref": "#/$defs/l0", "$defs": level | {"l30": {}}})


@pytest.mark.parametrize("key", ["items", "allOf", "properties"])
def test_a_schema_nested_without_end_is_refused(key: str) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(5000):
        schema = {key: {"items": schema, "allOf": [schema], "properties": {"a": schema}}[key]}
    with pytest.raises(ConversationError, match="nested too deeply"):
        json_schema_to_typescript(schema)


# -- Breaking out ---------------------------------------------------------------------------------

BREAKS = ["\n", "\r", "\r\n", "\u2028", "\u2029", "\n\n\r", "*/", '"', '\\"', "\\", "`", "\x0b"]


def code_outside(typescript: str) -> str:
    """What a TypeScript lexer sees beside comments and strings."""
    token = re.compile(
        r'//[^\n\r\u2028\u2029]*|/\*.*?\*/|"(?:[^"\\\n\r\u2028\u2029]|\\.)*"', re.DOTALL
    )
    return token.sub("", typescript)


def hostile_schema(rng: random.Random, depth: int) -> Any:
    evil = f"x{rng.choice(BREAKS)}INJECTED{rng.choice(BREAKS)}"
    kinds = ["string", "object", "array", "list", "oneOf", "anyOf", "allOf", "const", "enum", "ref"]
    schema: dict[str, Any] = {}
    for key in ("title", "description", "default"):
        if rng.random() < 0.5:
            schema[key] = evil
    if rng.random() < 0.3:
        schema |= {"examples": [evil], "nullable": True}
    match rng.choice(kinds if depth else ["string", "const", "enum", "ref"]):
        case "string":
            schema |= {"type": rng.choice(["string", evil])}
        case "object":
            keys = rng.sample(["a", evil, "b-c", ""], 2)
            schema["type"] = "object"
            schema["properties"] = {key: hostile_schema(rng, depth - 1) for key in keys}
        case "array":
            schema |= {"type": "array", "items": hostile_schema(rng, depth - 1)}
        case "list":
            schema |= {"type": ["string", evil, "object"], "properties": {evil: {}}}
        case "const":
            schema["const"] = rng.choice([evil, {evil: evil}])
        case "enum":
            schema |= {"type": "string", "enum": [evil, "a"]}
        case "ref":
            schema["$ref"] = rng.choice(["#", "#/$defs/d"])
        case union:
            schema[union] = [hostile_schema(rng, depth - 1) for _ in range(2)]
    return schema


@settings(max_examples=500, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_text_leaves_its_comment_or_its_quotes(seed: int) -> None:
    rng = random.Random(seed)
    schema = hostile_schema(rng, 3)
    schema["$defs"] = {"d": hostile_schema(rng, 1)}
    evil = "x\r\u2028INJECTED\n"
    section = tools_section([ToolNamespace("functions", evil, (Tool("f", evil, schema),))])
    prefix = "# Tools\n\n## functions\n"
    assert section.startswith(prefix)
    code = code_outside(section[len(prefix) :])
    assert "INJECTED" not in code
    for opening, closing in ("()", "{}", "[]"):
        assert code.count(opening) == code.count(closing)
    assert re.search(r"\) => any;\s*\}\s*$", code)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "properties",
                    "items",
                    "oneOf",
                    "anyOf",
                    "allOf",
                    "enum",
                    "const",
                    "$ref",
                    "required",
                    "description",
                    "default",
                    "title",
                    "examples",
                    "nullable",
                    "a",
                ]
            ),
            children | st.sampled_from(["object", "array", "string", "#", "#/properties/a"]),
            max_size=5,
        )
    ),
    max_leaves=15,
)


@settings(deadline=None)
@given(schema=json_values)
def test_any_json_is_written_or_refused(schema: Any) -> None:
    try:
        assert json_schema_to_typescript(schema)
    except ConversationError as error:
        assert str(error)

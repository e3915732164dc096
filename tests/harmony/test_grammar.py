"""What a grammar's text is made of: schemas made ready for it, and options that are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ossia.errors import RequestError
from ossia.harmony.builtin_tools import BROWSER, PYTHON
from ossia.harmony.grammar import (
    JsonSchemaFormat,
    LarkFormat,
    NamedTool,
    Opening,
    RegexFormat,
    ToolChoice,
    TurnOptions,
    output_grammar,
    turn_grammar,
)
from ossia.harmony.json_schema import UNSUPPORTED, for_arguments, for_grammar
from ossia.harmony.messages import Tool, ToolNamespace

FUNCTIONS = ToolNamespace("functions", tools=(Tool("f"), Tool("g", "", {"type": "object"})))


def lark(options: TurnOptions) -> str:
    return json.loads(turn_grammar(options).text)["grammars"][0]["lark_grammar"]


def test_the_text_is_a_function_of_the_options() -> None:
    options = TurnOptions(tools=(BROWSER, PYTHON, FUNCTIONS), output_format=LarkFormat("start: A"))
    assert turn_grammar(options) == turn_grammar(options)
    assert output_grammar(RegexFormat("a")) != output_grammar(RegexFormat("b"))


def test_only_tools_that_may_be_called_are_in_it() -> None:
    tools = (BROWSER, PYTHON, FUNCTIONS)
    assert "functions.f" in lark(TurnOptions(tools=tools))
    for options in (
        TurnOptions(tools=tools, tool_choice=ToolChoice.NONE),
        TurnOptions(tools=tools, tool_choice=NamedTool("functions.g")),
        TurnOptions(tools=tools, tool_choice=NamedTool("browser.open")),
        TurnOptions(tools=tools, allowed_tools=("g", "python")),
        TurnOptions(tools=tools, allowed_tools=()),
        TurnOptions(tools=tools, opening=Opening.FINAL),
    ):
        assert "functions.f" not in lark(options), options


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tool_choice": NamedTool("h")}, "tool_choice names 'h', which is not offered"),
        ({"allowed_tools": ("f", "h")}, "allowed_tools names 'h', which is not offered"),
        ({"allowed_tools": ("f",), "tool_choice": NamedTool("g")}, "which allowed_tools leaves"),
        ({"allowed_tools": (), "tool_choice": ToolChoice.REQUIRED}, "no tool may be called"),
        ({"opening": Opening.FINAL, "tool_choice": ToolChoice.REQUIRED}, "begins with its answer"),
        ({"tools": (ToolNamespace("functions", tools=(Tool("a b"),)),)}, "cannot stand in a"),
        ({"tools": (ToolNamespace("functions", tools=(Tool("a..b"),)),)}, "cannot stand in a"),
        ({"tools": (ToolNamespace("functions", tools=(Tool('a"b'),)),)}, "cannot stand in a"),
        (
            {"tools": (ToolNamespace("functions", tools=(Tool("a", "", {"type": "array"}),)),)},
            "functions.a: parameters: a function's arguments are an object",
        ),
        ({"output_format": LarkFormat('start: "a" <|call|>')}, "without control tokens"),
        ({"output_format": LarkFormat("start: <[7]>")}, "without control tokens"),
        ({"output_format": LarkFormat("%llguidance {}\nstart: A")}, "options of llguidance"),
        ({"output_format": LarkFormat("start[max_tokens=3]: /a*/")}, "without max_tokens"),
        ({"output_format": LarkFormat("start: @other")}, "references to other grammars"),
        (
            {"output_format": JsonSchemaFormat({"items": {"not": {}}})},
            "response_format.items: .*not",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        turn_grammar(TurnOptions(**({"tools": (FUNCTIONS,)} | options)))


def test_quoted_text_in_a_lark_grammar_is_no_control_token() -> None:
    grammar = 'start: "<|call|>" /a<[1]>\\/@x/ A // <|end|> max_tokens=3\nA: "\\"<" # @x <'
    assert output_grammar(LarkFormat(grammar)).text


@pytest.mark.parametrize("keyword", sorted(UNSUPPORTED))
def test_an_unsupported_keyword_is_named_with_its_place(keyword: str) -> None:
    bad = {keyword: {"type": "string"}}
    for schema, place in (
        (bad, r"f: parameters:"),
        ({"properties": {"a": bad}}, r"f: parameters\.properties\.a:"),
        ({"anyOf": [{}, {"items": [bad]}]}, r"f: parameters\.anyOf\[1\]\.items\[0\]:"),
        ({"additionalProperties": bad}, r"f: parameters\.additionalProperties:"),
        ({"$defs": {"x": bad}}, r"f: parameters\.\$defs\.x:"),
    ):
        with pytest.raises(RequestError, match=place) as refusal:
            for_grammar(schema, "f: parameters")
        assert f" keyword {keyword};" in str(refusal.value)


def test_literals_are_no_schemas() -> None:
    schema = {"enum": [{"not": 1}], "const": {"if": 2}, "default": {"not": {}}, "examples": [{}]}
    assert for_grammar(schema, "x").items() >= schema.items()


def test_what_asserts_nothing_is_left_out_and_the_rest_stays() -> None:
    schema = {
        "items": {"type": "string", "format": "color"},
        "prefixItems": [{"type": "string", "format": "date"}],
        "uniqueItems": False,
        "x-guidance": {"lenient": True},
        "title": "t",
    }
    prepared = for_grammar(schema, "x")
    assert prepared["items"] == {"type": "string"}
    assert prepared["prefixItems"] == [{"type": "string", "format": "date"}]
    assert "uniqueItems" not in prepared and "lenient" not in prepared["x-guidance"]
    assert schema["uniqueItems"] is False, "the caller's own schema is left as it was"


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (None, False),
        ({}, None),
        ({"type": "object"}, None),
        ({"properties": {"a": {}}}, False),
        ({"type": ["object", "null"], "properties": {"a": {}}}, False),
        ({"properties": {"a": {}}, "additionalProperties": True}, True),
        ({"properties": {"a": {}}, "required": ["a", "b"]}, None),
        ({"properties": {"a": {}}, "allOf": [{"properties": {"b": {}}}]}, None),
        ({"properties": {"a": {}}, "patternProperties": {"^x": {}}}, None),
    ],
)
def test_listed_arguments_are_all_there_are(schema: dict[str, Any] | None, closed: Any) -> None:
    prepared = for_arguments(schema, "x")
    assert prepared["type"] == "object"
    assert prepared.get("additionalProperties") is closed


def test_a_schema_that_is_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(RequestError, match="nested too deeply"):
        for_grammar(schema, "x")

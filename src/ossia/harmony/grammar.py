"""One grammar for a whole turn of the assistant, as text for llguidance: any reasoning, legal
headers only, calls only to offered tools with arguments of their schema, an answer of a given form.

The text is a pure function of the options. Control tokens stand in it by their spelling, so that it
fits any vocabulary; what a model writes as text can never be one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum

from ossia.errors import RequestError
from ossia.harmony.json_schema import Schema, for_arguments, for_grammar
from ossia.harmony.messages import Channel, ResponseFormat, ToolNamespace
from ossia.harmony.offered import FUNCTIONS, OfferedTools, clean_recipient


class ToolChoice(StrEnum):
    AUTO = "auto"
    NONE = "none"
    """The turn ends with an answer."""
    REQUIRED = "required"
    """The turn ends with a call."""


@dataclass(frozen=True)
class NamedTool:
    """The turn ends with a call of this tool; `functions.` may be left out."""

    name: str


@dataclass(frozen=True)
class JsonSchemaFormat:
    """The answer is JSON that satisfies the schema, with nothing around it."""

    schema: Schema | bool
    name: str = "response"
    description: str = ""
    """With the name and the schema, what the model is shown of it."""


@dataclass(frozen=True)
class JsonObjectFormat:
    """The answer is any JSON object."""


@dataclass(frozen=True)
class RegexFormat:
    """The whole answer matches, in the syntax of Rust's `regex` without look-around."""

    pattern: str


@dataclass(frozen=True)
class LarkFormat:
    """The answer follows a Lark grammar of its own, whose first rule is `start`."""

    grammar: str


OutputFormat = JsonSchemaFormat | JsonObjectFormat | RegexFormat | LarkFormat


class Opening(Enum):
    """What the prompt ends with, after which the grammar begins."""

    ASSISTANT = "<|start|>assistant"
    FINAL = "<|start|>assistant<|channel|>final<|message|>"
    """No reasoning: only the answer is left to write."""
    NOTHING = ""
    """The model writes `<|start|>assistant` itself."""


@dataclass(frozen=True)
class TurnOptions:
    tools: tuple[ToolNamespace, ...] = ()
    tool_choice: ToolChoice | NamedTool = ToolChoice.AUTO
    allowed_tools: tuple[str, ...] | None = None
    """Of those in `tools`, the ones that may be called; None = all."""
    parallel_tool_calls: bool = False
    """A call may be followed by further ones. gpt-oss ends a generation with each `<|call|>`, so
    this takes effect only where a request leaves `<|call|>` out of its stop tokens."""
    strict: bool = True
    """Arguments satisfy their schema; otherwise they are any JSON object."""
    output_format: OutputFormat | None = None
    """None = free text."""
    opening: Opening = Opening.ASSISTANT

    @property
    def must_call(self) -> bool:
        """Whether the turn can end with a call only."""
        return self.tool_choice not in (ToolChoice.AUTO, ToolChoice.NONE)


@dataclass(frozen=True)
class Grammar:
    text: str
    """What llguidance compiles: its JSON form, with Lark text inside."""
    parts: tuple[tuple[str, str], ...] = ()
    """What the application wrote: where, and a grammar of that alone. When the whole cannot be
    compiled, one of these tells why."""


def turn_grammar(options: TurnOptions) -> Grammar:
    """Raises RequestError for options that contradict each other, and for a schema or a grammar
    that cannot be enforced.
    """
    tools = _callable_tools(options)
    writer = _Writer()
    if options.tool_choice is ToolChoice.AUTO:
        ends = [writer.final(options.output_format)] + (["call"] if tools else [])
    elif options.tool_choice is ToolChoice.NONE:
        ends = [writer.final(options.output_format)]
    else:
        ends = ["call"]
    if options.opening is Opening.FINAL:
        if "final" not in ends:
            raise RequestError("A turn that begins with its answer cannot be asked for a call.")
        writer.rule("start", "answer <|return|>")
    else:
        if "call" in ends:
            writer.calls(tools, strict=options.strict)
            if options.parallel_tool_calls:
                ends[-1] = f"call ({_START} call)*"
        opening = f"{_START} " if options.opening is Opening.NOTHING else ""
        # A model that would rather answer goes on thinking for ever when it may only call.
        before = (
            f"(analysis {_START} | preamble {_START})*"
            if "final" in ends
            else f"(analysis {_START})? (preamble {_START})?"
        )
        writer.rule("start", f"{opening}{before} ({' | '.join(ends)})")
        writer.rule("analysis", '<|channel|> "analysis" <|message|> TEXT <|end|>')
        writer.rule("preamble", '<|channel|> "commentary" <|message|> TEXT <|end|>')
        writer.rule("TEXT", "/(?s:.*)/")
    return writer.grammar()


def tool_choice_of(choice: ToolChoice | NamedTool | str) -> ToolChoice | NamedTool:
    """A word of `ToolChoice`, or else a tool by its name."""
    if isinstance(choice, NamedTool):
        return choice
    return ToolChoice(choice) if choice in [*ToolChoice] else NamedTool(choice)


def shown_formats(output_format: OutputFormat | None) -> tuple[ResponseFormat, ...]:
    """What the model is shown of it under `# Response Formats`, as trained."""
    if isinstance(output_format, JsonSchemaFormat) and isinstance(output_format.schema, Mapping):
        schema = output_format.schema
        return (ResponseFormat(output_format.name, schema, output_format.description),)
    return ()


def output_grammar(output_format: OutputFormat) -> Grammar:
    """A grammar for text alone, with no turn around it: for raw completions."""
    writer = _Writer()
    writer.final(output_format)
    writer.rule("start", "answer")
    return writer.grammar()


_START = '<|start|> "assistant"'

# Beside a recipient. The models write the marker with and without a blank before it, and, after
# OpenAI's chat template, the bare word.
_JSON_TYPE = '" "? <|constrain|> "json" | " json"'
_CODE_TYPE = '" code"'


@dataclass(frozen=True)
class _CallableTool:
    recipient: str
    channels: tuple[Channel, ...]
    parameters: Schema | None
    raw_text: bool = False


class _Writer:
    """Rules as they are written, and the grammars they refer to by name."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}
        self._named: list[dict[str, str]] = []
        self._parts: list[tuple[str, str]] = []

    def rule(self, name: str, body: str) -> None:
        self._rules[name] = body

    def final(self, output_format: OutputFormat | None) -> str:
        """The rules of the answer."""
        self.rule("final", '<|channel|> "final" <|message|> answer <|return|>')
        where = "response_format"
        match output_format:
            case None:
                self.rule("answer", "/(?s:.+)/")
            case JsonObjectFormat():
                self.rule("answer", self._json({"type": "object"}, where))
            case JsonSchemaFormat(schema=schema):
                self.rule("answer", self._json(for_grammar(schema, where), where))
            case RegexFormat(pattern):
                self.rule("answer", _regex(pattern))
                self._parts.append((where, _lark({"start": _regex(pattern)})))
            case LarkFormat(grammar):
                _check_lark(grammar)
                self.rule("answer", "@answer")
                self._named.append({"name": "answer", "lark_grammar": grammar})
                self._parts.append((where, grammar))
        return "final"

    def calls(self, tools: list[_CallableTool], *, strict: bool) -> None:
        """The rules of calls. The recipient stands after the author, where it is rendered, or after
        the channel, where the models usually write it.
        """
        by_author: list[str] = []
        by_channel: dict[Channel, list[str]] = {}
        for i, tool in enumerate(tools):
            recipient = _literal(tool.recipient)
            if tool.raw_text:
                self.rule(f"args_{i}", "/(?s:.+)/")
            elif strict:
                schema = for_arguments(tool.parameters, f"{tool.recipient}: parameters")
                self.rule(f"args_{i}", self._json(schema, tool.recipient))
            else:
                self.rule(f"args_{i}", self._json(for_grammar({"type": "object"}, ""), ""))
            content_type = "code_type" if tool.raw_text else "json_type"
            self.rule(f"rest_{i}", f"{content_type} <|message|> args_{i} <|call|>")
            for channel in tool.channels:
                by_author.append(f"{recipient} <|channel|> {_literal(channel)} rest_{i}")
                by_channel.setdefault(channel, []).append(f"{recipient} rest_{i}")
        heads = [f'" to=" ({" | ".join(by_author)})'] + [
            f'<|channel|> {_literal(channel)} " to=" ({" | ".join(alternatives)})'
            for channel, alternatives in by_channel.items()
        ]
        self.rule("call", " | ".join(heads))
        if any(tool.raw_text for tool in tools):
            self.rule("code_type", _CODE_TYPE)
        if not all(tool.raw_text for tool in tools):
            self.rule("json_type", _JSON_TYPE)

    def grammar(self) -> Grammar:
        top = {"lark_grammar": _lark_text(self._rules)}
        text = json.dumps({"grammars": [top, *self._named]}, ensure_ascii=False)
        return Grammar(text, tuple(self._parts))

    def _json(self, schema: Schema, where: str) -> str:
        body = f"%json {json.dumps(schema, ensure_ascii=False)}"
        if where:
            self._parts.append((where, _lark({"start": body})))
        return body


def _lark_text(rules: dict[str, str]) -> str:
    return "".join(f"{name}: {body}\n" for name, body in rules.items())


def _lark(rules: dict[str, str]) -> str:
    return json.dumps({"grammars": [{"lark_grammar": _lark_text(rules)}]}, ensure_ascii=False)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


# -- Tools ----------------------------------------------------------------------------------------


def _callable_tools(options: TurnOptions) -> list[_CallableTool]:
    """The tools that the turn may end with a call of."""
    offered = OfferedTools(options.tools)
    tools = {tool.recipient: tool for tool in _tools(options.tools)}

    def recipient(name: str, option: str) -> str:
        tool = offered.exactly(name)
        if tool is None:
            names = ", ".join(tools) or "none"
            raise RequestError(f"{option} names {name!r}, which is not offered; offered: {names}.")
        return tool.recipient

    if options.allowed_tools is not None:
        allowed = {recipient(name, "allowed_tools") for name in options.allowed_tools}
        tools = {name: tool for name, tool in tools.items() if name in allowed}
    choice = options.tool_choice
    if isinstance(choice, NamedTool):
        name = recipient(choice.name, "tool_choice")
        if name not in tools:
            raise RequestError(
                f"tool_choice names {choice.name!r}, which allowed_tools leaves out."
            )
        return [tools[name]]
    if choice is ToolChoice.REQUIRED and not tools:
        raise RequestError("tool_choice is 'required', but no tool may be called.")
    return list(tools.values())


def _tools(namespaces: tuple[ToolNamespace, ...]) -> Iterator[_CallableTool]:
    """Application's functions are called on commentary; trained tools also while reasoning."""
    for namespace in namespaces:
        is_own = namespace.name == FUNCTIONS
        channels = (Channel.COMMENTARY,) if is_own else (Channel.ANALYSIS, Channel.COMMENTARY)
        if not namespace.tools:
            yield _CallableTool(_sound(namespace.name), channels, None, raw_text=True)
        for tool in namespace.tools:
            recipient = _sound(f"{namespace.name}.{tool.name}")
            yield _CallableTool(recipient, channels, tool.parameters)


def _sound(recipient: str) -> str:
    """The name, if a header can hold it and it is read back as it is."""
    if re.search(r"[\s{\[(\"<]", recipient) or clean_recipient(recipient) != recipient:
        raise RequestError(
            f"A tool named {recipient!r} cannot stand in a message's header; use letters, digits, "
            "`_`, `-` and single dots."
        )
    return recipient


# -- Formats that are grammars themselves ---------------------------------------------------------


def _regex(pattern: str) -> str:
    """As Lark spells it, between slashes. The group keeps an empty pattern from being a comment."""
    escaped = re.sub(r"(\\.)|/", lambda m: m[1] or r"\/", pattern, flags=re.DOTALL)
    return f"/(?:{escaped})/".replace("\n", r"\n")


# What may hold any character: strings, regular expressions, comments.
_QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?![/*])(?:\\.|[^/\\\n])+/|(?://|#)[^\n]*')
_FOREIGN = (
    (re.compile(r"<"), "control tokens (<…>), of which an answer holds none"),
    (re.compile(r"%llguidance"), "options of llguidance"),
    (re.compile(r"\b(?:max_tokens|temperature|stop)\s*="), "max_tokens, temperature and stop"),
    (re.compile(r"(?<!\w)@"), "references to other grammars"),
)


def _check_lark(grammar: str) -> None:
    """Refuses what would reach out of the answer, or what cannot be rolled back."""
    bare = _QUOTED.sub(" ", grammar)
    for pattern, what in _FOREIGN:
        if pattern.search(bare):
            raise RequestError(f"response_format: a Lark grammar must do without {what}.")

"""Conversations as values: what `render` turns into tokens and what the parser makes of a
completion.

`Conversation.from_json` and `to_json` (at the end) speak openai-harmony's own JSON form, so that
data moves between the two; whatever that form does not know is refused, not ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn, TypeVar, cast

from ossia.errors import ConversationError


class Role(StrEnum):
    """Who speaks. Instructions rank system > developer > user > assistant > tool."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Channel(StrEnum):
    """The channels of the trained system message. A message may name another one; it is then an
    ordinary string.
    """

    ANALYSIS = "analysis"
    COMMENTARY = "commentary"
    FINAL = "final"


class Effort(StrEnum):
    """How long the model reasons: the `Reasoning:` line of the system message."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


@dataclass(frozen=True)
class Tool:
    """A function offered to the model. `parameters` is a JSON schema, or None for a function
    without arguments.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ToolNamespace:
    """Tools that share a prefix: `functions`, `browser`, or a bare tool such as `python`
    (description only).
    """

    name: str
    description: str | None = None
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True)
class TextContent:
    text: str


@dataclass(frozen=True)
class SystemContent:
    """The system message as trained; every field may be None to leave its line out."""

    model_identity: str | None = "You are ChatGPT, a large language model trained by OpenAI."
    reasoning_effort: Effort | None = Effort.MEDIUM
    knowledge_cutoff: str | None = "2024-06"
    conversation_start_date: str | None = None
    valid_channels: tuple[str, ...] | None = ("analysis", "commentary", "final")
    channel_required: bool = True
    tools: tuple[ToolNamespace, ...] = ()


@dataclass(frozen=True)
class ResponseFormat:
    """A schema shown to the model under `# Response Formats`, as trained."""

    name: str
    schema: Mapping[str, Any]
    description: str = ""


@dataclass(frozen=True)
class DeveloperContent:
    """Instructions of the application ("system prompt" elsewhere), its function tools and response
    formats.
    """

    instructions: str | None = None
    tools: tuple[ToolNamespace, ...] = ()
    response_formats: tuple[ResponseFormat, ...] = ()


Content = TextContent | SystemContent | DeveloperContent


@dataclass(frozen=True)
class Message:
    """One message. For a tool's output `role` is TOOL and `name` the tool's full name, such as
    `functions.get_weather`.
    """

    role: Role
    content: tuple[Content, ...]
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None

    @classmethod
    def of_text(
        cls,
        role: Role,
        text: str,
        *,
        name: str | None = None,
        channel: str | None = None,
        recipient: str | None = None,
        content_type: str | None = None,
    ) -> Message:
        return cls(role, (TextContent(text),), name, channel, recipient, content_type)

    @property
    def text(self) -> str:
        """The text contents, concatenated as rendering does; empty for system and developer
        contents.
        """
        return "".join(part.text for part in self.content if isinstance(part, TextContent))


@dataclass(frozen=True)
class Conversation:
    messages: tuple[Message, ...] = ()

    @classmethod
    def from_json(cls, text: str | bytes) -> Conversation:
        """Reads what openai-harmony 0.0.8's `Conversation.to_json` writes: `{"messages": […]}`.

        As in that library's renderer, an absent field of a system content leaves its line out; it
        does not bring the default back. `response_formats` of a developer content is our addition.
        Raises ConversationError, naming the message's index and the field.
        """
        return cls.from_dict(parse_json(text))

    @classmethod
    def from_dict(cls, document: Any) -> Conversation:
        """`from_json` for JSON that is already read."""
        top = _Object(document, "")
        messages = top.take("messages", _list_of(_read_message))
        top.refuse_the_rest()
        return cls(messages)

    def to_json(self) -> str:
        """The form that `from_json` and openai-harmony read, in the latter's own spelling."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """`to_json` as plain dicts and lists."""
        return {"messages": [_write_message(message) for message in self.messages]}


# -- Writing JSON ---------------------------------------------------------------------------------


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _write_message(message: Message) -> dict[str, Any]:
    optional = _without_none(
        {
            "channel": message.channel,
            "recipient": message.recipient,
            "content_type": message.content_type,
        }
    )
    content = [_write_content(part) for part in message.content]
    return {"role": str(message.role), "name": message.name, "content": content} | optional


def _write_content(part: Content) -> dict[str, Any]:
    match part:
        case TextContent():
            return {"type": "text", "text": part.text}
        case SystemContent():
            effort, channels = part.reasoning_effort, part.valid_channels
            fields = {
                "model_identity": part.model_identity,
                "reasoning_effort": None if effort is None else effort.value.capitalize(),
                "conversation_start_date": part.conversation_start_date,
                "knowledge_cutoff": part.knowledge_cutoff,
                "channel_config": None
                if channels is None
                else {"valid_channels": [*channels], "channel_required": part.channel_required},
                "tools": _write_tools(part.tools),
            }
            return _without_none(fields) | {"type": "system_content"}
        case DeveloperContent():
            fields = {
                "instructions": part.instructions,
                "tools": _write_tools(part.tools),
                "response_formats": [
                    {"name": f.name, "description": f.description, "schema": dict(f.schema)}
                    for f in part.response_formats
                ]
                or None,
            }
            return _without_none(fields) | {"type": "developer_content"}


def _write_tools(namespaces: tuple[ToolNamespace, ...]) -> dict[str, Any] | None:
    return {ns.name: _write_namespace(ns) for ns in namespaces} or None


def _write_namespace(namespace: ToolNamespace) -> dict[str, Any]:
    tools = [
        _without_none(
            {
                "name": tool.name,
                "description": tool.description,
                "parameters": None if tool.parameters is None else dict(tool.parameters),
            }
        )
        for tool in namespace.tools
    ]
    return _without_none({"name": namespace.name, "description": namespace.description}) | {
        "tools": tools
    }


# -- Reading JSON ---------------------------------------------------------------------------------


def parse_json(text: str | bytes) -> Any:
    """`json.loads` that also refuses what JSON has not: NaN, and a key that stands twice."""
    try:
        return json.loads(
            text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicates
        )
    except RecursionError:
        raise ConversationError("The JSON is nested too deeply.") from None
    except ValueError as error:  # UnicodeDecodeError among them
        raise ConversationError(f"This is not JSON: {error}.") from error


_T = TypeVar("_T")
_Reader = Callable[[Any, str], _T]
"""Turns a JSON value into ours; the second argument says where it stands, for the error."""


def _refuse(where: str, expected: str, value: object) -> NoReturn:
    shown = json.dumps(value, ensure_ascii=False, default=repr)
    if len(shown) > 60:
        shown = f"{shown[:57]}..."
    raise ConversationError(f"{where or 'The conversation'}: expected {expected}, got {shown}.")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object has the key {max(keys, key=keys.count)!r} twice")
    return fields


class _Object:
    """A JSON object whose fields are taken one by one, so that what nobody took can be refused."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            _refuse(where, "an object", value)
        self._fields = dict(cast("dict[str, Any]", value))
        self._where = where

    def path(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def take(self, key: str, read: _Reader[_T]) -> _T:
        if key not in self._fields:
            raise ConversationError(f"{self.path(key)} is missing.")
        return read(self._fields.pop(key), self.path(key))

    def take_optional(self, key: str, read: _Reader[_T]) -> _T | None:
        value = self._fields.pop(key, None)
        return None if value is None else read(value, self.path(key))

    def refuse_the_rest(self) -> None:
        for key in self._fields:
            raise ConversationError(f"{self.path(key)} is not a field of openai-harmony's form.")


def _read_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        _refuse(where, "a string", value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            _refuse(where, "Unicode text", value.encode(errors="backslashreplace").decode())
    return value


def _read_bool(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        _refuse(where, "true or false", value)
    return value


def _read_schema(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        _refuse(where, "a JSON schema (an object)", value)
    schema = cast("dict[str, Any]", value)
    try:
        _read_text(json.dumps(schema, ensure_ascii=False, allow_nan=False), where)
    except RecursionError:
        raise ConversationError(f"{where} is nested too deeply.") from None
    except (TypeError, ValueError) as error:
        if isinstance(error, ConversationError):
            raise
        raise ConversationError(f"{where} is not JSON: {error}.") from None
    return schema


def _list_of(read: _Reader[_T]) -> _Reader[tuple[_T, ...]]:
    def read_list(value: Any, where: str) -> tuple[_T, ...]:
        if not isinstance(value, list):
            _refuse(where, "a list", value)
        items = cast("list[Any]", value)
        return tuple(read(item, f"{where}[{i}]") for i, item in enumerate(items))

    return read_list


def _read_role(value: Any, where: str) -> Role:
    if value not in [role.value for role in Role]:
        _refuse(where, "one of " + ", ".join(role.value for role in Role), value)
    return Role(value)


def _read_effort(value: Any, where: str) -> Effort:
    if value not in ("Low", "Medium", "High"):
        _refuse(where, '"Low", "Medium" or "High"', value)
    return Effort(value.lower())


def _read_tool(value: Any, where: str) -> Tool:
    fields = _Object(value, where)
    tool = Tool(
        fields.take("name", _read_text),
        fields.take("description", _read_text),
        fields.take_optional("parameters", _read_schema),
    )
    fields.refuse_the_rest()
    return tool


def _read_namespace(value: Any, where: str) -> ToolNamespace:
    fields = _Object(value, where)
    namespace = ToolNamespace(
        fields.take("name", _read_text),
        fields.take_optional("description", _read_text),
        fields.take("tools", _list_of(_read_tool)),
    )
    fields.refuse_the_rest()
    return namespace


def _read_tools(value: Any, where: str) -> tuple[ToolNamespace, ...]:
    if not isinstance(value, dict):
        _refuse(where, "an object of tool namespaces", value)
    namespaces: list[ToolNamespace] = []
    for key, item in cast("dict[str, Any]", value).items():
        namespace = _read_namespace(item, f"{where}.{key}")
        if namespace.name != key:
            _refuse(f"{where}.{key}.name", f"its key {key!r}", namespace.name)
        namespaces.append(namespace)
    return tuple(namespaces)


def _read_response_format(value: Any, where: str) -> ResponseFormat:
    fields = _Object(value, where)
    response_format = ResponseFormat(
        name=fields.take("name", _read_text),
        schema=fields.take("schema", _read_schema),
        description=fields.take_optional("description", _read_text) or "",
    )
    fields.refuse_the_rest()
    return response_format


def _read_channel_config(value: Any, where: str) -> tuple[tuple[str, ...], bool]:
    fields = _Object(value, where)
    channels = fields.take("valid_channels", _list_of(_read_text))
    required = fields.take("channel_required", _read_bool)
    fields.refuse_the_rest()
    return channels, required


def _read_content(value: Any, where: str) -> Content:
    fields = _Object(value, where)
    kind = fields.take("type", _read_text)
    content: Content
    match kind:
        case "text":
            content = TextContent(fields.take("text", _read_text))
        case "system_content":
            channels = fields.take_optional("channel_config", _read_channel_config)
            content = SystemContent(
                model_identity=fields.take_optional("model_identity", _read_text),
                reasoning_effort=fields.take_optional("reasoning_effort", _read_effort),
                knowledge_cutoff=fields.take_optional("knowledge_cutoff", _read_text),
                conversation_start_date=fields.take_optional("conversation_start_date", _read_text),
                valid_channels=None if channels is None else channels[0],
                channel_required=True if channels is None else channels[1],
                tools=fields.take_optional("tools", _read_tools) or (),
            )
        case "developer_content":
            formats = fields.take_optional("response_formats", _list_of(_read_response_format))
            content = DeveloperContent(
                instructions=fields.take_optional("instructions", _read_text),
                tools=fields.take_optional("tools", _read_tools) or (),
                response_formats=formats or (),
            )
        case _:
            _refuse(f"{where}.type", '"text", "system_content" or "developer_content"', kind)
    fields.refuse_the_rest()
    return content


def _read_message(value: Any, where: str) -> Message:
    fields = _Object(value, where)

    def read_contents(content: Any, at: str) -> tuple[Content, ...]:
        # The library's Rust side writes a single text as a plain string.
        if isinstance(content, str):
            return (TextContent(_read_text(content, at)),)
        return _list_of(_read_content)(content, at)

    message = Message(
        role=fields.take("role", _read_role),
        content=fields.take("content", read_contents),
        name=fields.take_optional("name", _read_text),
        channel=fields.take_optional("channel", _read_text),
        recipient=fields.take_optional("recipient", _read_text),
        content_type=fields.take_optional("content_type", _read_text),
    )
    fields.refuse_the_rest()
    return message

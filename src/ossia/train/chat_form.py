"""A conversation in the form that chat APIs and fine-tuning data have (`messages`, `tools`,
`reasoning_effort`, `date`) into a Harmony `Conversation`, as gpt-oss's own chat template reads it.

What that form calls a system message is Harmony's developer message; Harmony's system message
stands before it. Several calls in one message become one after another, each followed by its
result, for Harmony ends the model's turn at a call.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ossia.errors import ConversationError
from ossia.harmony.messages import (
    Channel,
    Conversation,
    DeveloperContent,
    Effort,
    Message,
    Role,
    SystemContent,
    Tool,
    ToolNamespace,
    parse_json,
)

FUNCTIONS = "functions"
"""The namespace of function tools."""

COPIES = frozenset({"reasoning_language", "developer", "user", "analysis", "final"})
"""Columns in which Multilingual-Thinking repeats what stands in `messages`; strings, not read."""

_TOP = frozenset({"messages", "tools", "reasoning_effort", "date", "parallel_tool_calls"})
_REASONING = ("thinking", "reasoning", "reasoning_content")
_KEYS = {
    Role.SYSTEM: frozenset({"role", "content"}),
    Role.DEVELOPER: frozenset({"role", "content"}),
    Role.USER: frozenset({"role", "content"}),
    Role.ASSISTANT: frozenset({"role", "content", "tool_calls", "weight", *_REASONING}),
    Role.TOOL: frozenset({"role", "content", "tool_call_id", "name"}),
}
_ALL_KEYS = frozenset[str]().union(*_KEYS.values())

_RENDERED = re.compile(r"<\|(?:start|channel|message|end|return|call)\|>")


def read_chat(document: Mapping[str, Any], *, identity: str | None) -> Conversation:
    """The conversation in `document`; `identity` is the first line of its system message.

    A null is the same as a missing key. Raises ConversationError, naming the field and the mend.
    """
    _refuse_unknown(document, _TOP | COPIES, "")
    for key in COPIES & document.keys():
        _optional_text(document[key], key)
    parallel = document.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        _refuse("parallel_tool_calls", "true or false", parallel)
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        _refuse("messages", "a list with at least one message", messages)
    tools = _read_tools(document.get("tools"))
    system = SystemContent(
        model_identity=identity,
        reasoning_effort=_read_effort(document.get("reasoning_effort")),
        conversation_start_date=_read_date(document.get("date")),
    )
    head = [Message(Role.SYSTEM, (system,))]
    first, instructions = 0, None
    if isinstance(messages[0], dict) and messages[0].get("role") in (Role.SYSTEM, Role.DEVELOPER):
        _check_keys(messages[0], Role(messages[0]["role"]), "messages[0]")
        instructions = _read_text(messages[0].get("content"), "messages[0].content")
        first = 1
    if instructions is not None or tools:
        namespaces = (ToolNamespace(FUNCTIONS, tools=tools),) if tools else ()
        head.append(Message(Role.DEVELOPER, (DeveloperContent(instructions, namespaces),)))
    turns = _Turns({tool.name for tool in tools})
    for i in range(first, len(messages)):
        turns.add(messages[i], f"messages[{i}]")
    return Conversation((*head, *turns.finish()))


@dataclass
class _Call:
    """A call, and its result once it has come."""

    id: str | None
    name: str
    message: Message
    result: Message | None = None


class _Turns:
    """The messages after the instructions, as they are read; calls wait for their results."""

    def __init__(self, offered: set[str]) -> None:
        self._offered = offered
        self._messages: list[Message] = []
        self._calls: list[_Call] = []
        self._calls_at = ""

    def add(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            _refuse(where, "an object with `role` and `content`", value)
        role = _read_role(value.get("role"), f"{where}.role")
        _check_keys(value, role, where)
        if role != Role.TOOL:
            self._close_calls(at_end=False)
        match role:
            case Role.SYSTEM | Role.DEVELOPER:
                raise ConversationError(
                    f"{where}: a {role} message has to be the first one; join it with the first, "
                    "or take it out."
                )
            case Role.USER:
                text = _read_text(value.get("content"), f"{where}.content")
                self._messages.append(Message.of_text(Role.USER, text))
            case Role.ASSISTANT:
                self._add_assistant(value, where)
            case Role.TOOL:
                self._add_result(value, where)

    def finish(self) -> Sequence[Message]:
        self._close_calls(at_end=True)
        return self._messages

    def _add_assistant(self, value: Mapping[str, Any], where: str) -> None:
        weight = value.get("weight")
        if weight is not None and (isinstance(weight, bool) or weight != 1):
            raise ConversationError(
                f"{where}.weight: expected 1, got {_shown(weight)}; the loss falls on all that the "
                "assistant says. To leave a message out of it, end the conversation before it."
            )
        reasoning = _read_reasoning(value, where)
        content = value.get("content")
        text = "" if content is None else _assistant_text(content, f"{where}.content")
        calls = _read_calls(value.get("tool_calls"), f"{where}.tool_calls", self._offered)
        if not text and not calls:
            raise ConversationError(
                f"{where}: the assistant's message has neither content nor tool_calls; give it one "
                "of the two, or take it out."
            )
        if reasoning:
            self._say(reasoning, Channel.ANALYSIS)
        if text:  # beside a call: what it says to the user before it calls
            self._say(text, Channel.COMMENTARY if calls else Channel.FINAL)
        self._calls, self._calls_at = calls, where

    def _say(self, text: str, channel: Channel) -> None:
        self._messages.append(Message.of_text(Role.ASSISTANT, text, channel=channel))

    def _add_result(self, value: Mapping[str, Any], where: str) -> None:
        call = self._answered(value, where)
        call.result = Message.of_text(
            Role.TOOL,
            _read_text(value.get("content"), f"{where}.content"),
            name=f"{FUNCTIONS}.{call.name}",
            recipient="assistant",
            channel=Channel.COMMENTARY,
        )

    def _answered(self, value: Mapping[str, Any], where: str) -> _Call:
        """The call that a result belongs to: by its id, else by name, else the only one."""
        call_id = _optional_text(value.get("tool_call_id"), f"{where}.tool_call_id")
        name = _optional_text(value.get("name"), f"{where}.name")
        waiting = [call for call in self._calls if call.result is None]
        if call_id is not None:
            found = [call for call in waiting if call.id == call_id]
        elif name is not None:
            found = [call for call in waiting if call.name == name][:1]
        else:
            found = waiting
        if len(found) != 1:
            given = {"tool_call_id": call_id, "name": name}
            shown = ", ".join(f"{key} {_shown(v)}" for key, v in given.items() if v is not None)
            raise ConversationError(
                f"{where}: this tool result ({shown or 'without tool_call_id'}) "
                + ("may belong to several calls" if len(found) > 1 else "has no call before it")
                + "; give it the id of a call in the assistant's message right before, which has "
                "no result yet, or take it out."
            )
        if name is not None and name != found[0].name:
            _refuse(f"{where}.name", f"the name of the called function, {found[0].name!r}", name)
        return found[0]

    def _close_calls(self, *, at_end: bool) -> None:
        unanswered = [call for call in self._calls if call.result is None]
        if unanswered and not (at_end and len(self._calls) == 1):
            raise ConversationError(
                f"{self._calls_at}.tool_calls: the call of {unanswered[0].name!r} has no result; "
                "add a tool message with it, or take the call out. (Only a single call at the end "
                "of a conversation may stay without.)"
            )
        for call in self._calls:
            self._messages.append(call.message)
            if call.result is not None:
                self._messages.append(call.result)
        self._calls = []


# -- Fields ---------------------------------------------------------------------------------------


def _read_reasoning(value: Mapping[str, Any], where: str) -> str:
    given = [key for key in _REASONING if value.get(key)]
    if len(given) > 1:
        raise ConversationError(
            f"{where}: {' and '.join(given)} both hold the reasoning; keep one of them."
        )
    return _assistant_text(value[given[0]], f"{where}.{given[0]}") if given else ""


def _read_calls(value: Any, where: str, offered: set[str]) -> list[_Call]:
    if value is None:
        return []
    if not isinstance(value, list):
        _refuse(where, "a list of calls", value)
    calls = [_read_call(item, f"{where}[{i}]", offered) for i, item in enumerate(value)]
    ids = [call.id for call in calls if call.id is not None]
    if len(set(ids)) < len(ids):
        raise ConversationError(f"{where}: two calls share an id; every call needs its own.")
    return calls


def _read_call(value: Any, where: str, offered: set[str]) -> _Call:
    function = _function(value, where, {"id", "type", "function"}, {"name", "arguments"})
    name = _read_text(function.get("name"), f"{where}.function.name")
    if name not in offered:
        raise ConversationError(
            f"{where}.function.name: {name!r} is not among the conversation's `tools`; declare the "
            "function there, or the model learns to call what nobody offered."
        )
    message = Message.of_text(
        Role.ASSISTANT,
        _read_arguments(function.get("arguments"), f"{where}.function.arguments"),
        channel=Channel.COMMENTARY,
        recipient=f"{FUNCTIONS}.{name}",
        content_type="<|constrain|>json",
    )
    return _Call(_optional_text(value.get("id"), f"{where}.id"), name, message)


def _read_arguments(value: Any, where: str) -> str:
    """The text the model has to write: a string as it is, an object written out."""
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    expected = 'a JSON object, or a string that holds one such as "{}"'
    if not isinstance(value, str):
        _refuse(where, expected, value)
    try:
        parsed = parse_json(value)
    except ConversationError:
        parsed = None
    if not isinstance(parsed, dict):
        _refuse(where, expected, value)
    return value


def _read_tools(value: Any) -> tuple[Tool, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        _refuse("tools", "a list of function tools", value)
    tools: list[Tool] = []
    for i, item in enumerate(value):
        where = f"tools[{i}]"
        known = {"name", "description", "parameters", "strict"}
        function = _function(item, where, {"type", "function"}, known)
        strict = function.get("strict")  # how an API samples the call; the model is not told
        if strict is not None and not isinstance(strict, bool):
            _refuse(f"{where}.function.strict", "true or false", strict)
        parameters = function.get("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            _refuse(f"{where}.function.parameters", "a JSON schema (an object)", parameters)
        name = _read_text(function.get("name"), f"{where}.function.name")
        if name in {tool.name for tool in tools}:
            raise ConversationError(f"{where}: the function {name!r} is declared twice; keep one.")
        described = _optional_text(function.get("description"), f"{where}.function.description")
        tools.append(Tool(name, described or "", parameters))
    return tuple(tools)


def _function(value: Any, where: str, outer: set[str], inner: set[str]) -> Mapping[str, Any]:
    """The `function` of a call or a tool: `{"type": "function", "function": {…}}`."""
    if not isinstance(value, dict) or not isinstance(value.get("function"), dict):
        _refuse(where, 'an object such as {"type": "function", "function": {…}}', value)
    _refuse_unknown(value, outer, where)
    if value.get("type") not in (None, "function"):
        _refuse(f"{where}.type", '"function"', value["type"])
    _refuse_unknown(value["function"], inner, f"{where}.function")
    return value["function"]


def _check_keys(value: Mapping[str, Any], role: Role, where: str) -> None:
    """A null in a column that another role has is what tables are filled up with."""
    _refuse_unknown(value, _ALL_KEYS, where)
    for key in value.keys() - _KEYS[role]:
        if value[key] is not None and value[key] != []:
            raise ConversationError(
                f"{where}.{key}: a {role} message has no {key}; take it out or set it to null."
            )


def _read_role(value: Any, where: str) -> Role:
    if not isinstance(value, str) or value not in set(Role):
        _refuse(where, "one of " + ", ".join(Role), value)
    return Role(value)


def _read_effort(value: Any) -> Effort:
    if value is None:
        return Effort.MEDIUM
    if not isinstance(value, str) or value not in set(Effort):
        _refuse("reasoning_effort", "low, medium or high", value)
    return Effort(value)


def _read_date(value: Any) -> str | None:
    if value is None:
        return None
    try:
        datetime.date.fromisoformat(value)
    except (TypeError, ValueError):
        _refuse("date", "a date such as 2026-01-31", value)
    return value


def _assistant_text(value: Any, where: str) -> str:
    text = _read_text(value, where)
    found = _RENDERED.search(text)
    if found is not None:
        raise ConversationError(
            f"{where} spells the control token {found[0]}; rendering writes those. Give the plain "
            "text, with the reasoning in `thinking`."
        )
    return text


def _read_text(value: Any, where: str) -> str:
    """A string, or a list of text parts, joined."""
    if isinstance(value, list):
        texts: list[str] = []
        for i, part in enumerate(value):
            at = f"{where}[{i}]"
            if not isinstance(part, dict) or part.get("type") != "text":
                _refuse(at, 'a part {"type": "text", "text": "…"}', part)
            _refuse_unknown(part, {"type", "text"}, at)
            if not isinstance(part.get("text"), str):
                _refuse(f"{at}.text", "a string", part.get("text"))
            texts.append(part["text"])
        return "".join(texts)
    if not isinstance(value, str):
        _refuse(where, "a string or a list of text parts", value)
    return value


def _optional_text(value: Any, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        _refuse(where, "a string", value)
    return value


def _refuse_unknown(value: Mapping[str, Any], known: set[str] | frozenset[str], where: str) -> None:
    for key in value:
        if key not in known:
            path = json.dumps(f"{where}.{key}" if where else key)[1:-1]  # no escape sequences
            raise ConversationError(
                f"{path[:80]} is not a key of the chat form ({', '.join(sorted(known - COPIES))}); "
                "take it out."
            )


def _refuse(where: str, expected: str, value: object) -> NoReturn:
    raise ConversationError(f"{where}: expected {expected}, got {_shown(value)}; correct it.")


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."

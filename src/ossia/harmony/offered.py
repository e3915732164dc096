"""The tools a turn may call: from the recipient a model wrote to the tool it meant (R8, R9), and
from the arguments it wrote to those the tool takes (R10).

Only what was offered is ever matched; a guess is taken only when it leaves one tool.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from ossia.harmony.messages import Tool, ToolNamespace

FUNCTIONS = "functions"
"""The namespace of an application's own functions."""

# Namespaces of tools the models were trained with. They call them unasked, with arguments of
# their own, so `browser.search` never stands for an application's `search`.
_TRAINED_NAMESPACES = frozenset({"browser", "container", "python", "repo_browser"})

# No tool is named so; matching longer words would cost the square of their length.
_LONGEST_NAME = 256

# Words that follow a recipient in a header and are glued to it when the space is lost.
_GLUED = re.compile(r"(?:json|code|text|analysis|commentary|final)$")


@dataclass(frozen=True)
class OfferedTool:
    recipient: str
    """The full name, as it stands after `to=`: `functions.get_weather`, `browser.search`."""
    properties: frozenset[str] | None = None
    """The names of its parameters; None when they are not known."""
    raw_text: bool = False
    """Takes text of any form, such as source code, instead of JSON."""

    @property
    def name(self) -> str:
        """As the application knows it: without `functions.`."""
        return self.recipient.removeprefix(f"{FUNCTIONS}.")


@dataclass(frozen=True)
class Arguments:
    text: str
    repairs: tuple[str, ...] = ()
    whole: bool = True
    """The text is what the tool takes: JSON, or raw text."""


ToolSpec = str | Tool | ToolNamespace


class OfferedTools:
    """What was offered, looked up by what the model wrote."""

    def __init__(self, tools: Iterable[ToolSpec] = ()) -> None:
        """A plain name, or a `Tool` by itself, belongs to `functions` unless it has a dot; the name
        `python` is the trained tool, which takes source code.
        """
        self._by_recipient = {tool.recipient: tool for given in tools for tool in _offered(given)}

    def __bool__(self) -> bool:
        return bool(self._by_recipient)

    def exactly(self, written: str) -> OfferedTool | None:
        """The tool of this very name, with or without `functions.`."""
        by_recipient = self._by_recipient
        return by_recipient.get(written) or by_recipient.get(f"{FUNCTIONS}.{written}")

    def find(self, written: str) -> OfferedTool | None:
        """Exactly; else the only tool whose own name is the same but for namespace, case, dashes
        and words glued to its end.
        """
        if len(written) > _LONGEST_NAME:
            return None
        for spelling in _spellings(written):
            if tool := self.exactly(spelling):
                return tool
        for spelling in _spellings(written):
            namespace, _, name = spelling.casefold().rpartition(".")
            foreign = namespace in _TRAINED_NAMESPACES
            for key in (name, _GLUED.sub("", name), name.removeprefix(FUNCTIONS)):
                same = [
                    tool
                    for tool in self._by_recipient.values()
                    if _key(tool.recipient) == _key(key)
                    and not (foreign and tool.recipient.rpartition(".")[0] != namespace)
                ]
                if len(same) == 1:
                    return same[0]
        return None


def clean_recipient(written: str) -> str:
    """Without what no name holds: spaces of any alphabet, invisible characters, doubled dots."""
    return next(_spellings(written), "")


def repair_arguments(tool: OfferedTool, text: str) -> Arguments:
    """Drops unmatched closing brackets at the end and a wrapping `{name, parameters}` object;
    everything else stays as the model wrote it, and is said not to be whole when it is not JSON.
    """
    value = _json(text)
    repairs: list[str] = []
    if value is _NOT_JSON and not tool.raw_text and (trimmed := _without_brackets(text)):
        text, value = trimmed, _json(trimmed)
        repairs.append("Unmatched brackets after the arguments were dropped.")
    if isinstance(value, dict) and (inner := _unwrapped(tool, text)) is not None:
        text, value = inner, _json(inner)
        repairs.append("The arguments stood in an object with the tool's name; it was removed.")
    if tool.raw_text:
        return Arguments(text, tuple(repairs))
    if value is _NOT_JSON:
        repairs.append("The arguments are not JSON; they are handed over as written.")
    elif not isinstance(value, dict):
        repairs.append("The arguments are no JSON object; they are handed over as written.")
    return Arguments(text, tuple(repairs), whole=value is not _NOT_JSON)


def _offered(given: ToolSpec) -> Iterator[OfferedTool]:
    match given:
        case str():
            if given == "python":
                yield OfferedTool(given, raw_text=True)
            else:
                yield OfferedTool(given if "." in given else f"{FUNCTIONS}.{given}")
        case Tool():
            yield OfferedTool(f"{FUNCTIONS}.{given.name}", _properties(given.parameters))
        case ToolNamespace() if given.tools:
            for tool in given.tools:
                yield OfferedTool(f"{given.name}.{tool.name}", _properties(tool.parameters))
        case ToolNamespace():
            yield OfferedTool(given.name, raw_text=True)


def _properties(schema: Mapping[str, Any] | None) -> frozenset[str] | None:
    if schema is None:  # a function without parameters
        return frozenset()
    properties: object = schema.get("properties")
    if not isinstance(properties, Mapping):
        return None
    return frozenset(cast("Mapping[str, object]", properties))


def _spellings(written: str) -> Iterator[str]:
    """The name without blanks and invisible characters; then doubled dots as one, or as none."""
    visible = "".join(
        c for c in written if not c.isspace() and unicodedata.category(c) not in ("Cf", "Cc")
    )
    yield re.sub(r"\.{2,}", ".", visible).strip(".")
    if ".." in visible:
        yield re.sub(r"\.{2,}", "", visible).strip(".")


def _key(name: str) -> str:
    """A tool's own name, as far as spelling matters."""
    own = name.casefold().rpartition(".")[2].replace("-", "_")
    return re.sub(r"^\W+|\W+$", "", own)


_NOT_JSON = object()


def _refuse(name: str) -> object:
    raise ValueError(name)  # NaN and Infinity are Python's, not JSON's


# Numbers stay text: an integer of 5,000 digits is valid JSON, and Python refuses to convert it.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse)


def _json(text: str) -> object:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _without_brackets(text: str) -> str | None:
    """The JSON value at the start of the text when only closing brackets follow it."""
    start = len(text) - len(text.lstrip())
    try:
        _, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return text[:end] if not text[end:].strip("]}) \t\r\n") else None


def _unwrapped(tool: OfferedTool, text: str) -> str | None:
    """The text of `parameters` in `{"name": …, "parameters": …}`, unless the tool has such
    parameters itself. Where its parameters are not known, the name must be the tool's.
    """
    items = _items(text)
    inner = items.get("parameters", items.get("arguments"))
    if len(items) != 2 or "name" not in items or inner is None:
        return None
    if tool.properties is None:
        name = _json(items["name"])
        if not isinstance(name, str) or _key(name) != _key(tool.recipient):
            return None
    elif tool.properties & items.keys():
        return None
    value = _json(inner)
    if isinstance(value, str) and isinstance(_json(value), dict):  # JSON inside a JSON string
        return value
    return inner if isinstance(value, dict) else None


def _items(text: str) -> dict[str, str]:
    """The members of a JSON object, known to be one, each with its value as it is spelt."""
    items: dict[str, str] = {}
    at = text.index("{") + 1
    while True:
        at = _next(text, at, " \t\r\n,")
        if text[at] == "}":
            return items
        key, at = _DECODER.raw_decode(text, at)
        at = _next(text, at, " \t\r\n:")
        _, end = _DECODER.raw_decode(text, at)
        items[key] = text[at:end]
        at = end


def _next(text: str, at: int, skipped: str) -> int:
    while text[at] in skipped:
        at += 1
    return at

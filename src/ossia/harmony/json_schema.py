"""JSON schemas, as applications write them → as the grammar's compiler takes them.

What a grammar cannot hold a model to is refused by its keyword; what only describes is left alone.
Nothing is weakened: every text that the result allows satisfies the schema as it was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ossia.errors import RequestError

Schema = Mapping[str, Any]

UNSUPPORTED = frozenset(
    {
        "not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains",
        "dependencies", "dependentRequired", "dependentSchemas", "propertyNames",
        "unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef",
    }
)  # fmt: skip
"""Keywords that assert something which no grammar here expresses."""

_FORMATS = frozenset(
    {
        "date", "date-time", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
    }
)  # fmt: skip

# Where a schema holds further ones.
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("prefixItems", "anyOf", "oneOf", "allOf", "items")
_SINGLE = ("items", "additionalProperties", "additionalItems")

# A blank, or a line break and an indentation. Small models fill what room there is for blanks.
_WHITESPACE = r"(?: |\r?\n[ \t]{0,16})"

_CLOSED_BY_DEFAULT = frozenset({"$ref", "allOf", "anyOf", "oneOf", "patternProperties"})


def for_grammar(schema: Schema | bool, where: str) -> Schema:
    """The schema for `%json`. Raises RequestError, beginning with `where`, for a keyword that
    cannot be enforced.

    A `format` that the compiler does not know goes: by the standard it is a remark.
    """
    if isinstance(schema, bool):
        return {"anyOf": [_walk(schema, where)]} | _guidance()
    if not isinstance(cast(object, schema), Mapping):
        raise RequestError(f"{where}: a JSON schema is an object; got {schema!r:.60}.")
    try:
        prepared = _walk(schema, where)
    except RecursionError:
        raise RequestError(f"{where}: the JSON schema is nested too deeply.") from None
    return prepared | _guidance()


def for_arguments(schema: Schema | None, where: str) -> Schema:
    """The schema of a function's arguments, which are an object; None = there are none.

    Where it lists properties and leaves open whether there may be others, there are none: a model
    that is free to invent arguments does.
    """
    if schema is None:
        schema = {"properties": {}, "additionalProperties": False}
    prepared = dict(for_grammar(schema, where))
    given = prepared.get("type", "object")
    if given != "object" and not (isinstance(given, list) and "object" in given):
        raise RequestError(f"{where}: a function's arguments are an object; got type {given!r}.")
    prepared["type"] = "object"
    properties = prepared.get("properties")
    if isinstance(properties, dict) and not _CLOSED_BY_DEFAULT & prepared.keys():
        required = prepared.get("required", ())
        if all(name in properties for name in required):
            prepared.setdefault("additionalProperties", False)
    return prepared


def _guidance() -> dict[str, Any]:
    """llguidance's own options, also in place of any that the schema brings along."""
    return {"x-guidance": {"whitespace_pattern": _WHITESPACE}}


def _walk(schema: Any, where: str) -> Any:
    """The schema and all below it, checked and without what the compiler stumbles over."""
    if not isinstance(schema, Mapping):
        return schema
    result = dict(cast("Mapping[str, Any]", schema))
    if result.get("uniqueItems") is False:
        del result["uniqueItems"]
    for key in UNSUPPORTED & result.keys():
        raise RequestError(
            f"{where}: grammars do not support the JSON schema's keyword {key}; say it in a "
            "description instead."
        )
    for key in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(result.get(key), bool):
            raise RequestError(f"{where}: {key} must be a number, as in JSON schema since draft 6.")
    if str(result.get("format")) not in _FORMATS:
        result.pop("format", None)
    for key in _MAPS:
        if isinstance(result.get(key), Mapping):
            below = cast("Mapping[str, Any]", result[key])
            result[key] = {name: _walk(s, f"{where}.{key}.{name}") for name, s in below.items()}
    for key in _LISTS:
        if isinstance(result.get(key), list | tuple):
            members = cast("list[Any]", result[key])
            result[key] = [_walk(s, f"{where}.{key}[{i}]") for i, s in enumerate(members)]
    for key in _SINGLE:
        if isinstance(result.get(key), Mapping):
            result[key] = _walk(result[key], f"{where}.{key}")
    return result

"""Random JSON schemas of what grammars support, and a plain check of a value against a schema."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

NAMES = ("a", "b", "city", "count", "x_1", "naïve key", "type", 'q"uote')
PATTERNS = ("^[a-z]{2,5}$", "^x", "[0-9]{3}$", "^(yes|no|maybe)$", r"^\d{1,3}-\w+$", "[A-Z]+")
FORMATS = {
    "date": r"\d{4}-\d\d-\d\d",
    "time": r"\d\d:\d\d:\d\d(\.\d+)?(Z|z|[+-]\d\d:\d\d)",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": r"\d{1,3}(\.\d{1,3}){3}",
}
LITERALS = (None, True, 0, -3, 2.5, "", "one", "two words", 'é\n"\\', ["x", 1], {"k": [None]})


def random_object(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    """A schema of an object: what a function takes, or an answer."""
    schema = _object(rng, depth)
    if rng.random() < 0.2:
        schema |= {"$defs": {"node": _recursive(rng)}}
        schema["properties"] = {**schema.get("properties", {}), "tree": {"$ref": "#/$defs/node"}}
    return schema


def random_schema(rng: random.Random, depth: int) -> Any:
    leaves: list[Callable[[random.Random], Any]] = [
        _string, _string, _number, _number, _literals,
        lambda rng: {"type": "boolean"},
        lambda rng: {"type": ["string", "null"]},
        lambda rng: {"type": rng.sample(["integer", "string", "boolean", "null"], 2)},
    ]  # fmt: skip
    if depth <= 0 or rng.random() < 0.45:
        return rng.choice(leaves)(rng)
    return rng.choice((_object, _object, _array, _array, _union, _merged, _anything))(rng, depth)


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(NAMES, rng.randint(0, 4))
    schema: dict[str, Any] = {"type": "object"}
    if names or rng.random() < 0.5:
        schema["properties"] = {name: random_schema(rng, depth - 1) for name in names}
    if required := [name for name in names if rng.random() < 0.6]:
        schema["required"] = required
    match rng.randrange(4):
        case 0:
            schema["additionalProperties"] = False
        case 1 if rng.random() < 0.3:
            schema["additionalProperties"] = random_schema(rng, 0)
        case 2 if not names:
            schema |= {"minProperties": 1, "maxProperties": rng.randint(1, 3)}
            schema["additionalProperties"] = random_schema(rng, 0)
        case _:
            pass
    return schema


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    if rng.random() < 0.8:
        schema["items"] = random_schema(rng, depth - 1)
    if rng.random() < 0.2:
        schema["prefixItems"] = [random_schema(rng, 0) for _ in range(rng.randint(1, 2))]
    if rng.random() < 0.5:
        schema["minItems"] = rng.randint(0, 2)
    schema["maxItems"] = rng.randint(2, 4)
    return schema


def _union(rng: random.Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.5:
        return {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]}
    # Branches that exclude each other by their type.
    return {"oneOf": [_string(rng), _number(rng), _object(rng, depth - 1)]}


def _merged(rng: random.Random, depth: int) -> dict[str, Any]:
    left, right = rng.sample(NAMES, 2)
    return {
        "allOf": [
            {"type": "object", "properties": {left: random_schema(rng, depth - 1)}},
            {"properties": {right: random_schema(rng, 0)}, "required": [right]},
        ]
    }


def _anything(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"description": "anything"} if rng.random() < 0.3 else random_schema(rng, 0)


def _recursive(rng: random.Random) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "value": random_schema(rng, 0),
            "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        },
        "required": ["value"],
        "additionalProperties": False,
    }


def _string(rng: random.Random) -> dict[str, Any]:
    match rng.randrange(5):
        case 0:
            return {"type": "string", "pattern": rng.choice(PATTERNS)}
        case 1:
            return {"type": "string", "format": rng.choice(list(FORMATS))}
        case 2:
            low = rng.randint(0, 3)
            return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 6)}
        case 3:
            return {"type": "string", "enum": rng.sample(["x", "yes", "né", "a\tb", "}"], 3)}
        case _:
            return {"type": "string", "default": "", "title": "Any text"}


def _number(rng: random.Random) -> dict[str, Any]:
    kind = rng.choice(("integer", "number"))
    low = rng.randint(-2000, 2000)
    high = low + rng.randint(1, 3000)
    match rng.randrange(5):
        case 0:
            return {"type": kind, "minimum": low, "maximum": high}
        case 1:
            return {"type": kind, "exclusiveMinimum": low, "exclusiveMaximum": high + 1}
        case 2:
            return {"type": kind, "minimum": low / 4 if kind == "number" else low}
        case 3:
            return {"type": "integer", "multipleOf": rng.randint(2, 9)}
        case _:
            return {"type": kind}


def _literals(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.4:
        return {"const": rng.choice(LITERALS)}
    return {"enum": rng.sample(LITERALS, rng.randint(1, 3))}


# -- The check --------------------------------------------------------------------------------


def load(text: str) -> Any:
    """JSON with exact numbers; raises ValueError for what is not JSON."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_int=Decimal, parse_float=Decimal, parse_constant=refuse)


def satisfies(value: Any, schema: Any, root: Any) -> bool:
    """Whether a value that `load` gave satisfies a schema; of the keywords above, and no others."""
    if isinstance(schema, bool):
        return schema
    checks = _CHECKS.keys() & schema.keys()
    unknown = schema.keys() - _CHECKS.keys() - {
        "$defs", "title", "default", "description", "additionalProperties", "items",
    }  # fmt: skip
    assert not unknown, unknown
    return (
        all(_CHECKS[key](value, schema[key], root) for key in checks)
        and _rest_of_object(value, schema, root)
        and _rest_of_array(value, schema, root)
    )


def _is(value: Any, kind: str) -> bool:
    match kind:
        case "integer":
            return isinstance(value, Decimal) and value == value.to_integral_value()
        case "number":
            return isinstance(value, Decimal)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case _:
            python = {"string": str, "array": list, "object": dict}[kind]
            return isinstance(value, python)


def _same(value: Any, literal: Any) -> bool:
    return _typed(value) == _typed(load(json.dumps(literal)))


def _typed(value: Any) -> Any:
    """True and 1 are equal to Python, not to JSON."""
    match value:
        case bool():
            return ("bool", value)
        case list():
            return [_typed(v) for v in value]
        case dict():
            return {k: _typed(v) for k, v in value.items()}
        case _:
            return value


def _follow(reference: str, root: Any) -> Any:
    for step in reference.removeprefix("#/").split("/"):
        root = root[step]
    return root


def _rest_of_object(value: Any, schema: Any, root: Any) -> bool:
    if not isinstance(value, dict) or "additionalProperties" not in schema:
        return True
    named = schema.get("properties", {})
    rest = schema["additionalProperties"]
    return all(satisfies(v, rest, root) for k, v in value.items() if k not in named)


def _rest_of_array(value: Any, schema: Any, root: Any) -> bool:
    if not isinstance(value, list) or "items" not in schema:
        return True
    rest = value[len(schema.get("prefixItems", ())) :]
    return all(satisfies(v, schema["items"], root) for v in rest)


def _matches(pattern: str, value: str) -> bool:
    # `$` is the very end in JSON schema, and \d and \w are ASCII.
    return re.search(re.sub(r"\$$", r"\\Z", pattern), value, re.ASCII) is not None


_CHECKS: dict[str, Callable[[Any, Any, Any], bool]] = {
    "type": lambda v, t, _: any(_is(v, k) for k in ([t] if isinstance(t, str) else t)),
    "enum": lambda v, literals, _: any(_same(v, literal) for literal in literals),
    "const": lambda v, literal, _: _same(v, literal),
    "$ref": lambda v, ref, root: satisfies(v, _follow(ref, root), root),
    "anyOf": lambda v, all_of, root: any(satisfies(v, s, root) for s in all_of),
    "oneOf": lambda v, all_of, root: sum(satisfies(v, s, root) for s in all_of) == 1,
    "allOf": lambda v, all_of, root: all(satisfies(v, s, root) for s in all_of),
    "properties": lambda v, named, root: (
        not isinstance(v, dict) or all(satisfies(v[k], s, root) for k, s in named.items() if k in v)
    ),
    "required": lambda v, names, _: not isinstance(v, dict) or all(name in v for name in names),
    "minProperties": lambda v, n, _: not isinstance(v, dict) or len(v) >= n,
    "maxProperties": lambda v, n, _: not isinstance(v, dict) or len(v) <= n,
    "prefixItems": lambda v, first, root: (
        not isinstance(v, list)
        or all(satisfies(item, s, root) for item, s in zip(v, first, strict=False))
    ),
    "minItems": lambda v, n, _: not isinstance(v, list) or len(v) >= n,
    "maxItems": lambda v, n, _: not isinstance(v, list) or len(v) <= n,
    "minLength": lambda v, n, _: not isinstance(v, str) or len(v) >= n,
    "maxLength": lambda v, n, _: not isinstance(v, str) or len(v) <= n,
    "pattern": lambda v, p, _: not isinstance(v, str) or _matches(p, v),
    "format": lambda v, f, _: not isinstance(v, str) or re.fullmatch(FORMATS[f], v) is not None,
    "minimum": lambda v, n, _: not isinstance(v, Decimal) or v >= Decimal(n),
    "maximum": lambda v, n, _: not isinstance(v, Decimal) or v <= Decimal(n),
    "exclusiveMinimum": lambda v, n, _: not isinstance(v, Decimal) or v > Decimal(n),
    "exclusiveMaximum": lambda v, n, _: not isinstance(v, Decimal) or v < Decimal(n),
    "multipleOf": lambda v, n, _: not isinstance(v, Decimal) or int(v) % n == 0,
}

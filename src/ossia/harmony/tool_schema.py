"""Tool declarations as the TypeScript that gpt-oss was trained on: JSON schemas into types and
comments.

The layout, odd as parts of it are, is openai-harmony 0.0.8's to the character wherever what that
library prints is right; docs/harmony.md shows where it is not and what stands here instead. No
string of a schema can leave its comment or its quotes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast
from urllib.parse import unquote

from ossia.errors import ConversationError
from ossia.harmony.messages import ResponseFormat, ToolNamespace

_Schema = Mapping[str, Any]

# A schema may refer to its own parts many times over and so grow without bound when written out.
_MAX_NODES = 20_000

# Whatever ends a line in TypeScript would end a `//` comment too.
_LINE_BREAK = re.compile("\r\n|[\n\r\u2028\u2029]")

_RECURSIVE = "any /* recursive */"

_SHAPE_KEYS = frozenset({"type", "properties", "items", "enum", "const", "oneOf", "anyOf", "allOf"})
"""The keys that say what a value looks like; the others annotate or constrain it."""


def tools_section(namespaces: Sequence[ToolNamespace]) -> str:
    """`# Tools` with every namespace, in the order of their names.

    Raises ConversationError for a name that cannot be called and for a schema that cannot be
    written out.
    """
    names = [namespace.name for namespace in namespaces]
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        raise ConversationError(f"The tool namespace {twice!r} is declared twice; merge the two.")
    ordered = sorted(namespaces, key=lambda namespace: namespace.name)
    return "\n\n".join(["# Tools", *map(_namespace, ordered)])


def response_formats_section(formats: Sequence[ResponseFormat]) -> str:
    """`# Response Formats`, the section at the end of a developer message that announces the JSON
    schema of an answer.
    """
    sections = ["# Response Formats"]
    for response_format in formats:
        name = response_format.name
        if not name or _LINE_BREAK.search(name):
            raise ConversationError(f"A response format needs a name of one line, got {name!r}.")
        comment = "".join(f"// {line}\n" for line in _lines(response_format.description))
        schema = _json(response_format.schema)
        sections.append(f"## {name}\n\n{comment}{schema}")
    return "\n\n".join(sections)


def json_schema_to_typescript(schema: Any, *, where: str = "The schema") -> str:
    """The TypeScript type of a JSON schema, over several lines where it has properties.

    `where` begins the sentence of a ConversationError: for a `$ref` that does not lead to a part of
    the same schema, or one that is too large when written out.
    """
    return _declared_type(schema, where).text


def _namespace(namespace: ToolNamespace) -> str:
    name = _callable_name(namespace.name, "A tool namespace")
    lines = [f"## {name}\n"]
    description = _lines(namespace.description or "")
    if not namespace.tools:  # a bare tool such as python: prose, no code to comment
        return "\n".join(lines + description)
    lines += [f"// {line}" for line in description]
    lines.append(f"namespace {name} {{\n")
    for tool in namespace.tools:
        _callable_name(tool.name, f"A tool of {name}")
        lines += [f"// {line}" for line in _lines(tool.description)]
        if tool.parameters is None:
            lines.append(f"type {tool.name} = () => any;\n")
            continue
        parameters = _declared_type(tool.parameters, f"Tool {name}.{tool.name}")
        after = "\n" if parameters.ends_in_comment else ""
        lines.append(f"type {tool.name} = (_: {parameters.text}{after}) => any;\n")
    return "\n".join([*lines, f"}} // namespace {name}"])


def _callable_name(name: str, what: str) -> str:
    """The model calls tools by name in a message header, where only plain words survive."""
    if not name or re.search(r"\s|<\|", name):
        raise ConversationError(
            f"{what} is named {name!r}; a name needs at least one character and has no spaces, "
            "line breaks or `<|`."
        )
    return name


def _declared_type(schema: Any, where: str) -> _Type:
    try:
        return _Printer(schema, where).type_of(schema, "", frozenset({"#"}))
    except RecursionError:
        raise ConversationError(f"{where}: the schema is nested too deeply.") from None


class _Type(NamedTuple):
    text: str
    union: bool = False
    """Needs parentheses before `[]` or beside `&`."""
    nullable: bool = False
    ends_in_comment: bool = False
    """What follows must begin a new line."""


class _Variant(NamedTuple):
    written: _Type
    schema: Any


class _Printer:
    """Writes one root schema out. `active` holds the references being expanded: meeting one of them
    again means recursion.
    """

    def __init__(self, root: Any, where: str) -> None:
        self._root = root
        self._where = where
        self._nodes = 0

    def type_of(
        self, schema: Any, indent: str, active: frozenset[str], *, describe: bool = True
    ) -> _Type:
        """`describe`: put an object's description before it, where nobody else prints it."""
        if not isinstance(schema, Mapping):
            return _Type("never" if schema is False else "any")
        resolved, active, recursive = self._resolve(cast("_Schema", schema), active)
        if recursive:
            return _Type(_RECURSIVE)
        result = self._shape(resolved, indent, active, describe)
        if resolved.get("nullable") is True and not result.nullable:
            line = f"\n{indent}" if result.ends_in_comment else ""
            return _Type(f"{result.text}{line} | null", union=True, nullable=True)
        return result

    def _shape(self, schema: _Schema, indent: str, active: frozenset[str], describe: bool) -> _Type:
        one_of, any_of, named = schema.get("oneOf"), schema.get("anyOf"), schema.get("type")
        if one_of and isinstance(one_of, list):
            return self._block(self._variants(cast("list[Any]", one_of), indent, active), indent)
        if "const" in schema:
            return _literals([schema["const"]])
        if _is_full_list(schema.get("allOf")):  # what _resolve could not merge
            return self._intersection(schema, indent, active, describe)
        if isinstance(named, list):
            names = [n for n in cast("list[Any]", named) if isinstance(n, str)]
            if names:
                return self._type_list(names, schema, indent, active, describe)
        if isinstance(named, str):
            return self._named(named, schema, indent, active, describe)
        if _is_full_list(schema.get("enum")):
            return _literals(schema["enum"])
        if isinstance(schema.get("properties"), Mapping):
            return self._named("object", schema, indent, active, describe)
        if "items" in schema:
            return self._named("array", schema, indent, active, describe)
        if any_of and isinstance(any_of, list):
            variants = self._variants(cast("list[Any]", any_of), indent, active)
            if _fits_on_a_line(variants):
                return _union([variant.written for variant in variants])
            return self._block(variants, indent)
        return _Type("any")

    def _named(
        self, name: str, schema: _Schema, indent: str, active: frozenset[str], describe: bool
    ) -> _Type:
        match name:
            case "object":
                return _Type(self._object(schema, indent, active, describe))
            case "array" if "items" not in schema:
                return _Type("Array<any>")
            case "array":
                return _Type(
                    _bracketed(self.type_of(schema["items"], indent, active), indent) + "[]"
                )
            case "string":
                strings = [v for v in _list(schema.get("enum")) if isinstance(v, str)]
                return _literals(strings) if strings else _Type("string")
            case "number" | "integer":
                return _Type("number")
            case "boolean":
                return _Type("boolean")
            case "null":
                return _Type("null", nullable=True)
            case _:
                return _Type("any")

    def _type_list(
        self,
        names: list[str],
        schema: _Schema,
        indent: str,
        active: frozenset[str],
        describe: bool,
    ) -> _Type:
        allowed = [v for v in _list(schema.get("enum")) if v is not None]
        members: list[_Type] = []
        for name in names:
            if name == "null" or not allowed:
                members.append(self._named(name, schema, indent, active, describe))
            else:
                members += [_literals([v]) for v in allowed if _type_name(v, name) == name]
        return _union(members) if members else _literals(allowed)

    def _intersection(
        self, schema: _Schema, indent: str, active: frozenset[str], describe: bool
    ) -> _Type:
        own = {key: value for key, value in schema.items() if key != "allOf"}
        parts = [*([own] if _SHAPE_KEYS & own.keys() else []), *schema["allOf"]]
        types = [self.type_of(part, indent, active, describe=describe) for part in parts]
        return _Type(" & ".join(_bracketed(t, indent) for t in types), union=True)

    # -- Objects ---------------------------------------------------------------------------------

    def _object(self, schema: _Schema, indent: str, active: frozenset[str], describe: bool) -> str:
        out: list[str] = []
        if describe:
            out += _comment(schema.get("description"), indent)
        out.append("{\n")
        properties = schema.get("properties")
        required = {k for k in _list(schema.get("required")) if isinstance(k, str)}
        if isinstance(properties, Mapping):
            for key, value in cast("Mapping[str, Any]", properties).items():
                out += self._property(str(key), value, key in required, indent, active)
        return "".join([*out, f"{indent}}}"])

    def _property(
        self, key: str, value: Any, required: bool, indent: str, active: frozenset[str]
    ) -> list[str]:
        schema: _Schema = {}
        recursive = False
        inner = active
        if isinstance(value, Mapping):
            schema, inner, recursive = self._resolve(cast("_Schema", value), active)
        name = _property_name(key) + ("" if required else "?")
        out = _comment(schema.get("title"), indent)
        if out:
            out.append(f"{indent}//\n")
        examples = _comment_examples(schema.get("examples"), indent)
        variants = None if recursive else self._block_variants(schema, indent, inner)
        if variants is not None:
            return out + examples + self._variant_property(name, schema, variants, indent)
        out += _comment(schema.get("description"), indent)
        if recursive:
            written = _Type(_RECURSIVE)
        elif isinstance(value, Mapping):
            # The description stands above; inside it would come twice.
            written = self.type_of(schema, f"{indent}    ", inner, describe=False)
        else:
            written = self.type_of(value, indent, active)
        line = f"\n{indent}" if written.ends_in_comment else ""
        default = "".join(f" // {d}" for d in _default(schema))
        return [*out, *examples, f"{indent}{name}: {written.text}{line},{default}\n"]

    def _block_variants(
        self, schema: _Schema, indent: str, active: frozenset[str]
    ) -> list[_Variant] | None:
        """The variants of a property that is written as a block, one variant a line."""
        one_of, any_of = schema.get("oneOf"), schema.get("anyOf")
        if one_of and isinstance(one_of, list):
            return self._variants(cast("list[Any]", one_of), indent, active)
        if any_of and isinstance(any_of, list) and not (_SHAPE_KEYS - {"anyOf"}) & schema.keys():
            variants = self._variants(cast("list[Any]", any_of), indent, active)
            return None if _fits_on_a_line(variants) else variants
        return None

    def _variant_property(
        self, name: str, schema: _Schema, variants: list[_Variant], indent: str
    ) -> list[str]:
        description = _description(schema)
        out = _comment(description, indent)
        out += [f"{indent}// {default}\n" for default in _default(schema)]
        nullable = schema.get("nullable") is True
        if nullable and not any(variant.written.nullable for variant in variants):
            variants = [*variants, _Variant(_Type("null", nullable=True), {})]
        out.append(f"{indent}{name}:\n")
        for number, (written, variant) in enumerate(variants):
            comments: list[str] = []
            own = _description(variant)
            # As trained: the comment above stands for the first variant too. An object's own
            # description appears nowhere else, so it stays.
            stood_for = number == 0 and description is not None and not written.text.endswith("}")
            if own is not None and own != description and not stood_for:
                comments.append(" ".join(_lines(own)))
            comments += _default(variant)
            comment = f" // {' '.join(comments)}" if comments else ""
            out.append(f"{indent} | {written.text}{comment}\n")
        return [*out, f"{indent},\n"]

    # -- Unions ----------------------------------------------------------------------------------

    def _variants(self, schemas: list[Any], indent: str, active: frozenset[str]) -> list[_Variant]:
        variants: list[_Variant] = []
        for schema in schemas:
            resolved, inner, recursive = schema, active, False
            if isinstance(schema, Mapping):
                resolved, inner, recursive = self._resolve(cast("_Schema", schema), active)
            if recursive:
                variants.append(_Variant(_Type(_RECURSIVE), cast("Any", resolved)))
            else:
                written = self.type_of(resolved, f"{indent}   ", inner, describe=False)
                variants.append(_Variant(written, cast("Any", resolved)))
        return variants

    def _block(self, variants: list[_Variant], indent: str) -> _Type:
        """One variant a line, each with its description and default behind it."""
        out: list[str] = []
        commented = False
        for written, schema in variants:
            own = _description(schema)
            comments = [] if own is None else [" ".join(_lines(own))]
            if isinstance(schema, Mapping) and "default" in schema:
                comments.append(f"default: {_json(schema['default'])}")
            comment = f" // {' '.join(comments)}" if comments else ""
            commented = bool(comments) or written.ends_in_comment
            out.append(f"\n{indent} | {written.text}{comment}")
        nullable = any(variant.written.nullable for variant in variants)
        return _Type("".join(out), union=True, nullable=nullable, ends_in_comment=commented)

    # -- References and allOf --------------------------------------------------------------------

    def _resolve(
        self, schema: _Schema, active: frozenset[str]
    ) -> tuple[_Schema, frozenset[str], bool]:
        """The schema with its `$ref` followed and its `allOf` merged, the references now active,
        and whether it leads back into one of those. Keys beside a `$ref` win over its target's.
        """
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise ConversationError(
                f"{self._where}: written out, the schema has more than {_MAX_NODES} parts; make it "
                "smaller or describe parts of it in words."
            )
        while isinstance(schema.get("$ref"), str):
            reference: str = schema["$ref"]
            beside = {key: value for key, value in schema.items() if key != "$ref"}
            if reference in active:
                return beside, active, True
            active |= {reference}
            target = self._follow(reference)
            schema = {**target, **beside} if isinstance(target, Mapping) else beside
        members = schema.get("allOf")
        if not _is_full_list(members):
            return schema, active, False
        parts: list[_Schema] = [{key: value for key, value in schema.items() if key != "allOf"}]
        recursive = False
        for member in cast("list[Any]", members):
            if isinstance(member, Mapping):
                part, active, loops = self._resolve(cast("_Schema", member), active)
                recursive |= loops
                parts.append(part)
        shaped = [part for part in parts if _SHAPE_KEYS & part.keys()]
        if len(shaped) > 1 and not all(map(_is_plain_object, shaped)):
            return {**parts[0], "allOf": parts[1:]}, active, False
        return _merge(parts), active, recursive and not shaped

    def _follow(self, reference: str) -> Any:
        """A JSON pointer (RFC 6901) within the root schema."""
        path = [unquote(step) for step in reference.split("/")]
        node: Any = self._root
        try:
            if path[0] != "#":
                raise KeyError(reference)
            for step in path[1:]:
                node = _child(node, step.replace("~1", "/").replace("~0", "~"))
        except (LookupError, ValueError, TypeError):
            raise ConversationError(
                f"{self._where}: the $ref {reference!r} does not lead to a part of the same "
                "schema; put what it means under $defs."
            ) from None
        return node


def _child(node: Any, key: str) -> Any:
    return cast("list[Any]", node)[int(key)] if isinstance(node, list) else node[key]


def _merge(parts: list[_Schema]) -> _Schema:
    """One schema for all of them; the first that has a key wins, properties and required add up."""
    merged: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    required: list[Any] = []
    for part in parts:
        merged |= {key: value for key, value in part.items() if key not in merged}
        if isinstance(part.get("properties"), Mapping):
            for key, value in part["properties"].items():
                same = key not in properties or properties[key] == value
                properties[key] = value if same else {"allOf": [properties[key], value]}
        required += _list(part.get("required"))
    if properties:
        merged["properties"] = properties
    if required:
        merged["required"] = required
    return merged


def _is_plain_object(schema: _Schema) -> bool:
    shape = _SHAPE_KEYS & schema.keys()
    return shape <= {"type", "properties"} and schema.get("type", "object") == "object"


# -- Pieces of text -------------------------------------------------------------------------------


def _union(types: Sequence[_Type]) -> _Type:
    return _Type(
        " | ".join(t.text for t in types),
        union=len(types) > 1 or types[0].union,
        nullable=any(t.nullable for t in types),
    )


def _literals(values: Sequence[Any]) -> _Type:
    nullable = any(value is None for value in values)
    return _Type(" | ".join(map(_json, values)), union=len(values) > 1, nullable=nullable)


def _bracketed(written: _Type, indent: str) -> str:
    if written.ends_in_comment:
        return f"({written.text}\n{indent})"
    return f"({written.text})" if written.union else written.text


def _fits_on_a_line(variants: list[_Variant]) -> bool:
    return not any(
        "\n" in written.text
        or (isinstance(schema, Mapping) and {"description", "default"} & schema.keys())
        for written, schema in variants
    )


def _type_name(value: Any, wanted: str) -> str:
    """The JSON schema type of a value; a whole number is also a `number`, if that is wanted."""
    match value:
        case bool():
            return "boolean"
        case int():
            return "number" if wanted == "number" else "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _property_name(key: str) -> str:
    return key if key.replace("$", "_").isidentifier() else _json(key)


def _lines(text: str) -> list[str]:
    """The lines of a text; a break at its very end begins no further line."""
    lines = _LINE_BREAK.split(text)
    return lines if lines[-1] else lines[:-1]


def _comment(text: Any, indent: str) -> list[str]:
    if not isinstance(text, str):
        return []
    return [f"{indent}// {line}\n" for line in _lines(text) or [""]]


def _comment_examples(examples: Any, indent: str) -> list[str]:
    if not _is_full_list(examples):
        return []
    strings = [example for example in _list(examples) if isinstance(example, str)]
    return [f"{indent}// Examples:\n", *(f"{indent}// - {_json(s)}\n" for s in strings)]


def _description(schema: Any) -> str | None:
    text = cast("_Schema", schema).get("description") if isinstance(schema, Mapping) else None
    return text if isinstance(text, str) else None


def _default(schema: Any) -> list[str]:
    """`default: …` if there is one. As trained, a default among enum values has no quotes."""
    if not isinstance(schema, Mapping) or "default" not in schema:
        return []
    fields = cast("_Schema", schema)
    default = _json(fields["default"])
    if isinstance(fields["default"], str) and _is_full_list(fields.get("enum")):
        default = default[1:-1]
    return [f"default: {default}"]


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _is_full_list(value: Any) -> bool:
    return isinstance(value, list) and value != []


def _json(value: Any) -> str:
    """Compact JSON as serde_json writes it, on one line also by TypeScript's idea of lines."""
    match value:
        case float():
            if not math.isfinite(value):
                raise ConversationError(f"A schema holds {value}, which JSON cannot express.")
            return _float(value)
        case str():
            text = json.dumps(value, ensure_ascii=False)
            return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
        case None | bool() | int():
            return json.dumps(value)
        case Mapping():
            fields = cast("Mapping[str, Any]", value).items()
            return "{" + ",".join(f"{_json(str(k))}:{_json(v)}" for k, v in fields) + "}"
        case list() | tuple():
            return "[" + ",".join(map(_json, cast("Sequence[Any]", value))) + "]"
        case _:
            raise ConversationError(
                f"A schema holds a {type(value).__name__}, which JSON cannot express."
            )


def _float(value: float) -> str:
    """Rust's spelling: 1e-7 where Python writes 1e-07, and 0.00001 where it writes 1e-05."""
    mantissa, _, exponent = repr(value).partition("e")
    if not exponent:
        return mantissa
    if int(exponent) == -5:
        sign = "-" if value < 0 else ""
        return f"{sign}0.0000{mantissa.lstrip('-').replace('.', '')}"
    return f"{mantissa}e{int(exponent)}"

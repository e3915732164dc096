"""JSON of a requested shape: someone names the keys and their types, the user says the values in
words, and the answer is the object and nothing else.

It is always spelled as `json.dumps` spells it, the keys in the order in which they were asked for,
whatever the order in which the values are said.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ossia.evals.held_out import draw_word
from ossia.harmony.messages import Conversation, Effort, Message, ResponseFormat
from ossia.train.curriculum.lesson import (
    Lesson,
    Setting,
    Skill,
    analysis,
    developer_message,
    final,
    system_message,
    user,
)
from ossia.train.curriculum.values import (
    Field,
    Kind,
    ask,
    bare,
    draw_field,
    draw_integer,
    draw_name,
    draw_string,
    joined,
    state,
    without_held_out_pairs,
)


@dataclass(frozen=True)
class Key:
    """A key of the object with its value, the value's schema, and both in words."""

    name: str
    value: Any
    schema: dict[str, Any]
    type_words: str
    """`string`, `list of numbers`, `object with city (string) and zip (integer)`."""
    skeleton: str
    """The type as it stands in `{"name": string}`."""
    said: str
    field: Field | None = None
    """The value as a plain one; None for a list or an object."""


_TYPE_WORDS = {
    Kind.STRING: ("string", "string", "string", "text"),
    Kind.INTEGER: ("integer", "integer", "whole number", "number", "int"),
    Kind.NUMBER: ("number", "number", "float", "decimal number"),
    Kind.BOOLEAN: ("boolean", "boolean", "bool", "true or false"),
}


def draw_keys(rng: random.Random) -> tuple[Key, ...]:
    """One to four keys; one time in forty one of them holds a list or an object."""
    taken: set[str] = set()
    draw = rng.random()
    (count,) = rng.choices((1, 2, 3, 4), (16, 33, 32, 19) if draw >= 0.025 else (0, 75, 25, 0))
    keys = [_plain(rng, draw_field(rng, taken, plain_booleans=True)) for _ in range(count)]
    if draw < 0.015:
        keys[rng.randrange(count)] = _list(rng, taken)
    elif draw < 0.025:
        keys[rng.randrange(count)] = _object(rng, taken)
    return tuple(keys)


def _plain(rng: random.Random, field: Field) -> Key:
    words = rng.choice(_TYPE_WORDS[field.kind])
    return Key(field.name, field.value, field.schema, words, str(field.kind), field.said, field)


def _list(rng: random.Random, taken: set[str]) -> Key:
    """Two or three strings or integers."""
    name = draw_name(rng, taken)
    kind = Kind.STRING if rng.random() < 0.6 else Kind.INTEGER
    items: list[Any] = []
    while len(items) < (2 if rng.random() < 0.6 else 3):
        item = draw_string(rng) if kind is Kind.STRING else draw_integer(rng)
        if item not in items:
            items.append(item)
    word = rng.choice(_TYPE_WORDS[kind][:2])
    return Key(
        name,
        items,
        {"type": "array", "items": {"type": str(kind)}},
        f"{rng.choice(('list', 'array'))} of {word}s",
        f"[{kind}]",
        rng.choice((", ", " and ")).join(map(str, items)),
    )


def _object(rng: random.Random, taken: set[str]) -> Key:
    """An object of two keys."""
    name = draw_name(rng, taken)
    keys = [_plain(rng, draw_field(rng, taken, plain_booleans=True)) for _ in range(2)]
    typed = " and ".join(f"{key.name} ({key.type_words})" for key in keys)
    style = rng.choice(("{} {}", "{} = {}", "{}: {}"))
    said = rng.choice((" and ", ", ")).join(style.format(key.name, key.said) for key in keys)
    return Key(
        name,
        {key.name: key.value for key in keys},
        _schema(keys),
        f"{rng.choice(('object with', 'object of', 'nested object with'))} {typed}",
        "{" + ", ".join(f'"{key.name}": {key.skeleton}' for key in keys) + "}",
        f"({said})",
    )


def _schema(keys: Sequence[Key]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {key.name: key.schema for key in keys},
        "required": [key.name for key in keys],
    }


# ---- what is asked for -------------------------------------------------------------------------

_REQUESTS = (
    "Give me JSON with the keys {keys}.", "Give me a JSON object with {keys}.",
    "Answer as JSON with {keys}.", "Answer in JSON. Keys: {keys}.", "Write JSON with {keys}.",
    "Write a JSON object with the fields {keys}.", "Return JSON: {keys}.", "JSON with {keys}.",
    "JSON, keys {keys}.", "Make a JSON object of {keys}.", "Turn this into JSON with {keys}.",
    "Convert to JSON with the keys {keys}.", "I need JSON with {keys}.",
    "Please reply with JSON: {keys}.", "Format this as JSON with the fields {keys}.",
    "Produce an object with {keys}, as JSON.",
    "As JSON, please, with {keys}.", "Put this into JSON; the keys are {keys}.",
    "Extract {keys} as JSON.", "Only JSON, with {keys}.", "Fill a JSON object: {keys}.",
    "Respond with a JSON object. It has the keys {keys}.", "Make JSON. The fields: {keys}.",
    "The answer should be JSON with {keys}.", "Reply only with an object that has {keys}.",
    "Can you write this as JSON with {keys}?", "Show it as JSON ({keys}).", "To JSON: {keys}.",
)  # fmt: skip

_BY_SKELETON = (
    "Answer in this form: {skeleton}", "Return JSON like {skeleton}.", "JSON: {skeleton}",
    "Use the shape {skeleton}.", "Fill in {skeleton}.", "The format is {skeleton}.",
    "Write it as {skeleton}.", "Follow this shape: {skeleton}", "{skeleton}",
    "Make {skeleton} of it.", "I want {skeleton}.", "Give me {skeleton}.",
)  # fmt: skip

_AT_ONCE = (
    "Write this as JSON: {phrases}.", "As JSON: {phrases}", "JSON with {phrases}.",
    "Give me a JSON object with {phrases}.", "Make a JSON object: {clauses}.",
    "Turn this into JSON: {phrases}.", "{sentence}. Write that as JSON.", "To JSON: {phrases}",
    "I need JSON with {phrases}, please.", "Convert to JSON:\n{lines}", "JSON of this:\n{lines}",
    "Please write JSON. {sentence}.", "Can you make JSON of {phrases}?", "{phrases}; as JSON",
    "Put {phrases} into a JSON object.", "Create JSON from this:\n{lines}",
)  # fmt: skip
"""Keys and values in one breath."""

_VALUES_AFTER = (
    "{request} {sentence}.", "{request} {sentence}.", "{request} {sentence}.", "{request}\n{lines}",
    "{request}\n\n{lines}", "{request} Here it is: {phrases}.", "{request} Take {phrases}.",
    "{request} With {phrases}.", "{request} Data: {phrases}.", "{request} Use {phrases}.",
    "{request} In this order: {values}.", "{request} {phrases}", "{request}\n{sentence}.",
    "{request} I have {phrases}.", "{request} We know that {clauses}.",
)  # fmt: skip
_VALUES_BEFORE = (
    "{sentence}. {request}", "{lines}\n{request}", "{lines}\n\n{request}", "{phrases}. {request}",
    "Here is what I know: {phrases}. {request}", "{sentence}.\n{request}",
    "I have {phrases}. {request}",
)  # fmt: skip

_VALUES_ALONE = (
    "{sentence}.", "{sentence}.", "{phrases}", "{phrases}.", "{lines}", "{lines}", "{values}",
    "Here it is: {phrases}.", "I have {phrases}.", "Take {phrases}.",
    "With {phrases}.", "We know that {clauses}.", "This is it:\n{lines}", "Please note {phrases}.",
    "The data: {phrases}", "Write it down: {clauses}.", "Well, {clauses}.",
)  # fmt: skip
"""The values, where the shape stands in the developer message."""

_TOLD = (
    "Answer in JSON with the keys {keys}.", "Always reply with JSON: {keys}.",
    "Reply with a JSON object with {keys}.", "Your answers are JSON with {keys}.",
    "Turn what the user says into JSON with {keys}.", "Extract {keys} as JSON.",
    "Respond only in JSON. Keys: {keys}.", "Write JSON with the fields {keys}.",
    "Output a JSON object that has {keys}.", "Answer in the shape {skeleton}.",
    "Reply in JSON like {skeleton}.", "Output format: {skeleton}", "Use this format: {skeleton}",
    "You convert text to JSON with {keys}.", "Every answer is an object with {keys}, as JSON.",
)  # fmt: skip

_FORMAT_INSTRUCTIONS = (
    "Answer in the response format.", "Follow the response format.", "Use the format below.",
    "Reply in JSON.", "Be brief.", "Extract the data.", "You are a helpful assistant.",
)  # fmt: skip


def _wanted(rng: random.Random, keys: Sequence[Key]) -> str:
    """The keys in their order, with their types most of the time."""
    draw = rng.random()
    if draw < 0.3 or (any(key.field is None for key in keys) and draw < 0.6):
        return joined(rng, [f"{key.name} ({key.type_words})" for key in keys])
    names = [key.name for key in keys]
    if all(key.field is not None for key in keys):
        if draw < 0.45:
            return joined(rng, [f"{_article(key.type_words)} {key.name}" for key in keys])
        if draw < 0.75:
            quote = rng.choice(("", "", '"', "'", "`"))
            return joined(rng, [f"{quote}{name}{quote}" for name in names])
    if draw < 0.88:
        return ", ".join(f"{key.name}: {key.type_words}" for key in keys)
    return joined(rng, [f"{key.name} as {key.type_words}" for key in keys])


def _article(words: str) -> str:
    return f"{'an' if words.startswith('i') else 'a'} {words}"


def _skeleton(rng: random.Random, keys: Sequence[Key]) -> str:
    """`{"name": string, "age": integer}`, or with dots for the types."""
    if rng.random() < 0.3 and all(key.field is not None for key in keys):
        dots = rng.choice(("...", "…", "?", '""'))
        return "{" + ", ".join(f'"{key.name}": {dots}' for key in keys) + "}"
    quote = rng.choice(('"', '"', ""))
    return "{" + ", ".join(f"{quote}{key.name}{quote}: {key.skeleton}" for key in keys) + "}"


# ---- how the values are said -------------------------------------------------------------------


def _slots(rng: random.Random, keys: Sequence[Key], *, exact: bool) -> dict[str, str]:
    fields = [key.field for key in keys if key.field is not None]
    if len(fields) == len(keys):
        said = state(rng, fields, exact=exact)
        return {
            "phrases": said.phrases,
            "clauses": said.clauses,
            "sentence": said.sentence,
            "lines": said.lines,
            "values": said.values,
        }
    # A list or an object holds commas and `and` of its own, so that the forms are fewer.
    pairs = [(key.name, key.said) for key in keys]
    if not exact and rng.random() < 0.5:
        rng.shuffle(pairs)
    style, clause = rng.choice(("{}: {}", "{} = {}")), rng.choice(("the {} is {}", "{} is {}"))
    phrases = "; ".join(style.format(*pair) for pair in pairs)
    clauses = "; ".join(clause.format(*pair) for pair in pairs)
    return {
        "phrases": phrases,
        "clauses": clauses,
        "sentence": clauses if clause.startswith("{") else f"T{clauses[1:]}",
        "lines": "\n".join(style.format(*pair) for pair in pairs),
        "values": phrases,
    }


# ---- lessons -----------------------------------------------------------------------------------


def draw_shape(rng: random.Random, setting: Setting) -> Lesson:
    """The shape comes from the user (two times out of five), from the developer's instructions, or
    as a response format with a schema (a third); the last message is the JSON object."""
    return without_held_out_pairs(lambda: _draw_shape(rng, setting))


def _draw_shape(rng: random.Random, setting: Setting) -> Lesson:
    keys = draw_keys(rng)
    messages = [system_message(rng, setting)]
    draw = rng.random()
    if draw < 0.42:
        messages.append(user(user_request(rng, keys)))
    else:
        told = _instructed(rng, keys) if draw < 0.67 else _formatted(rng, keys)
        messages += [told, user(values_alone(rng, keys))]
    answer = json.dumps({key.name: key.value for key in keys}, ensure_ascii=False)
    messages += [*_thought(setting.effort, keys), final(answer)]
    return Lesson(Skill.SHAPE, Conversation(tuple(messages)))


def user_request(rng: random.Random, keys: Sequence[Key]) -> str:
    """The keys and the values, in either order or at once."""
    if rng.random() < 0.2:
        slots = _slots(rng, keys, exact=True)
        return ask(rng, rng.choice(_AT_ONCE), **slots)
    slots = _slots(rng, keys, exact=False)
    if rng.random() < 0.2:
        request = rng.choice(_BY_SKELETON).format(skeleton=_skeleton(rng, keys))
    else:
        request = rng.choice(_REQUESTS).format(keys=_wanted(rng, keys))
    template = rng.choice(_VALUES_AFTER if rng.random() < 0.7 else _VALUES_BEFORE)
    return ask(rng, template, request=request, **slots)


def values_alone(rng: random.Random, keys: Sequence[Key]) -> str:
    """What the user says where somebody else has named the keys."""
    return ask(rng, rng.choice(_VALUES_ALONE), **_slots(rng, keys, exact=False))


def _instructed(rng: random.Random, keys: Sequence[Key]) -> Message:
    told = rng.choice(_TOLD)
    slots = {"keys": _wanted(rng, keys), "skeleton": _skeleton(rng, keys)}
    return developer_message(told.format(**slots))


def _formatted(rng: random.Random, keys: Sequence[Key]) -> Message:
    instructions = rng.choice(_FORMAT_INSTRUCTIONS) if rng.random() < 0.4 else None
    return developer_message(instructions, response_formats=(draw_format(rng, keys),))


def draw_format(rng: random.Random, keys: Sequence[Key]) -> ResponseFormat:
    schema = _schema(keys)
    if rng.random() < 0.3:
        schema["additionalProperties"] = False
    return ResponseFormat(draw_word(rng, held_out=False), schema)


def _thought(effort: Effort, keys: Sequence[Key]) -> list[Message]:
    match effort:
        case Effort.LOW:
            return []
        case Effort.MEDIUM:
            return [analysis("Write JSON.")]
        case Effort.HIGH:
            return [analysis("\n".join(f"{key.name} = {bare(key.value)}" for key in keys))]


DRAW: dict[Skill, Callable[[random.Random, Setting], Lesson]] = {Skill.SHAPE: draw_shape}

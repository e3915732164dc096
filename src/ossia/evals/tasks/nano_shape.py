"""A JSON object with keys that no lesson has, requested by the user, by instructions of the
application or by a response format; no grammar constrains the answer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from ossia.evals.held_out import draw_identifier
from ossia.evals.task import Example, Task
from ossia.evals.tasks.grading import grade_json
from ossia.evals.tasks.nano_tools import draw_value
from ossia.harmony.messages import DeveloperContent, Message, ResponseFormat, Role

_KINDS = ("string", "string", "integer", "number", "boolean")

# {facts}: `a => 1, b => true`; {keys}: `a, b`; {typed}: `a (integer), b (boolean)`.
_BY_USER = (
    "Some data: {facts}. Make it valid JSON, just one object, fields {keys} in that sequence.",
    "For my config file: {facts}. Send back just the JSON object ({keys}, ordered like this).",
    "An object in JSON notation is what I'm after. Members: {keys}. Contents: {facts}.",
    "Build the JSON for {keys} out of this: {facts}. Don't explain it.",
    "My parser takes raw JSON only. It expects {keys}, in this sequence. The input: {facts}.",
    "{facts}. As a JSON record with {keys}, how does that look? Skip any other text.",
    "Please serialise these values to JSON under {keys}: {facts}",
)
_BY_DEVELOPER = (
    "A program reads your replies, so send a bare JSON object made of {typed}, in that sequence.",
    "Collect {keys} from each message and send them back as JSON, sequence unchanged, uncommented.",
    "Replies are machine-read JSON objects and nothing more. Members and their types: {typed}.",
    "Pull out {typed}. Your whole reply is the JSON object that holds them.",
)
_FACTS = (
    "This just came in: {facts}.",
    "For the record, {facts}.",
    "My entry: {facts}",
    "{facts}. Nothing else to report.",
    "{facts}, thanks.",
)
_FACT = (
    "{key} has the value {value}",
    "{key} => {value}",
    "{key} was entered as {value}",
    "under {key} goes {value}",
)


def draw_shape(rng: random.Random) -> Example:
    """Two to four keys, now and then one; the facts come in another order than the keys half the
    time."""
    values: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    size = rng.choice((1, 2, 2, 3, 3, 4))
    while len(values) < size:
        key = draw_identifier(rng, held_out=True)
        kinds[key] = rng.choice(_KINDS)
        values[key] = draw_value(rng, kinds[key])
    by = rng.choice(("by the user", "by instructions", "by a response format"))
    asked = {
        "by the user": _by_user,
        "by instructions": _by_instructions,
        "by a response format": _by_format,
    }[by](rng, values, kinds)
    return Example(
        messages=asked,
        grade=lambda turn: grade_json(turn, values),
        expected=json.dumps(values, ensure_ascii=False),
        variant=by,
    )


def _facts(rng: random.Random, values: Mapping[str, Any]) -> str:
    form = rng.choice(_FACT)
    quoted = rng.random() < 0.5
    facts = [form.format(key=key, value=_shown(value, quoted)) for key, value in values.items()]
    if rng.random() < 0.5:
        rng.shuffle(facts)
    return ", ".join(facts)


def _shown(value: Any, quoted: bool) -> str:
    if isinstance(value, str):
        return f'"{value}"' if quoted or " " in value else value
    return json.dumps(value)


def _by_user(
    rng: random.Random, values: Mapping[str, Any], kinds: Mapping[str, str]
) -> tuple[Message, ...]:
    text = rng.choice(_BY_USER).format(keys=", ".join(values), facts=_facts(rng, values))
    return (_user(text),)


def _by_instructions(
    rng: random.Random, values: Mapping[str, Any], kinds: Mapping[str, str]
) -> tuple[Message, ...]:
    typed = ", ".join(f"{key} ({kind})" for key, kind in kinds.items())
    text = rng.choice(_BY_DEVELOPER).format(keys=", ".join(values), typed=typed)
    developer = Message(Role.DEVELOPER, (DeveloperContent(text),))
    return developer, _user(rng.choice(_FACTS).format(facts=_facts(rng, values)))


def _by_format(
    rng: random.Random, values: Mapping[str, Any], kinds: Mapping[str, str]
) -> tuple[Message, ...]:
    schema = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in kinds.items()},
        "required": list(values),
    }
    shape = ResponseFormat(draw_identifier(rng, held_out=True), schema)
    developer = Message(Role.DEVELOPER, (DeveloperContent(response_formats=(shape,)),))
    return developer, _user(rng.choice(_FACTS).format(facts=_facts(rng, values)))


def _user(text: str) -> Message:
    return Message.of_text(Role.USER, text)


def _shapes(rng: random.Random, count: int) -> list[Example]:
    return [draw_shape(rng) for _ in range(count)]


TASKS = (
    Task(
        "shape",
        "JSON",
        "JSON of a requested shape",
        "A JSON object with unseen keys is requested and its values are told in words; the answer "
        "must be that object, its keys in the requested order, and nothing else.",
        _shapes,
    ),
)

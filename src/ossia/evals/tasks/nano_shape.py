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

# {facts}: `a is 1, b is true`; {keys}: `a, b`; {typed}: `a (integer), b (boolean)`.
_BY_USER = (
    "I need a JSON object with the keys {keys}, in that order, and nothing else. {facts}.",
    "Put this into JSON, keys {keys}: {facts}.",
    "{facts}. Write that as one JSON object whose keys are {keys}.",
    "Only JSON, please, with {keys} as the keys: {facts}.",
    "Turn the following into a JSON object ({keys}): {facts}",
    "Make me a JSON object from these facts. Keys: {keys}. Facts: {facts}.",
    "Respond in JSON with {keys}. Here is what goes in: {facts}.",
)
_BY_DEVELOPER = (
    "Reply with nothing but a JSON object that has the keys {typed}, in this order.",
    "Every reply is one JSON object. Its keys, in order: {typed}.",
    "Take {keys} from what the user says and reply in JSON with these keys, in this order.",
    "The output must be JSON: {typed}. No other text.",
)
_FACTS = (
    "{facts}.",
    "Here are the facts: {facts}",
    "Today {facts}.",
    "So: {facts}, that is all.",
    "{facts}, please.",
)
_FACT = ("{key} is {value}", "{key} = {value}", "{key}: {value}", "the {key} is {value}")


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

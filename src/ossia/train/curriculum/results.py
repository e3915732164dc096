"""Answers from what a function gave back: a question, the call that it takes, the tool's output,
and the value that was asked for, or what went wrong.

What is wanted is told in the words of a question, or by the name of its key beside a request for
the call.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ossia.evals.held_out import draw_identifier, draw_word, held_out_name
from ossia.harmony.messages import Conversation, Effort
from ossia.train.curriculum.lesson import Lesson, Setting, Skill, analysis, final, tool_result, user
from ossia.train.curriculum.tools import (
    Function,
    call_thought,
    draw_thing,
    offer,
    request,
)
from ossia.train.curriculum.values import (
    Field,
    ask,
    bare,
    capitalized,
    draw_enum,
    draw_field,
    draw_integer,
    draw_name,
    draw_number,
    draw_string,
    state,
    without_held_out_pairs,
    words_of,
)

RESULT = "It is {}."

BY_KEY = 0.45
"""Share of the results of which a value is wanted by the name of its key, beside a request for the
call."""


@dataclass(frozen=True)
class Output:
    """What a tool gave back, and what follows from it."""

    text: str
    found: str
    """The line of analysis that picks it out."""
    answer: str


_QUESTIONS = (
    "What is the {thing} {where}?", "What is the {thing} {where}?", "what is the {thing} {where}",
    "What's the {thing} {where}?", "Tell me the {thing} {where}.", "Give me the {thing} {where}.",
    "How is the {thing} {where}?", "I need the {thing} {where}.", "{thing} {where}",
    "{thing} {where}?", "Can you tell me the {thing} {where}?", "Do you know the {thing} {where}?",
    "Find the {thing} {where}.", "Find out the {thing} {where}.", "Look up the {thing} {where}.",
    "Please get the {thing} {where}.", "Which {thing} is there {where}?",
    "Show me the {thing} {where}.", "I would like to know the {thing} {where}.",
    "{Where}: what is the {thing}?", "{Where}, what is the {thing}?",
    "I am looking for the {thing} {where}.",
    "Check the {thing} {where}.", "Could you check the {thing} {where}?",
    "The {thing} {where}, please.", "Say what the {thing} is {where}.",
    "What does {f} say is the {thing} {where}?",
    "Use {f}: what is the {thing} {where}?", "Ask {f} for the {thing} {where}.",
    "Call {f} and tell me the {thing} {where}.", "What {thing} do we have {where}?",
)  # fmt: skip

_THEN = (
    "I want the {key} of it.", "Say what {key} it returns.", "Report the {key}.",
    "The {key} is all I need.", "Give me its {key}.", "What is the {key}?", "What {key} is it?",
    "Let me know the {key}.", "Read me the {key}.", "I am after the {key}.", "Show its {key}.",
    "Answer with the {key}.", "And the {key}?", "Then say the {key}.", "Which {key} is that?",
)  # fmt: skip
"""What of a result is wanted, beside the request for the call."""

_RETURNS = (
    "Returns the {}.", "Gets the {}.", "Get the {}.", "Gives the {}.", "Looks up the {}.",
    "Finds the {}.", "Reads the {}.", "The {}.", "Shows the {}", "Query the {}.", "Tells the {}.",
)  # fmt: skip

_READING_VERBS = ("get", "find", "read", "fetch", "check", "show", "lookup", "query")

_PLAIN_KEYS = tuple(
    key
    for key in ("result", "value", "answer", "output", "data", "reading")
    if not held_out_name(key)
)
"""Keys that say nothing of what they hold."""

_ERRORS = (
    "not found", "no such {w}", "unknown {w}", "timeout", "{w} not found", "no data for {v}",
    "the {w} is closed", "the {w} is down", "access denied", "{w} is missing", "invalid {w}",
    "no {w} for {v}", "too many {w} calls", "{v} is unknown", "cannot reach the {w}", "{w} {u}",
    "the {w} has no {u}", "internal error", "rate limit reached", "{w} expired",
    "no answer from {u}",
)  # fmt: skip

_TEXTS = (
    "{thing}: {value}", "The {thing} is {value}.", "{Thing}: {value}", "{thing} = {value}",
    "{value} ({thing})", "The {thing} {where} is {value}.", "{thing}\n{value}",
    "{thing} is {value}", "{Thing} {where}: {value}", "Found {thing}: {value}",
    "OK. {thing}: {value}",
)  # fmt: skip


def draw_result(rng: random.Random, setting: Setting) -> Lesson:
    """A question, the call that it takes, the tool's output, and the answer read from it, or what
    the tool said went wrong."""
    return without_held_out_pairs(lambda: _draw_result(rng, setting))


def _draw_result(rng: random.Random, setting: Setting) -> Lesson:
    found = draw_finding(rng)
    call = found.function.call
    messages = [
        *offer(rng, setting, found.offered),
        user(found.asked),
        *call_thought(setting.effort, found.function),
        call,
        tool_result(call, found.output.text),
    ]
    if setting.effort is Effort.HIGH:
        messages.append(analysis(found.output.found))
    messages.append(final(found.output.answer))
    return Lesson(Skill.RESULT, Conversation(tuple(messages)))


@dataclass(frozen=True)
class Finding:
    """A question that takes a function's output to answer."""

    asked: str
    offered: tuple[Function, ...]
    function: Function
    """The one that is called."""
    output: Output


def draw_finding(rng: random.Random) -> Finding:
    taken: set[str] = set()
    several = rng.random() < 0.4
    function = _reading_function(rng, taken, general=several)
    offered = [function]
    if rng.random() < 0.2:
        offered.append(_reading_function(rng, taken, general=False))
        rng.shuffle(offered)
    thing = _unused_thing(rng, taken) if several else function.thing
    where = _where(rng, function, general=several)
    if rng.random() < BY_KEY:
        thing = key = draw_name(rng, taken)
        parts = [_ended(request(rng, function)), rng.choice(_THEN).format(key=key)]
        if rng.random() < 0.35:
            parts.reverse()
        asked = " ".join(parts)
    else:
        key = _key_of(rng, thing)
        slots = {"thing": thing, "where": where, "Where": capitalized(where), "f": function.name}
        asked = ask(rng, rng.choice(_QUESTIONS), **slots)
    output = _draw_output(rng, thing, key, where, function, several=several)
    return Finding(asked, tuple(offered), function, output)


def _ended(text: str) -> str:
    return text if text[-1] in ".?!" else f"{text}."


def _reading_function(rng: random.Random, taken: set[str], *, general: bool) -> Function:
    """One that looks something up by one or two arguments. `general`: its thing is what is looked
    up, of which the user wants one property; else its thing is what the user wants."""
    thing = _unused_thing(rng, taken)
    name = ""
    if rng.random() < 0.5:
        name = f"{rng.choice(_READING_VERBS)}_{thing.replace(' ', '_')}"
    while not name or name in taken or held_out_name(name):
        name = draw_identifier(rng, held_out=False)
    taken.add(name)
    own = {name}
    parameters: list[Field] = []
    for _ in range(1 if rng.random() < 0.75 else 2):
        field = draw_enum(rng, own) if rng.random() < 0.05 else draw_field(rng, own)
        while not isinstance(field.value, str) and rng.random() < 0.7:
            field = draw_field(rng, own)
        parameters.append(field)
    comments = [f"The {words_of(f.name)}." if rng.random() < 0.2 else None for f in parameters]
    description = rng.choice(_RETURNS).format(thing)
    if general and rng.random() < 0.5:
        description = f"{rng.choice(('All', 'Everything', 'Data'))} about the {thing}."
    return Function(name, "get", thing, description, tuple(parameters), tuple(comments))


def _unused_thing(rng: random.Random, taken: set[str]) -> str:
    while (thing := draw_thing(rng)) in taken:
        pass
    taken.add(thing)
    return thing


def _where(rng: random.Random, function: Function, *, general: bool) -> str:
    """`in Oslo`, `for city Oslo`, `of the station with id 3`."""
    statement = state(rng, function.said, in_order=True)
    if general and rng.random() < 0.6:
        styles = ("of the {thing} {values}", "of the {thing} with {phrases}", "of {thing} {values}")
        style = rng.choice(styles)
        return style.format(
            thing=function.thing, values=statement.values, phrases=statement.phrases
        )
    alone = len(function.arguments) == 1
    if alone and isinstance(function.arguments[0].value, str) and rng.random() < 0.6:
        return f"{rng.choice(('in', 'of', 'for', 'at', 'on', 'from'))} {statement.values}"
    return f"{rng.choice(('for', 'with', 'given', 'if I say', 'when we have'))} {statement.phrases}"


def _draw_output(
    rng: random.Random, thing: str, key: str, where: str, function: Function, *, several: bool
) -> Output:
    draw = rng.random()
    if draw < 0.1:
        return _failure(rng, function)
    value = _draw_result_value(rng)
    shown = bare(value)
    found = (f"{thing} = {shown}", RESULT.format(shown))
    if several:
        return Output(_spelled(rng, _with_others(rng, key, value)), *found)
    if draw < 0.55:
        key = rng.choice(_PLAIN_KEYS) if rng.random() < 0.3 else key
        return Output(_spelled(rng, {key: value}), *found)
    if draw < 0.78:
        return Output(json.dumps(value) if rng.random() < 0.3 else shown, *found)
    text = rng.choice(_TEXTS).format(
        thing=thing, Thing=capitalized(thing), value=shown, where=where
    )
    return Output(text, *found)


def _failure(rng: random.Random, function: Function) -> Output:
    words = [draw_word(rng, held_out=False) for _ in range(2)]
    value = bare(function.arguments[0].value)
    error = rng.choice(_ERRORS).format(w=words[0], u=words[1], v=value)
    if rng.random() < 0.3:
        error = capitalized(error)
    return Output(_spelled(rng, {"error": error}), f"error = {error}", f"The tool failed: {error}.")


def _draw_result_value(rng: random.Random) -> str | int | float | bool:
    draw = rng.random()
    if draw < 0.4:
        return draw_string(rng)
    if draw < 0.7:
        return draw_integer(rng)
    return json.loads(draw_number(rng)) if draw < 0.94 else rng.random() < 0.5


def _key_of(rng: random.Random, thing: str) -> str:
    """`tide level` as a key: `tide_level`, `tideLevel`, or as it is."""
    first, *rest = thing.split()
    draw = rng.random()
    if draw < 0.65:
        return "_".join([first, *rest])
    return first + "".join(map(str.capitalize, rest)) if draw < 0.85 else thing


def _with_others(rng: random.Random, key: str, value: Any) -> dict[str, Any]:
    """The key among one or two others, in any order."""
    taken = {key}
    others = [draw_field(rng, taken) for _ in range(rng.choice((1, 1, 2)))]
    pairs = [(key, value), *((field.name, field.value) for field in others)]
    rng.shuffle(pairs)
    return dict(pairs)


def _spelled(rng: random.Random, document: dict[str, Any]) -> str:
    """JSON with or without spaces, seldom over several lines."""
    draw = rng.random()
    if draw < 0.5:
        return json.dumps(document)
    return (
        json.dumps(document, separators=(",", ":"))
        if draw < 0.92
        else json.dumps(document, indent=2)
    )


DRAW: dict[Skill, Callable[[random.Random, Setting], Lesson]] = {Skill.RESULT: draw_result}

"""Named values drawn fresh, as JSON has them and as people say them: the arguments of calls, the
values of results, the keys of shapes.

Only names and words that training may see are drawn. The same value is said in many ways, but it is
always said in full, so that whatever the assistant writes can be copied from what it read.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from ossia.evals.held_out import draw_identifier, draw_word, held_out_name, held_out_pair
from ossia.evals.words import ADJECTIVES
from ossia.harmony.messages import Role
from ossia.train.curriculum.lesson import Lesson


class Kind(StrEnum):
    """Types of JSON schemas, by their names there."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"


@dataclass(frozen=True)
class Field:
    """A parameter or a key with its value."""

    name: str
    kind: Kind
    value: str | int | float | bool
    said: str
    """The value in the user's words: the digits of a number, `yes` or `off` for a boolean."""
    options: tuple[str, ...] = ()
    """The values that a string may take; empty when any will do."""

    @property
    def schema(self) -> dict[str, Any]:
        kind: dict[str, Any] = {"type": str(self.kind)}
        return kind | ({"enum": list(self.options)} if self.options else {})

    @property
    def line(self) -> str:
        """`city = Oslo`: the field in a line of analysis."""
        return f"{self.name} = {bare(self.value)}"


def bare(value: Any) -> str:
    """JSON, but a string without its quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def without_held_out_pairs(draw: Callable[[], Lesson]) -> Lesson:
    """The first lesson drawn in which no two numbers, whoever says them and wherever, are a pair
    that training may not see. The system message is not looked at: its date is no operand."""
    while True:
        lesson = draw()
        seen: set[int] = set()
        found = False
        for message in lesson.conversation.messages:
            numbers = [int(digits) for digits in re.findall(r"[0-9]+", message.text)]
            seen.update(numbers)
            # Within one message of the user's a number said twice is two; the assistant's own
            # repeats are one and the same.
            found |= message.role == Role.USER and holds_held_out_pair(numbers)
        if not found and not holds_held_out_pair(seen):
            return lesson


def holds_held_out_pair(numbers: Iterable[int]) -> bool:
    """Whether any two of the numbers may not be seen together."""
    return any(held_out_pair(a, b) for a, b in itertools.combinations(numbers, 2))


# ---- drawing -----------------------------------------------------------------------------------

_USUAL_NAMES = (
    "city", "days", "unit", "name", "count", "date", "limit", "query", "id", "title", "size",
    "price", "amount", "language", "user", "email", "width", "height", "colour", "level", "mode",
    "start", "end", "hour", "year", "page", "path", "text", "topic", "place", "kind",
    "room", "speed", "currency", "active", "verbose", "number", "status", "age", "key", "tag",
)  # fmt: skip
"""What parameters are often called."""

_PROPER = (
    "Paris", "Oslo", "London", "Berlin", "Rome", "Madrid", "Tokyo", "Lima", "Cairo", "Vienna",
    "Dublin", "Boston", "Delhi", "Athens", "Prague", "Kyoto", "Quito", "Zurich", "Geneva", "Hanoi",
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jonas", "Karim",
    "Lena", "Maria", "Nadia", "Omar", "Peter", "Rosa", "Sara", "Tom", "Vera", "Yusuf", "Zoe",
)  # fmt: skip

_YES = ("true", "true", "true", "true", "yes", "on")
_NO = ("false", "false", "false", "false", "no", "off")


def draw_name(rng: random.Random, taken: set[str]) -> str:
    """The name of a parameter or key, none of those taken; it is added to them."""
    while True:
        draw = rng.random()
        if draw < 0.2:
            name = rng.choice(_USUAL_NAMES)
        elif draw < 0.65:
            name = draw_word(rng, held_out=False)
        else:
            name = draw_identifier(rng, held_out=False)
        if name not in taken and not held_out_name(name):
            taken.add(name)
            return name


def draw_field(rng: random.Random, taken: set[str], *, plain_booleans: bool = False) -> Field:
    """Any kind of value under a new name. `plain_booleans`: a boolean is said `true` or `false`,
    as nothing else tells its kind."""
    (kind,) = rng.choices(tuple(Kind), (45, 23, 17, 15))
    return _field(rng, draw_name(rng, taken), kind, plain_booleans=plain_booleans)


def with_new_value(rng: random.Random, field: Field) -> Field:
    """The same parameter, given something else."""
    if field.options:
        chosen = rng.choice(field.options)
        return replace(field, value=chosen, said=chosen)
    return _field(rng, field.name, field.kind)


def _field(rng: random.Random, name: str, kind: Kind, *, plain_booleans: bool = False) -> Field:
    match kind:
        case Kind.STRING:
            text = draw_string(rng)
            return Field(name, kind, text, text)
        case Kind.INTEGER:
            number = draw_integer(rng)
            return Field(name, kind, number, str(number))
        case Kind.NUMBER:
            said = draw_number(rng)
            return Field(name, kind, json.loads(said), said)
        case Kind.BOOLEAN:
            value = rng.random() < 0.5
            words = (json.dumps(value),) if plain_booleans else _YES if value else _NO
            return Field(name, kind, value, rng.choice(words))


def draw_enum(rng: random.Random, taken: set[str]) -> Field:
    """A string out of two or three."""
    name = draw_name(rng, taken)
    options: list[str] = []
    while len(options) < (2 if rng.random() < 0.5 else 3):
        option = draw_word(rng, held_out=False) if rng.random() < 0.7 else _adjective(rng)
        if option not in options:
            options.append(option)
    chosen = rng.choice(options)
    return Field(name, Kind.STRING, chosen, chosen, tuple(options))


def draw_string(rng: random.Random) -> str:
    """A word, a phrase of two, a name or a code; neither it nor a word of it is held out."""
    while True:
        text = _string(rng)
        if not any(map(held_out_name, (text, *text.split()))):
            return text


def draw_integer(rng: random.Random) -> int:
    (length,) = rng.choices((1, 2, 3, 4), (7, 7, 4, 2))
    number = rng.randrange(10 ** (length - 1) if length > 1 else 0, 10**length)
    return -number if rng.random() < 0.04 else number


def draw_number(rng: random.Random) -> str:
    """A decimal fraction that JSON spells as it is given, or a whole number."""
    draw = rng.random()
    if draw < 0.35:
        return str(draw_integer(rng))
    tenths = rng.randrange(10) if draw < 0.5 else ""
    whole = rng.randrange(10 if rng.random() < 0.4 else 100)
    return f"{'-' * (rng.random() < 0.04)}{whole}.{tenths}{rng.randrange(1, 10)}"


def _string(rng: random.Random) -> str:
    def word() -> str:
        return draw_word(rng, held_out=False)

    draw = rng.random()
    if draw < 0.3:
        return word()
    if draw < 0.45:
        return f"{_adjective(rng) if rng.random() < 0.5 else word()} {word()}"
    if draw < 0.6:
        return word().capitalize()
    if draw < 0.75:
        return rng.choice(_PROPER)
    if draw < 0.82:
        return f"{rng.choice(_PROPER)} {word().capitalize()}"
    return _code(rng)


def _code(rng: random.Random) -> str:
    """`A7-K2`, `QX41`, `r-305`."""
    shape = rng.choice(("A0-A0", "AA00", "A-00", "A-000", "a-000", "aa0", "A0A", "AAA-0", "000-A"))
    ranges = {"A": string.ascii_uppercase, "a": string.ascii_lowercase, "0": string.digits}
    return "".join(rng.choice(ranges[sign]) if sign in ranges else sign for sign in shape)


def _adjective(rng: random.Random) -> str:
    while held_out_name(word := rng.choice(ADJECTIVES)):
        pass
    return word


# ---- saying ------------------------------------------------------------------------------------

_PHRASES = (
    "{p} = {v}", "{p} = {v}", "{p}={v}", "{p}: {v}", "{p}: {v}", "{p} {v}", "{p} {v}",
    "{p} set to {v}", "{p} of {v}", "a {p} of {v}", "{p} equal to {v}", "{p} being {v}",
    "the {p} {v}", "{p} ({v})", "{p} -> {v}", "{p} as {v}", "{p}, {v}", "for {p} {v}",
)  # fmt: skip
"""Ways to give one value that can stand after `with`."""

_PHRASES_FROM_VALUE = (
    "{v} as {p}", "{v} as the {p}", "{v} for {p}", "{v} for the {p}", "{v} ({p})",
    "{v} as its {p}",
)  # fmt: skip

_CLAUSES = (
    "the {p} is {v}", "the {p} is {v}", "{p} is {v}", "{p} is {v}", "{p} should be {v}",
    "the {p} should be {v}", "set {p} to {v}", "the {p} must be {v}", "for {p} take {v}",
    "{p} has to be {v}", "as {p} use {v}", "let {p} be {v}", "its {p} is {v}", "{p} equals {v}",
)  # fmt: skip
"""Ways to give one value that are sentences."""

_CLAUSES_FROM_VALUE = (
    "use {v} as {p}", "use {v} for {p}", "{v} is the {p}", "put {v} into {p}",
    "take {v} as the {p}",
)  # fmt: skip

FROM_VALUE = 0.1
"""Share of the statements in which values stand before their names."""

_LINES = ("- {p}: {v}", "{p}: {v}", "{p} = {v}", "* {p} = {v}", "- {p} is {v}", "{p} {v}")

_QUOTES = ("", "", "", "", "", '"', '"', "'", "`")


@dataclass(frozen=True)
class Statement:
    """The same names and values in forms that fit different sentences."""

    phrases: str
    """`city Oslo and days 3`"""
    clauses: str
    """`the city is Oslo, the days is 3`"""
    sentence: str
    """The clauses with a capital, unless a name or a value comes first."""
    lines: str
    """One a line."""
    call: str
    """`city=Oslo, days=3`"""
    values: str
    """`Oslo and 3`, in the order of the fields."""


def state(
    rng: random.Random, fields: Sequence[Field], *, exact: bool = False, in_order: bool = False
) -> Statement:
    """Says the values in any order or `in_order`, one time in thirty with `tide level` for
    `tide_level`; `exact`: in the order and under the names of the fields, for where nothing else
    tells these."""
    quote = rng.choice(_QUOTES)
    spaced = not exact and rng.random() < 0.03
    pairs = [
        (words_of(f.name) if spaced else f.name, quoted(f.said, quote, f.kind)) for f in fields
    ]
    values = joined(rng, [value for _, value in pairs])
    if not (exact or in_order) and rng.random() < 0.5:
        rng.shuffle(pairs)

    def each(style: str) -> list[str]:
        return [style.format(p=name, v=value) for name, value in pairs]

    from_value = rng.random() < FROM_VALUE
    phrase = rng.choice(_PHRASES_FROM_VALUE if from_value else _PHRASES)
    clause = rng.choice(_CLAUSES_FROM_VALUE if from_value else _CLAUSES)
    phrases, clauses = each(phrase), joined(rng, each(clause))
    return Statement(
        phrases=" and ".join(phrases) if "," in phrase else joined(rng, phrases),
        clauses=clauses,
        sentence=clauses if clause.startswith("{") else capitalized(clauses),
        lines="\n".join(each(rng.choice(_LINES))),
        call=", ".join(f"{name}={value}" for name, value in pairs),
        values=values,
    )


def joined(rng: random.Random, parts: Sequence[str]) -> str:
    """`a, b and c` in one of its spellings."""
    draw = rng.random()
    if draw < 0.3:
        return ", ".join(parts)
    if draw < 0.45:
        return " and ".join(parts)
    if draw < 0.52:
        return "; ".join(parts)
    if len(parts) == 1:
        return parts[0]
    comma = "," if draw < 0.65 and len(parts) > 2 else ""
    return f"{', '.join(parts[:-1])}{comma} and {parts[-1]}"


def quoted(said: str, quote: str, kind: Kind) -> str:
    return f"{quote}{said}{quote}" if kind is Kind.STRING else said


def words_of(name: str) -> str:
    """`tide_level` and `tideLevel` as `tide level`."""
    return re.sub(r"_|(?<=[a-z])(?=[A-Z])", " ", name).lower()


def ask(rng: random.Random, template: str, **slots: str) -> str:
    """A template filled, its first letter small or its last stop missing now and then."""
    if rng.random() < 0.2 and template[0].isupper() and not template.startswith(("I ", "I'")):
        template = template[0].lower() + template[1:]
    if rng.random() < 0.15:
        template = template.rstrip(".?!")
    return template.format(**slots)


def capitalized(text: str) -> str:
    """The first letter alone, unlike str.capitalize."""
    return text[:1].upper() + text[1:]

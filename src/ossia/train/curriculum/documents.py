"""Texts for the first stage of training, before any conversation: digits, copying, look-up and
JSON, which teach the induction that names never seen before need.

Only what follows from the text before it is learnt from; the rest has no weight.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ossia.evals.held_out import draw_identifier, draw_word, held_out_pair
from ossia.evals.words import NOUNS, SMALL
from ossia.harmony.messages import Effort
from ossia.train.curriculum.arithmetic import SKILLS, draw_training_problem, working
from ossia.train.curriculum.drills import (
    Drill,
    draw_call_drill,
    draw_question_drill,
    draw_rank_drill,
    draw_result_drill,
    draw_shape_drill,
    draw_talk_drill,
)

Span = tuple[str, int]
"""A piece of text and the weight of its loss, 0 or 1."""


class Topic(StrEnum):
    """What a document is about; recipes mix documents by these names."""

    DIGITS = "digits"
    """One-digit facts, reversing, comparing and counting."""
    COPY = "copy"
    """Something, then the same again."""
    LOOKUP = "lookup"
    """Keys with values, then some of the keys again, each with its value."""
    JSON = "json"
    """Lines into JSON, and JSON into lines."""
    CALL_DRILL = "call_drill"
    """Declared functions, a request, the call."""
    QUESTION_DRILL = "question_drill"
    """A question for a sum, its numbers set out."""
    RESULT_DRILL = "result_drill"
    """A question, a tool's output, the answer."""
    SHAPE_DRILL = "shape_drill"
    """A requested shape, values, the JSON."""
    TALK_DRILL = "talk_drill"
    """Something said, and what to think of it."""
    RANK_DRILL = "rank_drill"
    """Wishes of several ranks, and whose counts."""
    WORKING = "working"
    """Problems with their working, outside of any conversation."""


@dataclass(frozen=True)
class Document:
    topic: Topic
    spans: tuple[Span, ...]

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.spans)


def draw_document(rng: random.Random, topic: Topic) -> Document:
    """One document; most are short, about one in twenty is several times as long."""
    size = rng.randrange(4, 24) if rng.random() < 0.95 else rng.randrange(40, 120)
    return Document(topic, tuple(_DRAW[topic](rng, size)))


# ---- digits ------------------------------------------------------------------------------------


def _digits(rng: random.Random, size: int) -> list[Span]:
    spans: list[Span] = []
    for _ in range(size):
        question, answer = _fact(rng)
        spans += [(question, 0), (answer + "\n", 1)]
    return spans


def _fact(rng: random.Random) -> tuple[str, str]:
    a, b, carry = rng.randrange(10), rng.randrange(10), rng.randrange(2)
    number = rng.randrange(10 ** rng.randrange(1, 5))
    other = rng.randrange(10 ** len(str(number)))
    if held_out_pair(number, other) or held_out_pair(number, number + 1):
        return _fact(rng)
    facts = (
        (f"{a}+{b}=", f"{a + b:02}"),
        (f"{a}+{b}+{carry}=", f"{a + b + carry:02}"),
        (f"{a}×{b}=", f"{a * b:02}"),
        (f"{a + 10}−{b}=", f"{a + 10 - b}"),
        (f"{a} × {b} = ", f"{a * b}"),
        (f"{a} + {b} = ", f"{a + b}"),
        (f"{number} reversed: ", str(number)[::-1]),
        (f"{number} digits: ", " ".join(str(number))),
        (f"after {number}: ", str(number + 1)),
        (f"{number} or {other}, larger: ", str(max(number, other))),
    )
    return rng.choice(facts)


# ---- copying -----------------------------------------------------------------------------------


def _copy(rng: random.Random, size: int) -> list[Span]:
    """A passage repeated whole, or lines of which some are repeated."""
    words = [_item(rng) for _ in range(size)]
    if rng.random() < 0.5:
        passage = " ".join(words)
        spans: list[Span] = [(passage, 0)]
        for _ in range(rng.randrange(1, 3)):
            spans += [("\nagain: ", 0), (passage, 1)]
        return [*spans, ("\n", 1)]
    lines = [" ".join(words[i : i + 4]) for i in range(0, size, 4)]
    spans = [("\n".join(lines) + "\n", 0)]
    for line in rng.sample(lines, min(len(lines), 6)):
        first, space, rest = line.partition(" ")
        spans += [(f"> {first}", 0), (f"{space}{rest}\n", 1)]
    return spans


def _item(rng: random.Random) -> str:
    """A word, a name, a number or a code."""
    match rng.randrange(7):
        case 0:
            return draw_identifier(rng, held_out=False)
        case 1:
            return rng.choice(SMALL)
        case 2:
            return _number(rng)
        case 3:
            return _code(rng)
        case 4:
            return draw_word(rng, held_out=False).capitalize()
        case _:
            return draw_word(rng, held_out=False)


def _number(rng: random.Random) -> str:
    number = str(rng.randrange(10 ** rng.randrange(1, 6)))
    return f"{number}.{rng.randrange(10)}" if rng.random() < 0.15 else number


def _code(rng: random.Random) -> str:
    alphabet = rng.choice((string.ascii_uppercase + string.digits, string.ascii_letters))
    return "".join(rng.choices(alphabet, k=rng.randrange(2, 7)))


# ---- look-up and JSON --------------------------------------------------------------------------


def _lookup(rng: random.Random, size: int) -> list[Span]:
    pairs = _pairs(rng, size)
    sign, query = rng.choice((": ", " = ", " is ", " -> ")), rng.choice(("? ", " is ", " = ", ": "))
    spans: list[Span] = [("".join(f"{key}{sign}{value}\n" for key, value in pairs), 0)]
    for _ in range(min(size, 12)):
        key, value = rng.choice(pairs)
        spans += [(f"{key}{query}", 0), (f"{value}\n", 1)]
    return spans


def _pairs(rng: random.Random, size: int) -> list[tuple[str, str]]:
    keys = dict.fromkeys(draw_identifier(rng, held_out=False) for _ in range(size))
    return [(key, " ".join(_item(rng) for _ in range(rng.choice((1, 1, 1, 2))))) for key in keys]


def _json(rng: random.Random, size: int) -> list[Span]:
    """Small objects, each beside the lines that say the same."""
    spans: list[Span] = []
    for _ in range(max(1, size // 4)):
        keys = dict.fromkeys(
            draw_identifier(rng, held_out=False) for _ in range(rng.randrange(1, 5))
        )
        values = {key: _value(rng) for key in keys}
        sign = rng.choice((" = ", ": ", " is "))
        lines = "\n".join(f"{key}{sign}{_spoken(value)}" for key, value in values.items())
        compact = rng.random() < 0.5
        text = json.dumps(values, separators=(",", ":") if compact else None)
        if rng.random() < 0.7:
            spans += [(f"{lines}\n{'compact ' if compact else ''}JSON: ", 0), (text + "\n", 1)]
        else:
            spans += [(f"{text}\nlines{sign}\n", 0), (lines + "\n", 1)]
    return spans


def _value(rng: random.Random) -> Any:
    match rng.randrange(6):
        case 0:
            return rng.randrange(10 ** rng.randrange(1, 4))
        case 1:
            return rng.random() < 0.5
        case 2:
            return f"{rng.choice(NOUNS)} {draw_word(rng, held_out=False)}"
        case 3:
            return _code(rng)
        case _:
            return draw_word(rng, held_out=False)


def _spoken(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _drills(
    draw: Callable[[random.Random], Drill], often: int = 1
) -> Callable[[random.Random, int], list[Span]]:
    def spans(rng: random.Random, size: int) -> list[Span]:
        drills = [draw(rng) for _ in range(max(1, often * size // 8))]
        return [span for given, answer in drills for span in ((given, 0), (answer, 1))]

    return spans


# ---- working -----------------------------------------------------------------------------------


def _working(rng: random.Random, size: int) -> list[Span]:
    spans: list[Span] = []
    for _ in range(max(1, size // 8)):
        problem = draw_training_problem(rng, rng.choice(SKILLS))
        effort = rng.choice((Effort.MEDIUM, Effort.HIGH))
        first, _, rest = working(problem, effort).partition("\n")
        spans += [(f"{effort}: {first}\n", 0), (rest + "\n", 1)]
    return spans


_DRAW: dict[Topic, Callable[[random.Random, int], Sequence[Span]]] = {
    Topic.DIGITS: _digits,
    Topic.COPY: _copy,
    Topic.LOOKUP: _lookup,
    Topic.JSON: _json,
    Topic.CALL_DRILL: _drills(draw_call_drill),
    Topic.QUESTION_DRILL: _drills(draw_question_drill, often=3),
    Topic.RESULT_DRILL: _drills(draw_result_drill, often=2),
    Topic.SHAPE_DRILL: _drills(draw_shape_drill),
    Topic.TALK_DRILL: _drills(draw_talk_drill, often=2),
    Topic.RANK_DRILL: _drills(draw_rank_drill),
    Topic.WORKING: _working,
}

"""Calls, shapes, talk and the numbers of questions with no conversation around them, one by one:
what has to be looked up for them (the name after `type`, the next parameter, a value beside its
key, the digits of a number) makes up a quarter of such a text and a twentieth of a lesson. The
first stage learns it here, in a few hundred steps.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable

from ossia.harmony.tool_schema import response_formats_section, tools_section
from ossia.train.curriculum.arithmetic import SKILLS, draw_training_problem, set_out
from ossia.train.curriculum.hierarchy import draw_wished
from ossia.train.curriculum.python_tool import ask_for, draw_expression
from ossia.train.curriculum.refusals import close_by, harmful
from ossia.train.curriculum.results import draw_finding
from ossia.train.curriculum.shapes import draw_format, draw_keys, user_request, values_alone
from ossia.train.curriculum.sums import question
from ossia.train.curriculum.talk import any_sum, draw_exchange
from ossia.train.curriculum.tools import (
    Function,
    draw_function,
    function_namespace,
    request,
)
from ossia.train.curriculum.values import holds_held_out_pair

Drill = tuple[str, str]
"""What is given, and what follows from it."""


def draw_call_drill(rng: random.Random) -> Drill:
    """One or two functions as they are declared, a request, and the call of one of them."""
    return _without_held_out_pairs(lambda: _draw_call(rng))


def draw_shape_drill(rng: random.Random) -> Drill:
    """A request for JSON, or a response format and values, and the JSON."""
    return _without_held_out_pairs(lambda: _draw_shape(rng))


def draw_question_drill(rng: random.Random) -> Drill:
    """A question for a sum, and its numbers set out; or the code that computes it."""
    if rng.random() < 0.6:
        problem = draw_training_problem(rng, rng.choice(SKILLS))
        return f"{question(rng, problem)}\n", f"{set_out(problem)}\n"
    expression = draw_expression(rng)
    return f"{ask_for(rng, expression)}\n", f"print({expression.code})\n"


def draw_result_drill(rng: random.Random) -> Drill:
    """A question, what a tool gave back, and the answer."""
    return _without_held_out_pairs(lambda: _draw_result(rng))


def draw_talk_drill(rng: random.Random) -> Drill:
    """Something said to nano, and what to think of it, or what to say: the two differ in their
    first words, and a whole lesson has one such decision in three hundred tokens."""
    (kind,) = rng.choices((draw_exchange, harmful, close_by, any_sum), (55, 20, 12, 13))
    exchange = kind(rng)
    if exchange.problem is not None:
        return f"{exchange.said}\n", f"{set_out(exchange.problem)}\n"
    thought = exchange.brief if rng.random() < 0.6 else exchange.full
    return f"{exchange.said}\n", f"{thought if rng.random() < 0.7 else exchange.answer}\n"


def draw_rank_drill(rng: random.Random) -> Drill:
    """Wishes of one to three ranks with something said, and whose counts."""
    instructions, exchange = draw_wished(rng)
    given = [*(f"{rank.capitalize()}: {text}" for rank, text in instructions.items())]
    return "\n".join([*given, exchange.said, ""]), f"{exchange.brief}\n"


def _draw_result(rng: random.Random) -> Drill:
    finding = draw_finding(rng)
    return f"{finding.asked}\n{finding.output.text}\n", f"{finding.output.answer}\n"


def _draw_call(rng: random.Random) -> Drill:
    taken: set[str] = set()
    functions = [draw_function(rng, taken)]
    if rng.random() < 0.3:
        functions.append(draw_function(rng, taken))
    chosen = rng.choice(functions)
    given = f"{_declarations(functions)}\n\n{request(rng, chosen)}\n"
    return given, f"functions.{chosen.name} {chosen.call.text}\n"


def _declarations(functions: list[Function]) -> str:
    """Without the lines around them, which are always the same."""
    section = tools_section([function_namespace(functions)])
    return section.partition("{\n\n")[2].rpartition("\n\n}")[0]


def _draw_shape(rng: random.Random) -> Drill:
    keys = draw_keys(rng)
    answer = json.dumps({key.name: key.value for key in keys}, ensure_ascii=False) + "\n"
    if rng.random() < 0.6:
        return f"{user_request(rng, keys)}\n", answer
    section = response_formats_section([draw_format(rng, keys)])
    return f"{section}\n{values_alone(rng, keys)}\n", answer


def _without_held_out_pairs(draw: Callable[[], Drill]) -> Drill:
    while True:
        given, answer = draw()
        if not holds_held_out_pair(int(digits) for digits in re.findall(r"[0-9]+", given)):
            return given, answer

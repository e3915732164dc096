"""The Python tool, offered as the published models know it, for sums that nano can do and for
larger ones; what the model writes is evaluated from its syntax, never run.
"""

from __future__ import annotations

import random
from dataclasses import replace

from ossia.agent.events import Turn
from ossia.evals.task import RIGHT, Example, Grade, Task, wrong
from ossia.evals.tasks.expression import value_of
from ossia.evals.tasks.nano_arithmetic import (
    Sum,
    ask,
    distinct,
    draw_product_sum,
    draw_sum,
    held_out_operands,
)
from ossia.harmony.builtin_tools import PYTHON
from ossia.harmony.messages import Channel, Message, Role

LARGE = "beyond nano's own sums"


def draw_any_sum(rng: random.Random) -> Sum:
    """Every third within what nano does itself, the others larger."""
    kind = rng.randrange(6)
    if kind == 0:
        return draw_sum(rng)
    if kind == 1:
        return draw_product_sum(rng)
    if kind in (2, 3):
        a, b = held_out_operands(rng, (4, 5, 6), (4, 5, 6))
        return Sum(a, rng.choice("+-"), b)
    a, b = held_out_operands(rng, (3, 4), (2, 3, 4))
    if kind == 4:
        return Sum(a, "*", b)
    return Sum(a, "*", b, rng.choice("+-"), rng.randrange(100, 10_000))


def is_large(s: Sum) -> bool:
    return max(s.a, s.b) > (99 if s.operator == "*" else 999)


def grade_code(turn: Turn, value: int) -> Grade:
    """Right when the turn is one call of python whose code has this value."""
    if len(turn.tool_calls) != 1:
        return wrong(f"{len(turn.tool_calls)} calls in place of one")
    call = turn.tool_calls[0]
    if call.name != PYTHON.name:
        return wrong(f"called {call.name}")
    try:
        given = value_of(call.arguments)
    except ValueError as error:
        return wrong(f"code that shows no value of a sum ({error})")
    return RIGHT if given == value else wrong(f"code for {given} in place of {value}")


def _ask_with_python(rng: random.Random, s: Sum) -> Example:
    return ask(rng, s, LARGE if is_large(s) else "nano's own sums", tools=(PYTHON,))


def _with_output(turn: Turn, s: Sum) -> tuple[Message, ...]:
    """The model's own call where it is right, else the call that it should have made."""
    if grade_code(turn, s.value).right:
        return *turn.messages, turn.tool_calls[0].result(str(s.value))
    call = Message.of_text(
        Role.ASSISTANT,
        f"print({s.code})",
        channel=Channel.ANALYSIS,
        recipient=PYTHON.name,
        content_type="code",
    )
    output = Message.of_text(
        Role.TOOL,
        str(s.value),
        name=PYTHON.name,
        recipient=Role.ASSISTANT,
        channel=Channel.ANALYSIS,
    )
    return call, output


def _calls(rng: random.Random, count: int) -> list[Example]:
    def example(s: Sum) -> Example:
        return replace(
            _ask_with_python(rng, s),
            grade=lambda turn: grade_code(turn, s.value),
            expected=f"print({s.code})",
        )

    return [example(s) for s in distinct(lambda: draw_any_sum(rng), count)]


def _results(rng: random.Random, count: int) -> list[Example]:
    def example(s: Sum) -> Example:
        return replace(_ask_with_python(rng, s), proceed=lambda turn: _with_output(turn, s))

    return [example(s) for s in distinct(lambda: draw_any_sum(rng), count)]


TASKS = (
    Task(
        "python",
        "tools",
        "Python tool used when offered",
        "The Python tool is offered and a sum is asked, two out of three larger than nano can do; "
        "the turn must be one call whose code has the sum's value.",
        _calls,
    ),
    Task(
        "python_result",
        "tools",
        "answer from Python's output",
        "After the call (the model's own where it is right) its output comes back; the last number "
        "of the answer must be that.",
        _results,
    ),
)

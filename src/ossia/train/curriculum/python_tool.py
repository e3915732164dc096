"""Sums of any size, worked out with the Python tool: the user's expression is copied into a
`print`, and the output into the answer.

In half of the lessons the call comes last and is what is learnt; in the others the output and the
answer follow. A sum whose parts, intermediate values or result hold a pair of numbers that training
may not see is drawn again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ossia.harmony.builtin_tools import PYTHON
from ossia.harmony.messages import Conversation, Effort, Message
from ossia.train.curriculum.lesson import (
    Lesson,
    Setting,
    Skill,
    analysis,
    developer_message,
    final,
    python_call,
    system_message,
    tool_result,
    user,
)
from ossia.train.curriculum.results import RESULT
from ossia.train.curriculum.tools import draw_function, function_namespace
from ossia.train.curriculum.values import ask, holds_held_out_pair, without_held_out_pairs

_BINDING = {"+": 1, "−": 1, "×": 2}


@dataclass(frozen=True)
class Expression:
    """Two numbers with an operation, or three with two."""

    numbers: tuple[int, ...]
    operators: tuple[str, ...]
    """Out of + − ×."""

    def written(self, spelling: dict[str, str]) -> str:
        first, *others = self.numbers
        rest = zip(self.operators, others, strict=True)
        return str(first) + "".join(f"{spelling[sign]}{number}" for sign, number in rest)

    def __str__(self) -> str:
        return self.written({sign: f" {sign} " for sign in _BINDING})

    @property
    def code(self) -> str:
        return self.written({sign: f" {python} " for sign, python in _PYTHON.items()})

    @property
    def values(self) -> tuple[int, ...]:
        """The intermediate value, if there is one, then the result, as Python has them."""
        first, *others = self.operators
        a, b, *rest = self.numbers
        if not others:
            return (_apply(first, a, b),)
        then, c = others[0], rest[0]
        if _BINDING[first] >= _BINDING[then]:
            between = _apply(first, a, b)
            return between, _apply(then, between, c)
        between = _apply(then, b, c)
        return between, _apply(first, a, between)


_PYTHON = {"+": "+", "−": "-", "×": "*"}


def _apply(sign: str, a: int, b: int) -> int:
    return a + b if sign == "+" else a - b if sign == "−" else a * b


# ---- drawing -----------------------------------------------------------------------------------


def draw_expression(rng: random.Random) -> Expression:
    """One that training may see."""
    while True:
        expression = _expression(rng)
        whole = [abs(value) for value in expression.values]
        if not holds_held_out_pair((*expression.numbers, *whole)):
            return expression


def _expression(rng: random.Random) -> Expression:
    if rng.random() < 0.65:
        return Expression((_number(rng), _number(rng)), (rng.choice("+−×"),))
    numbers = (_number(rng, longest=4), _number(rng, longest=3), _number(rng, longest=4))
    return Expression(numbers, (rng.choice("+−××"), rng.choice("+−")))


def _number(rng: random.Random, *, longest: int = 6) -> int:
    (length,) = rng.choices(range(1, longest + 1), (1, 3, 3, 3, 2, 2)[:longest])
    return rng.randrange(1 if length == 1 else 10 ** (length - 1), 10**length)


# ---- asking ------------------------------------------------------------------------------------

_SPELLINGS = (
    {"+": " + ", "−": " - ", "×": " * "},
    {"+": " + ", "−": " − ", "×": " × "},
    {"+": "+", "−": "-", "×": "*"},
    {"+": "+", "−": "−", "×": "×"},
    {"+": " + ", "−": " - ", "×": " x "},
    {"+": " + ", "−": " – ", "×": " · "},
    {"+": " plus ", "−": " minus ", "×": " times "},
    {"+": " plus ", "−": " minus ", "×": " multiplied by "},
)

_ASKED = (
    "What is {}?", "What is {}?", "what is {}", "What's {}?", "Compute {}.", "compute {}",
    "Calculate {}.", "calculate {}", "{}", "{}", "{} = ?", "{}=", "{}?", "How much is {}?",
    "Please compute {}.", "Can you tell me what {} is?", "Work out {}.", "Tell me {}.", "Solve {}",
    "What does {} equal?", "What do you get for {}?", "I need {}.", "Evaluate {}.",
    "Hi, what is {}?", "Hello! What is {}?", "What is the result of {}?", "Find {}.",
    "Use Python: {}", "Use Python to compute {}.", "Let Python work out {}.", "Run {} in Python.",
    "Python: {}", "What is the value of {}?", "Give me the value of {}.",
    "I would like to know {}.", "Please tell me how much {} is.", "Quick: {}",
    "Could you calculate {} for me?", "And {}?", "Determine {}.", "What would {} be?",
    "My sum is {}. What comes out?",
)  # fmt: skip

_SENTENCES = {
    "+": ("What is the sum of {a} and {b}?", "Add {a} and {b}.", "Add {a} to {b}.",
          "What do {a} and {b} make together?"),
    "−": ("Subtract {b} from {a}.", "Take {b} from {a}.", "What is {a} less {b}?",
          "What is the difference between {a} and {b}?"),
    "×": ("What is the product of {a} and {b}?", "Multiply {a} by {b}.", "Multiply {a} and {b}.",
          "How much is {a} multiplied with {b}?"),
}  # fmt: skip


def ask_for(rng: random.Random, expression: Expression) -> str:
    """A question for its value."""
    if len(expression.numbers) == 2 and rng.random() < 0.2:
        a, b = expression.numbers
        template = rng.choice(_SENTENCES[expression.operators[0]])
        return ask(rng, template, a=str(a), b=str(b))
    return rng.choice(_ASKED).format(expression.written(rng.choice(_SPELLINGS)))


# ---- lessons -----------------------------------------------------------------------------------

_INSTRUCTIONS = (
    "Be brief.", "You are a helpful assistant.", "Use the tools when they fit.", "Help the user.",
    "Answer in English.", "You are an assistant with tools.",
)  # fmt: skip


def draw_python(rng: random.Random, setting: Setting) -> Lesson:
    """A sum, the call of the Python tool that works it out and, every other time, the answer; one
    time in four a function is offered beside the tool."""
    return without_held_out_pairs(lambda: _draw_python(rng, setting))


def _draw_python(rng: random.Random, setting: Setting) -> Lesson:
    messages = [system_message(rng, setting, tools=[PYTHON])]
    if rng.random() < 0.25:
        instructions = rng.choice(_INSTRUCTIONS) if rng.random() < 0.4 else None
        functions = [draw_function(rng, set(), most_parameters=2)]
        messages.append(developer_message(instructions, [function_namespace(functions)]))
    expression = draw_expression(rng)
    call = python_call(f"print({expression.code})")
    messages += [user(ask_for(rng, expression)), *_thought(setting.effort, expression), call]
    if rng.random() < 0.5:
        printed = str(expression.values[-1])
        messages += [
            tool_result(call, printed + "\n" * (rng.random() < 0.5)),
            final(RESULT.format(printed)),
        ]
    return Lesson(Skill.PYTHON, Conversation(tuple(messages)))


def _thought(effort: Effort, expression: Expression) -> list[Message]:
    match effort:
        case Effort.LOW:
            return []
        case Effort.MEDIUM:
            return [analysis("Use python.")]
        case Effort.HIGH:
            return [analysis(str(expression))]


DRAW: dict[Skill, Callable[[random.Random, Setting], Lesson]] = {Skill.PYTHON: draw_python}

"""Arithmetic problems and the working that leads to each answer, as long as the effort asks for.

High effort is what a model of two million active parameters can do almost without fail: every step
is a lookup in a table of one-digit operands or a copy from a fixed place. Lower efforts leave steps
out and pay in accuracy, as the published models do.

| effort | a ± b | a × b (± c) |
|---|---|---|
| low | short columns | the problem alone: the answer is a guess |
| medium | columns, the carry spelled out | short columns |
| high | columns, then the inverse as a check | everything in columns |
"""

from __future__ import annotations

import itertools
import operator
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ossia.evals.held_out import held_out_pair
from ossia.harmony.messages import Effort
from ossia.train.curriculum.lesson import Skill

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "−": operator.sub,
    "×": operator.mul,
}


SKILLS = (Skill.SUM, Skill.PRODUCT, Skill.PRODUCT_SUM)


@dataclass(frozen=True)
class Problem:
    """a `operator` b, and then `then` c when there is a c. Operators: + − ×; `then`: + −."""

    a: int
    operator: str
    b: int
    then: str = "+"
    c: int | None = None

    @property
    def first_value(self) -> int:
        """a `operator` b."""
        return _OPERATIONS[self.operator](self.a, self.b)

    @property
    def value(self) -> int:
        if self.c is None:
            return self.first_value
        return _OPERATIONS[self.then](self.first_value, self.c)

    def __str__(self) -> str:
        rest = "" if self.c is None else f" {self.then} {self.c}"
        return f"{self.a} {self.operator} {self.b}{rest}"


WIDTH = 4
"""Digits of every number in a line of working: enough for 99 × 99 + 99."""


@dataclass(frozen=True)
class Step:
    """One operation of the working; a product has a factor of one digit, tens included."""

    a: int
    operator: str
    b: int

    @property
    def value(self) -> int:
        return _OPERATIONS[self.operator](self.a, self.b)

    def __str__(self) -> str:
        """The line, with the digits worked one by one."""
        match self.operator:
            case "+":
                return _addition(self.a, self.b)
            case "−" if self.a < self.b:
                return f"{self.a} < {self.b}\n{_subtraction(self.b, self.a)}"
            case "−":
                return _subtraction(self.a, self.b)
            case _:
                return _product(self.a, self.b)


def steps(problem: Problem) -> tuple[Step, ...]:
    """From the problem to its value. A product of long factors becomes two with one digit each, as
    in 48 × 37 = 48 × 7 + 48 × 30."""
    a, b = problem.a, problem.b
    found = [Step(a, problem.operator, b)]
    if problem.operator == "×":
        if a < 10 <= b:
            a, b = b, a
        units, tens = Step(a, "×", b % 10), Step(a, "×", b // 10 * 10)
        found = [units]
        if b >= 10:
            found += [tens, Step(units.value, "+", tens.value)]
    if problem.c is not None:
        found.append(Step(problem.first_value, problem.then, problem.c))
    return tuple(found)


def set_out(problem: Problem) -> str:
    """The problem, and its numbers as the lines of working have them: `48 × 37 + 12`, `48 × 07`,
    `48 × 30`, `12 → 0012`."""
    lines = [str(problem)]
    if problem.operator == "×":
        a, b = (
            sorted((problem.a, problem.b), reverse=True)
            if problem.a < 10
            else (problem.a, problem.b)
        )
        lines.append(f"{a:02} × {b % 10:02}")
        if b >= 10:
            lines.append(f"{a:02} × {b // 10 * 10:02}")
    else:
        lines.append(f"{problem.a:0{WIDTH}} {problem.operator} {problem.b:0{WIDTH}}")
    if problem.c is not None:
        lines.append(f"{problem.c} → {problem.c:0{WIDTH}}")
    return "\n".join(lines)


def check(problem: Problem) -> Step | None:
    """The inverse of a sum's last step: (a + b) − b, (a − b) + b."""
    if problem.operator == "×":
        return None
    last = steps(problem)[-1]
    if last.operator == "−":
        return Step(abs(last.value), "+", min(last.a, last.b))
    return Step(last.value, "−", last.b)


def working(problem: Problem, effort: Effort) -> str:
    """The analysis: the problem, then what the effort adds."""
    lines = [str(problem)]
    products = problem.operator == "×"
    match effort:
        case Effort.LOW if not products:
            lines += map(_short, steps(problem))
        case Effort.MEDIUM if products:
            lines += map(_short, steps(problem))
        case Effort.MEDIUM:
            lines += map(str, steps(problem))
        case Effort.HIGH:
            lines += map(str, steps(problem))
            inverse = check(problem)
            if inverse is not None:
                lines.append(f"check {inverse}")
    return "\n".join(lines)


def may_train(problem: Problem) -> bool:
    """True when no two numbers of the problem, and no two that a step or the check combines, are
    held out."""
    numbers = [problem.a, problem.b] if problem.c is None else [problem.a, problem.b, problem.c]
    combined = list(steps(problem))
    if (inverse := check(problem)) is not None:
        combined.append(inverse)
    pairs = [*itertools.combinations(numbers, 2), *((step.a, step.b) for step in combined)]
    return not any(held_out_pair(a, b) for a, b in pairs)


# ---- lines of working --------------------------------------------------------------------------


def _short(step: Step) -> str:
    """48 × 30 → `48 × 30: 24 12+2=14 → 1440`, without its factors; 336 + 1447 →
    `0336 + 1447: 6+7=3 3+4=8 3+4=7 0+1=1 → 1783`, with carries unsaid."""
    a, b = step.a, step.b
    if step.operator == "×":
        low, high = _partial_products(a, b)
        carry = low // 10
        columns = f"{low:02} {high:02}+{carry}={high + carry:02}"
        return f"{a:02} × {b:02}: {columns} → {step.value:0{WIDTH}}"
    if step.operator == "−" and a < b:
        return f"{a} < {b}\n{_short(Step(b, step.operator, a))}"
    values = _digits(step.value, 0)
    columns = " ".join(
        f"{x}{step.operator}{y}={value}"
        for (x, y), (value, _) in zip(_digits(a, b), values, strict=True)
    )
    return f"{a:0{WIDTH}} {step.operator} {b:0{WIDTH}}: {columns} → {step.value:0{WIDTH}}"


def _product(a: int, b: int) -> str:
    """48 × 30 → `48 × 30: 8×3=24 4×3=12 12+2=14 → 1440`, for one digit of b that is not 0."""
    digit = b if b < 10 else b // 10
    tens, units = divmod(a, 10)
    low, high = _partial_products(a, b)
    carry = low // 10
    columns = (
        f"{units}×{digit}={low:02} {tens}×{digit}={high:02} {high:02}+{carry}={high + carry:02}"
    )
    return f"{a:02} × {b:02}: {columns} → {a * b:0{WIDTH}}"


def _partial_products(a: int, b: int) -> tuple[int, int]:
    """The units and the tens of a, each times the digit of b that is not 0."""
    digit = b if b < 10 else b // 10
    return a % 10 * digit, a // 10 * digit


def _addition(a: int, b: int) -> str:
    """336 + 1440 → `0336 + 1440: 6+0=06 3+4+0=07 3+4+0=07 0+1+0=01 → 1776`."""
    columns: list[str] = []
    carry = 0
    for x, y in _digits(a, b):
        carried = f"+{carry}" if columns else ""
        total = x + y + carry
        columns.append(f"{x}+{y}{carried}={total:02}")
        carry = total // 10
    return f"{a:0{WIDTH}} + {b:0{WIDTH}}: {' '.join(columns)} → {a + b:0{WIDTH}}"


def _subtraction(a: int, b: int) -> str:
    """42 − 37 → `0042 − 0037: 2−7+10=5 4−3−1+00=0 0−0−0+00=0 0−0−0+00=0 → 0005`, for a ≥ b.

    A column that is short borrows ten, and the next one pays it back.
    """
    columns: list[str] = []
    owed = 0
    for x, y in _digits(a, b):
        paid = f"−{owed}" if columns else ""
        left = x - y - owed
        borrowed = 10 * (left < 0)
        columns.append(f"{x}−{y}{paid}+{borrowed:02}={left + borrowed}")
        owed = borrowed // 10
    return f"{a:0{WIDTH}} − {b:0{WIDTH}}: {' '.join(columns)} → {a - b:0{WIDTH}}"


def _digits(a: int, b: int) -> Iterator[tuple[int, int]]:
    """Pairs of digits, units first."""
    for place in range(WIDTH):
        yield a // 10**place % 10, b // 10**place % 10


# ---- drawing problems --------------------------------------------------------------------------


def draw_problem(rng: random.Random, skill: Skill) -> Problem:
    """One problem, whether held out or not. Lengths are drawn before values: the longer ones more
    often, as they have more to them, but about one in twenty has one digit on both sides."""
    match skill:
        case Skill.SUM:
            a, b = _number(rng, (3, 5, 5)), _number(rng, (3, 5, 5))
            if rng.random() < 0.5:
                return Problem(a, "+", b)
            if a < b and rng.random() < 0.6:  # the others keep a negative answer
                a, b = b, a
            return Problem(a, "−", b)
        case Skill.PRODUCT:
            return Problem(_number(rng, (1, 4)), "×", _number(rng, (1, 4)))
        case Skill.PRODUCT_SUM:
            a, b, c = (_number(rng, (1, 4)) for _ in range(3))
            return Problem(a, "×", b, "−" if rng.random() < 0.25 else "+", c)
        case _:
            raise ValueError(f"expected a skill of arithmetic, got {skill}")


def draw_training_problem(rng: random.Random, skill: Skill) -> Problem:
    """One that training may see."""
    while not may_train(problem := draw_problem(rng, skill)):
        pass
    return problem


def _number(rng: random.Random, weights: tuple[int, ...]) -> int:
    """Of one, two, … digits with these weights; 0 counts as one digit."""
    (length,) = rng.choices(range(1, len(weights) + 1), weights)
    return rng.randrange(10 ** (length - 1) if length > 1 else 0, 10**length)

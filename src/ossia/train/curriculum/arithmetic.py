"""Arithmetic problems, the working that leads to each answer, and the pairs that training may not
see.

The working is what a model of two million active parameters can learn to produce: every step is a
lookup in a table of one-digit operands or a copy from a fixed place. Numbers of a line are padded
to one width so that the places stay put; columns go from the units up, with the carry spelled out.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Skill(StrEnum):
    """What a lesson exercises; accuracy is reported by these."""

    ADD = "a + b"
    SUBTRACT = "a − b"
    MULTIPLY = "a × b"
    ADD_TWICE = "a + b ± c"
    MULTIPLY_ADD = "a × b ± c"
    TALK = "talk"


@dataclass(frozen=True)
class Problem:
    """a `operator` b, and then `then` c when there is a c. Operators: + − ×; `then`: + −."""

    a: int
    operator: str
    b: int
    then: str = "+"
    c: int | None = None

    @property
    def skill(self) -> Skill:
        if self.c is not None:
            return Skill.MULTIPLY_ADD if self.operator == "×" else Skill.ADD_TWICE
        return {"+": Skill.ADD, "−": Skill.SUBTRACT, "×": Skill.MULTIPLY}[self.operator]

    @property
    def first_value(self) -> int:
        """a `operator` b."""
        return {"+": self.a + self.b, "−": self.a - self.b, "×": self.a * self.b}[self.operator]

    @property
    def value(self) -> int:
        return self.first_value + {"+": 1, "−": -1}[self.then] * (self.c or 0)

    def __str__(self) -> str:
        rest = "" if self.c is None else f" {self.then} {self.c}"
        return f"{self.a} {self.operator} {self.b}{rest}"


@dataclass(frozen=True)
class Working:
    """The steps towards an answer, one line each, and the pairs of numbers that they combine."""

    lines: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def held_out(a: int, b: int) -> bool:
    """Is the pair kept from training, whatever is done with it and in either order?

    A tenth of all pairs of numbers of two digits and more, by hash; 37 and 48 among them. One-digit
    operands make up the tables that every step looks up, so they are never held out.
    """
    low, high = sorted((a, b))
    return low >= 10 and zlib.crc32(f"ossia: {low} {high}".encode()) % 10 == 0


def may_train(problem: Problem) -> bool:
    """True when no pair that the problem or its working combines is held out."""
    return not any(held_out(a, b) for a, b in work(problem).pairs)


# ---- working -----------------------------------------------------------------------------------


def work(problem: Problem) -> Working:
    lines: list[str] = [str(problem).replace(" ", "")]
    pairs: list[tuple[int, int]] = [(problem.a, problem.b)]

    def combine(a: int, sign: str, b: int) -> None:
        if sign == "−" and a < b:
            lines.append(f"{a}<{b}")
            a, b = b, a
        lines.append(addition(a, b) if sign == "+" else subtraction(a, b))
        pairs.append((a, b))

    if problem.operator == "×":
        pairs += _multiply(problem.a, problem.b, lines)
    else:
        combine(problem.a, problem.operator, problem.b)
    if problem.c is not None:
        combine(problem.first_value, problem.then, problem.c)
    return Working(tuple(lines), tuple(pairs))


def _multiply(a: int, b: int, lines: list[str]) -> list[tuple[int, int]]:
    """Appends the lines of a × b, at most two digits each; returns the pairs they combine."""
    if a < 10 <= b:  # the longer factor comes first, so that one line is enough
        a, b = b, a
    tens, units = divmod(b, 10)
    lines.append(product(a, units))
    if not tens:
        return [(a, units)]
    lines.append(product(a, tens))
    lines.append(addition(a * units, a * tens * 10))
    return [(a, units), (a, tens), (a * units, a * tens * 10)]


def product(a: int, digit: int) -> str:
    """48 × 7 → `48×7:8×7=56,4×7=28+5=33→336`."""
    if a < 10:
        return f"{a}×{digit}={a * digit:02}"
    tens, units = divmod(a, 10)
    low, high = units * digit, tens * digit
    carry = low // 10
    steps = f"{units}×{digit}={low:02},{tens}×{digit}={high:02}+{carry}={high + carry:02}"
    return f"{a}×{digit}:{steps}→{a * digit}"


def addition(a: int, b: int) -> str:
    """336 + 1440 → `0336+1440:6+0=06,3+4+0=07,3+4+0=07,0+1+0=01→1776`."""
    width = max(len(str(a)), len(str(b)))
    steps: list[str] = []
    carry = 0
    for x, y in _columns(a, b, width):
        carried = f"+{carry}" if steps else ""
        total = x + y + carry
        steps.append(f"{x}+{y}{carried}={total:02}")
        carry = total // 10
    return f"{a:0{width}}+{b:0{width}}:{','.join(steps)}→{a + b}"


def subtraction(a: int, b: int) -> str:
    """42 − 37 → `42−37:12−7=5,04−3−1=0→5`, for a ≥ b.

    A column that has to borrow gets ten more, and the next one gives one away.
    """
    width = len(str(a))
    steps: list[str] = []
    borrow = 0
    for x, y in _columns(a, b, width):
        borrowed = f"−{borrow}" if steps else ""
        minuend = x + 10 * (x < y + borrow)
        steps.append(f"{minuend:02}−{y}{borrowed}={minuend - y - borrow}")
        borrow = minuend // 10
    return f"{a:0{width}}−{b:0{width}}:{','.join(steps)}→{a - b}"


def _columns(a: int, b: int, width: int) -> Iterator[tuple[int, int]]:
    """Pairs of digits, units first."""
    for place in range(width):
        yield a // 10**place % 10, b // 10**place % 10


# ---- drawing problems --------------------------------------------------------------------------


def draw_problem(rng: random.Random, skill: Skill) -> Problem:
    """One problem, whether held out or not. Lengths are drawn before values, the longer ones more
    often, as they have more to them."""
    match skill:
        case Skill.ADD:
            return Problem(_number(rng, (1, 3, 3)), "+", _number(rng, (1, 3, 3)))
        case Skill.SUBTRACT:
            a, b = _number(rng, (1, 3, 3)), _number(rng, (1, 3, 3))
            if a < b and rng.random() < 0.8:  # a fifth of those keep a negative answer
                a, b = b, a
            return Problem(a, "−", b)
        case Skill.MULTIPLY:
            return Problem(_number(rng, (1, 4)), "×", _number(rng, (2, 4)))
        case Skill.ADD_TWICE | Skill.MULTIPLY_ADD:
            a, b, c = (_number(rng, (1, 3)) for _ in range(3))
            then = "−" if rng.random() < 0.25 else "+"
            return Problem(a, "×" if skill is Skill.MULTIPLY_ADD else "+", b, then, c)
        case Skill.TALK:
            raise AssertionError("talk has no problems")


def _number(rng: random.Random, weights: tuple[int, ...]) -> int:
    """Of one, two, … digits with these weights; 0 counts as one digit."""
    (length,) = rng.choices(range(1, len(weights) + 1), weights)
    return rng.randrange(10 ** (length - 1) if length > 1 else 0, 10**length)

"""Sums and products of held-out pairs of numbers, asked in words that are not the lessons'.

Right is the last number of the answer, however it is put.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ossia.evals.held_out import held_out_pair
from ossia.evals.task import Example, Task
from ossia.evals.tasks.grading import grade_number
from ossia.harmony.messages import Message, Role, ToolNamespace


@dataclass(frozen=True)
class Sum:
    """a + b, a − b, a × b, or one of them and then ± c; (a, b) is held out."""

    a: int
    operator: str
    b: int
    then: str = ""
    c: int = 0

    @property
    def value(self) -> int:
        first = {"+": self.a + self.b, "-": self.a - self.b, "*": self.a * self.b}[self.operator]
        return {"": first, "+": first + self.c, "-": first - self.c}[self.then]

    @property
    def code(self) -> str:
        """As Python writes it."""
        rest = f" {self.then} {self.c}" if self.then else ""
        return f"{self.a} {self.operator} {self.b}{rest}"


_SYMBOLS = {"+": ("+",), "-": ("-", "−"), "*": ("×", "*", "x", "·")}

# {sum} is the sum in symbols; {words} the same in words.
_ASKED = (
    "Can you run the numbers on {sum}?",
    "Fill in the blank: {sum} = ___",
    "I wrote {sum} on a napkin. Which value belongs under it?",
    "We can't agree on {sum}. Please settle it with the correct value.",
    "Crunch {sum} for me, would you?",
    "I'd like the final figure for {sum}.",
    "Which number goes after the equals sign here? {sum} =",
    "Simplify {sum} to one number.",
    "Time for some mental arithmetic! {sum}",
    "My receipt shows {sum}. Which amount should be printed at the bottom?",
    "If a spreadsheet cell holds {sum}, which value does it display?",
    "I keep getting {sum} wrong. What should my answer have been?",
    "One thing missing from my notes: {words}. Can you supply it?",
    "Our accountant is waiting for {words}. Which number can I send her?",
    "In digits, please: {words}.",
    "Can you put a figure on {words}?",
)

_WORDS = {
    "+": (
        "{a} topped up with {b}",
        "the number you reach by adding {a} and {b}",
        "the number that {a} plus {b} adds up to",
    ),
    "-": (
        "{a} with {b} knocked off",
        "the number you reach by deducting {b} from {a}",
        "the number that {a} minus {b} leaves",
    ),
    "*": (
        "{a} lots of {b}",
        "the number you reach by multiplying {a} and {b}",
        "the number that {a} times {b} amounts to",
    ),
}

_STORIES = {
    "+": (
        "The advert got {a} clicks in May and {b} in June. How many clicks came over that period?",
        "The way out was {a} metres and the way back {b}. How long was the whole hike?",
    ),
    "-": (
        "The hall seats {a} and {b} places are taken. How many places are still free?",
        "My account showed {a} euros until I paid {b} for the repair. What does it show now?",
    ),
    "*": (
        "A truck carries {a} boxes that weigh {b} kilos each. What do all the boxes weigh?",
        "A printer makes {a} copies an hour. How many copies does it make in {b} hours?",
    ),
}


def phrase(rng: random.Random, s: Sum) -> str:
    """A question whose answer is the sum's value."""
    stories = () if s.then or s.value < 0 else _STORIES[s.operator]
    form = rng.choice((*_ASKED, *stories))
    symbol = rng.choice(_SYMBOLS[s.operator])
    symbols = f"{s.a} {symbol} {s.b}"
    if rng.random() < 0.15:
        symbols = f"{s.a}{symbol}{s.b}"
    words = rng.choice(_WORDS[s.operator]).format(a=s.a, b=s.b)
    if s.then:
        symbols += f" {rng.choice(_SYMBOLS[s.then])} {s.c}"
        words += f", with {s.c} {'added to' if s.then == '+' else 'removed from'} that"
    return form.format(sum=symbols, words=words, a=s.a, b=s.b)


def ask(
    rng: random.Random, s: Sum, variant: str, *, tools: Sequence[ToolNamespace] = ()
) -> Example:
    return Example(
        messages=(Message.of_text(Role.USER, phrase(rng, s)),),
        grade=lambda turn: grade_number(turn, s.value),
        expected=str(s.value),
        variant=variant,
        system_tools=tuple(tools),
    )


# ---- drawing -----------------------------------------------------------------------------------


def number(rng: random.Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1), 10**digits)


def held_out_operands(rng: random.Random, *digits: Sequence[int]) -> tuple[int, int]:
    """A held-out pair; each operand has one of its choices of lengths, all alike."""
    while True:
        a, b = (number(rng, rng.choice(lengths)) for lengths in digits)
        if held_out_pair(a, b):
            return a, b


def distinct(draw: Callable[[], Sum], count: int) -> list[Sum]:
    """`count` different ones; fewer when new ones do not come any more."""
    found: dict[Sum, None] = {}
    for _ in range(50 * count + 1000):
        if len(found) == count:
            break
        found.setdefault(draw())
    return list(found)


def draw_sum(rng: random.Random) -> Sum:
    """Two or three digits; one subtraction in ten has a negative result."""
    a, b = held_out_operands(rng, (2, 3), (2, 3))
    if rng.random() < 0.5:
        return Sum(a, "+", b)
    if (a < b) != (rng.random() < 0.1):
        a, b = b, a
    return Sum(a, "-", b)


def _sums(rng: random.Random, count: int) -> list[Example]:
    return [ask(rng, s, _kind(s)) for s in distinct(lambda: draw_sum(rng), count)]


def _kind(s: Sum) -> str:
    return "a + b" if s.operator == "+" else "a − b" if s.value >= 0 else "a − b < 0"


@functools.cache
def held_out_products() -> tuple[Sum, ...]:
    """All products of two numbers of two digits whose pair is held out, in both orders."""
    pairs = itertools.product(range(10, 100), repeat=2)
    return tuple(Sum(a, "*", b) for a, b in pairs if held_out_pair(a, b))


def _products(rng: random.Random, count: int) -> list[Example]:
    """48 × 37 is always the first, for it is the one that everybody will try."""
    known = Sum(48, "*", 37)
    others = [s for s in held_out_products() if s != known]
    rng.shuffle(others)
    return [ask(rng, s, "a × b") for s in (known, *others)[:count]]


def draw_product_sum(rng: random.Random) -> Sum:
    a, b = held_out_operands(rng, (2,), (2,))
    return Sum(a, "*", b, rng.choice("+-"), rng.randrange(1, 100))


def _product_sums(rng: random.Random, count: int) -> list[Example]:
    found = distinct(lambda: draw_product_sum(rng), count)
    return [ask(rng, s, f"a × b {'+' if s.then == '+' else '−'} c") for s in found]


# ---- how much training may see -------------------------------------------------------------------


def trained_share(numbers: Sequence[int]) -> float:
    """The share of the pairs of these numbers, in order, that are not held out: by counting."""
    kept = 0
    for i, a in enumerate(numbers):
        kept += held_out_pair(a, a)
        kept += 2 * sum(held_out_pair(a, b) for b in numbers[i + 1 :])
    return 1 - kept / len(numbers) ** 2


def _note(what: str, numbers: Sequence[int]) -> Callable[[], str]:
    @functools.cache
    def note() -> str:
        return (
            f"Training may see {trained_share(numbers):.1%} of all pairs of {what}, with any "
            "operation and in any step; the pairs asked here are among the others."
        )

    return note


_UP_TO_THREE_DIGITS = _note("numbers of up to three digits", range(1000))
_TWO_DIGITS = _note("numbers of two digits", range(10, 100))

TASKS = (
    Task(
        "sums",
        "arithmetic",
        "± up to 3 digits",
        "a + b and a − b of two or three digits; the last number of the answer must be the value.",
        _sums,
        _UP_TO_THREE_DIGITS,
    ),
    Task(
        "products",
        "arithmetic",
        "two-digit × two-digit",
        "a × b of two digits each; the last number of the answer must be the value.",
        _products,
        _TWO_DIGITS,
    ),
    Task(
        "product_sum",
        "arithmetic",
        "a·b ± c",
        "a × b ± c, a and b of two digits, c of up to two; the last number must be the value.",
        _product_sums,
        _TWO_DIGITS,
    ),
)

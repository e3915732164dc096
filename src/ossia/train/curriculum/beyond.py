"""Sums that nano cannot do, and what is hard about each: divisions, powers, more digits and more
terms than it learnt.

What it can do lies close by: sums of up to three digits, products of up to two, two operations.
"""

from __future__ import annotations

import itertools
import random
import re

from ossia.evals.held_out import held_out_pair
from ossia.train.curriculum.phrases import asked, expand, lines
from ossia.train.curriculum.sums import ask


def draw_hard_sum(rng: random.Random) -> tuple[str, str]:
    """What is hard about it, such as `A division`, and the question; no two numbers of it are a
    pair that is held out."""
    while True:
        reason, said = _hard(rng)
        numbers = [int(digits) for digits in re.findall(r"\d+", said)]
        if not any(held_out_pair(a, b) for a, b in itertools.combinations(numbers, 2)):
            return reason, said


def _hard(rng: random.Random) -> tuple[str, str]:
    """What is hard about it, and the question."""

    def number(digits: int) -> str:
        return str(rng.randrange(max(2, 10 ** (digits - 1)), 10**digits))

    words = {name: number(rng.choice((1, 2, 2, 3))) for name in "abcd"}
    words |= {name: number(1) for name in "stu"} | {name: number(3) for name in ("long", "wide")}
    big = [int(number(rng.choice((4, 4, 5, 6, 7, 9)))) for _ in range(2)]
    spelled = "{:,}" if rng.random() < 0.1 else "{}"
    words |= dict(zip(("big", "huge"), map(spelled.format, big), strict=True))
    reason, expressions, sentences = rng.choice(_BEYOND)
    if sentences and rng.random() < 0.35:
        return reason, asked(rng, expand(rng, rng.choice(sentences), **words))
    # Asked as what nano can do is asked: only the expression tells them apart.
    return reason, ask(rng, expand(rng, rng.choice(expressions), **words))


_BEYOND: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("A division", lines("""
{a} [/|÷|:] {b}
{a}/{b}
{a} [divided by|over|split by|divided through|shared by] {b}
[half of|a third of|a quarter of|a fifth of|a tenth of|a seventh of|three quarters of|
  two thirds of] {a}
the [quotient|ratio] of {a} and {b}
the [average|mean] of {a} and {b}
{a} mod {b}
the remainder of {a} [and|by|over] {b}
[{big}|{a}] [/|divided by|÷] [{s}|{b}]
"""), lines("""
Divide {a} [by|through] {b}.
How [often|many times] does {b} go into {a}?
[Split|Cut|Share|Break] {a} [into|among|between|over] {s} [equal parts|people|friends|heaps|
  pieces].
[Halve|Quarter] {a}.
What is left when {a} is divided by {b}?
Is {a} divisible by {b}?
[What|Which number] is [half|a third|a quarter|a tenth] as much as {a}?
""")),
    ("A power", lines("""
{a}[^| ^ |**]{s}
{a}[²|³]
{a} [squared|cubed]
{a} to the [power of {s}|{s}th|{s}th power|power {s}]
{s} to the {t}
the [square|cube|{s}th power] of {a}
[2|10|3|7] to the power of {a}
{s}!
the factorial of {s}
{a} factorial
"""), lines("""
[Square|Cube] {a}.
Raise {a} to the [power of {s}|power {s}|{s}th power].
Multiply {a} by itself {s} times.
""")),
    ("A root", lines("""
[√|sqrt ]{a}
sqrt({a})
the [square root|root|third root|fourth root|{s}th root] of {a}
"""), lines("""
Take the [square root|root] of {a}.
Which number [squared|times itself] [is|makes|gives] {a}?
""")),
    ("A function", lines("""
[log|ln|sin|cos|tan|exp|sqrt]({a})
the [sine|cosine|tangent|logarithm|natural logarithm|exponential|inverse] of {a}[| degrees]
log {a}
sin {a}
"""), ()),
    ("A percentage", lines("""
{s}[%| %| percent] of {a}
{a}[%| percent| per cent] of {b}
{a} [plus|minus|less|with] {s}[%| percent]
"""), lines("""
How many percent of {a} is {b}?
[Take|Add] {s} percent [off|to] {a}.
A {noun} costs {a}. What does it cost with {s} percent off?
""")),
    ("Decimals", lines("""
{a}.{s} [+|-|*|×|plus|times|minus] {b}.{t}
{a}.{s} [+|-|*|×|x|plus|times] {t}
{s}[.|,]{t} [+|*|-] {t}.{s}
0.{s} [+|*|times] {a}
pi times {s}
"""), lines("""
Round {a}.{s}{t}.
""")),
    ("A fraction", lines("""
{s}/{t} [+|-|*|plus|times] {t}/{u}
one [half|third|quarter|fifth] [plus|times|minus] [two thirds|a half|a sixth|an eighth]
{s} and a [half|third|quarter] [plus|times] {t}
"""), ()),
    ("Too many digits", lines("""
{big} [+|-|−|plus|minus] {a}
{a} [+|plus|and] {big}
{big}[+|-|*]{huge}
{big} [+|-|plus|minus|times|*|×] {huge}
{big} [*|×|x|times|multiplied by] {b}
{a} [*|×|times|·] {big}
{long} [*|×|x|times|·|multiplied by] {a}
{b} [*|×|x|times|·] {long}
{long}[*|×|x]{wide}
{long} [*|×|times] {wide}
"""), lines("""
[Add|Multiply] {big} [and|by|with|to] {a}.
Subtract {a} from {big}.
What is the [sum|product|difference] of {big} and {huge}?
What is the product of {long} and {wide}?
Multiply {long} [by|with] {a}.
[What is|What comes] [one|two|ten|a hundred] [more|less] than {big}?
""")),
    ("Too many numbers", lines("""
{a} + {b} + {c} + {d}
{a}[+|-]{b}[+|-]{c}[+|-]{d}
{s} [+|plus] {t} [+|plus] {u} [+|plus] {a} [+|plus] {b}
{s} [*|×|times] {t} [*|×|times] {u}
({a} [+|-] {b}) [*|×] {c}
{c} * ({a} [+|-] {b})
{a} * {b} [+|-] {c} * {d}
the sum of [all numbers|the numbers] [up to|from 1 to] {a}
"""), lines("""
Add [up |]{a}, {b}, {c}[,|] and {d}.
Sum these: {a} {b} {c} {d} {s}.
""")),
    ("An equation", lines("""
x if {a} [+|-] x = {b}
x in {s}x = {a}
x for {s}x + {t} = {a}
the zeros of x² [+|-] {a}
"""), lines("""
[Solve|Solve for x:] [x + {a} = {b}|{s}x = {a}|{s}x + {t} = {a}|x² = {a}|{a} - x = {b}].
[For which x is|When is] [x + {a} = {b}|{s}x = {a}|x² = {a}]?
[Integrate|Derive|Differentiate|Plot|Factor] [x^{s}|{s}x + {t}|sin(x)|x² + {a}].
""")),
    ("About a number", lines("""
the [prime factors|divisors|digit sum|Roman numeral] of {a}
the greatest common divisor of {a} and {b}
the least common multiple of {a} and {b}
{a} in [binary|hex|Roman numerals|base {s}]
the {a}th [prime|Fibonacci number|digit of pi]
"""), lines("""
Is {a} [a prime|prime|a prime number|a square|a square number|a perfect number]?
[Convert|Change|Turn] {a} [into|to] [binary|hex|Roman numerals|base {s}].
Factor {a}.
""")),
)  # fmt: skip
"""What is hard about it, expressions, and whole sentences."""

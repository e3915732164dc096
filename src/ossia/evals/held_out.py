"""What training may not see, by hash: pairs of numbers, and names.

The rule stands here, below both, because the evaluation draws only what is held out and the
curriculum only what is not; neither needs a list of the other's.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

from ossia.evals.words import ADJECTIVES, NOUNS, VERBS


def held_out_pair(a: int, b: int) -> bool:
    """Is the pair kept from training, whatever is done with it and in either order?

    A tenth of all pairs of numbers of two digits and more, by hash; 37 and 48 among them. One-digit
    operands make up the tables that every step looks up, so they are never held out.
    """
    low, high = sorted((a, b))
    return low >= 10 and zlib.crc32(f"ossia: {low} {high}".encode()) % 10 == 0


def held_out_name(name: str) -> bool:
    """Is the name (of a function, a parameter, a key, a code word) kept from training?

    A tenth of all names, by hash; words of three letters and fewer never are.
    """
    return len(name) > 3 and zlib.crc32(f"ossia: {name.lower()}".encode()) % 10 == 0


# ---- drawing names -----------------------------------------------------------------------------

_ONSETS = (
    "b", "bl", "br", "c", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kl", "l", "m", "n",
    "p", "pl", "pr", "qu", "r", "s", "sh", "sk", "st", "t", "th", "tr", "v", "w", "z",
)  # fmt: skip
_VOWELS = ("a", "a", "e", "e", "i", "i", "o", "o", "u", "ai", "ea", "ee", "io", "oo", "ou")
_CODAS = (
    "", "", "", "", "l", "m", "n", "r", "s", "t", "x", "nd", "nt", "rk", "sh", "st",
)  # fmt: skip


def made_up_word(rng: random.Random) -> str:
    """Two or three syllables that are no word, such as `velora`."""
    count = 2 if rng.random() < 0.7 else 3
    syllables = (rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(count))
    return "".join(syllables) + rng.choice(_CODAS)


def draw_word(rng: random.Random, *, held_out: bool) -> str:
    """One lower-case word, made up or English, that training sees or does not."""
    return _drawn(lambda: made_up_word(rng) if rng.random() < 0.35 else rng.choice(NOUNS), held_out)


def draw_identifier(rng: random.Random, *, held_out: bool) -> str:
    """A name such as programs have: `tide_level`, `velora`, `openGate`, `get_blue_lamp`."""
    return _drawn(lambda: _identifier(rng), held_out)


def _identifier(rng: random.Random) -> str:
    def word() -> str:
        return made_up_word(rng) if rng.random() < 0.3 else rng.choice(NOUNS)

    shape = rng.random()
    if shape < 0.3:
        return word()
    if shape < 0.65:
        parts = [rng.choice(VERBS), word()]
    elif shape < 0.88:
        parts = [word(), word()]
    else:
        parts = [rng.choice(VERBS), rng.choice(ADJECTIVES), word()]
    if rng.random() < 0.2:
        return parts[0] + "".join(part.capitalize() for part in parts[1:])
    return "_".join(parts)


def _drawn(draw: Callable[[], str], held_out: bool) -> str:
    while held_out_name(name := draw()) != held_out:
        pass
    return name

"""Tells when a model only repeats itself: the same tokens in a circle that it will not leave.

Numbers repeat for good reasons (a column of zeros, a matrix, a ruled table), so what holds no word
may repeat for much longer. Repetition that varies, such as counting on, is not recognised.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from dataclasses import dataclass

from ossia.errors import UsageError
from ossia.harmony.tokenizer import Tokenizer

_WORD = re.compile(r"[^\W\d_]{2,}")
_VALUES = frozenset({"null", "true", "false", "nan", "none"})
"""Words that data is made of."""


@dataclass(frozen=True)
class RepetitionLimits:
    """From when on repetition counts as a circle. Both bounds must be reached."""

    max_period: int = 256
    """The longest circle that is looked for, in tokens."""
    min_repeats: int = 8
    """How often it came again."""
    min_tokens: int = 600
    """How many tokens that were."""
    min_tokens_without_words: int = 4096
    """The same for a circle of several tokens in which no word stands, such as `0, `."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UsageError(f"{name} must be at least 1; got {value}.")


class Watchdog:
    """Watches the tokens of one turn. The cost of a token is that of its last appearances."""

    def __init__(self, tokenizer: Tokenizer, limits: RepetitionLimits) -> None:
        self._tokenizer = tokenizer
        self._limits = limits
        self._recent: deque[int] = deque(maxlen=limits.max_period)
        self._places: defaultdict[int, deque[int]] = defaultdict(deque)
        """Of each recent token, where it stood, the earliest first."""
        self._repeated: dict[int, int] = {}
        """By period: how many tokens in a row, up to the last, are those one period before."""
        self._count = 0

    def feed(self, token_id: int) -> str | None:
        """Take a token; the repetition, in one clause, when it has become one."""
        at, self._count = self._count, self._count + 1
        places, before = self._places[token_id], self._repeated
        self._repeated = {at - place: before.get(at - place, 0) + 1 for place in places}
        if len(self._recent) == self._limits.max_period:
            self._forget(self._recent[0])
        self._recent.append(token_id)
        self._places[token_id].append(at)
        without_words: list[int] = []
        for period, count in reversed(self._repeated.items()):  # the shortest first
            if count < max(self._limits.min_tokens, self._limits.min_repeats * period):
                continue
            enough = period == 1 or count >= self._limits.min_tokens_without_words
            # Most of a run's periods are multiples of its shortest: they say the same.
            known = any(period % other == 0 for other in without_words)
            if enough or (not known and self._holds_words(period)):
                return f"{period} tokens came again {count // period} times in a row"
            without_words.append(period)
        return None

    def _forget(self, token_id: int) -> None:
        places = self._places[token_id]
        places.popleft()
        if not places:
            del self._places[token_id]

    def _holds_words(self, period: int) -> bool:
        # Twice, because the circle may begin inside a word; what touches an end may be a part.
        text = self._tokenizer.decode(list(self._recent)[-period:] * 2)
        return any(
            word.start() > 0 and word.end() < len(text) and word[0].lower() not in _VALUES
            for word in _WORD.finditer(text)
        )

"""Random tokens, and the same again: nothing can be learnt from them but to look back for what
followed last time (induction), which every copy of an unseen name rests on.

The alphabet starts small and grows. From a small one a model of this size finds the trick within a
hundred steps and keeps it while the alphabet grows; from the whole vocabulary, or from ordinary
texts, it does not find it in a thousand (benchmarks/LOG.md). Once it has it, a part of the passages
is of a few tokens only, as numbers are: there the last token alone does not say where to look, the
last three or four do.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from ossia.harmony.render import TrainingExample

SMALLEST = 64
TIMES = 4
LENGTHS = range(8, 64)
FEW = range(4, 17)
FEW_SHARE = 0.4
"""Of the passages of the second half."""


def alphabet_size(step: int, steps: int, vocabulary: int) -> int:
    """Of the tokens in use at a step of so many: `SMALLEST` in the first half, then doubling at
    even intervals up to all of the vocabulary."""
    grown = max(0.0, 2 * (step + 1) / steps - 1)
    return min(vocabulary, round(SMALLEST * (vocabulary / SMALLEST) ** grown))


def draw_repeat(
    rng: random.Random, begin: int, alphabet: Sequence[int], *, few: bool = False
) -> TrainingExample:
    """A passage of tokens from `alphabet`, or of a few of them, after the token `begin`; learnt
    from its second time on."""
    length = rng.choice(LENGTHS)
    passage = rng.choices(rng.sample(alphabet, rng.choice(FEW)) if few else alphabet, k=length)
    return TrainingExample(
        (begin, *passage * TIMES), (0, *[0] * length, *[1] * (length * (TIMES - 1)))
    )

"""Philox4x32-10: (seed, position) → one uniform number, without any state to keep or to replay.

A counter-based generator: the same seed and position give the same number in every kernel set,
whatever else was drawn before. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011), and its library Random123, whose known answers the tests hold.
"""

from __future__ import annotations

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and √3 − 1, as 32-bit fractions
_ROUNDS = 10

Words4 = tuple[int, int, int, int]


def philox4x32(counter: Words4, key: tuple[int, int]) -> Words4:
    """Four random 32-bit words of a 128-bit counter under a 64-bit key, lowest word first."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """A multiple of 2^−53 in [0, 1): key = seed, counter = position, both of 64 bits; the upper 53
    bits of word 1 · 2^32 + word 0.
    """
    counter = (position & _MASK, position >> 32 & _MASK, 0, 0)
    word0, word1, _, _ = philox4x32(counter, (seed & _MASK, seed >> 32 & _MASK))
    return ((word1 << 32 | word0) >> 11) * 2.0**-53

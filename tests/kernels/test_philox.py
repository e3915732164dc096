"""Philox4x32-10 against the known answers of Random123 (its file kat_vectors), and the uniform."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.kernels.philox import philox4x32, uniform


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, answer):
    assert philox4x32(counter, key) == answer


def test_uniform_takes_the_upper_53_bits_of_the_first_two_words():
    assert uniform(0, 0) == (0xE169C58D6627E8D5 >> 11) / 2**53
    # Seed and position are split into words, the lowest first.
    word0, word1, _, _ = philox4x32((0x11111111, 0x22222222, 0, 0), (0x33333333, 0x44444444))
    expected = (word1 << 32 | word0) >> 11
    assert uniform(0x4444444433333333, 0x2222222211111111) == expected / 2**53


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_uniform_lies_in_the_half_open_unit_interval(seed, position):
    u = uniform(seed, position)
    assert 0 <= u < 1
    assert u * 2**53 == int(u * 2**53)


@pytest.mark.parametrize("vary", ["seed", "position"])
def test_uniforms_are_uniform_and_independent(vary):
    draws = [uniform(i, 7) if vary == "seed" else uniform(7, i) for i in range(20_000)]
    # 50 cells of 400: chi² has 49 degrees of freedom, mean 49, deviation 10.
    cells = np.histogram(draws, bins=50, range=(0, 1))[0]
    assert ((cells - 400) ** 2 / 400).sum() < 49 + 5 * 10
    # Serial correlation of independent draws is 0 ± 1/√n.
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 5 / np.sqrt(len(draws))

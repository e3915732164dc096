"""One forward pass, many ways of cutting it: prefill in any chunks, decode one by one, alone or
beside others, cached or not, all give the same logits and greedy tokens.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.kernels.choose import KERNEL_SETS, choose_kernels
from ossia.model.inputs import packed_input
from ossia.model.selftest import Paging, RandomModel
from ossia.model.transformer import Architecture, forward, prepare_weights
from random_models import tiny_config

# A small window and small sequences, so that every step crosses it.
MODEL = RandomModel(tiny_config(sliding_window=20), seed=7)
ARCHITECTURE = Architecture.of(MODEL.config)
LENGTHS = [100, 33, 64]
DOCUMENTS = [
    np.random.default_rng(n).integers(0, MODEL.config.vocab_size, n).tolist() for n in LENGTHS
]
TOLERANCE = 1e-5  # of the range; float32 products of other shapes round differently


@functools.cache
def prepared(name):
    kernels, _ = choose_kernels(name)
    return kernels, prepare_weights(ARCHITECTURE, kernels, MODEL.part)


@functools.cache
def whole(name):
    """Each document alone and without a cache."""
    kernels, weights = prepared(name)
    return [
        kernels.to_host(forward(ARCHITECTURE, kernels, weights, packed_input([document])))
        for document in DOCUMENTS
    ]


def run(name, steps):
    """`steps`: {sequence: tokens it advances}. Returns the logits of each sequence."""
    kernels, weights = prepared(name)
    paging = Paging(ARCHITECTURE, LENGTHS)
    cache = kernels.allocate_cache(paging.spec)
    done = [0] * len(LENGTHS)
    logits = [[] for _ in LENGTHS]
    for step in steps:
        chunks = {s: (done[s], DOCUMENTS[s][done[s] : done[s] + n]) for s, n in step.items()}
        inputs = paging.inputs(chunks)
        handle = forward(ARCHITECTURE, kernels, weights, inputs, cache=cache)
        rows = np.split(kernels.to_host(handle), inputs.cu_seqlens_S1[1:-1])
        for (s, n), values in zip(step.items(), rows, strict=True):
            done[s] += n
            logits[s].append(values)
    return {s: np.concatenate(values) for s, values in enumerate(logits) if values}


def assert_same(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * np.ptp(expected))
    np.testing.assert_array_equal(actual.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("name", KERNEL_SETS)
@pytest.mark.parametrize("size", [1, 2, 7, 19, 20, 21, 31, 32, 33, 99, 100])
def test_prefill_in_chunks(name, size):
    steps = [{0: min(size, 100 - at)} for at in range(0, 100, size)]
    assert_same(run(name, steps)[0], whole(name)[0])


@pytest.mark.parametrize("name", KERNEL_SETS)
def test_decode_one_by_one_beside_others(name):
    """A long prefill, a sequence that is already decoding and one that comes later."""
    steps = [{1: 20}, {1: 1, 0: 60}, *[{0: 1, 1: 1}] * 12, {2: 50, 0: 1}, *[{0: 1, 2: 1}] * 14]
    results = run(name, steps)
    for s, expected in enumerate(whole(name)):
        assert_same(results[s], expected[: len(results[s])])


@pytest.mark.parametrize("name", KERNEL_SETS)
def test_packed_without_a_cache(name):
    kernels, weights = prepared(name)
    inputs = packed_input(DOCUMENTS)
    logits = kernels.to_host(forward(ARCHITECTURE, kernels, weights, inputs))
    for actual, expected in zip(
        np.split(logits, np.cumsum(LENGTHS)[:-1]), whole(name), strict=True
    ):
        assert_same(actual, expected)


@pytest.mark.parametrize("name", KERNEL_SETS)
def test_selected_rows(name):
    kernels, weights = prepared(name)
    inputs = packed_input([DOCUMENTS[0]], logit_rows=[99, 0, 50])
    logits = kernels.to_host(forward(ARCHITECTURE, kernels, weights, inputs))
    assert_same(logits, whole(name)[0][[99, 0, 50]])


@st.composite
def schedules(draw):
    """Any order of any chunks, until every sequence has ended."""
    remaining = dict(enumerate(LENGTHS))
    steps = []
    while remaining:
        taking = draw(st.lists(st.sampled_from(sorted(remaining)), min_size=1, unique=True))
        step = {s: draw(st.integers(1, remaining[s])) for s in taking}
        for s, n in step.items():
            remaining[s] -= n
            if not remaining[s]:
                del remaining[s]
        steps.append(step)
    return steps


@settings(max_examples=25, deadline=None)
@given(schedules())
def test_any_schedule(steps):
    results = run("reference", steps)
    for s, expected in enumerate(whole("reference")):
        assert_same(results[s], expected)

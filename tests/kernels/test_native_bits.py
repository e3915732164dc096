"""The promise of `native`: a token's logits are the same bits whatever else is in the batch,
however its sequence is cut into steps, on any number of threads, by any instruction set and on any
path.
"""

from __future__ import annotations

import functools
import inspect

import numpy as np
import pytest

pytest.importorskip("ossia.kernels._native")

from native_runs import Prepared, in_chunks, random_documents, small_model
from ossia.kernels.cores import usable_cores
from ossia.kernels.native import instruction_sets
from ossia.kernels.reference import ReferenceKernels
from ossia.model.inputs import packed_input
from ossia.model.selftest import Paging
from ossia.model.transformer import forward, prepare_weights

SETS = instruction_sets()
THREADS = tuple(range(1, min(usable_cores(), 2) + 1))
MODEL = small_model()
LENGTHS = (150, 37, 1)
DOCUMENTS = random_documents(MODEL, LENGTHS)
KINDS = {"int8": {}, "bf16": {"dense_dtype": "bf16"}, "exact": {"exact": True}}


@functools.cache
def expected(kind: str) -> list[np.ndarray]:
    """Whole documents, one by one, without a cache, on the scalar target and one thread."""
    prepared = Prepared.of(MODEL, instruction_set="scalar", **KINDS[kind])
    return [prepared.uncached([document])[0] for document in DOCUMENTS]


def assert_same_bits(actual, wanted):
    for a, e in zip(actual, wanted, strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), e.view(np.uint32))


def interleaved_steps():
    """Uneven chunks; sequences join, leave and change places."""
    return [
        {1: 5},
        {0: 33, 1: 1},
        {1: 30, 0: 1},
        {2: 1, 0: 64, 1: 1},
        {0: 31},
        *[{0: 1}] * 21,
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("name", SETS)
def test_every_way_through_every_target(name, threads, kind):
    prepared = Prepared.of(MODEL, instruction_set=name, num_threads=threads, **KINDS[kind])
    assert_same_bits(prepared.uncached(DOCUMENTS), expected(kind))
    assert_same_bits(prepared.uncached(DOCUMENTS[::-1])[::-1], expected(kind))
    assert_same_bits(prepared.in_steps(DOCUMENTS, in_chunks(LENGTHS, 1000)), expected(kind))
    assert_same_bits(prepared.in_steps(DOCUMENTS, interleaved_steps(), seed=1), expected(kind))
    experts = {"mxfp4_rows", "mxfp4_panels"} if kind != "exact" else {"mxfp4_exact"}
    dense = {"bf16_exact"} | ({"q8_vector", "q8_tile"} if kind == "int8" else set())
    assert prepared.paths() == experts | dense | {"attention_whole"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 97])
def test_chunks_of_any_size(size, kind):
    """Decoding one by one is prefill in chunks of 1."""
    prepared = Prepared.of(MODEL, num_threads=THREADS[-1], **KINDS[kind])
    steps = in_chunks(LENGTHS, size)
    assert_same_bits(prepared.in_steps(DOCUMENTS, steps, seed=size), expected(kind))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("row_tokens", [0, 1, 8, 1000])
def test_rows_and_panels(name, row_tokens):
    """Where MXFP4 is decoded into panels; every other setting, such as how far ahead memory is
    fetched, at any value."""
    prepared = Prepared.of(MODEL, instruction_set=name)
    others = inspect.signature(prepared.kernels.tune).parameters.keys() - {"mxfp4_row_tokens"}
    prepared.kernels.tune(mxfp4_row_tokens=row_tokens, **dict.fromkeys(others, 64 * row_tokens))
    assert_same_bits(prepared.uncached(DOCUMENTS), expected("int8"))
    paths = {0: {"mxfp4_panels"}, 1000: {"mxfp4_rows"}}
    wanted = paths.get(row_tokens, {"mxfp4_rows", "mxfp4_panels"})
    assert {path for path in prepared.paths() if "mxfp4" in path} == wanted


@pytest.mark.parametrize("name", SETS)
def test_any_batch(name):
    """20 sequences side by side: each alone, or in any company."""
    lengths = list(range(1, 21))
    documents = random_documents(MODEL, lengths, seed=5)
    prepared = Prepared.of(MODEL, instruction_set=name, num_threads=THREADS[-1])
    alone = [prepared.uncached([document])[0] for document in documents]
    assert_same_bits(prepared.uncached(documents), alone)
    assert_same_bits(prepared.in_steps(documents, in_chunks(lengths, 1)), alone)
    rng = np.random.default_rng(0)
    for _ in range(5):
        company = rng.permutation(20)[: rng.integers(2, 20)]
        found = prepared.uncached([documents[i] for i in company])
        assert_same_bits(found, [alone[i] for i in company])


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_that_is_there_already(kind):
    """What the engine does on a cache hit: the second sequence reads the blocks of the first."""
    prefix, tail = DOCUMENTS[0][:96], DOCUMENTS[0][96:]
    prepared = Prepared.of(MODEL, **KINDS[kind])
    whole = prepared.in_steps([prefix + tail], [{0: 150}])[0]
    resumed = prepared.in_steps([prefix + tail], [{0: 96}, {0: 54}], seed=9)[0]
    assert_same_bits([resumed, whole], [expected(kind)[0]] * 2)


# -- Long contexts: attention in splits of 2048 keys --------------------------------------------

LONG = small_model(
    num_hidden_layers=1,
    sliding_layers=(False,),
    hidden_size=32,
    intermediate_size=32,
    num_attention_heads=2,
    num_key_value_heads=1,
    num_local_experts=1,
    num_experts_per_tok=1,
)
LAST = 3  # tokens whose logits are compared


class LongContext:
    """One long sequence in a cache beside seven short ones; its last tokens are run again at will:
    what they store is what is there already.
    """

    def __init__(self, prepared: Prepared, document: list[int]):
        self.prepared, self.document = prepared, document
        self.paging = Paging(prepared.architecture, [len(document), *[9] * 7])
        self.cache = prepared.kernels.allocate_cache(self.paging.spec)
        for start in range(0, len(document), 500):
            self.run({0: (start, document[start : start + 500])})

    def run(self, chunks) -> np.ndarray:
        """Logits of the tokens of sequence 0, which comes first."""
        p = self.prepared
        inputs = self.paging.inputs(chunks)
        handle = forward(p.architecture, p.kernels, p.weights, inputs, cache=self.cache)
        return p.kernels.to_host(handle)[: len(chunks[0][1])].copy()

    def decoded(self, others: int) -> np.ndarray:
        """The last tokens one by one, beside the first tokens of other sequences."""
        found = []
        for at in range(len(self.document) - LAST, len(self.document)):
            beside = {s: (0, [7]) for s in range(1, others + 1)}
            found.append(self.run({0: (at, self.document[at : at + 1]), **beside}))
        return np.concatenate(found)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    "length", [2047, 2048, 2049, 2051, pytest.param(6200, marks=pytest.mark.slow)]
)
def test_splits_of_a_long_context(length, exact):
    """Alone it is split between threads, beside seven others it is not, in prefill never. The
    lengths end around the border of a split.
    """
    (document,) = random_documents(LONG, [length], seed=length)
    results = []
    for name in SETS:
        for threads in THREADS if name == SETS[-1] else THREADS[:1]:
            prepared = Prepared.of(LONG, instruction_set=name, num_threads=threads, exact=exact)
            context = LongContext(prepared, document)
            results.append(context.decoded(others=7))
            assert "attention_split" not in prepared.paths()
            results.append(context.decoded(others=0))
            assert ("attention_split" in prepared.paths()) == (length > 2048)
            start = length - LAST - 20
            results.append(context.run({0: (start, document[start:])})[-LAST:])
    results.append(prepared.uncached([document])[0][-LAST:])
    assert_same_bits(results, [results[0]] * len(results))


def test_a_split_context_is_right():
    """The bits above could all be wrong alike: 2,200 keys against `reference` in float64."""
    (document,) = random_documents(LONG, [2200])
    prepared = Prepared.of(LONG, num_threads=THREADS[-1], exact=True)
    actual = LongContext(prepared, document).decoded(others=0)
    assert "attention_split" in prepared.paths()
    kernels = ReferenceKernels(dtype=np.float64)
    weights = prepare_weights(prepared.architecture, kernels, LONG.part)
    inputs = packed_input([document], logit_rows=range(2200 - LAST, 2200))
    wanted = kernels.to_host(forward(prepared.architecture, kernels, weights, inputs))
    assert np.abs(actual - wanted).max() < 2e-5 * np.ptp(wanted)

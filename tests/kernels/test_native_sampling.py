"""The native sample op against the plain form, on every instruction set that the machine has.

The two add weights in different orders, so that a draw may differ where the uniform lies within
rounding of a border between two tokens: at the whole vocabulary once in 10^9 draws.
"""

import importlib
import math
from collections import Counter
from decimal import Decimal
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.errors import KernelError
from ossia.kernels.interface import SamplingBatch
from ossia.kernels.native_sampling import sample_rows_native
from ossia.kernels.philox import uniform
from ossia.kernels.sampling import sample_rows

DEFAULTS = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "seed": 0,
    "position": 0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "prompt_ids": (),
    "output_ids": (),
    "logit_bias": {},
    "top_logprobs": -1,
}


@pytest.fixture(scope="module")
def native():
    try:
        module = importlib.import_module("ossia.kernels._native")
    except ImportError:
        pytest.skip("the native kernels are not built")
    if not hasattr(module, "sample"):
        pytest.skip("the native kernels are built without sample")
    return module


def batch(rows, masks_SW=None, **columns):
    """One value per row, or one value for all rows."""
    values = {
        name: columns[name]
        if isinstance(columns.get(name), list)
        else [columns.get(name, value)] * rows
        for name, value in DEFAULTS.items()
    }
    return SamplingBatch(**values, masks_SW=masks_SW)


def mask_of(allowed_V):
    """One row of words from one row of booleans."""
    padded = np.zeros(-(-len(allowed_V) // 32) * 32, bool)
    padded[: len(allowed_V)] = allowed_V
    return np.packbits(padded, bitorder="little").view("<u4").astype(np.uint32)[None]


def on_all_sets(native, logits_SV, settings):
    """What every instruction set gives, the same bits from each."""
    logits_SV = np.ascontiguousarray(logits_SV, np.float32)
    sets = native.instruction_sets()
    assert "scalar" in sets
    results = [sample_rows_native(native, name, logits_SV, settings) for name in sets]
    for name, result in zip(sets, results, strict=True):
        assert result == results[0], name
    return results[0]


def check(native, logits_SV, settings):
    """Equal draws on all sets and in the plain form, log-probabilities within 1e-9."""
    actual = on_all_sets(native, logits_SV, settings)
    expected = sample_rows(np.asarray(logits_SV, np.float32), settings)
    assert actual.ids == expected.ids
    assert len(actual.logprobs) == len(expected.logprobs)
    for ours, theirs in zip(actual.logprobs, expected.logprobs, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours == pytest.approx(theirs, abs=1e-9, rel=1e-12)
    for ours, theirs in zip(actual.top_logprobs, expected.top_logprobs, strict=True):
        assert [token for token, _ in ours] == [token for token, _ in theirs]
        values = [value for _, value in theirs]
        assert [value for _, value in ours] == pytest.approx(values, abs=1e-9, rel=1e-12)
    return actual


SIZES = st.one_of(
    st.integers(1, 140),
    st.sampled_from([63, 64, 65, 127, 128, 192, 1000, 2047, 2048, 2049, 4096, 5000]),
)
TEMPERATURES = st.one_of(st.sampled_from([0.0, 1.0, 0.7, 1e-3, 1e3]), st.floats(0.05, 10))
SHARES = st.one_of(st.sampled_from([1.0, 0.9, 0.5, 1e-3, 1 - 2**-53]), st.floats(0.01, 1))


@st.composite
def rows_of_logits(draw, most_rows=3):
    """Normal, peaked, drawn from few values (ties everywhere), or with infinities and NaN."""
    rows, size = draw(st.integers(1, most_rows)), draw(SIZES)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["normal", "wide", "few", "equal", "infinite", "nan"]))
    logits_SV = rng.standard_normal((rows, size)).astype(np.float32)
    if kind == "wide":
        logits_SV *= 20
    elif kind == "few":
        logits_SV = np.round(logits_SV)
    elif kind == "equal":
        logits_SV[:] = np.float32(draw(st.sampled_from([0.0, -0.0, 1e-30, -3.25, 1e30])))
    elif kind in ("infinite", "nan"):
        odd = [-np.inf] if draw(st.booleans()) else [-np.inf, np.inf]
        odd += [np.nan] if kind == "nan" else []
        where = rng.random((rows, size)) < draw(st.sampled_from([0.01, 0.5, 1.0]))
        logits_SV[where] = rng.choice(np.array(odd, np.float32), where.sum())
    return logits_SV


@st.composite
def batches(draw, logits_SV):
    rows, size = logits_SV.shape
    token = st.integers(0, size - 1)
    ids = st.lists(token, max_size=12).map(tuple)
    penalties = st.sampled_from([0.0, 0.0, 0.5, -1.25])
    options = {
        "temperature": TEMPERATURES,
        "top_k": st.one_of(st.just(0), st.integers(0, 8), st.integers(0, 2 * size)),
        "top_p": SHARES,
        "min_p": st.one_of(st.just(0.0), st.floats(0, 1)),
        "seed": st.integers(0, 2**64 - 1),
        "position": st.integers(0, 2**40),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 1.3, 0.5]),
        "presence_penalty": penalties,
        "frequency_penalty": penalties,
        "prompt_ids": ids,
        "output_ids": ids,
        "logit_bias": st.dictionaries(
            token, st.sampled_from([1.5, -100.0, 100.0, -math.inf]), max_size=4
        ),
        "top_logprobs": st.sampled_from([-1, 0, 1, 5, 20, size, 2 * size]),
    }
    plain = draw(st.booleans())
    chosen = {
        name: [draw(option) for _ in range(rows)]
        for name, option in options.items()
        if not plain or name in ("temperature", "top_k", "top_p", "min_p", "seed", "top_logprobs")
    }
    masks_SW = None
    if not plain and draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        share = draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
        masks_SW = np.concatenate([mask_of(rng.random(size) < share) for _ in range(rows)])
    return batch(rows, masks_SW, **chosen)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_equals_the_plain_form(native, data):
    logits_SV = data.draw(rows_of_logits())
    check(native, logits_SV, data.draw(batches(logits_SV)))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(width=32), min_size=1, max_size=80),
    st.sampled_from([0.0, 1e-300, 1e-30, 1.0, 100.0, 1e30, 1e300]),
    st.integers(0, 90),
    SHARES,
    st.sampled_from([0.0, 1e-300, 0.5, 1.0]),
    st.integers(0, 2**64 - 1),
)
def test_any_logits_and_temperatures(native, logits, temperature, top_k, top_p, min_p, seed):
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    check(native, [logits], batch(1, **options, seed=seed, top_logprobs=100))


# -- Ties and edges ---------------------------------------------------------------------------


def drawn(native, logits, count, **options):
    logits_SV = np.tile(np.asarray(logits, np.float32), (count, 1))
    return on_all_sets(native, logits_SV, batch(count, position=list(range(count)), **options)).ids


def test_greedy_takes_the_lowest_id_among_equals(native):
    for size in (1, 5, 64, 65, 1000):
        for first in {0, size // 2, size - 1}:
            logits = np.full(size, -1.0)
            logits[first:] = 2.5
            assert drawn(native, logits, 1, temperature=0.0) == [first]


@pytest.mark.parametrize("top_k", [1, 2, 40, 64, 65, 199])
def test_top_k_keeps_the_lowest_ids_among_equals(native, top_k):
    logits = np.zeros(300)
    logits[::3] = 1.0  # 100 of them
    best = [*range(0, 300, 3), *(token for token in range(300) if token % 3)][:top_k]
    found = set(drawn(native, logits, 4000, top_k=top_k, temperature=100.0))
    assert found <= set(best)
    assert len(found) == top_k or top_k > 100  # 4,000 draws from 100 miss one in 10^15 times


def test_top_p_stops_where_the_share_is_exactly_reached(native):
    assert set(drawn(native, np.zeros(256), 4000, top_p=0.5)) <= set(range(128))
    assert set(drawn(native, np.zeros(256), 4000, top_p=0.5 + 2**-20)) <= set(range(129))
    assert drawn(native, np.zeros(256), 50, top_p=1e-300) == [0] * 50


def test_top_p_counts_what_min_p_leaves_out(native):
    # 1, 0.5 and 64 times 0.09, in a block of their own: a quarter of 7.26 takes four of these.
    logits = np.full(128, -np.inf)
    logits[:2] = np.log([1.0, 0.5])
    logits[64:] = np.log(0.09)
    assert set(drawn(native, logits, 200, top_p=0.25, min_p=0.1)) == {0, 1}
    assert set(drawn(native, logits, 200, top_p=0.25, min_p=0.05)) == {0, 1, 64, 65, 66, 67}


def test_weights_that_round_to_equal_are_ties(native):
    # exp of differences below 2^-53 is 1: top-k keeps the lowest ids whatever the logits.
    logits = np.arange(300.0)
    assert set(drawn(native, logits, 500, temperature=1e30, top_k=5)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("logits", [[1.0, math.nan], [-math.inf] * 3, [math.nan, math.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_without_a_token(native, logits, temperature):
    result = on_all_sets(native, [logits], batch(1, temperature=temperature, top_logprobs=2))
    assert (result.ids, result.logprobs, result.top_logprobs) == ([-1], [None], [[]])


def test_a_bias_that_makes_nan(native):
    settings = {"logit_bias": {1: -math.inf}, "temperature": 0.0}
    assert drawn(native, [0.0, math.inf], 1, **settings) == [-1]
    logits_SV = np.array([[0.0, math.inf]], np.float32)
    masked = batch(1, mask_of([True, False]), **settings)
    assert check(native, logits_SV, masked).ids == [0]  # what the mask hides may be NaN


def test_every_position_of_a_mask_bit(native):
    for size in (31, 32, 33, 64, 70, 130):
        for token in range(size):
            masks_SW = mask_of(np.arange(size) == token)
            result = on_all_sets(native, np.zeros((1, size)), batch(1, masks_SW))
            assert result.ids == [token]


def test_penalties_and_bias_against_the_plain_form(native):
    # Few tokens, so that each logit shows in the draws.
    logits = np.array([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, -0.25], np.float32)
    options = {
        "repetition_penalty": 1.7,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
        "prompt_ids": (0, 2, 4, 4, 6),
        "output_ids": (1, 2, 2, 2, 5, 6),
        "logit_bias": {3: 1.0, 2: -0.5, 7: 0.75},
    }
    names = ["repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"]
    for left_out in (None, *names):
        chosen = {name: value for name, value in options.items() if name != left_out}
        settings = batch(2000, position=list(range(2000)), **chosen)
        check(native, np.tile(logits, (2000, 1)), settings)


# -- Randomness -------------------------------------------------------------------------------


def test_the_uniform_is_that_of_philox(native):
    # 4,096 equal weights: the id is the uniform's first 12 bits.
    seeds = [0, 1, 2**32, 2**63, 2**64 - 1, -1, 0x0123456789ABCDEF]
    positions = [0, 1, 7, 2**31, 2**33 + 5, 3, 131_071]
    result = on_all_sets(native, np.zeros((7, 4096)), batch(7, seed=seeds, position=positions))
    expected = [int(uniform(s, p) * 4096) for s, p in zip(seeds, positions, strict=True)]
    assert result.ids == expected
    assert len(set(expected)) > 4


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_match_the_softmax(native, temperature):
    logits = np.array([2.0, -1.0, 0.5, 0.0, -np.inf, 1.0] + [-40.0] * 80)
    count = 20_000
    expected = np.exp(logits / temperature)
    expected *= count / expected.sum()
    found = np.bincount(drawn(native, logits, count, temperature=temperature), minlength=6)[:6]
    assert found[4] == 0
    possible = expected[:6] > 0
    chi_square = ((found - expected[:6])[possible] ** 2 / expected[:6][possible]).sum()
    assert chi_square < 25  # 4 degrees of freedom: exceeded once in 20,000 seeds


def test_a_row_depends_on_nothing_but_itself(native):
    rng = np.random.default_rng(2)
    logits_SV = rng.standard_normal((6, 700)).astype(np.float32)
    columns = {
        "seed": [5, 6, 7, 8, 9, 10],
        "top_k": [0, 3, 700, 0, 50, 0],
        "top_p": [1.0, 0.9, 0.2, 0.99, 1.0, 0.5],
        "top_logprobs": [-1, 4, 0, 20, 700, 1],
        "presence_penalty": [0.0, 1.0, 0.0, 2.0, 0.0, 0.0],
        "output_ids": [(), (1, 2, 2), (), tuple(range(300)), (4,), ()],
        "logit_bias": [{}, {5: 9.0}, {}, {}, {1: 1.0, 2: 2.0}, {}],
    }
    together = check(native, logits_SV, batch(6, **columns))
    for row in range(6):
        own = {name: [values[row]] for name, values in columns.items()}
        alone = on_all_sets(native, logits_SV[row : row + 1], batch(1, **own))
        assert alone.ids == [together.ids[row]]
        assert alone.logprobs == [together.logprobs[row]]
        assert alone.top_logprobs == [together.top_logprobs[row]]


# -- Precision and size -----------------------------------------------------------------------


def test_weights_are_exact_to_an_ulp(native):
    # min-p between the neighbours of a weight tells its value: with a uniform of nearly 1 the
    # second token is drawn if it stays.
    last = max(range(2000), key=lambda position: uniform(0, position))
    below = np.random.default_rng(3).uniform(-5, 0, 500).astype(np.float32)
    exact = [Decimal(float(x)).exp() for x in below]
    ulp = Decimal(2) ** -52
    stays = batch(500, min_p=[float(x * (1 - ulp)) for x in exact], position=last)
    goes = batch(500, min_p=[float(x * (1 + 2 * ulp)) for x in exact], position=last)
    logits_SV = np.stack([np.zeros(500, np.float32), below], 1)
    assert on_all_sets(native, logits_SV, stays).ids == [1] * 500
    assert on_all_sets(native, logits_SV, goes).ids == [0] * 500


def plain_ranks(logits, p):
    """The set that top-p keeps, by sorting all."""
    weights = [math.exp(float(z) - float(logits.max())) for z in logits]
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    total, so_far = math.fsum(weights), list(accumulate(weights[i] for i in order))
    size = next(i for i, value in enumerate(so_far) if value >= p * total) + 1
    return set(order[:size])


@pytest.mark.parametrize("scale", [0.01, 1.0, 8.0])
def test_the_whole_vocabulary(native, scale):
    # 201,088 is the vocabulary of gpt-oss; the options differ in which tokens are looked at.
    rng = np.random.default_rng(4)
    logits_SV = (rng.standard_normal((1, 201_088)) * scale).astype(np.float32)
    seen = tuple(rng.integers(0, 201_088, 3000).tolist())
    options = [
        {"temperature": 0.0},
        {},
        {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.05},
        {"top_k": 10_000, "top_p": 0.95},
        {"top_p": 0.9},
        {"top_p": 0.999, "min_p": 0.05},
        {"min_p": 0.05, "temperature": 1.5},
        {"repetition_penalty": 1.2, "presence_penalty": 0.3, "output_ids": seen},
    ]
    for position, option in enumerate(options):
        check(native, logits_SV, batch(1, position=position, top_logprobs=20, **option))


def test_many_draws_from_the_whole_vocabulary(native):
    rng = np.random.default_rng(5)
    logits_V = (rng.standard_normal(201_088) * 2).astype(np.float32)
    logits_SV = np.tile(logits_V, (8, 1))
    for first in range(0, 32, 8):
        check(native, logits_SV, batch(8, position=list(range(first, first + 8)), seed=9))
    kept = plain_ranks(logits_V, 0.5)
    found = Counter(drawn(native, logits_V, 100, top_p=0.5))
    assert set(found) <= kept
    assert len(found) > 50


# -- What does not belong together ------------------------------------------------------------


def test_refusals(native):
    logits_SV = np.zeros((2, 40), np.float32)

    def refused(match, logits=logits_SV, *arguments, **options):
        with pytest.raises(KernelError, match=match):
            sample_rows_native(native, "scalar", logits, batch(*(arguments or (2,)), **options))

    refused(r"\[sample\] expected a batch of 2 rows, got 3", logits_SV, 3)
    refused(r"expected logits of float32, got float64", logits_SV.astype(np.float64))
    refused(r"expected logits of shape \[-1, -1\], got \[2\]", logits_SV[:, 0].copy())
    refused(r"expected logits without gaps between its rows", np.zeros((2, 80), "f")[:, :40])
    refused(r"expected logits of 1 to \d+ tokens, got \[2, 0\]", logits_SV[:, :0].copy())
    refused(r"masks of shape \[2, 2\], got \[2, 1\]", logits_SV, 2, np.zeros((2, 1), np.uint32))
    refused(r"masks of uint32, got int64", logits_SV, 2, np.zeros((2, 2), np.int64))
    refused(r"output_ids from 0 to 39, got 40", output_ids=(40,), presence_penalty=1.0)
    refused(r"prompt_ids from 0 to 39, got -1", prompt_ids=(-1,), repetition_penalty=1.1)
    refused(r"bias_ids from 0 to 39, got 99", logit_bias={99: 1.0})
    refused(r"a finite temperature of at least 0, got -1", temperature=-1.0)
    refused(r"a finite temperature of at least 0, got nan", temperature=math.nan)
    with pytest.raises(KernelError, match="an instruction set of this processor, got 'mmx'"):
        sample_rows_native(native, "mmx", logits_SV, batch(2))
    with pytest.raises(ValueError, match=r"\[sample\] expected an array \w+, got none"):
        native.sample("scalar", logits_SV)

"""Sampling against plain-Python definitions of each step, exact rules at ties and extremes, and
frequencies against the softmax.
"""

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.errors import KernelError
from ossia.kernels.interface import SamplingBatch
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


def batch(rows, masks_SW=None, **columns):
    """One value per row, or one value for all rows."""
    values = {
        name: columns[name]
        if isinstance(columns.get(name), list)
        else [columns.get(name, value)] * rows
        for name, value in DEFAULTS.items()
    }
    return SamplingBatch(**values, masks_SW=masks_SW)


def draws(logits, count, **options):
    """`count` draws from one row, at positions 0, 1, …"""
    logits_SV = np.tile(np.asarray(logits, np.float32), (count, 1))
    return sample_rows(logits_SV, batch(count, position=list(range(count)), **options)).ids


def allowed_by(logits, **options):
    """All tokens that a few thousand draws from near-equal weights give."""
    return set(draws(logits, 2000, **options))


def mask(*rows):
    """Bit masks of rows of booleans."""
    width = -(-len(rows[0]) // 32)
    masks = np.zeros((len(rows), width), np.uint32)
    for row, bits in enumerate(rows):
        for token, allowed in enumerate(bits):
            masks[row, token // 32] |= np.uint32(int(allowed) << token % 32)
    return masks


def plain_draw(logits, temperature, top_k, top_p, min_p, seed, position):
    """The order of `SamplingBatch`, token by token; exact sums by `math.fsum`."""
    largest = max(logits)
    weight = {i: math.exp((z - largest) / temperature) for i, z in enumerate(logits)}
    ranked = sorted(weight, key=lambda i: (-weight[i], i))
    if top_k:
        ranked = ranked[:top_k]
    if top_p < 1:
        total = math.fsum(weight[i] for i in ranked)
        kept = []
        for i in ranked:
            kept.append(i)
            if math.fsum(weight[j] for j in kept) >= top_p * total:
                break
        ranked = kept
    ranked = [i for i in ranked if weight[i] >= min_p]
    total = math.fsum(weight[i] for i in ranked)
    target, so_far = uniform(seed, position) * total, 0.0
    for i in sorted(ranked):
        so_far += weight[i]
        if so_far > target:
            return i
    raise AssertionError


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=70),
    st.floats(0.05, 10),
    st.integers(0, 80),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**31),
)
def test_draws_equal_the_plain_definition(logits, temperature, top_k, top_p, min_p, seed, position):
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    where = {"seed": seed, "position": position}
    logits_1V = np.array([logits], np.float32)
    actual = sample_rows(logits_1V, batch(1, **options, **where)).ids[0]
    assert actual == plain_draw(logits, **options, **where)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_match_the_softmax(temperature):
    logits = np.array([2.0, -1.0, 0.5, 0.0, -np.inf, 1.0])
    count = 20_000
    expected = np.exp(logits / temperature)
    expected *= count / expected.sum()
    found = np.bincount(draws(logits, count, temperature=temperature), minlength=6)
    assert found[4] == 0
    possible = expected > 0
    chi_square = ((found - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 25  # 4 degrees of freedom: exceeded once in 20,000 seeds


def test_a_draw_depends_on_seed_and_position_alone():
    rng = np.random.default_rng(0)
    logits_SV = rng.standard_normal((7, 100)).astype(np.float32)
    seeds, positions = [rng.integers(0, 2**63, 7).tolist() for _ in "ab"]
    together = sample_rows(logits_SV, batch(7, seed=seeds, position=positions)).ids
    alone = [
        sample_rows(
            logits_SV[row : row + 1], batch(1, seed=seeds[row], position=positions[row])
        ).ids[0]
        for row in range(7)
    ]
    assert together == alone


# -- Each step by itself ----------------------------------------------------------------------


def test_greedy_takes_the_lowest_id_among_equals():
    assert draws([1, 3, 2, 3], 3, temperature=0.0) == [1, 1, 1]
    assert draws([math.inf, 3, math.inf], 1, temperature=0.0) == [0]


def test_greedy_ignores_truncation():
    assert draws([1, 3, 2], 1, temperature=0.0, top_k=1, top_p=0.1, min_p=0.9) == [1]


def test_top_k_keeps_the_lowest_ids_among_equals():
    assert allowed_by([0, 1, 0, 1, 0], top_k=1) == {1}
    assert allowed_by([0, 1, 0, 1, 0], top_k=2) == {1, 3}
    assert allowed_by([0, 1, 0, 1, 0], top_k=3) == {0, 1, 3}
    assert allowed_by([0, 1, 0, 1, 0], top_k=50) == {0, 1, 2, 3, 4}


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    logits = np.log([0.1, 0.4, 0.2, 0.3])
    assert allowed_by(logits, top_p=0.39) == {1}
    assert allowed_by(logits, top_p=0.41) == {1, 3}
    assert allowed_by(logits, top_p=0.69) == {1, 3}
    assert allowed_by(logits, top_p=0.71) == {1, 2, 3}
    assert allowed_by(logits, top_p=0.999) == {0, 1, 2, 3}
    assert allowed_by(logits, top_p=1e-300) == {1}
    # Exactly reached, with equals: 2 of 4, the lowest ids.
    assert allowed_by([0, 0, 0, 0], top_p=0.5) == {0, 1}


def test_top_p_counts_within_top_k():
    # Of the three kept, 0.4 is 4/9 and 0.3 is 3/9.
    logits = np.log([0.1, 0.4, 0.2, 0.3])
    assert allowed_by(logits, top_k=3, top_p=0.43) == {1}
    assert allowed_by(logits, top_k=3, top_p=0.46) == {1, 3}


def test_min_p_is_a_share_of_the_best():
    logits = np.log([0.1, 0.4, 0.2, 0.3])
    assert allowed_by(logits, min_p=0.26) == {1, 2, 3}
    assert allowed_by(logits, min_p=0.6) == {1, 3}
    assert allowed_by(logits, min_p=1.0) == {1}


def test_temperature_comes_before_truncation():
    logits = np.log([0.1, 0.9])
    assert allowed_by(logits, top_p=0.85) == {1}
    assert allowed_by(logits, top_p=0.85, temperature=10.0) == {0, 1}
    assert allowed_by(logits, min_p=0.5, temperature=10.0) == {0, 1}


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    def best(logits, **options):
        return draws(logits, 1, temperature=0.0, **options)[0]

    seen = {"prompt_ids": (0,), "output_ids": (2, 2)}
    assert best([3.0, 1.6, 0.0], repetition_penalty=2.0, **seen) == 1  # 3 / 2 < 1.6
    assert best([3.0, 1.4, 0.0], repetition_penalty=2.0, **seen) == 0
    assert best([-3.0, -3.5, -2.0], repetition_penalty=2.0, **seen) == 1  # −6, −3.5, −4: not −8


def test_presence_and_frequency_count_the_output_only():
    def best(logits, **options):
        return draws(
            logits, 1, temperature=0.0, prompt_ids=(1, 1, 1), output_ids=(0, 0, 2), **options
        )[0]

    assert best([3.0, 2.0, 0.0], presence_penalty=0.9) == 0
    assert best([3.0, 2.0, 0.0], presence_penalty=1.1) == 1
    assert best([3.0, 2.0, 0.0], frequency_penalty=0.45) == 0
    assert best([3.0, 2.0, 0.0], frequency_penalty=0.55) == 1
    assert best([3.0, 2.0, 2.5], frequency_penalty=0.4) == 0  # 2.2, 2.0, 2.1
    assert best([1.0, 1.5, 1.0], presence_penalty=-1.0) == 0  # a reward: 2, 1.5, 2


def test_bias_and_mask():
    assert draws([0, 5, 1], 1, temperature=0.0, logit_bias={2: 4.5}) == [2]
    assert draws([0, 5, 1], 1, temperature=0.0, logit_bias={1: -math.inf}) == [2]
    only_even = mask([token % 2 == 0 for token in range(70)])
    logits = np.arange(70.0)
    assert draws(logits, 1, temperature=0.0, masks_SW=only_even) == [68]
    drawn = draws(np.zeros(70), 500, masks_SW=np.repeat(only_even, 500, 0))
    assert {token % 2 for token in drawn} == {0}
    assert len(set(drawn)) == 35
    # A bias cannot lift what the mask forbids.
    assert draws(logits, 1, temperature=0.0, masks_SW=only_even, logit_bias={69: 1e9}) == [68]


def test_each_row_has_its_own_mask():
    masks = mask([True, False, False], [False, False, True])
    logits_SV = np.zeros((2, 3), np.float32)
    assert sample_rows(logits_SV, batch(2, masks)).ids == [0, 2]


# -- Log-probabilities ------------------------------------------------------------------------


def test_logprobs_are_those_of_the_unmodified_logits():
    logits = np.array([1.0, 2.0, 4.0, 3.0])
    expected = logits - math.log(sum(math.exp(z) for z in logits))
    result = sample_rows(
        logits[None].astype(np.float32),
        batch(1, mask([1, 1, 0, 0]), temperature=0.0, logit_bias={0: 9.0}, top_logprobs=3),
    )
    assert result.ids == [0]
    assert result.logprobs == [pytest.approx(expected[0], rel=1e-12)]
    assert [token for token, _ in result.top_logprobs[0]] == [2, 3, 1]
    assert [value for _, value in result.top_logprobs[0]] == pytest.approx(expected[[2, 3, 1]])


def test_how_many_alternatives_is_each_rows_own_affair():
    logits_SV = np.tile(np.array([0, 1, 1, 0], np.float32), (4, 1))
    result = sample_rows(logits_SV, batch(4, temperature=0.0, top_logprobs=[-1, 0, 3, 99]))
    assert [value is None for value in result.logprobs] == [True, False, False, False]
    assert [[token for token, _ in row] for row in result.top_logprobs] == [
        [],
        [],
        [1, 2, 0],  # equals: the lowest id first
        [1, 2, 0, 3],
    ]


# -- Extremes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "logits",
    [
        [1.0, math.nan],
        [math.nan, math.inf],
        [-math.inf, -math.inf],
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_without_a_token_give_minus_one(logits, temperature):
    logits_SV = np.array([logits, [0.0, 1.0]], np.float32)
    result = sample_rows(logits_SV, batch(2, temperature=temperature, top_logprobs=2))
    assert result.ids[0] == -1
    assert result.logprobs[0] is None
    assert result.top_logprobs[0] == []
    assert result.ids[1] in (0, 1)  # the other row is not harmed
    assert result.logprobs[1] is not None


def test_a_mask_hides_no_nan_and_may_leave_nothing():
    assert draws([math.nan, 1.0], 1, masks_SW=mask([False, True])) == [-1]
    assert draws([0.0, 1.0], 1, masks_SW=mask([False, False])) == [-1]
    assert draws([-math.inf, 1.0], 1, masks_SW=mask([True, False])) == [-1]


def test_infinite_logits_share_everything():
    result = sample_rows(
        np.array([[math.inf, 0.0, math.inf]] * 50, np.float32),
        batch(50, position=list(range(50)), top_logprobs=0),
    )
    assert set(result.ids) == {0, 2}
    assert set(result.logprobs) == {-math.log(2)}


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e30, 1e300])
@pytest.mark.parametrize("scale", [1e-38, 1.0, 3e38])
def test_extreme_temperatures_and_logits(temperature, scale):
    drawn = draws(np.array([-scale, scale, 0.5 * scale]), 200, temperature=temperature)
    assert -1 not in drawn
    if temperature < 1e-20 and scale >= 1e-38 and temperature < scale / 1e3:
        assert set(drawn) == {1}
    if temperature > scale * 1e3:
        assert set(drawn) == {0, 1, 2}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(width=32), min_size=1, max_size=40),
    st.sampled_from([0.0, 1e-300, 1.0, 100.0]),
    st.integers(0, 50),
    st.sampled_from([1e-300, 0.5, 1 - 2**-53, 1.0]),
    st.sampled_from([0.0, 1e-300, 1.0]),
    st.floats(0.01, 100),
    st.floats(-100, 100),
    st.integers(0, 2**64 - 1),
)
def test_never_raises_and_draws_only_what_is_possible(
    logits, temperature, top_k, top_p, min_p, repetition, presence, seed
):
    logits_1V = np.array([logits], np.float32)
    result = sample_rows(
        logits_1V,
        batch(
            1,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition,
            presence_penalty=presence,
            frequency_penalty=presence,
            output_ids=(0, 0, len(logits) - 1),
            seed=seed,
            top_logprobs=5,
        ),
    )
    token = result.ids[0]
    possible = not any(map(math.isnan, logits)) and max(logits) > -math.inf
    assert (token != -1) == possible
    if possible:
        assert logits[token] > -math.inf
        assert result.logprobs[0] <= 0


def test_a_large_vocabulary_is_truncated_alike():
    # The shortcut that spares sorting must not change the set that top-p keeps.
    rng = np.random.default_rng(1)
    logits = rng.standard_normal(50_000).astype(np.float32) * 3
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    for p in (0.5, 0.9, 0.999):
        size = int((probabilities[order].cumsum() < p).sum()) + 1
        kept = np.zeros(50_000)
        kept[order[:size]] = probabilities[order[:size]]
        for position in range(20):
            drawn = sample_rows(logits[None], batch(1, top_p=p, position=position)).ids[0]
            cumulative = kept.cumsum()
            assert drawn == np.argmax(cumulative > uniform(0, position) * cumulative[-1])


def test_what_does_not_belong_together_is_refused():
    logits_SV = np.zeros((2, 40), np.float32)
    with pytest.raises(KernelError, match=r"\[sample\] expected a batch of 2 rows, got 3"):
        sample_rows(logits_SV, batch(3))
    with pytest.raises(KernelError, match=r"expected masks of shape \[2, 2\], got \[2, 1\]"):
        sample_rows(logits_SV, batch(2, np.zeros((2, 1), np.uint32)))


def test_this_files_defaults_name_every_field():
    assert {field.name for field in fields(SamplingBatch)} == {*DEFAULTS, "masks_SW"}

"""The distance between two kernel sets, against arithmetic and against float64 logits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ossia.errors import UsageError
from ossia.kernels.choose import choose_kernels
from ossia.kernels.reference import ReferenceKernels
from ossia.model.numerics import Distance, Prepared, Rows, distance
from ossia.model.selftest import RandomModel, plain_logits
from ossia.model.transformer import Architecture, prepare_weights
from random_models import tiny_config

MODEL = RandomModel(tiny_config(num_hidden_layers=2), seed=4)
ARCHITECTURE = Architecture.of(MODEL.config)
DOCUMENTS = [np.random.default_rng(n).integers(0, 301, n).tolist() for n in (70, 33, 1)]


def prepared(kernels) -> Prepared:
    return Prepared(kernels, prepare_weights(ARCHITECTURE, kernels, MODEL.part))


def test_rows_by_hand():
    """p = (1/2, 1/2) against q = (1/4, 3/4), and one row that is equal but for a constant."""
    exact = np.array([[0.0, 0.0], [5.0, 1.0]], np.float32)
    other = np.array([[0.0, math.log(3)], [7.0, 3.0]], np.float32)
    rows = Rows.of(exact, other, np.array([1, -1]))
    assert rows.kl == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0], abs=1e-7)
    assert rows.loss_exact[0] == pytest.approx(math.log(2))
    assert rows.loss[0] == pytest.approx(math.log(4 / 3))
    assert np.isnan(rows.loss[1]) and np.isnan(rows.loss_exact[1])  # the document ends there
    assert rows.same_top.tolist() == [False, True]  # equal logits: the first


def test_summary_by_hand():
    rows = Rows(
        kl=np.array([*[0.01] * 99, 1.0]),
        same_top=np.array([*[True] * 75, *[False] * 25]),
        loss_exact=np.array([math.log(8)] * 99 + [np.nan]),
        loss=np.array([math.log(9)] * 99 + [np.nan]),
    )
    found = Distance.of(rows, vocab_size=64)
    assert (found.tokens, found.kl_max, found.top1) == (100, 1.0, 0.75)
    assert found.kl_mean == pytest.approx(0.0199)
    assert found.kl_99 == pytest.approx(0.01 + 0.01 * 0.99)  # between the 99th and the 100th
    assert found.perplexity_exact == pytest.approx(8) and found.perplexity == pytest.approx(9)
    assert found.is_meaningful
    assert "8 → 9 (+12.50%)" in str(found)
    assert found.to_json()["top1"] == 0.75


def test_the_distance_from_itself_is_none():
    reference = prepared(ReferenceKernels())
    found = distance(ARCHITECTURE, reference, reference, DOCUMENTS)
    assert (found.tokens, found.kl_max, found.top1) == (104, 0, 1)
    assert found.perplexity == found.perplexity_exact


def test_of_random_weights_it_says_that_it_means_nothing():
    reference = prepared(ReferenceKernels())
    found = distance(ARCHITECTURE, reference, reference, DOCUMENTS)
    assert not found.is_meaningful and "mean nothing" in str(found)


def test_of_int8_it_is_that_of_float64_logits():
    """Documents through the cache in chunks, against whole documents in one plain forward pass."""
    int8 = choose_kernels("native", threads=1)[0]
    steps: list[tuple[int, int]] = []
    found = distance(
        ARCHITECTURE,
        prepared(ReferenceKernels()),
        prepared(int8),
        DOCUMENTS,
        progress=lambda done, total: steps.append((done, total)),
    )
    exact = np.concatenate([plain_logits(MODEL.config, MODEL.part, ids) for ids in DOCUMENTS])
    following = np.concatenate([[*ids[1:], -1] for ids in DOCUMENTS])
    log_p = exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))
    losses = -log_p[np.arange(len(exact)), following][following >= 0]
    assert found.perplexity_exact == pytest.approx(math.exp(losses.mean()), rel=1e-4)
    assert 1e-5 < found.kl_mean < 0.05
    assert found.kl_mean <= found.kl_99 <= found.kl_max
    assert steps[-1] == (104, 104) and [s[0] for s in steps] == sorted(s[0] for s in steps)


def test_only_what_counts_is_compared():
    exact, other = (
        prepared(choose_kernels("native", threads=1, exact=e)[0]) for e in (True, False)
    )
    rng = np.random.default_rng(4)
    counted = [(rng.random(len(ids)) < 0.4).tolist() for ids in DOCUMENTS]
    whole, part = (
        distance(ARCHITECTURE, exact, other, DOCUMENTS, counted=c)
        for c in ([[True] * len(ids) for ids in DOCUMENTS], counted)
    )
    assert whole == distance(ARCHITECTURE, exact, other, DOCUMENTS)
    assert part.tokens == sum(map(sum, counted)) < whole.tokens
    assert part.kl_max <= whole.kl_max and part.kl_mean != whole.kl_mean


def test_bf16_dense_tensors_lie_nearer_than_int8():
    exact = prepared(choose_kernels("native", threads=1, exact=True)[0])
    near, far = (
        distance(
            ARCHITECTURE,
            exact,
            prepared(choose_kernels("native", threads=1, dense_dtype=dtype)[0]),
            DOCUMENTS,
        )
        for dtype in ("bf16", "int8")
    )
    assert 0 < near.kl_mean < far.kl_mean


def test_nothing_to_measure_on():
    reference = prepared(ReferenceKernels())
    with pytest.raises(UsageError, match="two tokens"):
        distance(ARCHITECTURE, reference, reference, [[1]])

"""Bare products of the native kernels against the contract as tests/native_contract.py restates it,
bit for bit, on every instruction set, over shapes that leave every remainder.

A head whose norm weight is the row of activations is a bare product: tokens of magnitude 1 have a
root mean square of exactly 1, so what is multiplied is that row with the token's signs.
"""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from native_contract import exact_product, fma, mxfp4_product, q8_product
from ossia.kernels.mxfp4 import Mxfp4Tensor, decode

_native = pytest.importorskip("ossia.kernels._native")

SETS = _native.instruction_sets()
BY_HALVES = [0, 1, 15, 16, 17, 31]  # remainders of 32 and of 16
WIDTHS = sorted({64 * k + r for k in (0, 1, 2) for r in BY_HALVES if 64 * k + r} | {192, 300})
TOKENS = (1, 2, 3, 5, 8, 13, 20)
HEIGHTS = (1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 70)


class Products:
    """[T, R] products of one context, and the paths that it took for them."""

    def __init__(self, instruction_set, *, threads=1, exact=False):
        self.context = _native.Context(instruction_set, threads, exact)

    def __call__(self, matrix, row_C, signs_TC):
        norm = np.ascontiguousarray(row_C, np.float32)
        table = np.ascontiguousarray(signs_TC, np.float32)
        ids = np.arange(len(table), dtype=np.int32)
        embedding = _native.EmbeddingWeights.of(_native.Matrix.f32(table[None]))
        head = _native.HeadWeights.of(eps=0.0, norm=norm, head=matrix)
        handle = self.context.logits(self.context.embed(ids, embedding), head, ids)
        return self.context.to_numpy(handle).copy()

    def packed(self, weights_RC):
        matrix = _native.Matrix.q8(1, *weights_RC.shape)
        bits = weights_RC if weights_RC.dtype == np.float32 else weights_RC.view(np.uint16)
        self.context.pack_rows(matrix, 0, 0, bits)
        return matrix

    def taken(self):
        return {path for path, count in self.context.counts().items() if count}


def activations(rng, width, tokens):
    """A row of magnitudes that differ from block to block, and signs; some blocks are tiny or 0."""
    blocks = -(-width // 32)
    powers = np.exp2(rng.integers(-12, 13, blocks)).repeat(32)[:width]
    row = (rng.standard_normal(width) * powers).astype(np.float32)
    signs = rng.choice(np.array([-1, 1], np.float32), (tokens, width))
    return row, signs


def random_mxfp4(rng, rows, groups, scales=(96, 160)):
    return Mxfp4Tensor(
        blocks=rng.integers(0, 256, (rows, groups, 16), np.uint8),
        scales=rng.integers(*scales, (rows, groups), np.uint8),
    )


def random_weights(rng, rows, width, dtype):
    powers = np.exp2(rng.integers(-6, 7, (rows, 1)))
    return (rng.standard_normal((rows, width)) * powers).astype(dtype)


def assert_same_bits(actual, expected):
    assert actual.dtype == expected.dtype == np.float32
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


def test_the_restated_fma_rounds_once():
    rng = np.random.default_rng(0)
    a, b, c = (
        np.ldexp(rng.integers(-(2**24), 2**24, 300), rng.integers(-30, 30, 300)).astype(np.float32)
        for _ in range(3)
    )
    # Sums that nearly cancel, where a second rounding would show.
    c[::2] = -(a[::2].astype(np.float64) * b[::2] * (1 + rng.standard_normal(150) * 2.0**-24))
    for x, y, z, got in zip(a, b, c, fma(a, b, c), strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        others = (np.nextafter(got, np.float32(side)) for side in (-np.inf, np.inf))
        distance = abs(Fraction(float(got)) - exact)
        assert all(distance <= abs(Fraction(float(other)) - exact) for other in others)


# -- int8 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_q8_at_every_remainder_of_columns(name, dtype):
    rng = np.random.default_rng(1)
    products = Products(name)
    for i, width in enumerate(WIDTHS):
        weights = random_weights(rng, HEIGHTS[i % len(HEIGHTS)], width, dtype)
        row, signs = activations(rng, width, TOKENS[i % len(TOKENS)])
        expected = q8_product(row * signs, weights)
        assert_same_bits(products(products.packed(weights), row, signs), expected)
    assert products.taken() == {"q8_vector", "q8_tile"}


@pytest.mark.parametrize("name", SETS)
def test_q8_at_every_remainder_of_rows_and_tokens(name):
    rng = np.random.default_rng(2)
    products = Products(name)
    for rows in HEIGHTS:
        weights = random_weights(rng, rows, 192, np.float32)
        matrix = products.packed(weights)
        row, signs = activations(rng, 192, 20)
        expected = q8_product(row * signs, weights)
        for tokens in range(1, 21):
            assert_same_bits(products(matrix, row, signs[:tokens]), expected[:tokens])


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("row_tokens", [0, 1, 4, 1000])
def test_mxfp4_at_every_remainder(name, row_tokens):
    """In place up to `row_tokens` tokens, decoded into panels beyond: the same bits either way."""
    rng = np.random.default_rng(3)
    products = Products(name)
    products.context.tune(mxfp4_row_tokens=row_tokens)
    for i, groups in enumerate([1, 2, 3, 4, 5, 6, 7, 8, 9, 12]):
        for j in range(3):
            rows, tokens = HEIGHTS[(3 * i + j) % len(HEIGHTS)], TOKENS[(i + j) % len(TOKENS)]
            tensor = random_mxfp4(rng, rows, groups)
            row, signs = activations(rng, 32 * groups, tokens)
            matrix = _native.Matrix.mxfp4(tensor.blocks[None], tensor.scales[None])
            expected = mxfp4_product(row * signs, tensor.blocks, tensor.scales)
            before = products.context.counts()
            assert_same_bits(products(matrix, row, signs), expected)
            taken = {p for p, count in products.context.counts().items() if count > before[p]}
            assert taken == {"mxfp4_rows" if tokens <= row_tokens else "mxfp4_panels"}


@pytest.mark.parametrize("name", SETS)
def test_more_tokens_than_a_task_takes(name):
    """A task is about 100 tokens."""
    rng = np.random.default_rng(4)
    products = Products(name)
    weights = random_weights(rng, 20, 96, np.float32)
    row, signs = activations(rng, 96, 400)
    expected = q8_product(row * signs, weights)
    matrix = products.packed(weights)
    for tokens in (95, 96, 97, 127, 128, 129, 193, 257, 400):
        assert_same_bits(products(matrix, row, signs[:tokens]), expected[:tokens])
    tensor = random_mxfp4(rng, 20, 3)
    matrix = _native.Matrix.mxfp4(tensor.blocks[None], tensor.scales[None])
    expected = mxfp4_product(row * signs, tensor.blocks, tensor.scales)
    assert_same_bits(products(matrix, row, signs), expected)


@pytest.mark.parametrize("name", SETS)
def test_the_width_of_gpt_oss(name):
    rng = np.random.default_rng(5)
    products = Products(name)
    row, signs = activations(rng, 2880, 9)
    weights = random_weights(rng, 33, 2880, ml_dtypes.bfloat16)
    tensor = random_mxfp4(rng, 33, 90)
    matrix = _native.Matrix.mxfp4(tensor.blocks[None], tensor.scales[None])
    for tokens in (1, 9):
        used = row * signs[:tokens]
        expected = q8_product(used, weights)
        assert_same_bits(products(products.packed(weights), row, signs[:tokens]), expected)
        expected = mxfp4_product(used, tensor.blocks, tensor.scales)
        assert_same_bits(products(matrix, row, signs[:tokens]), expected)
    assert products.taken() == {"q8_vector", "q8_tile", "mxfp4_rows", "mxfp4_panels"}


@pytest.mark.parametrize("name", SETS)
def test_the_largest_sums_do_not_saturate(name):
    """All weights and activations at the ends of their ranges, all of one sign or alternating."""
    products = Products(name)
    row = np.full(256, 3.0, np.float32)
    signs = np.stack([np.ones(256), -np.ones(256), np.tile([1.0, -1.0], 128)]).astype(np.float32)
    weights = np.stack([np.full(256, 2.0), np.full(256, -2.0), np.tile([2.0, -2.0], 128)])
    weights = weights.astype(np.float32)
    expected = q8_product(row * signs, weights)
    assert_same_bits(products(products.packed(weights), row, signs), expected)
    assert_same_bits(products(products.packed(weights), row, signs[:1]), expected[:1])
    # Nibbles 7 (6.0), 15 (-6.0), and both in turn.
    blocks = np.array([0x77, 0xFF, 0xF7], np.uint8)[:, None, None].repeat(8, 1).repeat(16, 2)
    scales = np.full((3, 8), 127, np.uint8)
    matrix = _native.Matrix.mxfp4(blocks[None], scales[None])
    expected = mxfp4_product(row * signs, blocks, scales)
    assert expected[0, 0] == 256 * 3 * 6
    for row_tokens in (0, 8):
        products.context.tune(mxfp4_row_tokens=row_tokens)
        assert_same_bits(products(matrix, row, signs), expected)


@pytest.mark.parametrize("name", SETS)
def test_the_smallest_activations_and_scales(name):
    """A block whose largest magnitude is below 2^-60 counts as zeros; a product of scales below the
    smallest normal number is taken for that.
    """
    rng = np.random.default_rng(10)
    products = Products(name)
    row = (rng.uniform(0.5, 1, 192) * 2.0**-60).astype(np.float32)
    row[[0, 33, 140]] = 2.0**-60  # three of the six blocks
    signs = rng.choice(np.array([-1, 1], np.float32), (9, 192))
    tensor = random_mxfp4(rng, 18, 6, scales=(0, 9))
    tensor.scales[9:] += 60
    matrix = _native.Matrix.mxfp4(tensor.blocks[None], tensor.scales[None])
    expected = mxfp4_product(row * signs, tensor.blocks, tensor.scales)
    assert 0 < np.abs(expected[:, :9]).max() < 2.0**-110
    for row_tokens in (0, 100):
        products.context.tune(mxfp4_row_tokens=row_tokens)
        assert_same_bits(products(matrix, row, signs), expected)
    weights = random_weights(rng, 18, 192, np.float32)
    expected = q8_product(row * signs, weights)
    assert_same_bits(products(products.packed(weights), row, signs), expected)
    assert_same_bits(products(products.packed(weights), row, signs[:1]), expected[:1])


@pytest.mark.parametrize("name", SETS)
def test_blocks_of_zeros_and_scales_at_their_ends(name):
    """Zero blocks, magnitudes below 2^-60, scale bytes 0 and 190; underflow is the same."""
    rng = np.random.default_rng(6)
    products = Products(name)
    row, signs = activations(rng, 320, 9)
    row[32:64] = 0
    row[64:96] = 2.0**-61
    row[96:128] = 2.0**-60
    row[128:160] *= 2.0**40
    tensor = random_mxfp4(rng, 21, 10)
    tensor.scales[::3] = 0
    tensor.scales[1::3, ::2] = 190
    matrix = _native.Matrix.mxfp4(tensor.blocks[None], tensor.scales[None])
    expected = mxfp4_product(row * signs, tensor.blocks, tensor.scales)
    assert np.isfinite(expected).all()
    for row_tokens in (0, 100):
        products.context.tune(mxfp4_row_tokens=row_tokens)
        assert_same_bits(products(matrix, row, signs), expected)
    weights = random_weights(rng, 21, 320, np.float32)
    weights[:, 160:192] = 0
    weights[4] = 0
    expected = q8_product(row * signs, weights)
    assert_same_bits(products(products.packed(weights), row, signs), expected)
    assert_same_bits(products(products.packed(weights), row, signs[:1]), expected[:1])


# -- Exact ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_exact_at_every_remainder(name, dtype):
    rng = np.random.default_rng(7)
    products = Products(name, exact=True)
    path = "f32_exact" if dtype == np.float32 else "bf16_exact"
    for i, width in enumerate(WIDTHS):
        weights = random_weights(rng, HEIGHTS[i % 9], width, dtype)
        row, signs = activations(rng, width, TOKENS[i % len(TOKENS)])
        bits = weights if dtype == np.float32 else weights.view(np.uint16)
        plain = _native.Matrix.f32 if dtype == np.float32 else _native.Matrix.bf16
        expected = exact_product(row * signs, weights, np.arange(width) % 16)
        assert_same_bits(products(plain(bits[None]), row, signs), expected)
    assert products.taken() == {path}


@pytest.mark.parametrize("name", SETS)
def test_exact_mxfp4(name):
    """Even and odd columns, the nibbles of a byte, go to the same lane; byte 0 is 2^-127."""
    rng = np.random.default_rng(8)
    products = Products(name, exact=True)
    for groups, rows, tokens in ((1, 1, 1), (2, 5, 4), (3, 7, 6), (6, 17, 5), (9, 3, 20)):
        tensor = random_mxfp4(rng, rows, groups)
        tensor.scales[0, 0] = 0
        row, signs = activations(rng, 32 * groups, tokens)
        matrix = _native.Matrix.mxfp4(tensor.blocks[None], tensor.scales[None])
        lanes = np.arange(32 * groups) // 2 % 16
        expected = exact_product(row * signs, decode(tensor), lanes)
        assert_same_bits(products(matrix, row, signs), expected)
    assert products.taken() == {"mxfp4_exact"}


@pytest.mark.parametrize("name", SETS)
def test_dense_tensors_kept_as_they_are_are_exact(name):
    """Without `exact` too: only MXFP4 and int8 weights meet quantised activations."""
    rng = np.random.default_rng(9)
    products = Products(name)
    weights = random_weights(rng, 19, 100, np.float32)
    row, signs = activations(rng, 100, 5)
    expected = exact_product(row * signs, weights, np.arange(100) % 16)
    assert_same_bits(products(_native.Matrix.f32(weights[None]), row, signs), expected)
    assert products.taken() == {"f32_exact"}

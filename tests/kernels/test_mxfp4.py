"""The MXFP4 codec against ml_dtypes' own E2M1 and E8M0 types and transformers' unpacking."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ossia.errors import KernelError
from ossia.kernels.mxfp4 import E2M1_VALUES, Mxfp4Tensor, decode, encode


def random_tensor(seed, *shape, low=0, high=253):
    rng = np.random.default_rng(seed)
    return Mxfp4Tensor(
        blocks=rng.integers(0, 256, (*shape, 16), dtype=np.uint8),
        scales=rng.integers(low, high, shape, dtype=np.uint8),
    )


def decoded_by_ml_dtypes(tensor):
    """Nibbles and scales as ml_dtypes reads them, multiplied in float64."""
    nibbles = np.stack([tensor.blocks & 0xF, tensor.blocks >> 4], axis=-1)
    elements = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    scales = tensor.scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    return (elements * scales[..., None, None]).reshape(tensor.shape)


def assert_same_bits(actual, expected):
    """Equal values, and −0 told from 0."""
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(np.signbit(actual), np.signbit(expected))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_decoding_is_exact(dtype):
    tensor = random_tensor(0, 3, 50, 90)  # more blocks than one chunk, and not a multiple of it
    values = decode(tensor, dtype)
    assert values.dtype == dtype
    assert values.shape == (3, 50, 2880)
    assert_same_bits(values.astype(np.float64), decoded_by_ml_dtypes(tensor))


def test_the_table_is_that_of_e2m1():
    codes = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    assert_same_bits(codes, np.array([*E2M1_VALUES, *(-v for v in E2M1_VALUES)]))


def test_extreme_scales():
    tensor = Mxfp4Tensor(
        blocks=np.full((5, 1, 16), 0x71, np.uint8),  # 0.5 and 6 by turns
        scales=np.array([[0], [252], [253], [254], [255]], np.uint8),
    )
    for dtype, overflow in ((np.float64, False), (np.float32, True), (ml_dtypes.bfloat16, True)):
        values = decode(tensor, dtype).astype(np.float64)[:, :2]
        exact = np.outer(2.0 ** (np.array([0, 252, 253, 254]) - 127), [0.5, 6.0])
        if overflow:
            exact[2:, 1] = np.inf
        np.testing.assert_array_equal(values[:4], exact)
        assert np.isnan(values[4]).all()


def test_decodes_views_of_any_layout():
    tensor = random_tensor(1, 6, 4, 2)
    strided = Mxfp4Tensor(blocks=tensor.blocks[::2, ::-1], scales=tensor.scales[::2, ::-1])
    np.testing.assert_array_equal(decode(strided), decode(tensor)[::2, ::-1])


def test_agrees_with_transformers():
    torch = pytest.importorskip("torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    tensor = random_tensor(2, 2, 64, 3, low=100, high=150)
    theirs = mxfp4.convert_moe_packed_tensors(
        torch.from_numpy(tensor.blocks), torch.from_numpy(tensor.scales)
    )  # [experts, columns, rows]
    theirs = theirs.to(torch.float32).numpy().swapaxes(1, 2)
    np.testing.assert_array_equal(decode(tensor), theirs)


finite_blocks = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.just(64)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.25, -0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0, -7.99, 0.0, -0.0]),
)


@given(finite_blocks)
def test_encoding_rounds_as_ml_dtypes_does(values):
    tensor = encode(values)
    blocks = values.astype(np.float64).reshape(len(values), -1, 32)
    largest = np.abs(blocks).max(axis=-1)
    # The rule of the specification, in float64 logarithms of exact powers and their mantissas.
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log2(largest)) - 2
    exponent = np.where(2.0 ** (exponent + 2) > largest, exponent - 1, exponent)  # log2 rounded up
    exponent = np.maximum(exponent, -127)
    np.testing.assert_array_equal(tensor.scales, exponent + 127)
    scaled = blocks / 2.0 ** exponent[..., None]
    saturated = np.clip(scaled, -6, 6)
    expected = saturated.astype(ml_dtypes.float4_e2m1fn).astype(np.float64)
    expected = np.copysign(expected, blocks) * 2.0 ** exponent[..., None]
    assert_same_bits(decode(tensor, np.float64), expected.reshape(values.shape))


@given(st.integers(0, 2**32 - 1), st.sampled_from([(0, 3), (100, 140), (248, 253), (0, 253)]))
def test_encoding_what_was_decoded_changes_no_value(seed, scales):
    tensor = random_tensor(seed, 4, 3, low=scales[0], high=scales[1])
    for dtype in (np.float32, np.float64, ml_dtypes.bfloat16):
        again = encode(decode(tensor, dtype))
        assert_same_bits(decode(again, np.float64), decode(tensor, np.float64))
        twice = encode(decode(again, dtype))
        np.testing.assert_array_equal(twice.blocks, again.blocks)
        np.testing.assert_array_equal(twice.scales, again.scales)


@given(finite_blocks)
@settings(max_examples=30)
def test_the_error_is_at_most_half_a_step(values):
    """2/8 of the block's largest power of two: the step is 2 at the top, and 8 saturates to 6."""
    decoded = decode(encode(values), np.float64)
    blocks = values.astype(np.float64).reshape(-1, 32)
    error = np.abs(decoded.reshape(-1, 32) - blocks).max(axis=1)
    assert (error <= np.maximum(np.abs(blocks).max(axis=1) / 4, 2.0**-129)).all()


def test_rounding_starts_from_float64():
    just_above_a_tie = np.zeros(32)
    just_above_a_tie[:2] = 4, 2.5 + 2.0**-40  # float32 would round it to the tie, then to 2
    assert decode(encode(just_above_a_tie))[1] == 3


def test_zeros_keep_their_sign():
    values = np.zeros((1, 32), np.float32)
    values[0, 1::2] = -0.0
    tensor = encode(values)
    assert tensor.scales.tolist() == [[0]]
    assert_same_bits(decode(tensor), values)


def test_encodes_an_empty_stack():
    assert encode(np.zeros((0, 64), np.float32)).shape == (0, 64)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.full(32, np.nan, np.float32), "NaN"),
        (np.full(32, -np.inf, np.float32), "an infinity"),
        (np.full(32, 2.0**130), "below 2\\^130"),
        (np.zeros((4, 33), np.float32), "multiple of 32.*\\[4, 33\\]"),
        (np.float32(1), "multiple of 32"),
        (np.zeros(32, np.int32), "int32"),
    ],
)
def test_refuses_what_it_cannot_encode(values, says):
    with pytest.raises(KernelError, match=says):
        encode(values)


def test_refuses_other_types_and_shapes():
    with pytest.raises(KernelError, match="not to float16"):
        decode(random_tensor(0, 2, 1), np.float16)
    with pytest.raises(KernelError, match="uint8"):
        Mxfp4Tensor(np.zeros((2, 16), np.int8), np.zeros(2, np.uint8))
    with pytest.raises(KernelError, match=r"need blocks of shape \[2, 3, 16\], got \[2, 2, 16\]"):
        Mxfp4Tensor(np.zeros((2, 2, 16), np.uint8), np.zeros((2, 3), np.uint8))

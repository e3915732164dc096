"""The numerical contract of the native kernels' products once more, in plain numpy: what
csrc/op_table.h says in words, to the bit, and none of its code.

float32 numbers are float32 arrays throughout; a fused multiply-add is made from float64, rounded to
odd, which makes the second rounding the only one that counts.

Legend: R rows of a matrix, T tokens, C columns, B = ceil(C / 32) blocks.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

BLOCK = 32
DOUBLED_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int64)
SMALLEST_ACTIVATION, LARGEST_ACTIVATION = np.float32(2.0**-60), np.float32(2.0**60)
SMALLEST_NORMAL = np.float32(2.0**-126)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a · b + c of float32 arrays, rounded once."""
    product = a.astype(np.float64) * b.astype(np.float64)  # 24 + 24 bits: exact
    addend = c.astype(np.float64)
    total = product + addend
    part = total - product
    lost = (product - (total - part)) + (addend - part)  # Knuth's two-sum: exact
    # To odd: where something was lost and the last bit is even, the neighbour on the side of the
    # loss. 53 bits are more than 24 + 2, so rounding that to float32 is rounding the exact value.
    even = total.view(np.int64) & 1 == 0
    odd = np.nextafter(total, np.copysign(np.inf, lost))
    return np.where((lost != 0) & even, odd, total).astype(np.float32)


def in_blocks(values: np.ndarray) -> np.ndarray:
    """[..., C] → [..., B, 32], padded with zeros."""
    missing = -values.shape[-1] % BLOCK
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])
    return padded.reshape(*values.shape[:-1], -1, BLOCK)


def quantised(activations_TC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 values [T, B, 32] as int64, and float32 scales [T, B]."""
    blocks = in_blocks(activations_TC)
    largest_TB = np.abs(blocks).max(axis=-1)
    usable = largest_TB >= SMALLEST_ACTIVATION
    largest_TB = np.where(usable, largest_TB, np.float32(127))
    inverse = np.float32(127) / largest_TB
    values = np.rint(blocks * inverse[..., None]).astype(np.int64)
    scales = np.where(usable, largest_TB / np.float32(127), np.float32(1))
    return np.where(usable[..., None], values, 0), scales


def packed(weights_RC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 values [R, B, 32] as int64, and scales [R, B] that bfloat16 holds."""
    blocks = in_blocks(weights_RC.astype(np.float32))
    scales = (np.abs(blocks).max(axis=-1) / np.float32(127)).astype(ml_dtypes.bfloat16)
    scales = scales.astype(np.float32)
    with np.errstate(divide="ignore"):
        inverse = np.where(scales > 0, np.float32(1) / scales, np.float32(0))
    values = np.clip(np.rint(blocks * inverse[..., None]), -127, 127).astype(np.int64)
    return values, scales


def chained(sums_TRB: np.ndarray, scales_TRB: np.ndarray) -> np.ndarray:
    """Block b into chain b mod 4 with one fma; the chains in pairs. [T, R]"""
    chains = np.zeros((*sums_TRB.shape[:-1], 4), np.float32)
    for b in range(sums_TRB.shape[-1]):
        sums = sums_TRB[..., b].astype(np.float32)  # below 2^24: exact
        chains[..., b % 4] = fma(sums, scales_TRB[..., b], chains[..., b % 4])
    return (chains[..., 0] + chains[..., 1]) + (chains[..., 2] + chains[..., 3])


def q8_product(activations_TC: np.ndarray, weights_RC: np.ndarray) -> np.ndarray:
    """[T, R], the weights float32 or bfloat16, repacked into int8."""
    a, a_scales = quantised(activations_TC)
    w, w_scales = packed(weights_RC)
    sums = np.einsum("tbi,rbi->trb", a, w)
    return chained(sums, w_scales[None] * a_scales[:, None])


def mxfp4_product(activations_TC: np.ndarray, blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """[T, R]; blocks [R, B, 16] and scales [R, B], uint8."""
    a, a_scales = quantised(activations_TC)
    sums = np.einsum("tbi,rbi->trb", a, doubled_nibbles(blocks))
    exponents = scales.astype(np.int32) - 127
    both = np.ldexp(a_scales[:, None].astype(np.float64), exponents[None])
    both = np.maximum(both, SMALLEST_NORMAL).astype(np.float32)
    return np.float32(0.5) * chained(sums, both)


def doubled_nibbles(blocks: np.ndarray) -> np.ndarray:
    """[..., 16] bytes → [..., 32] twice the values; low nibbles are the even columns."""
    pairs = np.stack([blocks & 15, blocks >> 4], axis=-1)
    return DOUBLED_E2M1[pairs].reshape(*blocks.shape[:-1], BLOCK)


def lanes_summed(lanes: np.ndarray) -> np.ndarray:
    """[..., 16] → [...]: lane i and i + 8, then + 4, + 2, + 1."""
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def exact_product(
    activations_TC: np.ndarray, weights_RC: np.ndarray, lane_of_column: np.ndarray
) -> np.ndarray:
    """[T, R] with one fma per column into the lane that `lane_of_column` names."""
    lanes = np.zeros((len(activations_TC), len(weights_RC), 16), np.float32)
    a, w = activations_TC.astype(np.float32), weights_RC.astype(np.float32)
    for column, lane in enumerate(lane_of_column):
        lanes[..., lane] = fma(w[None, :, column], a[:, None, column], lanes[..., lane])
    return lanes_summed(lanes)

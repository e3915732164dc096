"""MXFP4: 4-bit floats (E2M1) in blocks of 32 that share a power-of-two scale (E8M0), as the
published experts are stored.

Value = table[nibble] · 2^(scale − 127); byte i of a block holds element 2i in its low and 2i + 1 in
its high nibble. Source: OCP Microscaling Formats specification v1.0. Decoding is exact, also in
bfloat16; encoding what was decoded gives the same values, though not always the same bytes (a block
whose largest element is 1 at scale s is 4 at scale s − 2 just as well).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import pairwise

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ossia.errors import KernelError

BLOCK_SIZE = 32
"""Elements that share a scale."""
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitude by the low three bits of a nibble; the fourth is the sign, so 8 is −0."""

_EMAX = 2  # exponent of the largest E2M1 magnitude: 6 = 1.5 · 2²
_BIAS = 127
_CHUNK = 1 << 13  # blocks worked on at a time: 1 MiB of float32, which stays in the cache


@dataclass(frozen=True)
class Mxfp4Tensor:
    """A stack of matrices [..., rows, columns], columns in groups of 32 along the input dimension.

    Raises KernelError when blocks and scales do not belong together.
    """

    blocks: np.ndarray
    """uint8 [..., rows, columns / 32, 16]"""
    scales: np.ndarray
    """uint8 [..., rows, columns / 32]"""

    def __post_init__(self) -> None:
        expected = (*self.scales.shape, BLOCK_SIZE // 2)
        if self.blocks.dtype != np.uint8 or self.scales.dtype != np.uint8:
            raise KernelError(
                "MXFP4 blocks and scales must be uint8, "
                f"got {self.blocks.dtype} and {self.scales.dtype}"
            )
        if self.scales.ndim == 0 or self.blocks.shape != expected:
            raise KernelError(
                f"MXFP4 scales of shape {list(self.scales.shape)} need blocks of shape "
                f"{list(expected)}, got {list(self.blocks.shape)}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the decoded tensor."""
        *lead, groups = self.scales.shape
        return (*lead, groups * BLOCK_SIZE)


def _pair_table(dtype: DTypeLike) -> np.ndarray:
    """The two values of every byte, [256] of a void type as wide as both: one gather per byte."""
    signed = np.array([*E2M1_VALUES, *(-v for v in E2M1_VALUES)], dtype)
    byte = np.arange(256)
    pairs = np.stack([signed[byte & 0xF], signed[byte >> 4]], axis=-1)
    return np.ascontiguousarray(pairs).view(f"V{2 * pairs.itemsize}")[:, 0]


def _scale_table(dtype: DTypeLike) -> np.ndarray:
    """2^(byte − 127) of every scale byte; 255 is NaN."""
    table = np.ldexp(np.ones(256, dtype), np.arange(256, dtype=np.int32) - _BIAS, dtype=dtype)
    table[255] = np.nan
    return table


with np.errstate(over="ignore"):  # 2^128 of the byte 255, before NaN takes its place
    _TABLES = {np.dtype(t): (_pair_table(t), _scale_table(t)) for t in (np.float32, np.float64)}


def decode(tensor: Mxfp4Tensor, dtype: DTypeLike = np.float32) -> np.ndarray:
    """The values of `tensor`, shape `tensor.shape`, as float32, float64 or bfloat16 (ml_dtypes).

    Exact, but that magnitudes of 2^128 and more (scale bytes 253 and 254) overflow to ±inf in
    float32 and bfloat16. A block of scale byte 255 is NaN throughout.
    """
    dtype = np.dtype(dtype)
    working = np.dtype(np.float32) if dtype == ml_dtypes.bfloat16 else dtype
    if working not in _TABLES:
        raise KernelError(f"MXFP4 decodes to float32, float64 or bfloat16, not to {dtype}")
    pairs, powers = _TABLES[working]
    out = np.empty(tensor.shape, dtype)
    out_GB = out.reshape(-1, BLOCK_SIZE)
    blocks_GB, scales_G = tensor.blocks.reshape(-1, BLOCK_SIZE // 2), tensor.scales.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        for at in range(0, len(scales_G), _CHUNK):
            chunk = slice(at, at + _CHUNK)
            values = pairs[blocks_GB[chunk]].view(working)
            np.multiply(values, powers[scales_G[chunk], None], out=values)
            out_GB[chunk] = values if dtype == working else _truncated_to_bfloat16(values)
    return out


def _truncated_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper half of each float32: no rounding is needed where at most two mantissa bits are
    set, and a view costs less than a conversion."""
    upper = 1 if sys.byteorder == "little" else 0
    return values.view(np.uint16)[:, upper::2].view(ml_dtypes.bfloat16)


def encode(values: ArrayLike) -> Mxfp4Tensor:
    """The MXFP4 tensor nearest to `values` [..., columns], columns a multiple of 32.

    The shared scale of a block is 2^(floor(log2(largest magnitude)) − 2), as the specification's
    section 6.3 suggests; elements are rounded to the nearest, ties to the even code, and saturate:
    magnitudes above 6 · scale (the largest may reach 8 · scale) become 6 · scale. Signs are kept,
    also that of zero; a block of zeros gets the scale byte 0. Rounding starts from the array's own
    precision, never from an intermediate one.

    Raises KernelError for values that MXFP4 cannot hold: NaN, infinity, 2^130 and above.
    """
    array = np.asarray(values)
    if array.dtype != np.float64:
        if array.dtype not in (np.float32, np.float16, ml_dtypes.bfloat16):
            raise KernelError(f"MXFP4 encodes floating-point arrays, got {array.dtype}")
        array = array.astype(np.float32, copy=False)
    if array.ndim == 0 or array.shape[-1] % BLOCK_SIZE:
        raise KernelError(
            f"MXFP4 needs a last dimension that is a multiple of {BLOCK_SIZE}, "
            f"got shape {list(array.shape)}"
        )
    groups_shape = (*array.shape[:-1], array.shape[-1] // BLOCK_SIZE)
    array_GB = array.reshape(-1, BLOCK_SIZE)
    blocks_GB = np.empty((len(array_GB), BLOCK_SIZE // 2), np.uint8)
    scales_G = np.empty(len(array_GB), np.uint8)
    for at in range(0, len(array_GB), _CHUNK):
        chunk = slice(at, at + _CHUNK)
        scales_G[chunk] = _shared_scales(array_GB[chunk])
        codes = _codes(array_GB[chunk], scales_G[chunk])
        np.bitwise_or(codes[:, 0::2], codes[:, 1::2] << 4, out=blocks_GB[chunk])
    return Mxfp4Tensor(
        blocks=blocks_GB.reshape(*groups_shape, BLOCK_SIZE // 2),
        scales=scales_G.reshape(groups_shape),
    )


def _shared_scales(values_GB: np.ndarray) -> np.ndarray:
    largest = np.abs(values_GB).max(axis=1)
    if not np.isfinite(largest).all():
        found = "NaN" if np.isnan(largest).any() else "an infinity"
        raise KernelError(f"MXFP4 encodes finite values, but the array holds {found}")
    # frexp: largest = mantissa · 2^exponent with mantissa in [1/2, 1), so floor(log2) = exponent−1.
    exponent = np.frexp(largest)[1] - 1 - _EMAX + _BIAS
    if exponent.max(initial=0) > 254:
        raise KernelError(
            f"MXFP4 holds magnitudes below 2^130, but the array holds {largest.max()}"
        )
    return np.where(largest > 0, np.maximum(exponent, 0), 0)


def _codes(values_GB: np.ndarray, scales_G: np.ndarray) -> np.ndarray:
    """Nibbles, one per byte. The thresholds are the midpoints between neighbours of E2M1_VALUES; at
    a midpoint the even code wins, so every second one belongs to the code above it."""
    scaled = np.ldexp(values_GB, _BIAS - scales_G.astype(np.int32)[:, None])
    magnitude = np.abs(scaled)
    codes = np.signbit(scaled).view(np.uint8) << 3
    for code, (below, above) in enumerate(pairwise(E2M1_VALUES), 1):
        midpoint = (below + above) / 2
        codes += magnitude > midpoint if code % 2 else magnitude >= midpoint
    return codes

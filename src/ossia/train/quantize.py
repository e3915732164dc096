"""Rounding with a straight-through gradient: in the last part of training the model already runs on
the values that the export will write.

Experts are rounded to MXFP4 exactly as `kernels.mxfp4.encode` does, everything else to bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.kernels.mxfp4 import BLOCK_SIZE, E2M1_VALUES


def fake_quantize(weight: Tensor) -> Tensor:
    """The values that MXFP4 keeps of `weight` [.., columns]; the gradient passes as if nothing had
    happened."""
    return _straight_through(weight, mxfp4_round(weight.detach()))


def fake_bfloat16(weight: Tensor) -> Tensor:
    return _straight_through(weight, weight.detach().to(torch.bfloat16).to(weight.dtype))


def mxfp4_round(weight: Tensor) -> Tensor:
    """decode(encode(weight)), in torch: see `kernels.mxfp4.encode` for the rule."""
    blocks = weight.unflatten(-1, (-1, BLOCK_SIZE))
    largest = blocks.abs().amax(-1, keepdim=True)
    # largest = mantissa · 2^exponent with mantissa in [1/2, 1); 4 is the power of two below 6.
    exponent = (torch.frexp(largest).exponent - 3).clamp(min=-127)
    scaled = torch.ldexp(blocks, -exponent)
    magnitude = scaled.abs()
    # E2M1 is spaced by 1/2 below 2, by 1 below 4 and by 2 above; ties go to the even code, which
    # is the even multiple of the spacing.
    spacing = 0.5 + 0.5 * (magnitude >= 2) + (magnitude >= 4)
    rounded = (scaled / spacing).round() * spacing
    rounded = rounded.clamp(-E2M1_VALUES[-1], E2M1_VALUES[-1])
    return torch.ldexp(rounded, exponent).flatten(-2)


def _straight_through(weight: Tensor, value: Tensor) -> Tensor:
    return value + (
        weight - weight.detach()
    )  # value + 0 is exact, weight + (value − weight) is not

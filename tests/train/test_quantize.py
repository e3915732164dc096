"""Rounding in training is rounding in the export, bit for bit, and passes gradients on."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ossia.kernels.mxfp4 import decode, encode
from ossia.train.quantize import fake_bfloat16, fake_quantize, mxfp4_round

FINITE = st.floats(-(2.0**120), 2.0**120, width=32)


@settings(max_examples=300, deadline=None)
@given(npst.arrays(np.float32, st.sampled_from([(32,), (2, 64), (3, 2, 32)]), elements=FINITE))
def test_equals_the_codec_bit_for_bit(values):
    expected = decode(encode(values))
    found = mxfp4_round(torch.from_numpy(values)).numpy()
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_equals_the_codec_on_every_tie():
    grid = np.arange(0, 8.25, 0.125, dtype=np.float32)  # neighbours, midpoints, saturation
    for scale in (2.0**-130, 2.0**-20, 1.0, 2.0**40):
        for top in (4.0, 7.99):
            block = np.zeros((2 * len(grid), 32), np.float32)
            block[:, 0] = top
            block[:, 1] = np.concatenate([grid, -grid])
            values = block * np.float32(scale)
            found = mxfp4_round(torch.from_numpy(values)).numpy()
            expected = decode(encode(values))
            assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_gradient_passes_straight_through_and_values_are_exact():
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    probe = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    for fake in (fake_quantize, fake_bfloat16):
        weight.grad = None
        (fake(weight) * probe).sum().backward()
        assert torch.equal(weight.grad, probe)
    assert np.array_equal(
        fake_quantize(weight).detach().numpy(), decode(encode(weight.detach().numpy()))
    )
    bits = weight.detach().numpy().astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(fake_bfloat16(weight).detach().numpy(), bits)

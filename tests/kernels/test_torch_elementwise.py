"""RMSNorm and RoPE with gradients written by hand equal the plain ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ossia.kernels.torch.elementwise import RmsNorm, Rotate, apply_rope, both_halves


def randn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_equal_with_gradients(fast, plain, tensors):
    torch.testing.assert_close(fast, plain, rtol=1e-13, atol=1e-13)
    probe = randn(*plain.shape, seed=1)
    for found, expected in zip(
        torch.autograd.grad(fast, tensors, probe),
        torch.autograd.grad(plain, tensors, probe),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0])  # eps matters; it does not
def test_rms_norm(scale):
    x, weight = (randn(5, 7) * scale).requires_grad_(), randn(7).requires_grad_()
    plain = F.rms_norm(x, (7,), weight, 1e-5)
    assert_equal_with_gradients(RmsNorm.apply(x, weight, 1e-5), plain, [x, weight])
    assert torch.autograd.gradcheck(lambda x, w: RmsNorm.apply(x, w, 1e-5), (x, weight))


def test_rotate_turns_the_first_heads_and_leaves_the_rest():
    T, heads, d, rest = 6, 3, 4, 5
    rows = randn(T, heads * d + rest).requires_grad_()
    angles = randn(T, 1, d // 2)
    cos, sin = 1.3 * angles.cos(), 1.3 * angles.sin()  # YaRN's concentration is no rotation
    turned = apply_rope(rows[:, : heads * d].unflatten(1, (heads, d)), cos, sin).flatten(1)
    plain = torch.cat([turned, rows[:, heads * d :]], dim=1)
    before = rows.detach().clone()
    assert_equal_with_gradients(Rotate.apply(rows, *both_halves(cos, sin), heads), plain, [rows])
    assert torch.equal(rows, before)


def test_rotate_rounds_once():
    rows, angles = randn(50, 16).bfloat16(), randn(50, 1, 4).float()
    found = Rotate.apply(rows, *both_halves(angles.cos(), angles.sin()), 2)
    plain = apply_rope(rows.float().unflatten(1, (2, 8)), angles.cos(), angles.sin()).flatten(1)
    torch.testing.assert_close(found, plain.bfloat16(), rtol=2**-8, atol=1e-6)

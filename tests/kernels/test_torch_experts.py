"""The mixture of experts with a gradient written by hand equals the plain one, and its gradient
equals differences of its value."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ossia.kernels.torch.experts import Mixture, choose, dispatch, mix

LIMIT, ALPHA = 1.5, 1.702


def arguments(
    T,
    D,
    E,
    width,
    k,
    *,
    dtype=torch.float64,
    unused=0,
) -> tuple[list[Any], list[Any]]:
    """Of `mix`, with leaves for tensors; the last `unused` experts are never chosen."""
    generator = torch.Generator().manual_seed(T)

    def leaf(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    chosen_Tk = torch.stack([torch.randperm(E - unused, generator=generator)[:k] for _ in range(T)])
    plan = dispatch(chosen_Tk, torch.bincount(chosen_Tk.flatten(), minlength=E))
    shapes = ((T, D), (T, k), (E, 2 * width, D), (E, 2 * width), (E, D, width), (E, D))
    return [leaf(*shape).requires_grad_() for shape in shapes], [plan, LIMIT, ALPHA]


@pytest.mark.parametrize("T", [1, 9, 200])  # 200 · 4 rows: those of each expert are padded
@pytest.mark.parametrize("unused", [0, 2])
def test_equals_the_plain_mixture_in_value_and_gradient(T, unused):
    tensors, rest = arguments(T, D=6, E=8, width=5, k=4, unused=unused)
    plan = rest[0]
    assert (sum(plan.sizes_E) > 4 * T) == (T == 200)
    plain, fast = mix(*tensors, *rest), Mixture.apply(*tensors, *rest)
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    probe = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1)).double()
    for found, expected in zip(
        torch.autograd.grad(fast, tensors, probe),
        torch.autograd.grad(plain, tensors, probe),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_gradient_equals_differences():
    tensors, rest = arguments(4, D=3, E=3, width=2, k=2)
    assert torch.autograd.gradcheck(lambda *t: Mixture.apply(*t, *rest), tensors)


def test_clamped_gates_and_ups_carry_no_gradient():
    tensors, rest = arguments(50, D=6, E=2, width=4, k=1)
    tensors[3].data[:] = 100.0  # every gate and up is beyond the limit
    grads = torch.autograd.grad(Mixture.apply(*tensors, *rest).sum(), tensors)
    assert not grads[0].any() and not grads[2].any() and not grads[3].any()
    assert grads[4].any()


def test_bfloat16_products_stay_near():
    tensors, rest = arguments(300, D=64, E=4, width=32, k=2)
    tensors[2].data *= 0.1
    expected = mix(*tensors, *rest)
    rounded = [
        t.detach().to(torch.float32 if n == 1 else torch.bfloat16).requires_grad_()
        for n, t in enumerate(tensors)
    ]
    found = Mixture.apply(*rounded, *rest)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    slopes = torch.autograd.grad(found.float().sum(), rounded)
    for slope, true in zip(slopes, torch.autograd.grad(expected.sum(), tensors), strict=True):
        assert (slope - true).norm() < 0.03 * true.norm()  # some gates move across the limit


def test_chooses_the_largest_and_the_lowest_index_among_equals():
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0, 3.0], [0.0, 0.0, -1.0, 0.0, -2.0]])
    assert choose(logits, 3).tolist() == [[1, 3, 4], [0, 1, 3]]
    many = torch.randint(5, (200, 16), generator=torch.Generator().manual_seed(0)).float()
    expected = many.sort(dim=-1, descending=True, stable=True).indices[:, :4]
    assert torch.equal(choose(many, 4), expected)

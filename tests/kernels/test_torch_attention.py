"""Attention of packed sequences with a gradient written by hand equals the plain one, sequence by
sequence, and its gradient equals differences of its value."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ossia.kernels.torch.attention import attend, visible
from ossia.kernels.torch.self_attention import SelfAttention, make_layout
from random_models import tiny_config


def sizes(heads, kv_heads, head_dim):
    return replace(tiny_config().dims(), num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim)


def arguments(lengths, dims, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(lengths))
    width = (dims.num_heads + 2 * dims.num_kv_heads) * dims.head_dim
    qkv = torch.randn(sum(lengths), width, generator=generator, dtype=torch.float64).to(dtype)
    sinks = torch.randn(dims.num_heads, generator=generator, dtype=torch.float64)
    if dtype != torch.float64:
        sinks = sinks.float()
    return qkv.requires_grad_(), sinks.requires_grad_()


def plain(qkv, sinks, lengths, window, dims):
    H, K, d = dims.num_heads, dims.num_kv_heads, dims.head_dim
    outputs = []
    for rows in qkv.unflatten(1, (-1, d)).split(lengths):
        q, k, v = rows[None].split([H, K, K], dim=2)
        if not len(rows):
            continue
        positions = np.arange(len(rows))
        sees = torch.from_numpy(visible(positions, positions, window))
        outputs.append(attend(q, k, v, sinks, sees)[0])
    return torch.cat(outputs)


def fast(qkv, sinks, lengths, window, dims):
    layout = make_layout(np.cumsum([0, *lengths]), dims, qkv.device)
    return SelfAttention.apply(qkv, sinks, layout, window, dims)


@pytest.mark.parametrize("lengths", [[1], [7, 3], [60, 50, 33, 61, 5, 2, 2], [40, 0, 41]])
@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (6, 2), (3, 3)])
def test_equals_the_plain_one_in_value_and_gradient(lengths, window, heads, kv_heads, monkeypatch):
    monkeypatch.setattr("ossia.kernels.torch.self_attention.QUERY_TILE", 16)
    dims = sizes(heads, kv_heads, head_dim=4)
    tensors = arguments(lengths, dims)
    expected, found = (f(*tensors, lengths, window, dims) for f in (plain, fast))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    probe = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    for slope, true in zip(
        torch.autograd.grad(found, tensors, probe),
        torch.autograd.grad(expected, tensors, probe),
        strict=True,
    ):
        torch.testing.assert_close(slope, true, rtol=1e-10, atol=1e-11)


def test_gradient_equals_differences():
    dims = sizes(2, 1, head_dim=2)
    tensors = arguments([3, 2], dims)
    assert torch.autograd.gradcheck(lambda qkv, sinks: fast(qkv, sinks, [3, 2], 2, dims), tensors)


def test_bfloat16_products_stay_near():
    dims, lengths = sizes(4, 1, head_dim=64), [100, 30, 28]
    tensors = arguments(lengths, dims)
    rounded = arguments(lengths, dims, torch.bfloat16)
    expected, found = (fast(*t, lengths, 128, dims) for t in (tensors, rounded))
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    slopes = torch.autograd.grad(found.float().sum(), rounded)
    for slope, true in zip(slopes, torch.autograd.grad(expected.sum(), tensors), strict=True):
        assert (slope - true).norm() < 0.02 * true.norm()

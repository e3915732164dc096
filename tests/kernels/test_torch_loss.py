"""Cross-entropy by chunks equals torch's, in value and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ossia.kernels.torch.loss import CrossEntropy


def arguments(R=37, V=50, scale=3.0):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(R, V, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (R,), generator=generator)
    weights = torch.rand(R, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), targets, weights


def plain(logits, targets, weights):
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum()


@pytest.mark.parametrize("scale", [3.0, 3000.0])  # where softmax underflows, the loss is finite
@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_equals_torch(scale, factor, monkeypatch):
    monkeypatch.setattr("ossia.kernels.torch.loss.CHUNK_ELEMENTS", 500)
    logits, targets, weights = arguments(scale=scale)
    found = CrossEntropy.apply(logits, targets, weights)
    expected = plain(logits, targets, weights)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        *(torch.autograd.grad(factor * loss, logits)[0] for loss in (found, expected)),
        rtol=1e-11,
        atol=1e-13,
    )


def test_bfloat16_logits_are_widened():
    logits, targets, weights = arguments()
    rounded = logits.detach().bfloat16().requires_grad_()
    found = CrossEntropy.apply(rounded, targets, weights.float())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(plain(rounded.double(), targets, weights).item(), 1e-6)
    (slope,) = torch.autograd.grad(found, rounded)
    (true,) = torch.autograd.grad(plain(logits, targets, weights), logits)
    assert slope.dtype == torch.bfloat16
    assert (slope - true).abs().max() < 0.01


def test_without_a_gradient_none_is_made():
    logits, targets, weights = arguments()
    with torch.no_grad():
        found = CrossEntropy.apply(logits, targets, weights)
    assert found.item() == pytest.approx(plain(logits, targets, weights).item(), 1e-12)
    assert not found.requires_grad

"""Cross-entropy of logits as the product gives them, bfloat16 or wider, and its gradient in the
same pass: a few rows at a time are widened, and no wide copy of all logits is ever made.

`F.cross_entropy` says plainly what it computes. Legend: R rows, V vocabulary.
"""

from __future__ import annotations

import torch

CHUNK_ELEMENTS = 1 << 18
"""Logits widened at a time: a megabyte in float32, which stays in the cache."""


class CrossEntropy(torch.autograd.Function):
    """Σ_r weight · −log softmax(logits)[target]; logits [R, V], targets [R] int64, weights [R]. The
    sum is of the dtype of the weights."""

    @staticmethod
    def forward(ctx, logits_RV, targets_R, weights_R):  # type: ignore[override]
        wants_gradient = ctx.needs_input_grad[0]
        grad_RV = torch.empty_like(logits_RV) if wants_gradient else None
        total = weights_R.new_zeros(())
        rows = max(1, CHUNK_ELEMENTS // logits_RV.shape[1])
        for first in range(0, len(logits_RV), rows):
            chunk = slice(first, first + rows)
            targets, weights = targets_R[chunk, None], weights_R[chunk, None]
            wide = logits_RV[chunk].to(weights.dtype)
            p = wide.softmax(-1)
            # log Σ exp = max − log p[max], where p[max] ≥ 1 / V
            log_sum = wide.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log()
            total += ((log_sum - wide.gather(1, targets)) * weights).sum()
            if grad_RV is not None:
                grad_RV[chunk] = p.mul_(weights).scatter_add_(1, targets, -weights)
        ctx.grad_RV = grad_RV
        return total

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        scaled = ctx.grad_RV if grad == 1 else ctx.grad_RV * grad.to(ctx.grad_RV.dtype)
        return scaled, None, None

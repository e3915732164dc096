"""RMSNorm and RoPE with gradients written by hand: torch's own go over the rows three times as
often. `F.rms_norm` and `apply_rope` say plainly what they compute.

Legend: T tokens, D model width, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


class RmsNorm(torch.autograd.Function):
    """x [T, D], weight [D] → weight · x / √(mean of x² + eps)."""

    @staticmethod
    def forward(ctx, x_TD, weight_D, eps):  # type: ignore[override]
        mean_T = torch.linalg.vecdot(x_TD, x_TD).div_(x_TD.shape[-1])
        scale_T = mean_T.add_(eps).rsqrt_()
        ctx.save_for_backward(x_TD, weight_D, scale_T)
        return (x_TD * scale_T[:, None]).mul_(weight_D)

    @staticmethod
    def backward(ctx, grad_TD):  # type: ignore[override]
        x_TD, weight_D, scale_T = ctx.saved_tensors
        product_TD = grad_TD * x_TD
        along_T = (product_TD @ weight_D).mul_(scale_T.square()).div_(-x_TD.shape[-1])
        grad_x_TD = (grad_TD * weight_D).addcmul_(x_TD, along_T[:, None]).mul_(scale_T[:, None])
        return grad_x_TD, scale_T @ product_TD, None


def apply_rope(x_Thd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each head's halves, turned by angles whose cos and sin are [T, 1, d / 2]."""
    first, second = x_Thd.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Rotate(torch.autograd.Function):
    """`apply_rope` of the first `heads` heads of every row; the rest of the row stays. Turning back
    is the gradient. cos and sin as `both_halves` makes them."""

    @staticmethod
    def forward(ctx, rows, cos, sin, heads):  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        ctx.heads = heads
        return _rotated(rows, cos, sin, heads)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin, ctx.heads), None, None, None


def both_halves(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """[T, 1, d / 2] → [T, 1, d]: what a head and its halves swapped are multiplied by."""
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def _rotated(rows: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    d = cos.shape[-1]
    x_Thd = rows[:, : heads * d].to(cos.dtype, copy=True).unflatten(1, (heads, d))
    swapped = x_Thd.roll(d // 2, dims=-1)
    x_Thd.mul_(cos).addcmul_(swapped, sin)
    out = torch.empty_like(rows)
    out[:, : heads * d] = x_Thd.flatten(1)
    out[:, heads * d :] = rows[:, heads * d :]
    return out

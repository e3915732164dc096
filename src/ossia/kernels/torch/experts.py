"""Mixture of experts: tokens sorted by expert, so that each expert is one dense product.

Legend: T tokens, D model width, E experts, I expert width, k experts per token, A = T · k
assignments sorted by expert, padding included.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ossia.kernels.mxfp4 import E2M1_VALUES

ROW_GRANULE = 64
"""Large batches give each expert a multiple of so many rows: oneDNN compiles a kernel for every new
shape, which otherwise takes a third of a training step."""


@dataclass(frozen=True)
class PackedExperts:
    """MXFP4 as the checkpoint holds it, on the device."""

    blocks: Tensor
    scales: Tensor


@dataclass(frozen=True)
class Routing:
    """What one MoE layer's router did in one forward pass, recorded for the load-balance loss."""

    probabilities_TE: Tensor
    """Softmax over all experts; carries the gradient."""
    counts_E: Tensor
    """Tokens that chose each expert."""


@dataclass(frozen=True)
class Dispatch:
    """Which rows go to which expert; padding repeats token 0 and is never read back."""

    slot_Tk: Tensor
    """[T, k] → row among the assignments, which are sorted by expert."""
    token_A: Tensor
    """Row → token."""
    sizes: list[int]
    """Rows of each expert."""


def dispatch(chosen_Tk: Tensor, counts_E: Tensor) -> Dispatch:
    """The plan for a router's choices; `counts_E` are the tokens of each expert."""
    T, k = chosen_Tk.shape
    experts_A = chosen_Tk.reshape(-1)
    granule = ROW_GRANULE if len(experts_A) >= ROW_GRANULE * len(counts_E) else 1
    sizes_E = (counts_E + granule - 1) // granule * granule
    order_A = experts_A.argsort(stable=True)
    first_E = sizes_E.cumsum(0) - sizes_E - (counts_E.cumsum(0) - counts_E)
    slots = torch.arange(len(order_A), device=chosen_Tk.device) + first_E[experts_A[order_A]]
    slot_Tk = torch.empty_like(order_A)
    slot_Tk[order_A] = slots
    sizes = sizes_E.tolist()
    token_A = order_A.new_zeros(sum(sizes))
    token_A[slots] = order_A // k
    return Dispatch(slot_Tk.view(T, k), token_A, sizes)


def swiglu(hidden: Tensor, limit: float, alpha: float) -> Tensor:
    """g · sigmoid(alpha · g) · (u + 1) of hidden [.., gates | ups]; the gate is clamped from above
    only."""
    gate, up = hidden.chunk(2, dim=-1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return F.silu(gate * alpha) * ((up + 1) / alpha)


def decode_mxfp4(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """[.., rows, groups, 16] and [.., rows, groups] uint8 → [.., rows, 32 · groups], exact.

    A byte is looked up whole: its two values lie side by side, so that in bfloat16 one gather of
    32-bit words fetches both (20 times as fast as by nibbles).
    """
    words = _byte_pairs(dtype, blocks.device).index_select(0, blocks.flatten().to(torch.int32))
    values = words.view(dtype).view(*blocks.shape[:-1], 32)
    exponent = scales.to(torch.int32) - 127
    scale = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent)
    scale = scale.masked_fill_(scales == 255, math.nan)  # so E8M0 says
    return values.mul_(scale.to(dtype).unsqueeze(-1)).flatten(-2)


@functools.cache
def _byte_pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """[256]: both values of each byte, the low nibble's first, as one integer of their bits."""
    signed = torch.tensor((*E2M1_VALUES, *(-value for value in E2M1_VALUES)), dtype=dtype)
    byte = torch.arange(256)
    pairs = torch.stack([signed[byte & 15], signed[byte >> 4]], dim=-1)
    word = {2: torch.int32, 4: torch.int64, 8: torch.complex128}[dtype.itemsize]
    return pairs.view(word).squeeze(-1).to(device)


def expert_weight(
    experts: Sequence[Tensor] | PackedExperts, index: int, dtype: torch.dtype, *, interleaved: bool
) -> Tensor:
    if not isinstance(experts, PackedExperts):
        return experts[index]
    weight = decode_mxfp4(experts.blocks[index], experts.scales[index], dtype)
    return torch.cat([weight[0::2], weight[1::2]]) if interleaved else weight


# torch's own gradient of a gather is a serial scatter-add on the CPU; these are gathers too.


class Gather(torch.autograd.Function):
    """Token rows → one row per assignment, sorted by expert."""

    @staticmethod
    def forward(ctx, x_TD, plan):  # type: ignore[override]
        ctx.plan = plan
        return x_TD.index_select(0, plan.token_A)

    @staticmethod
    def backward(ctx, grad_AD):  # type: ignore[override]
        return F.embedding_bag(ctx.plan.slot_Tk, grad_AD, mode="sum"), None


class Combine(torch.autograd.Function):
    """Σ_k share[t, k] · y[slot[t, k]]: a weighted bag of rows."""

    @staticmethod
    def forward(ctx, y_AD, share_Tk, plan):  # type: ignore[override]
        ctx.save_for_backward(y_AD, share_Tk)
        ctx.plan = plan
        return F.embedding_bag(plan.slot_Tk, y_AD, per_sample_weights=share_Tk, mode="sum")

    @staticmethod
    def backward(ctx, grad_TD):  # type: ignore[override]
        y_AD, share_Tk = ctx.saved_tensors
        slot_Tk = ctx.plan.slot_Tk
        grad_AD = grad_TD.to(y_AD.dtype).index_select(0, ctx.plan.token_A)
        share_A = share_Tk.new_zeros(len(y_AD))  # padding has no share, hence no gradient
        share_A[slot_Tk] = share_Tk
        grad_share_A = torch.linalg.vecdot(grad_AD, y_AD)
        return grad_AD * share_A[:, None], grad_share_A[slot_Tk], None

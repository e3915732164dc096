"""Mixture of experts: tokens sorted by expert, so that each expert is one dense product.

`mix` is what it computes, stated plainly; `Mixture` is the same with a gradient written by hand,
three times as fast: elementwise work is done for all experts at once, in place, and in float32
(which the CPU does faster than bfloat16), and nothing is kept that costs less to compute again.

Legend: T tokens, D model width, E experts, I expert width, k experts per token, A = T · k
assignments sorted by expert, padding included.
"""

from __future__ import annotations

import functools
import math
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

    chosen_Tk: Tensor
    slot_Tk: Tensor
    """[T, k] → row among the assignments, which are sorted by expert."""
    token_A: Tensor
    """Row → token."""
    sizes_E: list[int]
    """Rows of each expert."""


def dispatch(chosen_Tk: Tensor, counts_E: Tensor) -> Dispatch:
    """The plan for a router's choices; `counts_E` are the tokens of each expert."""
    T, E = len(chosen_Tk), len(counts_E)
    granule = ROW_GRANULE if chosen_Tk.numel() >= ROW_GRANULE * E else 1
    sizes_E = (counts_E + granule - 1) // granule * granule
    first_E = sizes_E.cumsum(0) - sizes_E
    chose_TE = chosen_Tk.new_zeros(T, E, dtype=torch.int32).scatter_(1, chosen_Tk, 1)
    up_to_TE = chose_TE.cumsum(0, dtype=torch.int32)
    slot_Tk = first_E[chosen_Tk] + up_to_TE.gather(1, chosen_Tk) - 1
    sizes = sizes_E.tolist()
    token_A = chosen_Tk.new_zeros(sum(sizes))
    token_A[slot_Tk] = torch.arange(T, device=chosen_Tk.device)[:, None]
    return Dispatch(chosen_Tk, slot_Tk, token_A, sizes)


def choose(logits_TE: Tensor, k: int) -> Tensor:
    """[T, k]: the experts of the k largest logits, the lowest index among equals, as topk does not
    promise; k maxima take a third of the time of a stable sort."""
    left_TE = logits_TE.detach().clone()
    chosen: list[Tensor] = []
    for _ in range(k):
        chosen.append(left_TE.max(-1, keepdim=True).indices)
        left_TE.scatter_(1, chosen[-1], -math.inf)
    return torch.cat(chosen, dim=1)


def swiglu(hidden: Tensor, limit: float, alpha: float) -> Tensor:
    """g · sigmoid(alpha · g) · (u + 1) of hidden [.., gates | ups]; the gate is clamped from above
    only."""
    gate, up = hidden.chunk(2, dim=-1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return F.silu(gate * alpha) * ((up + 1) / alpha)


def deinterleave(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """[E, 2I, ..], rows gate, up, gate, .. → gates, then ups, as `dtype`."""
    pairs = rows.unflatten(1, (-1, 2)).transpose(1, 2)
    return pairs.to(dtype, memory_format=torch.contiguous_format).flatten(1, 2)


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
    experts: Tensor | PackedExperts, index: int, dtype: torch.dtype, *, interleaved: bool
) -> Tensor:
    if not isinstance(experts, PackedExperts):
        return experts[index]
    weight = decode_mxfp4(experts.blocks[index], experts.scales[index], dtype)
    return torch.cat([weight[0::2], weight[1::2]]) if interleaved else weight


def mix(
    x_TD: Tensor,
    share_Tk: Tensor,
    gate_up: Tensor | PackedExperts,
    gate_up_bias: Tensor,
    down: Tensor | PackedExperts,
    down_bias: Tensor,
    plan: Dispatch,
    limit: float,
    alpha: float,
) -> Tensor:
    """Σ_k share · expert_k(x): [T, D]. gate_up [E, 2I, D] (gates, then ups), down [E, D, I]; packed
    ones are decoded as they are met."""
    rows_AD = x_TD.index_select(0, plan.token_A)
    outputs: list[Tensor] = []
    for expert, rows in enumerate(rows_AD.split(plan.sizes_E)):
        if not len(rows):
            continue
        up = expert_weight(gate_up, expert, x_TD.dtype, interleaved=True)
        hidden = F.linear(rows, up, gate_up_bias[expert])
        weight = expert_weight(down, expert, x_TD.dtype, interleaved=False)
        outputs.append(F.linear(swiglu(hidden, limit, alpha), weight, down_bias[expert]))
    y_AD = torch.cat(outputs)
    shares = share_Tk.to(x_TD.dtype)
    return F.embedding_bag(plan.slot_Tk, y_AD, per_sample_weights=shares, mode="sum")


class Mixture(torch.autograd.Function):
    """`mix` of unpacked experts. Shares are applied before the products with `down`, where rows are
    narrow, and the biases of `down` by one product with the shares."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, x_TD, share_Tk, gate_up, gate_up_bias, down, down_bias, plan, limit, alpha
    ):
        sizes = plan.sizes_E
        rows_AD = x_TD.index_select(0, plan.token_A)
        hidden = rows_AD.new_empty(len(rows_AD), gate_up.shape[1])
        for bias, rows, weight, out in zip(
            gate_up_bias, rows_AD.split(sizes), gate_up, hidden.split(sizes), strict=True
        ):
            torch.addmm(bias, rows, weight.T, out=out)

        share_A = share_Tk.new_zeros(len(rows_AD))  # padding has no share, hence no gradient
        share_A[plan.slot_Tk] = share_Tk
        gate, up = _gate_and_up(hidden, limit, alpha, share_A.dtype)
        act = F.silu(gate, inplace=True).mul_(up).mul_(share_A[:, None] / alpha).to(x_TD.dtype)
        y_AD = torch.empty_like(rows_AD)
        for rows, weight, out in zip(act.split(sizes), down, y_AD.split(sizes), strict=True):
            torch.mm(rows, weight.T, out=out)

        share_TE = act.new_zeros(len(x_TD), len(down))
        share_TE.scatter_(1, plan.chosen_Tk, share_Tk.to(act.dtype))
        ctx.save_for_backward(x_TD, hidden, act, share_A, share_TE, gate_up, down, down_bias)
        ctx.plan, ctx.limit, ctx.alpha = plan, limit, alpha
        return F.embedding_bag(plan.slot_Tk, y_AD, mode="sum").addmm_(share_TE, down_bias)

    @staticmethod
    def backward(ctx, grad_TD):  # type: ignore[override]
        x_TD, hidden, act, share_A, share_TE, gate_up, down, down_bias = ctx.saved_tensors
        plan, sizes = ctx.plan, ctx.plan.sizes_E
        grad_AD = grad_TD.index_select(0, plan.token_A)
        grad_act, grad_down = torch.empty_like(act), torch.empty_like(down)
        for grad, rows, weight, into_rows, into_weight in zip(
            *(grad_AD.split(sizes), act.split(sizes), down, grad_act.split(sizes), grad_down),
            strict=True,
        ):
            torch.mm(grad, weight, out=into_rows)
            torch.mm(grad.T, rows, out=into_weight)

        grad_hidden, grad_share_A = _swiglu_backward(
            grad_act, hidden, share_A, ctx.limit, ctx.alpha
        )
        rows_AD = x_TD.index_select(0, plan.token_A)  # again: cheaper than to have kept it
        grad_rows, grad_gate_up = grad_AD, torch.empty_like(gate_up)  # grad_AD is read no more
        grad_bias = gate_up.new_empty(gate_up.shape[:2])
        for grad, rows, weight, into_rows, into_weight, into_bias in zip(
            *(grad_hidden.split(sizes), rows_AD.split(sizes), gate_up),
            *(grad_rows.split(sizes), grad_gate_up, grad_bias),
            strict=True,
        ):
            torch.mm(grad, weight, out=into_rows)
            torch.mm(grad.T, rows, out=into_weight)
            torch.sum(grad, 0, out=into_bias)

        grad_share_Tk = grad_share_A[plan.slot_Tk]
        grad_share_Tk += (grad_TD @ down_bias.T).gather(1, plan.chosen_Tk)
        grad_x = F.embedding_bag(plan.slot_Tk, grad_rows, mode="sum")
        gradients = (grad_x, grad_share_Tk, grad_gate_up, grad_bias, grad_down)
        return *gradients, share_TE.T @ grad_TD, None, None, None


def _gate_and_up(
    hidden: Tensor, limit: float, alpha: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """alpha · gate and up + 1, both clamped, copied to `dtype`."""
    gate, up = (half.to(dtype, copy=True) for half in hidden.chunk(2, dim=-1))
    return gate.mul_(alpha).clamp_(max=limit * alpha), up.add_(1).clamp_(1 - limit, 1 + limit)


def _swiglu_backward(
    grad_act: Tensor, hidden: Tensor, share_A: Tensor, limit: float, alpha: float
) -> tuple[Tensor, Tensor]:
    """From the gradient of share · swiglu(hidden): those of hidden and of share."""
    gate, up = _gate_and_up(hidden, limit, alpha, share_A.dtype)
    grad_gate = grad_act.to(share_A.dtype, copy=True)
    grad_up = F.silu(gate).mul_(grad_gate)
    grad_share_A = torch.linalg.vecdot(grad_up, up) / alpha
    grad_up.mul_(share_A[:, None] / alpha)
    grad_gate.mul_(up).mul_(share_A[:, None])
    torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
    for grad, value, low, high in (
        (grad_gate, gate, -math.inf, limit * alpha),
        (grad_up, up, 1 - limit, 1 + limit),
    ):  # nothing passes where a value was clamped
        torch.ops.aten.hardtanh_backward.grad_input(grad, value, low, high, grad_input=grad)
    grad_hidden = torch.empty_like(hidden)
    into_gate, into_up = grad_hidden.chunk(2, dim=-1)
    into_gate.copy_(grad_gate)
    into_up.copy_(grad_up)
    return grad_hidden, grad_share_A

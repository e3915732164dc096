"""The formulas of gpt-oss once more, for training: written to be read, in the precision of their
tensors (float64 in tests), over elementary operations whose derivatives torch knows. They share no
code with any kernels.

Legend: T tokens, Q queries, N keys, D model width, H query heads, K kv heads, d head width, E
experts, V vocabulary, R rows of logits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ossia.kernels.mxfp4 import Mxfp4Tensor
from ossia.model.config import ModelConfig
from ossia.model.names import parts
from ossia.model.selftest import RandomModel
from ossia.train.parameters import Parameters


def trainable(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> Parameters:
    """Random leaves. Sinks and biases are large, and gates and ups pass the limit on both sides."""
    model = RandomModel(config, seed)
    return Parameters(
        config,
        {
            f"{p.value}.{name}" if layer is None else f"{p.value}.{layer}.{name}": torch.tensor(
                value.astype(np.float64), dtype=dtype, requires_grad=True
            )
            for p, layer in parts(config)
            for name, value in model.dense_part(p, layer).items()
            if not isinstance(value, Mxfp4Tensor)
        },
    )


def formulas(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    ids: Sequence[int],
    *,
    positions: np.ndarray | None = None,
    rows: Sequence[int] | None = None,
    concentration: float | None = None,
    routers: list[Tensor] | None = None,
) -> Tensor:
    """Logits [R, V] of one document at `rows` (all unless named). `concentration` takes the place
    of YaRN's; the router's logits [T, E] of every layer are added to `routers`."""
    T = len(ids)
    positions = np.arange(T) if positions is None else positions
    turned = rotation(config, positions, concentration)
    every, last = torch.arange(T), config.num_hidden_layers - 1
    chosen = every if rows is None else torch.tensor(rows)
    x = tensors["embedding.weight"][torch.tensor(ids)]
    for n, sliding in enumerate(config.sliding_layers):
        attention, moe = part(tensors, f"attention.{n}."), part(tensors, f"moe.{n}.")
        queries = chosen if n == last else every  # nobody reads the others
        window = config.sliding_window if sliding else T
        attended = attend(config, attention, norm(config, x, attention), turned, window, queries)
        x = x[queries] + attended
        mixed, logits = mixture(config, moe, norm(config, x, moe))
        x = x + mixed
        if routers is not None:
            routers.append(logits)
    head = part(tensors, "head.")
    return norm(config, x, head) @ head["weight"].T


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def norm(config: ModelConfig, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    mean_square = (x * x).mean(-1, keepdim=True)
    return x / (mean_square + config.rms_norm_eps).sqrt() * weights["norm"]


def rotation(
    config: ModelConfig, positions: np.ndarray, concentration: float | None
) -> tuple[Tensor, Tensor]:
    """cos and sin, [T, 1, d / 2]; YaRN as arXiv 2309.00071 has it, without rounded bounds."""
    rope, d = config.rope, config.head_dim

    def dimension(turns: float) -> float:
        wavelength = rope.original_max_position_embeddings / (2 * math.pi * turns)
        return d / 2 * math.log(wavelength) / math.log(rope.theta)

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    assert 0 < low < high < d / 2
    ramp = np.clip((np.arange(d // 2) - low) / (high - low), 0, 1)
    frequency = rope.theta ** -(2 * np.arange(d // 2) / d)
    inverse = (frequency / rope.factor * ramp + frequency * (1 - ramp)).astype(np.float32)
    if concentration is None:
        concentration = 0.1 * math.log(rope.factor) + 1
    # The angle is a product in float32, as published (see `kernels.interface.Rope`).
    angles = torch.from_numpy(np.outer(positions.astype(np.float32), inverse)).double()[:, None]
    return angles.cos() * concentration, angles.sin() * concentration


def attend(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    normed_TD: Tensor,
    turned: tuple[Tensor, Tensor],
    window: int,
    queries: Tensor,
) -> Tensor:
    """What attention adds at the rows `queries`: [Q, D]."""
    d, T = config.head_dim, len(normed_TD)
    group = config.num_attention_heads // config.num_key_value_heads
    cos, sin = turned

    def heads(name: str) -> Tensor:
        return (normed_TD @ weights[name].T + weights[f"{name}_bias"]).reshape(T, -1, d)

    def rotated(x: Tensor) -> Tensor:
        a, b = x[..., : d // 2], x[..., d // 2 :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    q_QHd = rotated(heads("q"))[queries]
    k_NHd = rotated(heads("k")).repeat_interleave(group, dim=1)
    v_NHd = heads("v").repeat_interleave(group, dim=1)
    distance = queries[:, None] - torch.arange(T)
    hidden = (distance < 0) | (distance >= window)
    scores = torch.einsum("qhd,nhd->hqn", q_QHd, k_NHd) / math.sqrt(d)
    scores = scores.masked_fill(hidden, -math.inf)
    sinks = weights["sinks"][:, None, None].expand(-1, len(queries), 1)
    shares = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    attended = torch.einsum("hqn,nhd->qhd", shares, v_NHd).flatten(1)
    return attended @ weights["o"].T + weights["o_bias"]


def mixture(
    config: ModelConfig, weights: Mapping[str, Tensor], normed_TD: Tensor
) -> tuple[Tensor, Tensor]:
    """What the experts add, [T, D], and the router's logits [T, E]. All experts run; those that
    were not chosen have a share of zero."""
    logits = normed_TD @ weights["router"].T + weights["router_bias"]
    top = logits.topk(config.num_experts_per_tok)
    shares = torch.zeros_like(logits).scatter(1, top.indices, top.values.softmax(-1))
    hidden = torch.einsum("td,ehd->teh", normed_TD, weights["gate_up"]) + weights["gate_up_bias"]
    limit = config.swiglu_limit
    gate, up = hidden[..., 0::2].clamp(max=limit), hidden[..., 1::2].clamp(-limit, limit)
    act = gate * torch.sigmoid(config.swiglu_alpha * gate) * (up + 1)
    out = torch.einsum("tei,edi->ted", act, weights["down"]) + weights["down_bias"]
    return (shares[..., None] * out).sum(1), logits

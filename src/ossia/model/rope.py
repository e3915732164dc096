"""YaRN: the published context extension of the rotary embedding, from its constants to inverse
frequencies.

Source: Peng et al., "YaRN" (arXiv 2309.00071), with the untruncated ramp bounds of gpt-oss. Scaling
is always on, also for short prompts.
"""

from __future__ import annotations

import math

from ossia.kernels.interface import Rope
from ossia.model.config import RopeConfig


def yarn(rope: RopeConfig, head_dim: int) -> Rope:
    """inv_freq_j blends θ^(−2j/d) (extrapolation) and that over `factor` (interpolation) along a
    linear ramp.

    The ramp runs between the dimensions that turn `beta_fast` and `beta_slow` times within the
    original context.
    """
    half = head_dim // 2
    if rope.factor == 1.0:
        return Rope(
            inv_freq=tuple(rope.theta ** (-2 * j / head_dim) for j in range(half)),
            concentration=1.0,
        )

    def dimension_turning(turns: float) -> float:
        context = rope.original_max_position_embeddings
        return half * math.log(context / (turns * 2 * math.pi)) / math.log(rope.theta)

    low, high = dimension_turning(rope.beta_fast), dimension_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    inv_freq: list[float] = []
    for j in range(half):
        extrapolated = rope.theta ** (-2 * j / head_dim)
        ramp = min(max((j - low) / max(high - low, 1e-3), 0.0), 1.0)
        inv_freq.append(extrapolated / rope.factor * ramp + extrapolated * (1 - ramp))
    return Rope(inv_freq=tuple(inv_freq), concentration=0.1 * math.log(rope.factor) + 1.0)

"""The hyper-parameters of a gpt-oss model, read from `config.json` in the Hugging Face or the
`original/` form.
"""

from __future__ import annotations

from dataclasses import dataclass

from ossia.kernels.interface import Dims


@dataclass(frozen=True)
class RopeConfig:
    """YaRN constants; the defaults are those of both published models."""

    theta: float = 150000.0
    factor: float = 32.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_max_position_embeddings: int = 4096
    truncate: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """One model. Field names are those of the Hugging Face config."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_local_experts: int
    num_experts_per_tok: int
    vocab_size: int
    sliding_window: int
    sliding_layers: tuple[bool, ...]
    """One per layer; in the published models the even layers slide."""
    max_position_embeddings: int
    rope: RopeConfig = RopeConfig()
    rms_norm_eps: float = 1e-5
    swiglu_limit: float = 7.0
    swiglu_alpha: float = 1.702
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def dims(self) -> Dims:
        return Dims(
            hidden_size=self.hidden_size,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            num_experts=self.num_local_experts,
            experts_per_token=self.num_experts_per_tok,
            intermediate_size=self.intermediate_size,
            vocab_size=self.vocab_size,
            rms_norm_eps=self.rms_norm_eps,
            swiglu_limit=self.swiglu_limit,
            swiglu_alpha=self.swiglu_alpha,
        )

    def windows(self) -> tuple[int | None, ...]:
        """Per layer: the sliding window, or None where attention is full."""
        return tuple(self.sliding_window if sliding else None for sliding in self.sliding_layers)

"""Everything that a training run depends on, as one frozen value: two runs of one recipe that take
the same number of steps give the same weights.

How many steps fit is found out on the machine, unless the recipe names them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ossia.model.config import ModelConfig
from ossia.train.curriculum.arithmetic import Skill
from ossia.train.curriculum.lessons import Mix


@dataclass(frozen=True)
class Architecture:
    """Sizes; what is not here is as in the published models."""

    hidden_size: int = 192
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 1
    num_local_experts: int = 16
    intermediate_size: int = 64
    vocab_size: int = 2048
    max_position_embeddings: int = 1024

    def config(
        self, *, eos_token_ids: tuple[int, ...] = (), pad_token_id: int | None = None
    ) -> ModelConfig:
        return ModelConfig(
            num_hidden_layers=self.num_hidden_layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=64,
            num_local_experts=self.num_local_experts,
            num_experts_per_tok=4,
            vocab_size=self.vocab_size,
            sliding_window=128,
            sliding_layers=tuple(n % 2 == 0 for n in range(self.num_hidden_layers)),
            max_position_embeddings=self.max_position_embeddings,
            eos_token_ids=eos_token_ids,
            pad_token_id=pad_token_id,
        )


@dataclass(frozen=True)
class Schedule:
    """Warm-up, a constant rate, and a linear decay to zero."""

    warmup_steps: int = 30
    decay_share: float = 0.4
    """Of the run: where the rate falls, and lessons come as the shipped model will meet them."""
    quantize_from: float = 0.4
    """Part of the decay after which weights are rounded as the export will round them."""


@dataclass(frozen=True)
class Optimization:
    matrix_lr: float = 0.02
    """Muon: attention projections and experts."""
    other_lr: float = 3e-3
    """AdamW: embeddings, router, norms, biases, sinks."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    balance_weight: float = 0.01
    """Of the router's load-balance loss."""


@dataclass(frozen=True)
class NanoRecipe:
    """The recipe of nano-v0."""

    minutes: float = 15.0
    """Wall-clock time for everything, on this machine."""
    steps: int | None = None
    """Takes the place of `minutes`, and makes the run repeatable on any machine."""
    seed: int = 0
    batch_tokens: int = 4096
    shards: int = 2
    """Parts of a batch that run side by side, each in a thread of its own. Part of the recipe, as
    the order of sums depends on it; more threads inside one product would gain less."""
    dtype: str = "auto"
    """Of matrix products: float32, bfloat16, or auto for the one that this machine is faster at."""
    architecture: Architecture = field(default_factory=Architecture)
    schedule: Schedule = field(default_factory=Schedule)
    optimization: Optimization = field(default_factory=Optimization)
    tokenizer_lessons: int = 20_000
    early: Mix = field(default_factory=Mix)
    late: Mix = field(
        default_factory=lambda: Mix(full_system=0.55, short_system=0.05, earlier_turns=0.15)
    )
    """From the decay on: mostly under the system message of `ossia chat`."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NanoRecipe:
        """What `to_json` made."""

        def mix(fields: Mapping[str, Any]) -> Mix:
            skills = {Skill(name): share for name, share in fields["skills"].items()}
            return Mix(**{**fields, "skills": skills})

        optimization = dict(values["optimization"])
        optimization["adam_betas"] = tuple(optimization["adam_betas"])
        return cls(
            **{
                **values,
                "architecture": Architecture(**values["architecture"]),
                "schedule": Schedule(**values["schedule"]),
                "optimization": Optimization(**optimization),
                "early": mix(values["early"]),
                "late": mix(values["late"]),
            }
        )

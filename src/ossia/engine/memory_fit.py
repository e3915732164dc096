"""An engine that fits into the memory there is: as asked for, or with a shorter context; or a
refusal with the numbers and what would help.

Refused before anything is loaded: a process beyond its memory is killed, or the machine swaps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ossia.engine.config import EngineConfig, plan
from ossia.engine.memory_plan import KernelMemory, MemoryPlan, memory_plan
from ossia.errors import UsageError
from ossia.model.checkpoint import Checkpoint
from ossia.model.cost import expert_bytes as mxfp4_expert_bytes

LEAST_CONTEXT = 4096
"""Where no context was asked for, a shorter one is not worth loading a model."""
_LEAST_HOT_LAYERS = 4
"""Paging needs room for what this many layers route a token to, or it would only wait."""
_PAGING_SHARE = 0.95
"""Of the usable memory: what is being read needs some too."""
_PAGED_CHECKPOINTS = 8
"""Where experts are read from disk, they need the memory more than prefixes do."""


@dataclass(frozen=True)
class Fit:
    """What became of the memory that was asked for."""

    config: EngineConfig
    plan: MemoryPlan
    shortened: bool = False
    """Whether the context is shorter than it would be with more memory."""
    refusal: str = ""
    """Why the model must not be loaded, and the mends; empty where it fits."""


@dataclass(frozen=True)
class MemoryRequest:
    """A model on some kernels in a process. `usable` None: unknown, everything fits."""

    checkpoint: Checkpoint
    kernels: KernelMemory
    usable: int | None
    process_bytes: int
    use_mmap: bool = True

    def planned(self, config: EngineConfig) -> MemoryPlan:
        """Raises UsageError as `engine.config.plan` does."""
        itemsize = self.kernels.cache_itemsize
        return memory_plan(
            self.checkpoint,
            self.kernels,
            plan(config, self.checkpoint.config, cache_itemsize=itemsize),
            process_bytes=self.process_bytes,
            use_mmap=self.use_mmap,
        )

    def fit(self, config: EngineConfig) -> Fit:
        """`config` where it fits; else with a cache as large as can be, which holds at least the
        context asked for, or LEAST_CONTEXT where none was. Raises UsageError for a hot set that is
        smaller than what is in use at a time, which the plan would not tell.
        """
        self._require_hot_layers()
        whole = self.planned(config)
        if self.usable is None or whole.total <= self.usable:
            return Fit(config, whole)
        smaller = self._smaller(config, whole, self.usable)
        if smaller is not None:
            fitted = self.planned(smaller)
            return Fit(smaller, fitted, shortened=fitted.context < whole.context)
        return Fit(config, whole, refusal=self._refusal(config, whole, self.usable))

    def paged(self, config: EngineConfig) -> tuple[Fit, int] | None:
        """A fit with part of the experts on disk, and the most that those in memory may take; None
        where these kernels cannot do that, or the rest is too large already.
        """
        if self.kernels.name != "native" or not self.use_mmap or self.usable is None:
            return None
        least = self._least_context(config)
        config = replace(
            config,
            max_model_len=least,
            cache_tokens=config.cache_tokens or least,
            max_checkpoints=min(config.max_checkpoints, _PAGED_CHECKPOINTS),
        )
        resident = replace(self.kernels, expert_bytes=0)
        rest = replace(self, kernels=resident).planned(config).total
        expert_bytes = int(self.usable * _PAGING_SHARE) - rest
        if expert_bytes < self._least_expert_bytes:
            return None
        paged = replace(self, kernels=replace(self.kernels, expert_bytes=expert_bytes))
        return Fit(config, paged.planned(config), shortened=True), expert_bytes

    @property
    def _least_expert_bytes(self) -> int:
        model = self.checkpoint.config
        layers = min(_LEAST_HOT_LAYERS, model.num_hidden_layers)
        return layers * model.num_experts_per_tok * mxfp4_expert_bytes(model)

    def _require_hot_layers(self) -> None:
        given, least = self.kernels.expert_bytes, self._least_expert_bytes
        if given is not None and given < least:
            raise UsageError(
                f"expert_memory (--expert-memory) must be at least {math.ceil(least / 1e5) / 10} "
                f"MB for this model, room for the experts of one token in {_LEAST_HOT_LAYERS} "
                f"layers; got {given / 1e6:g} MB."
            )

    def _least_context(self, config: EngineConfig) -> int:
        longest = self.checkpoint.config.max_position_embeddings
        return config.max_model_len or min(LEAST_CONTEXT, longest)

    def _smaller(self, config: EngineConfig, whole: MemoryPlan, usable: int) -> EngineConfig | None:
        """With the memory that is left for keys and values; None where that is too little."""
        room = usable - (whole.total - whole.cache)
        if config.cache_tokens is not None or room <= 0:
            return None
        smaller = replace(config, cache_bytes=min(room, config.cache_bytes))
        try:
            self.planned(replace(smaller, max_model_len=self._least_context(config)))
        except UsageError:
            return None
        return smaller if self.planned(smaller).total <= usable else None

    def _refusal(self, config: EngineConfig, whole: MemoryPlan, usable: int) -> str:
        weights = whole.total - whole.cache
        mends = list(self._mends(config, usable))
        mends.append("take a machine with more memory, or a smaller model")
        return (
            f"This model needs {_gb(whole.total)} of memory, {_gb(whole.cache)} of them for keys "
            f"and values and {_gb(weights)} for all the rest, but this process may use "
            f"{_gb(usable)}. What helps: {'; or '.join(mends)}. --memory shows the whole plan."
        )

    def _mends(self, config: EngineConfig, usable: int) -> Iterator[str]:
        shortest = replace(config, max_num_seqs=1, cache_tokens=None)
        context = config.max_model_len or 0
        while context > LEAST_CONTEXT:
            context = max(context // 2, LEAST_CONTEXT)
            if self.planned(replace(shortest, max_model_len=context)).total <= usable:
                yield f"a shorter context (--context {context})"
                break
        if config.max_num_seqs > 1 and self.planned(shortest).total <= usable:
            yield "fewer sequences at a time (max_num_seqs)"
        if self.kernels.name == "native" and not self.kernels.repacks:
            int8 = replace(self, kernels=replace(self.kernels, repacks=True, cache_itemsize=2))
            least = replace(shortest, max_model_len=self._least_context(shortest))
            if int8.planned(least).total <= usable:
                yield "int8 for the dense tensors (no --exact, no --dense-dtype bf16)"
        if self.paged(config) is not None:
            yield "reading experts from disk as they are needed, slowly (--expert-memory auto)"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"

"""A model's name → everything about it that must be right before its weights are loaded: a checked
checkpoint, kernels, its vocabulary, and a plan of the memory it will take.

What can be refused is refused here, in a second and without touching the weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ossia.engine.config import EngineConfig
from ossia.engine.machine_memory import MachineMemory, ProcessMemory
from ossia.engine.memory_fit import Fit, MemoryRequest
from ossia.engine.memory_plan import KernelMemory, MemoryPlan
from ossia.errors import TokenizerError, UnsupportedError, UsageError
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels.choose import choose_kernels, refuse_large
from ossia.kernels.interface import Kernels
from ossia.model.checkpoint import Checkpoint, open_checkpoint
from ossia.model.config import ModelConfig
from ossia.model.hub import resolve_model
from ossia.model.transformer import Architecture, Weights, prepare_weights


@dataclass(frozen=True)
class KernelSettings:
    """The kernel set asked for and its settings; `choose_kernels` explains them."""

    kernels: str = "auto"
    threads: int | None = None
    exact: bool = False
    dense_dtype: str | None = None
    instruction_set: str | None = None

    def choose(
        self, *, model_bytes: int = 0, expert_bytes: int | None = None
    ) -> tuple[Kernels, str]:
        """The kernels, and why those. Raises UsageError, MissingDependencyError."""
        return choose_kernels(
            self.kernels,
            model_bytes=model_bytes,
            threads=self.threads,
            exact=self.exact,
            dense_dtype=self.dense_dtype,
            instruction_set=self.instruction_set,
            expert_bytes=expert_bytes,
        )

    def exact_twin(self, name: str) -> Kernels:
        """The set called `name` with these settings, in full precision."""
        return replace(self, kernels=name, exact=name == "native", dense_dtype=None).choose()[0]


@dataclass(frozen=True)
class OpenedModel:
    """A model whose weights have not been read."""

    name: str
    checkpoint: Checkpoint
    kernels: Kernels
    reason: str
    """Why those kernels."""
    tokenizer: Tokenizer | None
    engine: EngineConfig
    """As asked for, or with a cache that fits into memory."""
    memory: MemoryPlan
    machine: MachineMemory
    shortened: bool = False
    """Whether memory allows only a shorter context than was meant."""
    refusal: str = ""
    """Why it does not fit into memory, and the mends."""

    @property
    def architecture(self) -> Architecture:
        return Architecture.of(self.checkpoint.config)

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> Weights:
        """Load the weights; `progress(done, total)`. Raises UnsupportedError where they do not fit
        into memory.
        """
        if self.refusal:
            raise UnsupportedError(self.refusal)
        return prepare_weights(
            self.architecture, self.kernels, self.checkpoint.part, progress=progress
        )


def open_model(
    model: str | Path,
    settings: KernelSettings | None = None,
    *,
    engine: EngineConfig | None = None,
    tokenizer: str | Path | None = None,
    needs_tokenizer: bool = True,
    use_mmap: bool = True,
    allow_slow: bool = False,
    expert_memory: int | str | None = None,
) -> OpenedModel:
    """Check a model and plan its memory; `ossia.load` explains the arguments.

    Without `needs_tokenizer` a model that has no vocabulary is opened too. A model that does not
    fit into memory is opened, for its plan; `OpenedModel.prepare` refuses it.
    """
    settings, engine = settings or KernelSettings(), engine or EngineConfig()
    checkpoint = open_checkpoint(resolve_model(str(model)), use_mmap=use_mmap)
    expert_bytes = None if expert_memory in (None, "auto") else parse_size(expert_memory)
    kernels, reason = settings.choose(model_bytes=checkpoint.total_bytes, expert_bytes=expert_bytes)
    if kernels.name == "reference":
        refuse_large(checkpoint.total_bytes, allow_slow=allow_slow)
    vocabulary = None
    try:
        vocabulary = load_tokenizer(checkpoint.folder, tokenizer)
        _require_fit(vocabulary, checkpoint.config)
    except TokenizerError:
        if needs_tokenizer or tokenizer is not None:
            raise
    machine = MachineMemory.describe()
    request = MemoryRequest(
        checkpoint,
        KernelMemory.of(kernels, expert_bytes=expert_bytes),
        # Left to the reference kernels, a model is read from disk again and again, as was allowed.
        usable=None if kernels.name == "reference" else machine.usable,
        process_bytes=ProcessMemory.now().resident,
        use_mmap=use_mmap,
    )
    fitted = request.fit(engine)
    if fitted.refusal and expert_memory == "auto":
        paged = request.paged(engine)
        if paged is not None:
            fitted, expert_bytes = paged
            kernels, _ = settings.choose(
                model_bytes=checkpoint.total_bytes, expert_bytes=expert_bytes
            )
    return _opened(str(model), checkpoint, kernels, reason, vocabulary, machine, fitted)


def parse_size(size: int | str) -> int:
    """Bytes: a number of them, or a text such as 6GB, 500MB or 6GiB. Raises UsageError."""
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    units = {"": 1, "mb": 10**6, "gb": 10**9, "mib": 2**20, "gib": 2**30}
    text = size.strip().lower() if isinstance(size, str) else ""
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*([a-z]*)", text)
    if found is None or found[2] not in units:
        raise UsageError(
            "expert_memory (--expert-memory) takes a size such as 6GB or 500MB, or auto; got "
            f"{size!r}."
        )
    return int(float(found[1]) * units[found[2]])


def _opened(
    name: str,
    checkpoint: Checkpoint,
    kernels: Kernels,
    reason: str,
    tokenizer: Tokenizer | None,
    machine: MachineMemory,
    fitted: Fit,
) -> OpenedModel:
    return OpenedModel(
        name=name,
        checkpoint=checkpoint,
        kernels=kernels,
        reason=reason,
        tokenizer=tokenizer,
        engine=fitted.config,
        memory=fitted.plan,
        machine=machine,
        shortened=fitted.shortened,
        refusal=fitted.refusal,
    )


def load_tokenizer(folder: Path, given: str | Path | None) -> Tokenizer:
    """The vocabulary `given`, or the one beside the weights; `original/` has none of its own and
    uses its parent's. Raises TokenizerError.
    """
    if given is not None:
        return Tokenizer.load(given)
    candidates = [
        place / name
        for place in (folder, folder.parent)
        for name in ("tokenizer.json", "o200k_base.tiktoken")
    ]
    for path in candidates if folder.name == "original" else candidates[:2]:
        if path.exists():
            return Tokenizer.load(path)
    raise TokenizerError(
        f"{folder}: there is no tokenizer.json beside the weights; put the model's own there, or "
        "name a vocabulary with --vocab (in Python: tokenizer=…)."
    )


def _require_fit(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """A vocabulary of another model shows first at the control tokens, which stand at its end."""
    control = tokenizer.control
    largest = max(*control.stop_ids, control.start, control.message, control.channel)
    if largest >= config.vocab_size:
        raise TokenizerError(
            f"{tokenizer.name} has a control token with the id {largest}, but the model "
            f"embeds only the ids below {config.vocab_size}; use the vocabulary "
            "of this model."
        )

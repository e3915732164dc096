"""How the engine is asked to run (`EngineConfig`) and what that comes to for one model
(`EnginePlan`): context, budget, and the number of cache blocks per group.

Nothing is patched afterwards; another wish is another value. The surprising thing: the context may
come out shorter than the model's, because one whole context must always fit into the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from ossia.errors import UsageError
from ossia.model.config import ModelConfig


@dataclass(frozen=True)
class EngineConfig:
    """What the user may choose. Every default of the engine stands here and nowhere else."""

    max_num_seqs: int = 16
    """Sequences that run together; further requests wait their turn."""
    max_num_batched_tokens: int = 512
    """Tokens of one step, over all sequences: long prompts are cut into chunks of at most this."""
    max_queue: int = 256
    """Requests that may wait beyond those running; one more is refused."""
    max_model_len: int | None = None
    """Context: prompt and answer together. None = the model's, or what the cache can hold."""
    block_size: int = 32
    """Tokens of a cache block."""
    cache_bytes: int = 4 * 2**30
    """Most memory for keys and values. 4 GiB hold the whole 131,072 tokens of gpt-oss-20b in
    bfloat16; memory that no request has reached yet is not touched."""
    cache_tokens: int | None = None
    """Tokens that the full-attention group holds over all sequences; counts instead of
    `cache_bytes` when given."""
    debug: bool = False
    """Check the integrity of all block tables whenever the engine becomes idle."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size", "cache_bytes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1; got {getattr(self, name)}.")
        for name in ("max_model_len", "cache_tokens"):
            value = getattr(self, name)
            if value is not None and value < 2:  # one token of prompt, one of answer
                raise UsageError(f"{name} must be at least 2; got {value}.")
        if self.max_queue < 0:
            raise UsageError(f"max_queue must be 0 or more; got {self.max_queue}.")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise UsageError(
                "max_num_batched_tokens must be at least max_num_seqs, so that every running "
                f"sequence gets its token in every step; got {self.max_num_batched_tokens} and "
                f"{self.max_num_seqs}."
            )


@dataclass(frozen=True)
class EnginePlan:
    """The numbers that the scheduler and the block manager work with; made by `plan`."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_queue: int
    block_size: int
    vocab_size: int
    window: int
    """Positions that a sliding layer sees, the query's own included."""
    context: int
    """Most tokens of a sequence, prompt and answer together."""
    model_context: int
    """What the model itself allows; more than `context` where the cache or the user limits."""
    num_full_blocks: int
    num_sliding_blocks: int
    cache_bytes: int
    """Memory of both groups over all layers."""
    debug: bool = False


def plan(config: EngineConfig, model: ModelConfig, *, cache_itemsize: int) -> EnginePlan:
    """Derive the engine's numbers for one model; `cache_itemsize` is the size in bytes of a stored
    key or value element (2 for bfloat16).

    The sliding group is sized so that it cannot run out whatever the steps do; the rest of the
    memory goes to the full group, up to a whole context for each of `max_num_seqs`. Raises
    UsageError when the memory cannot hold one context of the length asked for.
    """
    context = config.max_model_len or model.max_position_embeddings
    if context > model.max_position_embeddings:
        raise UsageError(
            f"max_model_len is {context} tokens, but the model was made for at most "
            f"{model.max_position_embeddings}."
        )
    block_size = config.block_size
    # A model without sliding layers gets the smallest sliding group; nothing is stored in it.
    window = min(model.sliding_window, context) if any(model.sliding_layers) else 1
    num_sliding_blocks = _sliding_blocks(config, window)
    layer_block_bytes = (
        2 * model.num_key_value_heads * model.head_dim * block_size * cache_itemsize
    )  # keys and values
    num_sliding_layers = sum(model.sliding_layers)
    sliding_bytes = num_sliding_blocks * num_sliding_layers * layer_block_bytes
    full_block_bytes = (len(model.sliding_layers) - num_sliding_layers) * layer_block_bytes

    blocks_per_context = -(-context // block_size)
    if config.cache_tokens is not None:
        num_full_blocks = -(-config.cache_tokens // block_size)
    else:
        num_full_blocks = config.max_num_seqs * blocks_per_context
        if full_block_bytes:
            affordable = (config.cache_bytes - sliding_bytes) // full_block_bytes
            num_full_blocks = min(num_full_blocks, affordable)
    needed = config.max_model_len or 2  # a token of prompt and one of answer
    if num_full_blocks * block_size < needed:
        least = -(-needed // block_size)
        raise UsageError(
            f"A context of {needed} tokens with max_num_seqs={config.max_num_seqs} needs a cache "
            f"of {least * block_size} tokens or {sliding_bytes + least * full_block_bytes} bytes; "
            f"got cache_bytes={config.cache_bytes}, cache_tokens={config.cache_tokens}. Give the "
            "cache more, or lower max_model_len or max_num_seqs."
        )
    return EnginePlan(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_queue=config.max_queue,
        block_size=block_size,
        vocab_size=model.vocab_size,
        window=window,
        context=min(context, num_full_blocks * block_size),
        model_context=model.max_position_embeddings,
        num_full_blocks=num_full_blocks,
        num_sliding_blocks=num_sliding_blocks,
        cache_bytes=sliding_bytes + num_full_blocks * full_block_bytes,
        debug=config.debug,
    )


def _sliding_blocks(config: EngineConfig, window: int) -> int:
    """Enough for every step that the scheduler can make.

    Between steps a sequence holds the blocks of the `window - 1` positions that its next query
    still sees: at most `held`, whatever their alignment. A chunk of c tokens enters at most
    ceil(c / block_size) more: over S chunks of N tokens together at most N / block_size + S.
    """
    block_size, past = config.block_size, window - 1
    held = (past + block_size - 2) // block_size + 1
    return config.max_num_seqs * (held + 1) + config.max_num_batched_tokens // block_size

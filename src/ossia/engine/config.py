"""How the engine is asked to run (`EngineConfig`) and what that comes to for one model
(`EnginePlan`): context, budget, and the number of cache blocks per group.

Nothing is patched afterwards; another wish is another value. The surprising thing: the context may
come out shorter than the model's, because one whole context must always fit into the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from ossia.errors import UsageError
from ossia.model.config import ModelConfig

_CHECKPOINT_SHARE = 16
"""At most this part of `cache_bytes` is set aside for checkpoints."""


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
    prefix_cache: bool = True
    """Keep the keys and values of requests that have ended for those that begin alike."""
    max_checkpoints: int = 64
    """Positions at which what the sliding layers still see is kept, so that another request can go
    on from there: 3 MiB each for gpt-oss-20b in bfloat16. The room is set aside beside the full
    group; where memory is short the context goes first."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size", "cache_bytes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1; got {getattr(self, name)}.")
        for name in ("max_model_len", "cache_tokens"):
            value = getattr(self, name)
            if value is not None and value < 2:  # one token of prompt, one of answer
                raise UsageError(f"{name} must be at least 2; got {value}.")
        for name in ("max_queue", "max_checkpoints"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must be 0 or more; got {getattr(self, name)}.")
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
    prefix_cache: bool = True


def plan(config: EngineConfig, model: ModelConfig, *, cache_itemsize: int) -> EnginePlan:
    """Derive the engine's numbers for one model; `cache_itemsize` is the size in bytes of a stored
    key or value element (2 for bfloat16).

    The sliding group is sized so that it cannot run out whatever the steps do, and has room for
    checkpoints besides; the rest of the memory goes to the full group, up to a whole context for
    each of `max_num_seqs`. Raises UsageError when the memory cannot hold one context of the length
    asked for.
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
    sliding_block_bytes = num_sliding_layers * layer_block_bytes
    full_block_bytes = (len(model.sliding_layers) - num_sliding_layers) * layer_block_bytes

    blocks_per_context = -(-context // block_size)
    num_full_blocks = config.max_num_seqs * blocks_per_context
    if config.cache_tokens is not None:
        num_full_blocks = -(-config.cache_tokens // block_size)
    needed = config.max_model_len or 2  # a token of prompt and one of answer
    least = -(-needed // block_size)
    least_bytes = num_sliding_blocks * sliding_block_bytes + least * full_block_bytes
    if config.prefix_cache:
        # As many tokens as the full group holds are more than checkpoints can be of use for.
        kept = min(config.max_checkpoints * blocks_seen(window, block_size), num_full_blocks)
        if config.cache_tokens is None and sliding_block_bytes:
            share = min(config.cache_bytes // _CHECKPOINT_SHARE, config.cache_bytes - least_bytes)
            kept = min(kept, max(share, 0) // sliding_block_bytes)
        num_sliding_blocks += kept
    sliding_bytes = num_sliding_blocks * sliding_block_bytes
    if config.cache_tokens is None and full_block_bytes:
        affordable = (config.cache_bytes - sliding_bytes) // full_block_bytes
        num_full_blocks = min(num_full_blocks, affordable)
    if num_full_blocks * block_size < needed:
        raise UsageError(
            f"A context of {needed} tokens with max_num_seqs={config.max_num_seqs} needs a cache "
            f"of {least * block_size} tokens or {least_bytes} bytes; "
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
        prefix_cache=config.prefix_cache,
    )


def blocks_seen(window: int, block_size: int) -> int:
    """Blocks that hold what a query at the start of a block sees of the positions before it."""
    return -(-(window - 1) // block_size)


def _sliding_blocks(config: EngineConfig, window: int) -> int:
    """Enough for every step that the scheduler can make.

    Between steps a sequence holds the blocks that a query at the start of its last block sees, and
    that block. A chunk of c tokens enters at most ceil(c / block_size) more: over S chunks of N
    tokens together at most N / block_size + S.
    """
    held = blocks_seen(window, config.block_size) + 1
    return config.max_num_seqs * (held + 1) + config.max_num_batched_tokens // config.block_size

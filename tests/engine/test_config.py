"""What a configuration comes to: block counts by arithmetic, refusals with their numbers."""

import pytest

from engine.fakes import tiny_model
from ossia.engine.config import EngineConfig, plan
from ossia.errors import UsageError

GPT_OSS_20B = tiny_model(
    num_hidden_layers=24,
    hidden_size=2880,
    intermediate_size=2880,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=64,
    num_local_experts=32,
    num_experts_per_tok=4,
    vocab_size=201088,
    sliding_window=128,
    sliding_layers=(True, False) * 12,
    max_position_embeddings=131072,
)


def test_20b_holds_one_whole_context_by_default():
    resolved = plan(EngineConfig(), GPT_OSS_20B, cache_itemsize=2)
    # 12 layers of a group, keys and values, 8 kv heads of 64, two bytes: 24,576 bytes a token.
    assert resolved.context == 131072
    assert resolved.num_full_blocks * 32 >= 131072
    total = (resolved.num_full_blocks + resolved.num_sliding_blocks) * 32 * 24576
    assert resolved.cache_bytes == total <= 4 * 2**30 < total + 32 * 24576
    # The sliding group does not grow with the context: 16 sequences of 6 blocks, 512 new tokens,
    # 64 checkpoints of 4 blocks.
    assert resolved.num_sliding_blocks == 16 * 6 + 512 // 32 + 64 * 4


def test_the_whole_context_of_20b_takes_3_gib_and_not_twice_that():
    config = EngineConfig(max_num_seqs=1, max_model_len=131072, max_checkpoints=0)
    resolved = plan(config, GPT_OSS_20B, cache_itemsize=2)
    # FACTS.md: 3.0 GiB, and 1.5 MiB for each 64 of the positions that sliding layers still see.
    assert resolved.num_full_blocks * 32 == 131072
    sliding = (6 + 512 // 32) * 32 * 24576
    assert resolved.cache_bytes == 3 * 2**30 + sliding
    assert sliding < 17 * 2**20
    all_layers = 2 * 131072 * 24576
    assert all_layers == 6 * 2**30


def test_a_checkpoint_of_20b_takes_3_mib_and_64_are_kept_by_default():
    with_them = plan(EngineConfig(), GPT_OSS_20B, cache_itemsize=2)
    without = plan(EngineConfig(max_checkpoints=0), GPT_OSS_20B, cache_itemsize=2)
    off = plan(EngineConfig(prefix_cache=False), GPT_OSS_20B, cache_itemsize=2)
    blocks = with_them.num_sliding_blocks - without.num_sliding_blocks
    assert blocks * 32 * 24576 == 64 * 3 * 2**20
    assert off.num_sliding_blocks == without.num_sliding_blocks


def test_checkpoints_leave_the_context_its_room():
    for cache_bytes in (2**30, 300 * 2**20, 100 * 2**20):
        config = EngineConfig(cache_bytes=cache_bytes)
        with_them = plan(config, GPT_OSS_20B, cache_itemsize=2)
        kept = with_them.num_sliding_blocks - (16 * 6 + 512 // 32)
        assert kept * 32 * 24576 <= cache_bytes // 16
        assert with_them.cache_bytes <= cache_bytes
    small = plan(EngineConfig(cache_tokens=160), GPT_OSS_20B, cache_itemsize=2)
    assert small.num_sliding_blocks == 16 * 6 + 512 // 32 + 5  # no more than the full group


def test_a_small_model_gets_a_whole_context_for_every_sequence():
    model = tiny_model(max_position_embeddings=1024, sliding_window=128)
    resolved = plan(EngineConfig(), model, cache_itemsize=4)
    assert resolved.context == 1024
    assert resolved.num_full_blocks == 16 * 1024 // 32
    assert resolved.cache_bytes < 4 * 2**30


def test_the_cache_limits_the_context_when_none_is_asked_for():
    resolved = plan(EngineConfig(cache_bytes=2**30), GPT_OSS_20B, cache_itemsize=2)
    assert resolved.context == resolved.num_full_blocks * 32 < 131072
    assert resolved.model_context == 131072
    assert resolved.cache_bytes <= 2**30


def test_the_cache_may_be_given_in_tokens():
    resolved = plan(EngineConfig(cache_tokens=1000, cache_bytes=1), GPT_OSS_20B, cache_itemsize=2)
    assert resolved.num_full_blocks == 32  # 1,000 tokens rounded up to whole blocks
    assert resolved.context == 1024


def test_a_context_that_the_cache_cannot_hold_is_refused_with_what_it_needs():
    config = EngineConfig(max_model_len=131072, cache_bytes=2**30)
    with pytest.raises(UsageError) as refused:
        plan(config, GPT_OSS_20B, cache_itemsize=2)
    needed = 131072 * 24576 + (16 * 6 + 16) * 32 * 24576
    assert f"{needed} bytes" in str(refused.value)
    assert (
        plan(
            EngineConfig(max_model_len=131072, cache_bytes=needed), GPT_OSS_20B, cache_itemsize=2
        ).cache_bytes
        == needed
    )
    with pytest.raises(UsageError):
        plan(
            EngineConfig(max_model_len=131072, cache_bytes=needed - 1),
            GPT_OSS_20B,
            cache_itemsize=2,
        )


def test_a_cache_smaller_than_its_sliding_group_is_refused():
    with pytest.raises(UsageError, match="cache_bytes=1000"):
        plan(EngineConfig(cache_bytes=1000), GPT_OSS_20B, cache_itemsize=2)


def test_a_context_beyond_the_model_is_refused():
    with pytest.raises(UsageError, match=r"300 tokens.*200"):
        plan(EngineConfig(max_model_len=300), tiny_model(), cache_itemsize=4)


@pytest.mark.parametrize("sliding", [(False, False), (True, True)])
def test_models_with_layers_of_one_kind_only(sliding: tuple[bool, ...]):
    resolved = plan(EngineConfig(), tiny_model(sliding_layers=sliding), cache_itemsize=4)
    assert resolved.context == 200
    assert resolved.window == (10 if any(sliding) else 1)


@pytest.mark.parametrize(
    "values",
    [
        {"max_num_seqs": 0},
        {"max_num_batched_tokens": 0},
        {"block_size": 0},
        {"cache_bytes": 0},
        {"cache_tokens": 1},
        {"max_model_len": 1},
        {"max_queue": -1},
        {"max_checkpoints": -1},
        {"max_num_seqs": 17, "max_num_batched_tokens": 16},
    ],
)
def test_values_that_cannot_be_meant(values: dict[str, int]):
    with pytest.raises(UsageError, match=next(iter(values))):
        EngineConfig(**values)  # type: ignore[arg-type]

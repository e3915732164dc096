"""Bytes and multiply-adds of a step: against the issue's figures for gpt-oss-20b, against counting
one by one, and against the sizes that the native kernels really allocate.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from ossia.model.config import ModelConfig
from ossia.model.cost import (
    WeightFormat,
    WeightFormats,
    expected_experts,
    expert_bytes,
    step_cost,
)
from random_models import tiny_config

GPT_OSS_20B = ModelConfig(
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


def test_a_decoded_token_of_gpt_oss_20b():
    cost = step_cost(GPT_OSS_20B, [(0, 1)], logit_rows=1)
    assert cost.read_bytes == pytest.approx(2.57e9, rel=0.002)
    assert cost.product_multiply_adds == pytest.approx(3.03e9, rel=0.001)
    deep = step_cost(GPT_OSS_20B, [(4095, 1)], logit_rows=1)
    assert deep.kv_bytes == pytest.approx(0.104e9, rel=0.002)
    assert deep.read_bytes - deep.kv_bytes == cost.read_bytes - cost.kv_bytes


def test_weights_of_gpt_oss_20b_by_hand():
    """Experts of 17 bytes for 32 weights, dense tensors of 34."""
    cost = step_cost(GPT_OSS_20B, [(0, 1)], logit_rows=1)
    biases = 24 * 4 * (5760 + 2880) * 4
    assert cost.expert_bytes == 24 * 4 * 3 * 2880 * 2880 * 17 // 32 + biases
    assert cost.head_bytes == 201088 * 2880 * 34 // 32 + 2880 * 4


def test_batched_decode_touches_more_experts():
    """16 tokens that pick 4 of 32 leave (7/8)^16 = 12 % of the experts alone."""
    assert expected_experts(GPT_OSS_20B, 1) == pytest.approx(4)
    assert expected_experts(GPT_OSS_20B, 16) == pytest.approx(32 * (1 - 0.875**16))
    known = step_cost(GPT_OSS_20B, [(0, 1)] * 16, logit_rows=16, experts_read=100)
    assert known.expert_bytes == 100 * expert_bytes(GPT_OSS_20B)
    alone = step_cost(GPT_OSS_20B, [(0, 1)], logit_rows=1)
    assert known.dense_bytes == alone.dense_bytes and known.head_bytes == alone.head_bytes
    assert known.product_multiply_adds == 16 * alone.product_multiply_adds


@pytest.mark.parametrize("chunk", [(0, 1), (0, 7), (3, 9), (19, 2), (20, 1), (100, 40), (5, 100)])
def test_attention_counted_key_by_key(chunk):
    config = tiny_config(sliding_window=20)
    start, count = chunk
    pairs, keys = 0, 0
    for window in config.windows():
        seen = [
            {k for k in range(p + 1) if window is None or k > p - window}
            for p in range(start, start + count)
        ]
        pairs += sum(map(len, seen))
        keys += len(set().union(*seen))
    cost = step_cost(config, [chunk], logit_rows=0)
    assert cost.attention_multiply_adds == pairs * 2 * 4 * 64  # 4 heads of 64, scores and values
    assert cost.kv_bytes == keys * 2 * 2 * 64 * 2  # keys and values of 2 heads in bfloat16
    twice = step_cost(config, [chunk, chunk], logit_rows=0, kv_itemsize=4)
    assert twice.kv_bytes == 4 * cost.kv_bytes


def test_multiply_adds_are_the_active_parameters():
    """A token passes through each once: all matrices but the embedding, without their biases."""
    cost = step_cost(GPT_OSS_20B, [(0, 1)], logit_rows=1)
    products = cost.product_multiply_adds + cost.head_multiply_adds
    assert products == pytest.approx(GPT_OSS_20B.num_active_parameters(), rel=0.001)
    assert products < GPT_OSS_20B.num_active_parameters()
    assert cost.int8_multiply_adds == products + 4 * cost.attention_multiply_adds


def test_a_prompt_needs_its_last_row_of_logits_only():
    cost = step_cost(GPT_OSS_20B, [(0, 512)], logit_rows=0)
    assert cost.head_bytes == cost.head_multiply_adds == 0
    layer = 5120 * 2880 + 2880 * 4096 + 32 * 2880 + 4 * 3 * 2880 * 2880
    assert cost.product_multiply_adds == 512 * 24 * layer


@pytest.mark.parametrize("shape", [(16, 64), (1, 1), (17, 65), (2880, 4096), (201, 2880), (16, 96)])
def test_int8_bytes_are_what_the_native_kernels_allocate(shape):
    from ossia.kernels import _native

    matrix = _native.Matrix.q8(1, *shape)
    assert WeightFormat.INT8.matrix_bytes(*shape) == matrix.packed_bytes


def test_other_formats():
    assert WeightFormat.MXFP4.matrix_bytes(3, 64) == 3 * 2 * 17
    assert WeightFormat.BF16.matrix_bytes(3, 5) == 30
    assert WeightFormat.F32.matrix_bytes(3, 5) == 60
    plain = WeightFormats(dense=WeightFormat.BF16, experts=WeightFormat.BF16)
    config = replace(GPT_OSS_20B, num_hidden_layers=1, sliding_layers=(True,))
    cost = step_cost(config, [(0, 1)], logit_rows=1, formats=plain)
    assert cost.head_bytes == 201088 * 2880 * 2 + 2880 * 4
    assert cost.expert_bytes == 4 * (3 * 2880 * 2880 * 2 + (5760 + 2880) * 4)

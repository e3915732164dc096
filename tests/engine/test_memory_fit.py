"""Fitting an engine into memory: as asked for, with less context, or refused with what helps."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from engine.sparse import sparse_checkpoint
from engine.test_config import GPT_OSS_20B
from ossia.engine.config import EngineConfig
from ossia.engine.memory_fit import LEAST_CONTEXT, MemoryRequest
from ossia.engine.memory_plan import KernelMemory
from ossia.errors import UsageError
from ossia.model.checkpoint import Checkpoint, open_checkpoint

GB = 10**9
INT8 = KernelMemory("native", cache_itemsize=2, repacks=True, num_threads=2)
ONE = EngineConfig(max_num_seqs=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(sparse_checkpoint(tmp_path_factory.mktemp("m") / "20b", GPT_OSS_20B))


def request(
    checkpoint: Checkpoint, usable: int | None, kernels: KernelMemory = INT8
) -> MemoryRequest:
    return MemoryRequest(checkpoint, kernels, usable, process_bytes=200_000_000)


def test_what_fits_stays_as_it_was_asked_for(checkpoint: Checkpoint) -> None:
    for usable in (None, 32 * GB):
        found = request(checkpoint, usable).fit(ONE)
        assert (found.config, found.shortened, found.refusal) == (ONE, False, "")
        assert found.plan.context == 131072


def test_a_context_nobody_asked_for_is_shortened(checkpoint: Checkpoint) -> None:
    found = request(checkpoint, 14 * GB).fit(ONE)
    assert found.shortened and not found.refusal
    assert LEAST_CONTEXT <= found.plan.context < 131072
    assert 13.8 * GB < found.plan.total <= 14 * GB  # as long as can be
    many = request(checkpoint, 14 * GB).fit(EngineConfig())
    assert many.plan.sequences == 16 and many.plan.total <= 14 * GB


def test_a_context_that_was_asked_for_is_not(checkpoint: Checkpoint) -> None:
    asked = replace(ONE, max_model_len=131072)
    found = request(checkpoint, 14 * GB).fit(asked)
    numbers = re.search(r"needs ([\d.]+) GB of memory, ([\d.]+) GB of them for keys", found.refusal)
    assert numbers is not None
    assert float(numbers[1]) == pytest.approx(found.plan.total / GB, abs=0.05)
    # With 64 checkpoints of 3 MiB.
    cache = 131072 * 12 * 2048 + 64 * 3 * 2**20
    assert float(numbers[2]) == pytest.approx(cache / GB, abs=0.05)
    assert "this process may use 14.0 GB" in found.refusal
    # The context that it names fits; the next larger one it tried does not.
    (context,) = map(int, re.findall(r"--context (\d+)", found.refusal))
    shorter = replace(ONE, max_model_len=context)
    assert not request(checkpoint, 14 * GB).fit(shorter).refusal
    assert request(checkpoint, 14 * GB).fit(replace(ONE, max_model_len=2 * context)).refusal


def test_several_sequences_share_what_there_is(checkpoint: Checkpoint) -> None:
    """16 contexts of 32k do not fit; the cache shrinks, to one of them at least."""
    config = EngineConfig(max_model_len=32768)
    found = request(checkpoint, 15 * GB).fit(config)
    assert not found.refusal and not found.shortened
    assert found.plan.context == 32768 and found.plan.total <= 15 * GB


def test_a_cache_given_in_tokens_is_kept_or_refused(checkpoint: Checkpoint) -> None:
    config = replace(ONE, cache_tokens=131072)
    assert request(checkpoint, 14 * GB).fit(config).refusal


def test_too_little_for_the_weights_is_refused_with_what_helps(checkpoint: Checkpoint) -> None:
    found = request(checkpoint, 8 * GB).fit(ONE)
    assert "--expert-memory auto" in found.refusal
    assert "--context" not in found.refusal and "int8" not in found.refusal
    assert "more memory, or a smaller model" in found.refusal
    assert "--expert-memory auto" not in request(checkpoint, 2 * GB).fit(ONE).refusal


def test_int8_is_named_where_it_would_fit(checkpoint: Checkpoint) -> None:
    kept = replace(INT8, repacks=False)
    config = replace(ONE, max_model_len=8192)
    too_little = request(checkpoint, None, kept).planned(config).total - GB
    assert "--dense-dtype" in request(checkpoint, too_little, kept).fit(config).refusal
    assert "--dense-dtype" not in request(checkpoint, 9 * GB, kept).fit(config).refusal


def test_paging_leaves_to_the_experts_what_the_rest_does_not_need(checkpoint: Checkpoint) -> None:
    paged = request(checkpoint, 8 * GB).paged(replace(ONE, max_model_len=8192))
    assert paged is not None
    fitted, expert_bytes = paged
    assert fitted.plan.context == 8192
    assert 7.4 * GB < fitted.plan.total <= 7.6 * GB  # 95 %
    assert any(item.bytes == expert_bytes for item in fitted.plan.items)
    assert request(checkpoint, 2 * GB).paged(ONE) is None
    assert request(checkpoint, None).paged(ONE) is None
    reference = KernelMemory("reference", cache_itemsize=4)
    assert request(checkpoint, 8 * GB, reference).paged(ONE) is None


def test_a_hot_set_holds_what_four_layers_take_for_a_token(checkpoint: Checkpoint) -> None:
    """Less would be used all the same, and the plan would not say so."""
    least = 4 * 4 * (3 * 2880 * 2880 * 17 // 32 + 3 * 2880 * 4)  # 4.25 bits a weight; biases
    enough = request(checkpoint, 32 * GB, replace(INT8, expert_bytes=least)).fit(ONE)
    assert any(item.bytes == least for item in enough.plan.items)
    words = r"at least 212\.1 MB .*; got 1e-06 MB\.$"
    with pytest.raises(UsageError, match=words):
        request(checkpoint, 32 * GB, replace(INT8, expert_bytes=1)).fit(ONE)
    with pytest.raises(UsageError, match=r"; got 212\.06 MB\.$"):
        request(checkpoint, None, replace(INT8, expert_bytes=least - 1)).fit(ONE)


def test_a_context_beyond_the_model_is_wrong_usage(checkpoint: Checkpoint) -> None:
    with pytest.raises(UsageError, match="131072"):
        request(checkpoint, 32 * GB).fit(replace(ONE, max_model_len=200_000))


def test_a_small_model_needs_no_more_context_than_it_has(tmp_path: Path) -> None:
    config = replace(
        GPT_OSS_20B, num_hidden_layers=1, sliding_layers=(False,), max_position_embeddings=1024
    )
    small = open_checkpoint(sparse_checkpoint(tmp_path / "m", config))
    found = request(small, 32 * GB).fit(ONE)
    assert found.plan.context == 1024 and not found.shortened

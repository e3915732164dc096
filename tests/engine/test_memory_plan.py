"""The plan of a model's memory: line by line by hand for gpt-oss-20b, and against what a process
really took.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.sparse import sparse_checkpoint
from engine.test_config import GPT_OSS_20B
from ossia.engine.config import EngineConfig, plan
from ossia.engine.memory_plan import KernelMemory, MemoryPlan, memory_plan
from ossia.kernels.choose import choose_kernels
from ossia.model.checkpoint import Checkpoint, open_checkpoint
from ossia.model.config import ModelConfig
from ossia.model.names import Layout
from ossia.model.selftest import RandomModel
from ossia.model.writer import write_checkpoint
from random_models import tiny_config

INT8 = KernelMemory("native", cache_itemsize=2, repacks=True, num_threads=2)
EXACT = replace(INT8, cache_itemsize=4, repacks=False)
WIDTH = 2880
MATRICES = 24 * (5120 + 4096) * WIDTH + 201088 * WIDTH  # q, k, v, o and the head
EXPERTS = 24 * 32 * 3 * WIDTH * WIDTH
EMBEDDING = 201088 * WIDTH * 2


@pytest.fixture(scope="module")
def gpt_oss_20b(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(sparse_checkpoint(tmp_path_factory.mktemp("m") / "20b", GPT_OSS_20B))


def planned(
    checkpoint: Checkpoint,
    kernels: KernelMemory = INT8,
    *,
    context: int = 8192,
    sequences: int = 1,
    **more: bool,
) -> MemoryPlan:
    config = EngineConfig(max_num_seqs=sequences, max_model_len=context)
    engine = plan(config, checkpoint.config, cache_itemsize=kernels.cache_itemsize)
    return memory_plan(checkpoint, kernels, engine, process_bytes=60_000_000, **more)


def line(plan: MemoryPlan, start: str) -> int:
    (found,) = (item.bytes for item in plan.items if item.what.startswith(start))
    return found


def test_gpt_oss_20b_line_by_line(gpt_oss_20b: Checkpoint) -> None:
    plan = planned(gpt_oss_20b)
    assert line(plan, "experts in MXFP4") == EXPERTS * 17 // 32
    assert line(plan, "dense tensors in int8") == MATRICES * 34 // 32
    # 12 layers that see all and 12 that see 128 positions, while a chunk of 512 goes through; and
    # 64 checkpoints of 4 blocks.
    full, sliding = 8192 * 12 * 2048, (6 + 16 + 64 * 4) * 32 * 12 * 2048
    assert plan.cache == line(plan, "keys and values of 8,192 tokens") == full + sliding
    assert not any("embedding" in item.what for item in plan.items)  # its rows are read
    assert line(plan, "Python") == 60_000_000
    assert plan.total == sum(item.bytes for item in plan.items)
    assert plan.total <= 12.5 * 2**30  # what was promised for 8k of context


def test_other_settings_of_the_kernels(gpt_oss_20b: Checkpoint) -> None:
    int8, exact = planned(gpt_oss_20b), planned(gpt_oss_20b, EXACT)
    assert line(exact, "dense tensors as stored") == MATRICES * 2
    # float32; and of 4 GiB no more than a sixteenth for checkpoints, 170 blocks of 1.5 MiB.
    assert exact.cache == 2 * (8192 + (6 + 16 + 170) * 32) * 12 * 2048
    paged = planned(gpt_oss_20b, replace(INT8, expert_bytes=3_000_000_000))
    assert line(paged, "experts in MXFP4, those used last") == 3_000_000_000
    assert int8.total - paged.total == EXPERTS * 17 // 32 - 3_000_000_000
    threads = planned(gpt_oss_20b, replace(INT8, num_threads=16))
    assert 0 < threads.total - int8.total < 100 << 20


def test_without_mmap_the_source_of_the_head_is_there_too(gpt_oss_20b: Checkpoint) -> None:
    mapped, read = planned(gpt_oss_20b), planned(gpt_oss_20b, use_mmap=False)
    assert line(read, "embedding") == EMBEDDING
    running = read.cache + line(read, "a step of")
    assert line(read, "what is being repacked") == 201088 * WIDTH * 2 - running
    assert not any(item.mapped for item in read.items)
    assert any(item.mapped for item in mapped.items)


def test_experts_in_floats_are_repacked(tmp_path: Path) -> None:
    config = tiny_config(num_hidden_layers=1)
    folder = sparse_checkpoint(tmp_path / "m", config, Layout.HF_BF16, dtype="F32")
    checkpoint = open_checkpoint(folder)
    plan = planned(checkpoint, context=64)
    experts = 8 * 34 * (192 * 64 + 64 * 96 * 4 // 3) // 32  # 96 columns are padded to 128
    dense = 34 * (512 * 64 + 64 * 256 + 304 * 64) // 32  # 301 rows of the head to 304
    assert line(plan, "dense tensors in int8") == experts + dense
    assert not any(item.what.startswith("experts") for item in plan.items)
    kept = planned(checkpoint, EXACT, context=64)
    stored = 4 * (8 * 3 * 64 * 96 + 512 * 64 + 64 * 256 + 301 * 64)
    assert line(kept, "dense tensors as stored") == stored


def test_other_kernels_get_an_estimate(gpt_oss_20b: Checkpoint) -> None:
    plan = planned(gpt_oss_20b, KernelMemory("torch", cache_itemsize=2))
    assert plan.is_estimate
    assert line(plan, "weights as stored") == gpt_oss_20b.total_bytes


def test_settings_are_read_off_the_kernels() -> None:
    kernels, _ = choose_kernels("native", threads=1, exact=True)
    assert KernelMemory.of(kernels) == replace(EXACT, num_threads=1)
    kernels, _ = choose_kernels("native", threads=1)
    assert KernelMemory.of(kernels) == replace(INT8, num_threads=1)
    kernels, _ = choose_kernels("reference")
    assert KernelMemory.of(kernels) == KernelMemory("reference", cache_itemsize=4)


# -- Against measurement ----------------------------------------------------------------------

_FILL = """
import json, sys
import numpy as np
from ossia.engine.config import EngineConfig
from ossia.engine.engine import Engine
from ossia.engine.machine_memory import ProcessMemory
from ossia.engine.request import Request, SamplingParams
from ossia.loading import KernelSettings, open_model

folder, context, sequences, settings, use_mmap = json.loads(sys.argv[1])
opened = open_model(
    folder,
    KernelSettings("native", **settings),
    engine=EngineConfig(max_num_seqs=sequences, max_model_len=context),
    needs_tokenizer=False,
    use_mmap=use_mmap,
)
config = opened.checkpoint.config
engine = Engine.for_model(config, opened.kernels, opened.prepare(), opened.engine)
rng = np.random.default_rng(0)
# Every sequence still runs when the last prompt has been read: the cache fills up.
answer = sequences * -(-context // 512) + 8
sampling = SamplingParams(temperature=1.0, max_tokens=answer, logit_bias={0: 0.0})
for n in range(sequences):
    prompt = rng.integers(0, config.vocab_size, context - answer).tolist()
    engine.submit(Request(str(n), tuple(prompt), sampling=sampling), lambda outputs: None)
while engine.has_work:
    engine.step()
# Conversations one after another: each leaves a checkpoint, until there is room for no more.
for n in range(2 * EngineConfig.max_checkpoints):
    prompt = rng.integers(0, config.vocab_size, 130).tolist()
    brief = SamplingParams(max_tokens=1)
    engine.submit(Request(f"c{n}", tuple(prompt), sampling=brief), lambda outputs: None)
    while engine.has_work:
        engine.step()
print(json.dumps([opened.memory.total, ProcessMemory.now().peak]))
"""


def planned_and_peak(
    folder: Path | str, context: int, sequences: int = 1, *, use_mmap: bool = True, **settings
) -> tuple[int, int]:
    arguments = json.dumps([str(folder), context, sequences, settings, use_mmap])
    done = subprocess.run(
        [sys.executable, "-c", _FILL, arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    planned, peak = json.loads(done.stdout)
    print(f"planned {planned:,} peak {peak:,} ratio {planned / peak:.3f}")
    return planned, peak


def written(folder: Path, config: ModelConfig) -> Path:
    return write_checkpoint(folder, config, RandomModel(config).part)


MIDDLE = tiny_config(
    num_hidden_layers=4,
    hidden_size=1024,
    intermediate_size=1024,
    num_attention_heads=16,
    num_key_value_heads=4,
    num_local_experts=16,
    vocab_size=8_000,
)
WIDE = tiny_config(
    num_hidden_layers=2,
    hidden_size=WIDTH,
    intermediate_size=WIDTH,
    num_attention_heads=64,
    num_key_value_heads=8,
    vocab_size=8_000,
)


@pytest.mark.slow
@pytest.mark.parametrize("sequences", [1, 16])
def test_nano_takes_what_is_planned(sequences: int) -> None:
    planned, peak = planned_and_peak("nano", 1024, sequences)
    assert planned == pytest.approx(peak, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("config", [MIDDLE, WIDE], ids=["200 MB", "500 MB"])
def test_a_model_takes_what_is_planned(tmp_path: Path, config: ModelConfig) -> None:
    folder = written(tmp_path / "m", config)
    for options in (
        {"context": 4096},
        {"context": 1024, "sequences": 8, "threads": 1},
        {"context": 2048, "dense_dtype": "bf16"},
        {"context": 1024, "use_mmap": False},
        {"context": 1024, "exact": True},
    ):
        planned, peak = planned_and_peak(folder, **options)
        assert planned == pytest.approx(peak, rel=0.05), options


@pytest.mark.soak
@pytest.mark.parametrize("layers", [2, 6])
def test_layers_of_20b_take_what_is_planned(tmp_path: Path, layers: int) -> None:
    sliding = GPT_OSS_20B.sliding_layers[:layers]
    config = replace(GPT_OSS_20B, num_hidden_layers=layers, sliding_layers=sliding)
    folder = written(tmp_path / "m", config)
    for options in ({"context": 8192}, {"context": 2048, "sequences": 8}):
        planned, peak = planned_and_peak(folder, **options)
        assert planned == pytest.approx(peak, rel=0.05), options

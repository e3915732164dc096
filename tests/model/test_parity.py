"""Logits of every kernel set against transformers' `GptOssForCausalLM`, run here and now in float32
on the same random checkpoint.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import numpy as np
import pytest

from ossia.kernels.choose import KERNEL_SETS
from ossia.model.inputs import packed_input
from ossia.model.selftest import Paging, RandomModel
from ossia.model.transformer import Architecture, forward, prepare_weights
from random_models import tiny_config, transformers_logits, transformers_model
from support import in_full_precision

TOLERANCE = 1e-3
"""Of the range of the logits. Measured: below 1e-5, of which most is transformers' own rounding of
the inverse frequencies."""

TINY = RandomModel(tiny_config(), seed=0)


@functools.cache
def expected_logits(length: int) -> np.ndarray:
    return transformers_logits(transformers_model(TINY), random_ids(length, TINY))


def random_ids(length: int, model: RandomModel) -> list[int]:
    return np.random.default_rng(length).integers(0, model.config.vocab_size, length).tolist()


@functools.cache
def prepared(name: str):
    kernels = in_full_precision(name)
    architecture = Architecture.of(TINY.config)
    return architecture, kernels, prepare_weights(architecture, kernels, TINY.part)


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.ptp(expected))


@pytest.mark.parametrize("name", KERNEL_SETS)
@pytest.mark.parametrize("length", [1, 127, 128, 129, 4095, 4097])
def test_without_a_cache(name, length):
    architecture, kernels, weights = prepared(name)
    inputs = packed_input([random_ids(length, TINY)])
    logits = kernels.to_host(forward(architecture, kernels, weights, inputs))
    assert error(logits, expected_logits(length)) < TOLERANCE


@pytest.mark.parametrize("name", KERNEL_SETS)
@pytest.mark.parametrize("length", [129, 4097])
def test_through_the_cache_in_chunks(name, length):
    architecture, kernels, weights = prepared(name)
    ids, expected = random_ids(length, TINY), expected_logits(length)
    paging = Paging(architecture, [length])
    cache = kernels.allocate_cache(paging.spec)
    for start in range(0, length, 500):
        inputs = paging.inputs({0: (start, ids[start : start + 500])})
        handle = forward(architecture, kernels, weights, inputs, cache=cache)
        chunk = expected[start : start + 500]
        found = np.abs(kernels.to_host(handle) - chunk).max() / np.ptp(expected)
        assert found < TOLERANCE


# -- Real width: one implementation per process, so that they never share the memory -----------

WIDE = RandomModel(
    tiny_config(
        num_hidden_layers=2,
        hidden_size=2880,
        intermediate_size=2880,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=2048,
    ),
    seed=1,
)
WIDE_LENGTH, LAST_ROWS = 200, 16


def wide_logits(name: str) -> np.ndarray:
    """What a process of its own computes for `name`: a kernel set, or transformers."""
    ids = random_ids(WIDE_LENGTH, WIDE)
    if name == "transformers":
        return transformers_logits(transformers_model(WIDE), ids)[-LAST_ROWS:]
    kernels = in_full_precision(name)
    architecture = Architecture.of(WIDE.config)
    weights = prepare_weights(architecture, kernels, WIDE.part)
    rows = range(WIDE_LENGTH - LAST_ROWS, WIDE_LENGTH)
    inputs = packed_input([ids], logit_rows=rows)
    return kernels.to_host(forward(architecture, kernels, weights, inputs))


def in_a_process(name: str) -> np.ndarray:
    command = [sys.executable, __file__, name]
    environment = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNEL_SETS)
def test_real_width(name, real_width_logits):
    actual = in_a_process(name)
    assert actual.shape == (LAST_ROWS, 2048)
    assert error(actual, real_width_logits) < TOLERANCE


@pytest.fixture(scope="module")
def real_width_logits() -> np.ndarray:
    return in_a_process("transformers")


if __name__ == "__main__":
    print(json.dumps(wide_logits(sys.argv[1]).tolist()))

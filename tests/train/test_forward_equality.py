"""The training forward computes the same logits as inference on the same weights: packed documents
without a cache, against paged caches, prefill in chunks and decoding token by token.

Run with `-s` to see the largest differences.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from ossia.kernels.interface import Kernels
from ossia.kernels.native import NativeKernels
from ossia.kernels.reference import ReferenceKernels
from ossia.kernels.torch import TorchKernels
from ossia.model.checkpoint import open_checkpoint
from ossia.model.config import ModelConfig
from ossia.model.inputs import packed_input
from ossia.model.selftest import QUANTISED_LARGEST, QUANTISED_MEDIAN, Paging, RandomModel
from ossia.model.transformer import Architecture, PartSource, forward, prepare_weights
from ossia.model.writer import write_checkpoint
from ossia.train.export import host_source
from ossia.train.parameters import Parameters
from random_models import tiny_config
from training_formulas import formulas, trainable

SEED = 5
LENGTHS = (129, 1, 127, 300, 128, 40)
"""On either side of the window of 128, and more than two of it."""
DECODED = 20
"""Tokens at the end of each document that come one by one."""
CHUNK = 50

ROUTED = tiny_config()
# All experts are chosen: rounding to bfloat16 or int8 sends no token elsewhere, so that a bound
# holds for every row.
ALL_CHOSEN = tiny_config(num_hidden_layers=2, num_local_experts=4)

FLOAT64_TOLERANCE = 1e-12
"""Of the range of the logits. Sums in another order: 2^-53 = 1e-16 each, of some hundred terms."""
FLOAT32_TOLERANCE = 1e-5
"""Likewise: 2^-24 = 6e-8 each. Measured: below 2e-6."""
BFLOAT16_TOLERANCE = 0.02
"""Likewise: where a sum in float32 falls on the other side of a rounding to bfloat16, a value moves
by 2^-8 = 0.4 % of itself, and what follows from it moves too; five times that is left to whoever
sums in another order. Measured: 0, for either way takes every sum in the same order."""
BFLOAT16_ERROR = 0.005
"""Root mean square error of the logits against float64, likewise: some twenty roundings of 0.1 %
one after another, of values that are mostly a tenth of the range. Measured: 0.13 %."""


@dataclass(frozen=True)
class Compared:
    """How far two sets of logits [T, V] lie apart."""

    largest: float
    """Absolute."""
    of_range: float
    """The same as a share of the range of the expected logits."""
    greedy: int
    """Rows whose most probable token differs."""

    @classmethod
    def of(cls, name: str, found: np.ndarray, expected: np.ndarray) -> Compared:
        assert found.shape == expected.shape
        largest = float(np.abs(found - expected).max())
        spread = float(np.ptp(expected))
        greedy = int((found.argmax(1) != expected.argmax(1)).sum())
        print(
            f"{name}: largest difference of logits {largest:.2g}, of a range of {spread:.3g}; "
            f"{greedy} of {len(found)} greedy tokens differ"
        )
        return cls(largest, largest / spread, greedy)


def documents(config: ModelConfig) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, config.vocab_size, n).tolist() for n in LENGTHS]


def full_precision(name: str) -> Kernels:
    """Nothing is quantised beyond what the weights are: native kernels with exact products."""
    every: dict[str, Callable[[], Kernels]] = {
        "torch": TorchKernels,
        "reference": ReferenceKernels,
        "native": lambda: NativeKernels(num_threads=1, exact=True),
    }
    return every[name]()


def logits_of(handle: object) -> np.ndarray:
    """In their own precision: `to_host` rounds to float32."""
    assert isinstance(handle, torch.Tensor)
    return handle.detach().numpy()


def in_training(parameters: Parameters, dtype: torch.dtype, *, rounded: bool = False) -> np.ndarray:
    """As a training step runs: all documents packed, with gradients, without a cache."""
    architecture, kernels = Architecture.of(parameters.config), TorchKernels(dtype=dtype)
    weights = prepare_weights(architecture, kernels, parameters.source(rounded=rounded))
    handle = forward(architecture, kernels, weights, packed_input(documents(parameters.config)))
    assert handle.requires_grad
    return logits_of(handle)


def in_inference(kernels: Kernels, config: ModelConfig, source: PartSource) -> np.ndarray:
    """As the engine runs: documents side by side through paged caches, in chunks, then token by
    token, each as far as it has come."""
    architecture, docs = Architecture.of(config), documents(config)
    weights = prepare_weights(architecture, kernels, source)
    paging = Paging(architecture, list(LENGTHS))
    cache = kernels.allocate_cache(paging.spec)
    logits: list[list[np.ndarray]] = [[] for _ in docs]
    for step in steps():
        chunks = {s: (at, docs[s][at : at + n]) for s, (at, n) in step.items()}
        inputs = paging.inputs(chunks)
        handle = forward(architecture, kernels, weights, inputs, cache=cache)
        values = (
            logits_of(handle)
            if isinstance(handle, torch.Tensor)
            else kernels.to_host(handle).copy()
        )
        for s, rows in zip(step, np.split(values, inputs.cu_seqlens_S1[1:-1]), strict=True):
            logits[s].append(rows)
    return np.concatenate([np.concatenate(rows) for rows in logits])


def steps() -> list[Mapping[int, tuple[int, int]]]:
    """{document: first position, number of tokens}. Short documents decode while long ones are
    still being read."""
    done, found = [0] * len(LENGTHS), []
    while any(at < length for at, length in zip(done, LENGTHS, strict=True)):
        step: dict[int, tuple[int, int]] = {}
        for s, length in enumerate(LENGTHS):
            if done[s] < length:
                n = max(1, min(CHUNK, length - DECODED - done[s]))
                step[s] = (done[s], n)
                done[s] += n
        found.append(step)
    return found


@functools.cache
def trained(config: ModelConfig, dtype: torch.dtype) -> np.ndarray:
    leaves = torch.float64 if dtype == torch.float64 else torch.float32
    return in_training(trainable(config, SEED, leaves), dtype)


def test_the_steps_do_both():
    sizes = [n for step in steps() for _, n in step.values()]
    assert sizes.count(CHUNK) > 5 and sizes.count(1) > 5 * DECODED
    assert any({1, CHUNK} <= {n for _, n in step.values()} for step in steps())


def test_training_in_float64_is_the_formulas():
    """What the other tests compare with is right, not merely the same."""
    parameters = trainable(ROUTED, SEED)
    with torch.no_grad():
        expected = [formulas(ROUTED, parameters.tensors, ids) for ids in documents(ROUTED)]
    found = Compared.of("formulas", trained(ROUTED, torch.float64), torch.cat(expected).numpy())
    assert found.of_range < 1e-6  # cosines may be rounded to float32: 6e-8


@pytest.mark.parametrize("config", [ROUTED, ALL_CHOSEN], ids=["top 4 of 8", "all experts"])
def test_in_float64(config):
    model = RandomModel(config, SEED)
    found = in_inference(TorchKernels(dtype=torch.float64), config, model.part)
    compared = Compared.of("torch float64", found, trained(config, torch.float64))
    assert compared.of_range < FLOAT64_TOLERANCE and not compared.greedy


@pytest.mark.parametrize("name", ["torch", "reference", "native"])
@pytest.mark.parametrize("config", [ROUTED, ALL_CHOSEN], ids=["top 4 of 8", "all experts"])
def test_in_float32(name, config):
    found = in_inference(full_precision(name), config, RandomModel(config, SEED).part)
    compared = Compared.of(f"{name} float32", found, trained(config, torch.float32))
    assert compared.of_range < FLOAT32_TOLERANCE


def test_in_bfloat16():
    """Products, keys and values in bfloat16 on both sides; and either against float64."""
    model, exact = RandomModel(ALL_CHOSEN, SEED), trained(ALL_CHOSEN, torch.float64)
    training = trained(ALL_CHOSEN, torch.bfloat16)
    inference = in_inference(TorchKernels.in_bfloat16(), ALL_CHOSEN, model.part)
    compared = Compared.of("torch bfloat16", inference, training)
    assert compared.of_range < BFLOAT16_TOLERANCE
    # Training may keep more precision than inference, or the other way round, but not far more.
    errors = [float(np.sqrt(((x - exact) ** 2).mean())) for x in (training, inference)]
    print(f"bfloat16 against float64, root mean square: {errors[0]:.2g} and {errors[1]:.2g}")
    assert max(errors) < 2 * min(errors)
    assert max(errors) < BFLOAT16_ERROR * np.ptp(exact)


@pytest.mark.parametrize("dense_dtype", ["int8", "bf16"])
def test_native_kernels_as_shipped(dense_dtype):
    """Activations in int8, which training does not know of: the bounds, with their reason, are
    those of `ossia.model.selftest`."""
    kernels = NativeKernels(num_threads=1, dense_dtype=dense_dtype)
    found = in_inference(kernels, ALL_CHOSEN, RandomModel(ALL_CHOSEN, SEED).part)
    expected = trained(ALL_CHOSEN, torch.float32)
    Compared.of(f"native {dense_dtype}", found, expected)
    rms_T = np.sqrt(((found - expected) ** 2).mean(1)) / expected.std(1)
    print(f"error of a token: median {np.median(rms_T):.2g}, largest {rms_T.max():.2g}")
    assert np.median(rms_T) < QUANTISED_MEDIAN and rms_T.max() < QUANTISED_LARGEST


def off_the_grid(config: ModelConfig) -> Parameters:
    """Weights that neither MXFP4 nor bfloat16 hold."""
    parameters = trainable(config, SEED, torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in parameters.tensors.values():
            value.mul_(1 + 0.2 * torch.randn(value.shape, generator=generator))
    return parameters


@pytest.mark.parametrize("name", ["torch", "reference", "native"])
def test_rounded_training_is_inference_on_the_exported_file(name, tmp_path):
    """The last part of training runs on what the export will write."""
    parameters = off_the_grid(ROUTED)
    folder = write_checkpoint(tmp_path / "model", ROUTED, host_source(parameters))
    expected = in_training(parameters, torch.float32, rounded=True)
    found = in_inference(full_precision(name), ROUTED, open_checkpoint(folder).part)
    assert Compared.of(f"{name}, exported", found, expected).of_range < FLOAT32_TOLERANCE
    unrounded = in_training(parameters, torch.float32)
    assert Compared.of("without rounding", unrounded, expected).of_range > 1e-2

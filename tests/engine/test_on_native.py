"""The engine on native kernels: a request's tokens and log-probabilities are the same bits alone
and in any batch, chunking or number of threads, after preemption and with what others left in the
cache. Random work over a random model.
"""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import numpy as np
import pytest

from engine.fakes import Recorder
from ossia.engine.config import EngineConfig
from ossia.engine.engine import Engine, EngineStats
from ossia.engine.request import FinishReason, Request, SamplingParams
from ossia.kernels.interface import Handle, SampledTokens, SamplingBatch
from ossia.kernels.native import NativeKernels, usable_cores
from ossia.model.selftest import RandomModel
from ossia.model.transformer import Architecture, Weights, prepare_weights
from random_models import tiny_config

CONFIG = tiny_config(num_hidden_layers=2, max_position_embeddings=700)
CONTEXT = 600


class Recording(NativeKernels):
    """Keeps the logits from which tokens are drawn, by seed (which is the request) and position."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.drawn_from: dict[tuple[int, int], bytes] = {}

    def sample(self, logits: Handle, batch: SamplingBatch) -> SampledTokens:
        rows = self.to_host(logits)
        for row, key in enumerate(zip(batch.seed, batch.position, strict=True)):
            self.drawn_from[key] = rows[row].tobytes()
        return super().sample(logits, batch)


@functools.cache
def kernels_and_weights(num_threads: int) -> tuple[Recording, Weights]:
    kernels = Recording(num_threads=num_threads)
    part = RandomModel(CONFIG, seed=8).part
    return kernels, prepare_weights(Architecture.of(CONFIG), kernels, part)


def random_requests(seed: int, count: int) -> list[Request]:
    """Prompts that share beginnings, cut anywhere; answers of some length; all ways of drawing."""
    rng = random.Random(seed)
    stems = [[rng.randrange(CONFIG.vocab_size) for _ in range(350)] for _ in range(2)]
    requests: list[Request] = []
    for n in range(count):
        ids = rng.choice(stems)[: rng.choice([1, 31, 32, 33, 64, 127, 128, 129, 200, 256, 350])]
        ids = ids + [rng.randrange(CONFIG.vocab_size) for _ in range(rng.choice([0, 0, 1, 40]))]
        sampling = SamplingParams(
            temperature=rng.choice([0.0, 1.0]),
            top_p=rng.choice([1.0, 0.9]),
            presence_penalty=rng.choice([0.0, 1.0]),
            seed=1000 * seed + n,
            max_tokens=rng.choice([1, 2, 30, 70]),
            logprobs=True,
            top_logprobs=2,
        )
        ends = tuple(sorted(rng.sample(range(len(ids) + 1), 1)))
        requests.append(Request(f"r{n}", tuple(ids), sampling, checkpoints=ends))
    return requests


Answer = tuple[tuple[int, ...], tuple[float, ...], object, list[bytes]]


def answers(
    requests: list[Request], *, threads: int = 1, rounds: int = 1, pause: int = 0, **config: object
) -> tuple[list[dict[str, Answer]], EngineStats]:
    """What each request gets, in each round, and the bits of its logits. `pause`: steps between
    two submissions.
    """
    kernels, weights = kernels_and_weights(threads)
    values = {"max_model_len": CONTEXT, "max_queue": 100}
    engine = Engine.for_model(CONFIG, kernels, weights, EngineConfig(**{**values, **config}))  # type: ignore[arg-type]
    results: list[dict[str, Answer]] = []
    for _ in range(rounds):
        sink = Recorder()
        kernels.drawn_from.clear()
        for each in requests:
            engine.submit(each, sink)
            for _ in range(pause):
                engine.step()
        while engine.has_work:
            engine.step()
            engine.check_integrity()
        result: dict[str, Answer] = {}
        for each in requests:
            outputs = sink.outputs[each.request_id]
            tokens = sink.tokens(each.request_id)
            start = len(each.prompt_ids)
            assert each.sampling.seed is not None
            assert outputs[-1].finish_reason is FinishReason.LENGTH
            result[each.request_id] = (
                tokens,
                tuple(value for output in outputs for value in output.logprobs),
                tuple(top for output in outputs for top in output.top_logprobs),
                [
                    kernels.drawn_from[each.sampling.seed, position]
                    for position in range(start, start + len(tokens))
                ],
            )
        results.append(result)
    return results, engine.stats()


def alone(requests: list[Request]) -> dict[str, Answer]:
    """Each in an engine of its own, which shares nothing."""
    result: dict[str, Answer] = {}
    for each in requests:
        result |= answers([each], prefix_cache=False)[0][0]
    return result


def assert_same(expected: dict[str, Answer], results: list[dict[str, Answer]]) -> None:
    for result in results:
        for name, answer in expected.items():
            assert result[name] == answer, name


def check(seed: int, count: int) -> int:
    """How many preemptions there were."""
    requests = random_requests(seed, count)
    expected = alone(requests)
    # With hits: everything comes twice, and much of it begins alike.
    twice, stats = answers(requests, rounds=2)
    assert_same(expected, twice)
    assert stats.cached_tokens > stats.prompt_tokens // 3
    # Chunks and batches.
    for config in (
        {"max_num_seqs": 3, "max_num_batched_tokens": 7},
        {"max_num_seqs": 16, "max_num_batched_tokens": 100},
        {"max_num_seqs": 2, "max_num_batched_tokens": 600},
    ):
        assert_same(expected, answers(requests, pause=2, **config)[0])
    # Preemption: room for one context, two seats, and each request outranks those before it.
    ranked = [replace(each, priority=n) for n, each in enumerate(requests)]
    preemptions = 0
    for prefix_cache in (True, False):
        config = {"cache_tokens": CONTEXT, "max_num_seqs": 2, "max_checkpoints": 3}
        results, stats = answers(ranked, pause=2, prefix_cache=prefix_cache, **config)
        assert_same(expected, results)
        preemptions += stats.preemptions
    if usable_cores() > 1:
        assert_same(expected, answers(requests, threads=2, rounds=2)[0])
    return preemptions


def test_tokens_and_logits_are_the_same_bits_whatever_else_happens() -> None:
    assert check(seed=1, count=8) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 22))
def test_tokens_and_logits_are_the_same_bits_over_more_work(seed: int) -> None:
    assert check(seed, count=20) > 0


def test_logits_after_a_hit_are_those_of_a_cold_run_bit_for_bit() -> None:
    rng = np.random.default_rng(3)
    ids = rng.integers(0, CONFIG.vocab_size, 390).tolist()
    sampling = SamplingParams(temperature=0.0, max_tokens=1, seed=7, logprobs=True)
    for end in (200, 255, 256, 257, 300):  # where the second prompt leaves the first
        first = Request("first", tuple(ids), replace(sampling, seed=6), checkpoints=(end,))
        second = Request("second", (*ids[:end], *ids[:40]), sampling)
        cold = alone([second])["second"]
        results, stats = answers([first, second], pause=4)
        assert stats.cached_tokens == end // 32 * 32
        assert results[0]["second"] == cold

"""The engine on real kernels and a random model: the same tokens as a plain loop that keeps no
cache, whatever the chunking and the neighbours, with every freed block poisoned.
"""

import functools
import math

import numpy as np
import pytest

from engine.fakes import Recorder, request
from ossia.engine.config import EngineConfig
from ossia.engine.engine import Engine
from ossia.engine.request import FinishReason, Request
from ossia.kernels.interface import SamplingBatch
from ossia.kernels.reference import ReferenceKernels
from ossia.model.inputs import packed_input
from ossia.model.selftest import RandomModel
from ossia.model.transformer import Architecture, Weights, forward, prepare_weights
from random_models import tiny_config

CONFIG = tiny_config(num_hidden_layers=2, max_position_embeddings=600)
KERNELS = ReferenceKernels()
ARCHITECTURE = Architecture.of(CONFIG)


@functools.cache
def weights() -> Weights:
    return prepare_weights(ARCHITECTURE, KERNELS, RandomModel(CONFIG, seed=5).part)


def logits_after(tokens: list[int]) -> np.ndarray:
    """[1, V], from the whole sequence at once, without a cache."""
    return forward(
        ARCHITECTURE, KERNELS, weights(), packed_input([tokens], logit_rows=[len(tokens) - 1])
    )


@functools.cache
def plain(request_id: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Tokens and log-probabilities by a loop that runs everything anew for each token."""
    each = REQUESTS[request_id]
    tokens, sampling = list(each.prompt_ids), each.sampling
    logprobs: list[float] = []
    for _ in range(sampling.max_tokens or 0):
        drawn = KERNELS.sample(
            logits_after(tokens),
            SamplingBatch(
                temperature=[sampling.temperature],
                top_k=[sampling.top_k],
                top_p=[sampling.top_p],
                min_p=[0.0],
                seed=[sampling.seed or 0],
                position=[len(tokens)],
                repetition_penalty=[1.0],
                presence_penalty=[sampling.presence_penalty],
                frequency_penalty=[0.0],
                prompt_ids=[each.prompt_ids],
                output_ids=[tokens[len(each.prompt_ids) :]],
                logit_bias=[{}],
                top_logprobs=[0],
            ),
        )
        tokens += drawn.ids
        logprobs += [value for value in drawn.logprobs if value is not None]
    return tuple(tokens[len(each.prompt_ids) :]), tuple(logprobs)


def _requests() -> dict[str, Request]:
    """Prompts that end before, at and beyond the window of 128, and answers that cross it."""
    rng = np.random.default_rng(6)
    made: dict[str, Request] = {}
    for length, count, sampling in (
        (1, 24, {"temperature": 0.0}),
        (100, 50, {"temperature": 0.0}),
        (127, 5, {"seed": 1}),
        (128, 5, {"seed": 2, "top_p": 0.9}),
        (129, 5, {"seed": 3, "top_k": 50}),
        (300, 40, {"seed": 4}),
        (401, 20, {"temperature": 0.0, "presence_penalty": 50.0}),
    ):
        name = f"p{length}"
        prompt = rng.integers(0, CONFIG.vocab_size, length).tolist()
        made[name] = request(
            name, prompt, max_tokens=count, logprobs=True, top_logprobs=2, **sampling
        )
    return made


REQUESTS = _requests()


def run(names: list[str], **config: object) -> Recorder:
    """Step by hand; after each step all blocks that nobody holds are filled with NaN, so that one
    read after it was freed, or before it was written, gives no token."""
    engine = Engine.for_model(CONFIG, KERNELS, weights(), EngineConfig(**config))  # type: ignore[arg-type]
    sink = Recorder()
    for name in names:
        engine.submit(REQUESTS[name], sink)
    while engine.has_work:
        engine.step()
        engine.check_integrity()
        poison_free_blocks(engine)
    assert engine.stats().free_full_blocks == engine.plan.num_full_blocks
    return sink


def poison_free_blocks(engine: Engine) -> None:
    blocks = engine._scheduler.blocks
    for layer, sliding in zip(engine._runner._cache.layers, CONFIG.sliding_layers, strict=True):  # type: ignore[attr-defined]
        group = blocks.sliding if sliding else blocks.full
        layer[group.pool._free] = math.nan


def assert_plain(sink: Recorder, name: str) -> None:
    tokens, logprobs = plain(name)
    outputs = sink.outputs[name]
    assert sink.tokens(name) == tokens
    assert sink.end(name).finish_reason is FinishReason.LENGTH
    reported = [value for output in outputs for value in output.logprobs]
    np.testing.assert_allclose(reported, logprobs, atol=1e-3)
    tops = [top for output in outputs for top in output.top_logprobs]
    assert [len(top) for top in tops] == [2] * len(tokens)


@pytest.mark.parametrize("name", REQUESTS)
def test_alone(name: str):
    assert_plain(run([name]), name)


@pytest.mark.parametrize(
    ("max_num_seqs", "budget", "block_size"),
    [(7, 7, 32), (7, 33, 32), (3, 64, 16), (7, 129, 32), (7, 2000, 5), (1, 50, 128)],
)
def test_together_in_any_chunking(max_num_seqs: int, budget: int, block_size: int):
    sink = run(
        list(REQUESTS),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        block_size=block_size,
        cache_tokens=3000,
    )
    for name in REQUESTS:
        assert_plain(sink, name)


def test_the_prompt_in_chunks_of_one():
    sink = run(["p100"], max_num_seqs=1, max_num_batched_tokens=1)
    assert_plain(sink, "p100")


def test_a_penalty_sees_what_was_drawn():
    tokens = run(["p401"]).tokens("p401")
    assert len(set(tokens)) == len(tokens)  # no token twice under so large a penalty


def test_nan_in_one_sequence_stays_there_and_its_blocks_serve_again():
    engine = Engine.for_model(CONFIG, KERNELS, weights(), EngineConfig(max_num_seqs=2))
    sink, later = Recorder(), Recorder()
    engine.submit(REQUESTS["p100"], sink)
    engine.submit(REQUESTS["p127"], sink)
    engine.step()
    tables = engine._scheduler.blocks.full.tables
    for layer in engine._runner._cache.layers[1::2]:  # type: ignore[attr-defined]
        layer[tables["p100"].blocks[:1]] = math.nan
    while engine.has_work:
        engine.step()
    assert sink.end("p100").finish_reason is FinishReason.NAN
    assert len(sink.tokens("p100")) == 1
    assert_plain(sink, "p127")
    for name in ("p100", "p1"):
        engine.submit(REQUESTS[name], later)
    while engine.has_work:
        engine.step()
    for name in ("p100", "p1"):
        assert_plain(later, name)


def test_a_context_filled_to_its_last_token():
    engine = Engine.for_model(CONFIG, KERNELS, weights(), EngineConfig(max_model_len=160))
    sink = Recorder()
    full = request("full", REQUESTS["p100"].prompt_ids, temperature=0.0)
    engine.submit(full, sink)
    while engine.has_work:
        engine.step()
        engine.check_integrity()
    assert len(sink.tokens("full")) == 60
    assert sink.tokens("full")[:50] == plain("p100")[0]
    assert sink.end("full").finish_reason is FinishReason.LENGTH

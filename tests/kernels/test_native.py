"""The native ops against `reference` in float64, over random shapes, with and without a cache; all
instruction sets must give the same bits, which are then compared once.

Without quantisation the two differ by float32's rounding alone. With it they differ by what int8
costs, so those bounds only tell that the ops are wired rightly: that the products themselves are
right, to the bit, is tested in test_native_products.py.
"""

from __future__ import annotations

import math
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.kernels.interface import Dims, Part, part_shapes
from ossia.kernels.mxfp4 import Mxfp4Tensor
from ossia.kernels.reference import ReferenceKernels
from ossia.model.inputs import packed_input
from ossia.model.selftest import Paging, RandomModel
from ossia.model.transformer import Architecture, forward, prepare_weights
from random_models import tiny_config

native = pytest.importorskip("ossia.kernels.native", exc_type=ImportError)

SETS = native.instruction_sets()
EXACT_TOLERANCE = 2e-5
"""Of the range of the values: float32 sums of some hundred terms, in another order."""
INT8_TOLERANCE = 0.04
"""Root mean squares, of the error as a share of what the op adds: the largest of 32 normal numbers
is about 2.4 deviations, so a rounding to 127 steps of that costs 0.55 %, and a value meets up to
four; few values may all be unlucky."""
BFLOAT16_TOLERANCE = 4e-3
"""A number next to the middle between two of bfloat16 may be rounded to either: 2^-8 of it."""

# The same examples in every run: a token whose router scores lie within rounding of one another may
# go to another expert, which no tolerance covers.
fixed = settings(max_examples=25, deadline=None, derandomize=True)


def dims(**changes) -> Dims:
    return tiny_config(**changes).dims()


def tensors(part: Part, of: Dims, *, experts="mxfp4", dtype=ml_dtypes.bfloat16, seed=0):
    """Random tensors of a part. `experts`: mxfp4, dense, or mixed (only gate_up in MXFP4)."""
    rng = np.random.default_rng((seed, list(Part).index(part)))
    found = {}
    for name, shape in part_shapes(part, of).items():
        packed = experts == "mxfp4" or (experts == "mixed" and name == "gate_up")
        if name in ("gate_up", "down") and packed:
            exponent = 127 + round(math.log2(2 / math.sqrt(shape[-1]) / 2.9))
            groups = (*shape[:-1], shape[-1] // 32)
            found[name] = Mxfp4Tensor(
                blocks=rng.integers(0, 256, (*groups, 16), np.uint8),
                scales=rng.integers(exponent - 1, exponent + 2, groups, np.uint8),
            )
            continue
        values = rng.standard_normal(shape)
        if name == "norm":
            values = 1 + 0.3 * values
        elif len(shape) > 1 and not name.endswith("_bias") and part is not Part.EMBEDDING:
            values *= 2 / math.sqrt(shape[-1])
        found[name] = values.astype(dtype)
    return found


def rows(kernels, values_TD):
    """`values_TD` as a handle: the rows of an embedding."""
    table = np.ascontiguousarray(values_TD, np.float32)
    of = dims(vocab_size=len(table), hidden_size=table.shape[1])
    weight = kernels.prepare(Part.EMBEDDING, {"weight": table}, of)
    return kernels.embed(np.arange(len(table), dtype=np.int32), weight)


def on_every_set(run, **settings):
    """`run(kernels)`, the same bits on all of them."""
    found = [
        run(native.NativeKernels(instruction_set=name, num_threads=1, **settings)) for name in SETS
    ]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    return found[0]


def both(op, part, weights, of, values_TD, **settings):
    """`op(kernels, handle, weight)` on native kernels and on `reference` in float64."""

    def run(kernels):
        weight = kernels.prepare(part, weights, of)
        return kernels.to_host(op(kernels, rows(kernels, values_TD), weight))

    return on_every_set(run, **settings), run(ReferenceKernels(dtype=np.float64))


def assert_close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * max(1.0, np.ptp(expected))


def assert_roughly(actual, expected, before, tolerance=INT8_TOLERANCE):
    error, added = (np.sqrt(np.mean(d**2)) for d in (actual - expected, expected - before))
    assert error <= tolerance * added


def activations(rng, tokens, width):
    return (rng.standard_normal((tokens, width)) * rng.uniform(0.3, 3)).astype(np.float32)


# -- Experts and head --------------------------------------------------------------------------


@st.composite
def moe_shapes(draw):
    experts = draw(st.sampled_from(("mxfp4", "dense", "mixed")))
    hidden = draw(st.integers(1, 150))
    intermediate = draw(st.integers(1, 150))
    if experts != "dense":
        hidden = 32 * -(-hidden // 32)
    if experts == "mxfp4":
        intermediate = 32 * -(-intermediate // 32)
    count = draw(st.integers(1, 9))
    per_token = draw(st.integers(1, min(count, 4)))
    tokens = draw(st.one_of(st.integers(1, 20), st.sampled_from((97, 130))))
    dtype = draw(st.sampled_from((np.float32, ml_dtypes.bfloat16)))
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_local_experts": count,
        "num_experts_per_tok": per_token,
    }
    return dims(**sizes), experts, tokens, dtype, draw(st.integers(0, 999))


@fixed
@given(moe_shapes())
def test_moe_in_full_precision(shape):
    of, experts, tokens, dtype, seed = shape
    weights = tensors(Part.MOE, of, experts=experts, dtype=dtype, seed=seed)
    x = activations(np.random.default_rng(seed), tokens, of.hidden_size)
    actual, expected = both(lambda k, x, w: k.moe(x, w), Part.MOE, weights, of, x, exact=True)
    assert_close(actual, expected, EXACT_TOLERANCE)


@fixed
@given(moe_shapes())
def test_moe_in_int8(shape):
    """Every expert is chosen: a rounding of the router's input cannot send a token elsewhere."""
    of, experts, tokens, dtype, seed = shape
    of = replace(of, experts_per_token=of.num_experts)
    weights = tensors(Part.MOE, of, experts=experts, dtype=dtype, seed=seed)
    x = activations(np.random.default_rng(seed), tokens, of.hidden_size)
    actual, expected = both(lambda k, x, w: k.moe(x, w), Part.MOE, weights, of, x)
    assert_roughly(actual, expected, x)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("exact", [True, False])
def test_of_equal_router_logits_the_lowest_index_wins(name, exact):
    """All experts score alike; each adds its own bias and nothing else, so the sum names them."""
    of = dims(hidden_size=64, intermediate_size=32, num_local_experts=6, num_experts_per_tok=3)
    weights = tensors(Part.MOE, of)
    for tensor in ("router", "router_bias", "down_bias"):
        weights[tensor] = np.zeros_like(weights[tensor])
    weights["router_bias"][[1, 4]] = -1
    weights["down"] = replace(weights["down"], blocks=np.zeros_like(weights["down"].blocks))
    weights["down_bias"][...] = (2.0 ** np.arange(6))[:, None]
    kernels = native.NativeKernels(instruction_set=name, num_threads=1, exact=exact)
    weight = kernels.prepare(Part.MOE, weights, of)
    x = activations(np.random.default_rng(0), 5, 64)
    out = kernels.to_host(kernels.moe(rows(kernels, np.zeros_like(x)), weight))
    np.testing.assert_allclose(out, (1 + 4 + 8) / 3, rtol=1e-6)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("exact", [True, False])
def test_gates_and_ups_beyond_the_limit_are_clamped(name, exact):
    """The biases alone: gate ±100 → 7 and −100, up ±100 → ±7."""
    of = dims(hidden_size=32, intermediate_size=32, num_local_experts=1, num_experts_per_tok=1)
    weights = tensors(Part.MOE, of)
    weights["gate_up"] = replace(weights["gate_up"], blocks=np.zeros((1, 64, 1, 16), np.uint8))
    gates, ups = np.meshgrid([100.0, -100.0, 0.5], [100.0, -100.0, 0.25])
    bias = np.zeros((32, 2))
    bias[:9] = np.stack([gates.ravel(), ups.ravel()], axis=1)
    weights["gate_up_bias"] = bias.reshape(1, 64).astype(np.float32)
    weights["down"] = np.eye(32, dtype=np.float32)[None]
    weights["down_bias"] = np.zeros((1, 32), np.float32)
    gate, up = np.minimum(bias[:, 0], 7), np.clip(bias[:, 1], -7, 7)
    expected = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
    kernels = native.NativeKernels(instruction_set=name, num_threads=1, exact=exact)
    weight = kernels.prepare(Part.MOE, weights, of)
    (out,) = kernels.to_host(kernels.moe(rows(kernels, np.zeros((1, 32))), weight))
    # int8: a 127th of the largest, 7 · 8, once for the activation and once for the identity.
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6 if exact else 56 / 127)


@fixed
@given(
    st.integers(1, 300),
    st.integers(1, 150),
    st.integers(1, 20),
    st.sampled_from((np.float32, ml_dtypes.bfloat16)),
    st.integers(0, 999),
)
def test_logits(vocab, hidden, tokens, dtype, seed):
    of = dims(vocab_size=vocab, hidden_size=hidden)
    weights = tensors(Part.HEAD, of, dtype=dtype, seed=seed)
    rng = np.random.default_rng(seed)
    x = activations(rng, tokens, hidden)
    picked = rng.integers(0, tokens, rng.integers(1, 8)).astype(np.int32)

    def op(k, x, w):
        return k.logits(x, w, picked)

    assert_close(*both(op, Part.HEAD, weights, of, x, exact=True), EXACT_TOLERANCE)
    actual, expected = both(op, Part.HEAD, weights, of, x)
    # `tensors` makes weights that give logits of a deviation of about 2, whatever the width.
    assert np.sqrt(np.mean((actual - expected) ** 2)) <= INT8_TOLERANCE * 2


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_the_embedding_is_taken_as_it_is(name, dtype):
    """Any row, any width: bfloat16 widened, nothing rounded."""
    kernels = native.NativeKernels(instruction_set=name, num_threads=1)
    for hidden in (1, 15, 16, 17, 33, 100):
        of = dims(vocab_size=37, hidden_size=hidden)
        (table,) = tensors(Part.EMBEDDING, of, dtype=dtype).values()
        weight = kernels.prepare(Part.EMBEDDING, {"weight": table}, of)
        ids = np.array([36, 0, 5, 5], np.int32)
        out = kernels.to_host(kernels.embed(ids, weight))
        np.testing.assert_array_equal(out, table[ids].astype(np.float32))


# -- Attention ---------------------------------------------------------------------------------


@st.composite
def attention_shapes(draw):
    kv_heads = draw(st.integers(1, 3))
    group = draw(st.one_of(st.integers(1, 9), st.just(17)))
    head_dim = draw(st.sampled_from((32, 64, 64, 96, 128)))
    window = draw(st.sampled_from((None, 1, 2, 31, 32, 33, 50, 128)))
    of = dims(
        hidden_size=draw(st.integers(3, 70)),
        num_attention_heads=kv_heads * group,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
    )
    lengths = draw(st.lists(st.integers(1, 75), min_size=1, max_size=3))
    chunk = draw(st.sampled_from((None, 1, 7, 32, 33)))  # None: without a cache
    return of, window, lengths, chunk, draw(st.integers(0, 999))


def attention_block(kernels, of, window, lengths, chunk, x, weights):
    """norm to residual of whole sequences, at once without a cache or `chunk` tokens at a time."""
    architecture = Architecture.of(
        tiny_config(
            num_hidden_layers=1,
            sliding_layers=(window is not None,),
            sliding_window=window or 128,
            num_attention_heads=of.num_heads,
            num_key_value_heads=of.num_kv_heads,
            head_dim=of.head_dim,
        )
    )
    weight = kernels.prepare(Part.ATTENTION, weights, of)
    paging = Paging(architecture, lengths)
    cache = None if chunk is None else kernels.allocate_cache(paging.spec)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    out = np.zeros_like(x, np.float64)
    for begin in range(0, max(lengths), chunk or max(lengths)):
        chunks = {
            s: (begin, [0] * min(chunk or n, n - begin)) for s, n in enumerate(lengths) if n > begin
        }
        own = np.concatenate(
            [starts[s] + begin + np.arange(len(ids)) for s, (_, ids) in chunks.items()]
        )
        inputs = paging.inputs(chunks)
        index = inputs.full if window is None else inputs.sliding
        step = {"positions_T": inputs.positions_T, "cache": cache, "layer": 0, "index": index}
        handle = rows(kernels, x[own])
        qkv = kernels.attn_in(handle, weight, rope=architecture.rope, **step)
        attended = kernels.attention(
            qkv, weight, cu_seqlens_S1=inputs.cu_seqlens_S1, window=window, **step
        )
        out[own] = kernels.to_host(kernels.attn_out(handle, attended, weight))
    return out


@fixed
@given(attention_shapes())
def test_attention_in_full_precision(shape):
    of, window, lengths, chunk, seed = shape
    weights = tensors(Part.ATTENTION, of, dtype=np.float32, seed=seed)
    x = activations(np.random.default_rng(seed), sum(lengths), of.hidden_size)

    def run(kernels):
        return attention_block(kernels, of, window, lengths, chunk, x, weights)

    actual, expected = on_every_set(run, exact=True), run(ReferenceKernels(dtype=np.float64))
    assert_close(actual, expected, EXACT_TOLERANCE)


@settings(fixed, max_examples=10)
@given(attention_shapes())
def test_attention_with_a_bfloat16_cache(shape):
    """Dense tensors as they are, so that nothing but the cache is rounded."""
    of, window, lengths, chunk, seed = shape
    weights = tensors(Part.ATTENTION, of, dtype=np.float32, seed=seed)
    x = activations(np.random.default_rng(seed), sum(lengths), of.hidden_size)
    # `reference` rounds nothing without a cache.
    plain = ReferenceKernels(dtype=np.float64, cache_dtype=ml_dtypes.bfloat16)
    expected = attention_block(plain, of, window, lengths, chunk or 1000, x, weights)
    actual = on_every_set(
        lambda k: attention_block(k, of, window, lengths, chunk, x, weights), dense_dtype="bf16"
    )
    assert_close(actual, expected, BFLOAT16_TOLERANCE)


@settings(fixed, max_examples=10)
@given(attention_shapes())
def test_attention_in_int8(shape):
    of, window, lengths, chunk, seed = shape
    of = replace(of, hidden_size=of.hidden_size + 25)  # enough values for a mean
    # Calm scores: softmax would amplify roundings beyond any general bound.
    weights = tensors(Part.ATTENTION, of, seed=seed)
    for tensor in ("q", "q_bias"):
        weights[tensor] = (weights[tensor].astype(np.float32) / 8).astype(ml_dtypes.bfloat16)
    x = activations(np.random.default_rng(seed), sum(lengths), of.hidden_size)

    def run(kernels):
        return attention_block(kernels, of, window, lengths, chunk, x, weights)

    actual, expected = on_every_set(run), run(ReferenceKernels(dtype=np.float64))
    assert_roughly(actual, expected, x)


@pytest.mark.parametrize(("heads", "head_dim"), [(64, 32), (2, 256), (1, 160)])
def test_the_largest_groups_and_heads(heads, head_dim):
    of = dims(num_attention_heads=heads, num_key_value_heads=1, head_dim=head_dim, hidden_size=64)
    weights = tensors(Part.ATTENTION, of, dtype=np.float32)
    x = activations(np.random.default_rng(1), 70, 64)
    for window, chunk in ((None, None), (40, 33)):

        def run(kernels, window=window, chunk=chunk):
            return attention_block(kernels, of, window, [70], chunk, x, weights)

        actual = on_every_set(run, exact=True)
        assert_close(actual, run(ReferenceKernels(dtype=np.float64)), EXACT_TOLERANCE)


# -- The whole model ---------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["part", "dense_part"])
def test_the_whole_model(source):
    """MXFP4 experts as published, and bfloat16 experts, which a fine-tuned checkpoint has."""
    model = RandomModel(tiny_config(num_hidden_layers=2), seed=4)
    architecture = Architecture.of(model.config)
    inputs = packed_input([np.random.default_rng(n).integers(0, 301, n) for n in (140, 33)])
    taken = []

    def logits(kernels):
        weights = prepare_weights(architecture, kernels, getattr(model, source))
        values = kernels.to_host(forward(architecture, kernels, weights, inputs))
        if kernels.name == "native":
            counts = kernels.counts()
            taken.append({path for path in counts if counts[path] and path != "experts"})
        return values

    expected = logits(ReferenceKernels(dtype=np.float64))
    assert_close(on_every_set(logits, exact=True), expected, EXACT_TOLERANCE)
    experts = "mxfp4_exact" if source == "part" else "bf16_exact"
    router = {"bf16_exact", "attention_whole"}  # and attention, which are never quantised
    assert taken == [{experts} | router] * len(SETS)
    taken.clear()
    on_every_set(logits)
    experts = {"mxfp4_rows", "mxfp4_panels"} if source == "part" else set()
    assert taken == [{"q8_tile"} | router | experts] * len(SETS)


def test_transposed_experts_of_a_published_layout():
    """Hugging Face keeps bfloat16 experts as [E, in, out]: what comes are transposed views."""
    model = RandomModel(tiny_config(num_hidden_layers=1), seed=5)

    def transposed(part, layer):
        found = model.dense_part(part, layer)
        for tensor in ("gate_up", "down") if part is Part.MOE else ():
            stored = np.ascontiguousarray(found[tensor].transpose(0, 2, 1))
            found[tensor] = stored.transpose(0, 2, 1)
            assert not found[tensor].flags.c_contiguous
        return found

    architecture = Architecture.of(model.config)
    inputs = packed_input([list(range(40))])

    def logits(kernels, source):
        weights = prepare_weights(architecture, kernels, source)
        return kernels.to_host(forward(architecture, kernels, weights, inputs))

    for exact in (True, False):
        expected = on_every_set(lambda k: logits(k, model.dense_part), exact=exact)
        actual = on_every_set(lambda k: logits(k, transposed), exact=exact)
        np.testing.assert_array_equal(actual, expected)

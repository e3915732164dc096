"""The reference ops one by one against their definitions, spelled out with loops in float64; and
what they do at their edges: shapes refused, tensors converted late, blocks never read.
"""

from __future__ import annotations

import math
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.errors import KernelError
from ossia.kernels import reference
from ossia.kernels.interface import NO_BLOCK, CacheSpec, Dims, PagedIndex, Part, Rope
from ossia.kernels.mxfp4 import Mxfp4Tensor
from ossia.kernels.reference import ReferenceKernels
from ossia.model.inputs import packed_input
from ossia.model.selftest import RandomModel
from ossia.model.transformer import Architecture, forward, prepare_weights
from random_models import tiny_config

NO_ROTATION = Rope(inv_freq=(0.0,) * 4, concentration=1.0)


def dims(**changes) -> Dims:
    sizes = {
        "hidden_size": 12,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "num_experts": 5,
        "experts_per_token": 2,
        "intermediate_size": 6,
        "vocab_size": 11,
        "rms_norm_eps": 1e-5,
        "swiglu_limit": 7.0,
        "swiglu_alpha": 1.702,
    }
    return Dims(**(sizes | changes))


def tensors(part, of: Dims, seed=0):
    from ossia.kernels.interface import part_shapes

    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in part_shapes(part, of).items()
    }


def attend_by_definition(q_THd, k_TKd, v_TKd, sinks_H, window):
    T, H, d = q_THd.shape
    out = np.zeros((T, H, d))
    for t in range(T):
        for h in range(H):
            kv = h // (H // k_TKd.shape[1])
            seen = [p for p in range(t + 1) if window is None or p > t - window]
            scores = [float(q_THd[t, h] @ k_TKd[p, kv]) / math.sqrt(d) for p in seen]
            total = math.fsum(map(math.exp, [*scores, sinks_H[h]]))
            for p, score in zip(seen, scores, strict=True):
                out[t, h] += math.exp(score) / total * v_TKd[p, kv]
    return out.reshape(T, H * d)


# -- Attention --------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 23), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([None, 1, 2, 5, 64]),
    st.integers(1, 9),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_attention_equals_its_definition(lengths, K, group, window, block_size, cached, seed):
    """Whole sequences, through the cache or not; blocks outside the window are poisoned."""
    rng = np.random.default_rng(seed)
    kernels = ReferenceKernels(dtype=np.float64)
    of = dims(num_heads=K * group, num_kv_heads=K, head_dim=8)
    weight = kernels.prepare(Part.ATTENTION, tensors(Part.ATTENTION, of, seed), of)
    inputs = packed_input([[0] * n for n in lengths])
    x = rng.standard_normal((sum(lengths), of.hidden_size))

    step, cache, index = {}, None, None
    if cached:
        per_sequence = [-(-n // block_size) for n in lengths]
        order = rng.permutation(sum(per_sequence)).astype(np.int32)
        tables = np.full((len(lengths), max(per_sequence)), NO_BLOCK, np.int32)
        for row, own in enumerate(np.split(order, np.cumsum(per_sequence)[:-1])):
            tables[row, : len(own)] = own
        rows = np.repeat(np.arange(len(lengths)), lengths)
        blocks = tables[rows, inputs.positions_T // block_size]
        slots = blocks * block_size + inputs.positions_T % block_size
        index = PagedIndex(slots.astype(np.int32), tables)
        spec = CacheSpec((window is not None,), len(order), len(order), K, 8, block_size)
        cache = kernels.allocate_cache(spec)
        cache.layers[0][...] = np.nan  # what was never stored must not be read
    step = {"positions_T": inputs.positions_T, "cache": cache, "layer": 0, "index": index}
    qkv = kernels.attn_in(x, weight, rope=NO_ROTATION, **step)
    actual = kernels.attention(
        qkv, weight, cu_seqlens_S1=inputs.cu_seqlens_S1, window=window, **step
    )

    stored = np.float32 if cached else np.float64
    k_TKd, v_TKd = (a.astype(stored).astype(np.float64) for a in (qkv.k_TKd, qkv.v_TKd))
    for start, end in zip(inputs.cu_seqlens_S1, inputs.cu_seqlens_S1[1:], strict=False):
        own = slice(start, end)
        expected = attend_by_definition(
            qkv.q_THd[own], k_TKd[own], v_TKd[own], weight.sinks_H, window
        )
        np.testing.assert_allclose(actual[own], expected, rtol=1e-9, atol=1e-12)


def test_decoding_reads_only_the_blocks_of_the_window():
    """Position 9, window 4: positions 6 to 9, which lie in blocks 3 and 4 of two tokens each."""
    kernels, of = ReferenceKernels(), dims()
    weight = kernels.prepare(Part.ATTENTION, tensors(Part.ATTENTION, of), of)
    cache = kernels.allocate_cache(CacheSpec((True,), 0, 8, 2, 8, block_size=2))
    cache.layers[0][...] = np.nan
    cache.layers[0][[5, 1]] = 0.5

    def decode(table):
        index = PagedIndex(np.array([1 * 2 + 1], np.int32), np.array([table], np.int32))
        step = {
            "positions_T": np.array([9], np.int32),
            "cache": cache,
            "layer": 0,
            "index": index,
        }
        x = np.ones((1, 12), np.float32)
        qkv = kernels.attn_in(x, weight, rope=NO_ROTATION, **step)
        cu_seqlens = np.array([0, 1], np.int32)
        return kernels.attention(qkv, weight, cu_seqlens_S1=cu_seqlens, window=4, **step)

    assert np.isfinite(decode([NO_BLOCK, NO_BLOCK, NO_BLOCK, 5, 1])).all()
    assert np.isfinite(decode([0, 2, 3, 5, 1])).all()  # others are there, but not read
    with pytest.raises(AssertionError, match="freed"):
        decode([0, 2, 3, NO_BLOCK, 1])
    with pytest.raises(AssertionError, match="too short"):
        decode([0, 2, 3, 5])


def test_tiles_of_queries_change_nothing(monkeypatch):
    kernels, of = ReferenceKernels(), dims()
    weight = kernels.prepare(Part.ATTENTION, tensors(Part.ATTENTION, of), of)
    inputs = packed_input([[0] * 50, [0] * 7])
    x = np.random.default_rng(0).standard_normal((57, 12)).astype(np.float32)
    step = {"positions_T": inputs.positions_T, "cache": None, "layer": 0, "index": None}
    qkv = kernels.attn_in(x, weight, rope=NO_ROTATION, **step)

    def attended(window):
        return kernels.attention(
            qkv, weight, cu_seqlens_S1=inputs.cu_seqlens_S1, window=window, **step
        )

    whole = [attended(window) for window in (None, 9)]
    monkeypatch.setattr(reference, "_SCORES_PER_TILE", 4 * 50 * 3)  # three queries a tile
    tiled = [attended(window) for window in (None, 9)]
    np.testing.assert_allclose(tiled, whole, rtol=1e-5, atol=1e-6)


def test_rope_turns_halves_by_position():
    kernels, of = ReferenceKernels(dtype=np.float64), dims(num_heads=1, num_kv_heads=1)
    weight = kernels.prepare(Part.ATTENTION, tensors(Part.ATTENTION, of), of)
    x = np.random.default_rng(0).standard_normal((2, 12))
    rope = Rope(inv_freq=(1.0, 0.5, 0.25, 0.125), concentration=1.5)
    step = {"cache": None, "layer": 0, "index": None}
    positions = np.array([3, 70000], np.int32)  # the second beyond the table made at first
    plain = kernels.attn_in(x, weight, positions_T=positions, rope=NO_ROTATION, **step)
    turned = kernels.attn_in(x, weight, positions_T=positions, rope=rope, **step)
    for before, after in [(plain.q_THd, turned.q_THd), (plain.k_TKd, turned.k_TKd)]:
        for row, position in enumerate(positions):
            for j, frequency in enumerate(rope.inv_freq):
                angle = position * frequency
                pair = complex(before[row, 0, j], before[row, 0, j + 4])
                pair *= 1.5 * complex(math.cos(angle), math.sin(angle))
                assert after[row, 0, j] == pytest.approx(pair.real)
                assert after[row, 0, j + 4] == pytest.approx(pair.imag)
    np.testing.assert_array_equal(plain.v_TKd, turned.v_TKd)


# -- Experts ----------------------------------------------------------------------------------


def experts_by_definition(x_TD, t, of: Dims):
    out = x_TD.astype(np.float64)
    for row, x in enumerate(x_TD.astype(np.float64)):
        n = x / math.sqrt((x @ x) / len(x) + of.rms_norm_eps) * t["norm"]
        logits = t["router"] @ n + t["router_bias"]
        chosen = sorted(range(len(logits)), key=lambda e: (-logits[e], e))[: of.experts_per_token]
        shares = np.exp(logits[chosen] - logits[chosen].max())
        shares /= shares.sum()
        for share, e in zip(shares, chosen, strict=True):
            h = t["gate_up"][e] @ n + t["gate_up_bias"][e]
            act = []
            for gate, up in h.reshape(-1, 2):
                gate = min(gate, of.swiglu_limit)
                up = max(min(up, of.swiglu_limit), -of.swiglu_limit)
                act.append(gate / (1 + math.exp(-of.swiglu_alpha * gate)) * (up + 1))
            out[row] += share * (t["down"][e] @ act + t["down_bias"][e])
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 20),
    st.integers(1, 7),
    st.integers(1, 7),
    st.sampled_from([0.5, 7.0]),
    st.integers(0, 2**32),
)
def test_experts_equal_their_definition(T, E, per_token, limit, seed):
    of = dims(num_experts=E, experts_per_token=min(per_token, E), swiglu_limit=limit)
    values = tensors(Part.MOE, of, seed)
    kernels = ReferenceKernels(dtype=np.float64)
    x_TD = np.random.default_rng(seed).standard_normal((T, of.hidden_size))
    actual = kernels.moe(x_TD, kernels.prepare(Part.MOE, values, of))
    np.testing.assert_allclose(actual, experts_by_definition(x_TD, values, of), rtol=1e-9)


def test_equal_router_logits_choose_the_lowest_experts():
    of = dims(num_experts=40, experts_per_token=3)
    values = tensors(Part.MOE, of) | {
        "router": np.zeros((40, 12), np.float32),
        "router_bias": np.zeros(40, np.float32),
    }
    kernels = ReferenceKernels(dtype=np.float64)
    x_TD = np.random.default_rng(0).standard_normal((2, 12))
    actual = kernels.moe(x_TD, kernels.prepare(Part.MOE, values, of))
    # Experts 3 and above must not matter.
    for name in ("gate_up", "down", "down_bias"):
        values[name][3:] = 0
    again = kernels.moe(x_TD, kernels.prepare(Part.MOE, values, of))
    np.testing.assert_array_equal(actual, again)
    assert np.abs(actual - x_TD).max() > 0.1


def test_far_negative_gates_give_zero_quietly():
    """exp overflows there; warnings are errors in this suite."""
    gate = np.array([[-1e4, 3.0, -60.0, -2.0]], np.float32)
    kernels, of = ReferenceKernels(), dims(intermediate_size=2)
    values = tensors(Part.MOE, of)
    values["gate_up"] *= 0
    values["gate_up_bias"][:] = gate
    kernels.moe(np.ones((1, 12), np.float32), kernels.prepare(Part.MOE, values, of))


# -- Small ops --------------------------------------------------------------------------------


def test_embedding_rows_and_selected_logits():
    kernels, of = ReferenceKernels(), dims()
    table = tensors(Part.EMBEDDING, of)["weight"].astype(ml_dtypes.bfloat16)
    embedded = kernels.embed(
        np.array([10, 0, 10], np.int32), kernels.prepare(Part.EMBEDDING, {"weight": table}, of)
    )
    assert embedded.dtype == np.float32
    np.testing.assert_array_equal(embedded, table[[10, 0, 10]].astype(np.float32))

    head = tensors(Part.HEAD, of)
    x = np.random.default_rng(1).standard_normal((4, 12)).astype(np.float32)
    weight = kernels.prepare(Part.HEAD, head, of)
    logits = kernels.logits(x, weight, np.array([3, 1], np.int32))
    for row, at in enumerate((3, 1)):
        n = x[at] / np.sqrt((x[at].astype(np.float64) ** 2).mean() + 1e-5) * head["norm"]
        np.testing.assert_allclose(logits[row], head["weight"] @ n, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ids", [[-1], [0, 11]])
def test_token_ids_outside_the_vocabulary_are_refused(ids):
    kernels, of = ReferenceKernels(), dims()
    weight = kernels.prepare(Part.EMBEDDING, tensors(Part.EMBEDDING, of), of)
    with pytest.raises(KernelError, match=r"\[embed\] expected token ids from 0 to 10, got"):
        kernels.embed(np.array(ids, np.int32), weight)


def test_tensors_that_do_not_fit_are_refused():
    kernels, of = ReferenceKernels(), dims()
    values = tensors(Part.ATTENTION, of)
    missing = {name: value for name, value in values.items() if name != "sinks"}
    with pytest.raises(KernelError, match=r"\[prepare\] attention expected a tensor sinks"):
        kernels.prepare(Part.ATTENTION, missing, of)
    with pytest.raises(
        KernelError, match=r"expected attention.o of shape \[12, 32\], got \[32, 12\]"
    ):
        kernels.prepare(Part.ATTENTION, values | {"o": values["o"].T}, of)
    packed = Mxfp4Tensor(np.zeros((12, 1, 16), np.uint8), np.zeros((12, 1), np.uint8))
    with pytest.raises(KernelError, match=r"expected attention.o as an array, got MXFP4"):
        kernels.prepare(Part.ATTENTION, values | {"o": packed}, of)


def test_ops_refuse_other_shapes():
    kernels, of = ReferenceKernels(), dims()
    attention = kernels.prepare(Part.ATTENTION, tensors(Part.ATTENTION, of), of)
    moe = kernels.prepare(Part.MOE, tensors(Part.MOE, of), of)
    head = kernels.prepare(Part.HEAD, tensors(Part.HEAD, of), of)
    x = np.zeros((3, 12), np.float32)
    step = {"cache": None, "layer": 0, "index": None}
    with pytest.raises(
        KernelError, match=r"\[attn_in\] expected x of shape \[2, 12\], got \[3, 12"
    ):
        kernels.attn_in(x, attention, positions_T=np.arange(2), rope=NO_ROTATION, **step)
    positions_T = np.arange(3, dtype=np.int32)
    qkv = kernels.attn_in(x, attention, positions_T=positions_T, rope=NO_ROTATION, **step)
    with pytest.raises(KernelError, match=r"\[attention\] expected cu_seqlens from 0 to 3, got"):
        kernels.attention(
            qkv,
            attention,
            positions_T=positions_T,
            cu_seqlens_S1=np.array([0, 2]),
            window=None,
            **step,
        )
    with pytest.raises(KernelError, match=r"\[attn_out\] expected attended of shape \[3, 32\]"):
        kernels.attn_out(x, x, attention)
    with pytest.raises(KernelError, match=r"\[moe\] expected x of shape \[3, 12\], got \[3, 11\]"):
        kernels.moe(x[:, :11], moe)
    with pytest.raises(KernelError, match=r"\[logits\] expected rows from 0 to 2, got 3"):
        kernels.logits(x, head, np.array([3]))


def test_only_float32_and_float64_are_computed_in():
    with pytest.raises(KernelError, match="float32 or float64, not in float16"):
        ReferenceKernels(dtype=np.float16)


# -- Memory and precision ---------------------------------------------------------------------


def logits_of(kernels, model, source, length=150):
    architecture = Architecture.of(model.config)
    weights = prepare_weights(architecture, kernels, source)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, length).tolist()
    return kernels.to_host(forward(architecture, kernels, weights, packed_input([ids])))


def test_tensors_converted_in_use_give_the_same(monkeypatch):
    model = RandomModel(tiny_config(num_hidden_layers=2))
    early = logits_of(ReferenceKernels(), model, model.part)
    monkeypatch.setattr(reference, "CONVERT_ONCE_BYTES", 4096)  # norms and biases only
    monkeypatch.setattr(reference, "_CONVERT_CHUNK_BYTES", 10 * 64 * 4)  # ten rows of 64
    for source in (model.part, model.dense_part):
        late = logits_of(ReferenceKernels(), model, source)
        np.testing.assert_allclose(late, early, rtol=0, atol=1e-5 * np.ptp(early))


def test_large_experts_stay_where_they_are(monkeypatch):
    monkeypatch.setattr(reference, "CONVERT_ONCE_BYTES", 4096)
    model = RandomModel(tiny_config())
    values = model.part(Part.MOE, 0)
    weight = ReferenceKernels().prepare(Part.MOE, values, model.config.dims())
    assert weight.gate_up is values["gate_up"]
    assert weight.down is values["down"]


def test_float64_refines_float32():
    model = RandomModel(tiny_config(num_hidden_layers=2))
    single = logits_of(ReferenceKernels(), model, model.part)
    double = logits_of(ReferenceKernels(dtype=np.float64), model, model.part)
    assert 0 < np.abs(single - double).max() < 1e-5 * np.ptp(double)


def test_a_bfloat16_cache_rounds_keys_and_values_and_nothing_else():
    """Also those of the current token: it reads itself back from the cache."""
    of = dims()
    values = tensors(Part.ATTENTION, of)
    x = np.random.default_rng(0).standard_normal((6, 12)).astype(np.float32)
    kernels = ReferenceKernels(cache_dtype=ml_dtypes.bfloat16)
    assert kernels.cache_itemsize == 2
    weight = kernels.prepare(Part.ATTENTION, values, of)
    cache = kernels.allocate_cache(CacheSpec((False,), 1, 0, 2, 8, block_size=8))
    positions_T = np.arange(6, dtype=np.int32)
    step = {
        "positions_T": positions_T,
        "cache": cache,
        "layer": 0,
        "index": PagedIndex(positions_T, np.zeros((1, 1), np.int32)),
    }
    cu_seqlens = np.array([0, 6])
    qkv = kernels.attn_in(x, weight, rope=NO_ROTATION, **step)
    actual = kernels.attention(qkv, weight, cu_seqlens_S1=cu_seqlens, window=None, **step)

    rounded = replace(
        qkv,
        k_TKd=qkv.k_TKd.astype(ml_dtypes.bfloat16).astype(np.float32),
        v_TKd=qkv.v_TKd.astype(ml_dtypes.bfloat16).astype(np.float32),
    )
    step |= {"cache": None, "index": None}
    expected = kernels.attention(rounded, weight, cu_seqlens_S1=cu_seqlens, window=None, **step)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(qkv.k_TKd - rounded.k_TKd).max() > 1e-4


def test_a_diverged_model_warns_of_nothing_and_draws_nothing():
    model = RandomModel(tiny_config(num_hidden_layers=2))

    def diverged(part, layer):
        values = model.part(part, layer)
        if part is Part.ATTENTION:
            values["q"] = np.full_like(values["q"], np.inf)
        return values

    assert np.isnan(logits_of(ReferenceKernels(), model, diverged, length=5)).all()

"""What the native kernels do at their limits: wrong arguments, numbers that are not finite, handles
dropped, kept and mixed up, several threads, a fork.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("ossia.kernels._native")

from native_runs import Prepared, in_chunks, random_documents, small_model
from ossia.errors import KernelError, UsageError
from ossia.kernels.cores import usable_cores
from ossia.kernels.interface import NO_BLOCK, PagedIndex, Part, Rope, part_shapes
from ossia.kernels.mxfp4 import Mxfp4Tensor
from ossia.kernels.native import NativeKernels, instruction_sets
from ossia.model.inputs import packed_input
from ossia.model.selftest import Paging
from ossia.model.transformer import forward, prepare_weights

SETS = instruction_sets()
MODEL = small_model()
DIMS = MODEL.config.dims()
DOCUMENTS = random_documents(MODEL, (40, 23))
CORES = usable_cores()


@pytest.fixture(scope="module")
def prepared():
    return Prepared.of(MODEL)


def int32(*values):
    return np.array(values, np.int32)


def same_bits(actual, expected):
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


# -- Wrong arguments: KernelError in one sentence ----------------------------------------------


def test_settings_that_this_machine_cannot_have():
    with pytest.raises(UsageError, match=r"instruction sets auto, .*; got 'sse2'"):
        NativeKernels(instruction_set="sse2")
    with pytest.raises(UsageError, match="int8 or bf16; got 'fp8'"):
        NativeKernels(dense_dtype="fp8")
    with pytest.raises(UsageError, match="True or False; got 'no'"):
        NativeKernels(exact="no")
    for threads in (0, -1, CORES + 1, 10**9, 10**30, True, False, 1.5, float("nan"), "1"):
        with pytest.raises(UsageError, match=rf"whole number from 1 to {CORES}.*got {threads!r}"):
            NativeKernels(num_threads=threads)
    assert NativeKernels().num_threads == CORES
    assert NativeKernels().instruction_set == SETS[-1]


def change(name, to):
    """`MODEL`'s tensors of a part, one of them changed."""

    def changed(part):
        tensors = MODEL.part(part, 0)
        tensors[name] = to(tensors[name])
        return tensors

    return changed


WRONG_TENSORS = {
    "missing": (Part.ATTENTION, lambda part: {}, "expected a tensor norm"),
    "narrow": (Part.HEAD, change("weight", lambda a: a[:, 1:]), r"weight of shape \[83, 96\], got"),
    "short bias": (Part.MOE, change("router_bias", lambda a: a[1:]), "router_bias"),
    "no matrix": (Part.ATTENTION, change("q", lambda a: a.ravel()), "q of shape"),
    "float64": (Part.ATTENTION, change("q", lambda a: a.astype(np.float64)), "q in .*got float64"),
    "float16": (Part.HEAD, change("norm", lambda a: a.astype(np.float16)), "norm .*got float16"),
    "integers": (Part.EMBEDDING, change("weight", lambda a: a.astype(np.int32)), "got int32"),
    "float64 experts": (Part.MOE, change("down", lambda a: np.zeros(a.shape)), "got float64"),
    "MXFP4 where no expert is": (
        Part.MOE,
        change(
            "router",
            lambda a: Mxfp4Tensor(np.zeros((5, 3, 16), np.uint8), np.zeros((5, 3), np.uint8)),
        ),
        "router as an array, got MXFP4",
    ),
}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_wrong_tensors_are_refused(case, exact):
    part, tensors, message = WRONG_TENSORS[case]
    kernels = NativeKernels(num_threads=1, exact=exact)
    with pytest.raises(KernelError, match=message) as caught:
        kernels.prepare(part, tensors(part), DIMS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 48, "num_heads": 4},
        {"head_dim": 24, "num_heads": 8},
        {"head_dim": 384, "num_heads": 2, "num_kv_heads": 1},
        {"num_kv_heads": 0},
        {"num_heads": 5},
        {"num_heads": 65, "num_kv_heads": 1},
    ],
    ids=str,
)
def test_heads_that_no_kernel_takes_are_refused(changes):
    of = replace(DIMS, **changes)
    tensors = {n: np.ones(s, np.float32) for n, s in part_shapes(Part.ATTENTION, of).items()}
    with pytest.raises(KernelError, match=r"\[attention\] expected heads of 32, 64"):
        NativeKernels(num_threads=1).prepare(Part.ATTENTION, tensors, of)


def test_more_experts_per_token_than_there_are():
    of = replace(DIMS, experts_per_token=6)
    with pytest.raises(KernelError, match=r"\[moe\] expected no more experts per token"):
        NativeKernels(num_threads=1).prepare(Part.MOE, MODEL.part(Part.MOE, 0), of)


@pytest.mark.parametrize("exact", [True, False])
def test_damaged_scales_of_an_expert(exact):
    """Scale bytes beyond 2^63 are no weights; found when the expert is first used."""
    tensors = MODEL.part(Part.MOE, 0)
    for name in ("gate_up", "down"):
        tensors[name] = replace(tensors[name], scales=tensors[name].scales.copy())
        tensors[name].scales[..., 1] = 255
    prepared = Prepared.of(MODEL, exact=exact)
    kernels = prepared.kernels
    weight = kernels.prepare(Part.MOE, tensors, DIMS)
    for _ in range(2):  # not only the first time
        handle = kernels.moe(kernels.embed(int32(1, 2), prepared.weights.embedding), weight)
        with pytest.raises(KernelError, match=r"\[moe\] expected MXFP4 scale bytes up to 190"):
            kernels.to_host(handle)
    expected = Prepared.of(MODEL, exact=exact).uncached(DOCUMENTS[:1])
    same_bits(prepared.uncached(DOCUMENTS[:1])[0], expected[0])  # the kernels are still good


def test_wrong_ids_and_rows(prepared):
    kernels, embedding = prepared.kernels, prepared.weights.embedding
    for ids in (int32(0, 83), int32(-1)):
        with pytest.raises(KernelError, match=r"\[embed\] expected token ids from 0 to 82, got"):
            kernels.embed(ids, embedding)
    for ids in (np.array([1, 2]), [1, 2], int32(1, 2)[None], int32(1, 2, 3, 4)[::2], None):
        with pytest.raises(KernelError, match=r"\[embed\] expected") as caught:
            kernels.embed(ids, embedding)
        assert "\n" not in str(caught.value)
    x = kernels.embed(int32(1, 2), embedding)
    for rows in (int32(2), int32(-1)):
        with pytest.raises(KernelError, match=r"\[logits\] expected rows from 0 to 1, got"):
            kernels.logits(x, prepared.weights.head, rows)
    for weight in (prepared.weights.embedding, prepared.weights.layers[0].moe):
        with pytest.raises(KernelError, match=r"\[logits\]"):
            kernels.logits(x, weight, int32(0))


def attention_inputs(prepared, lengths=(4, 3)):
    paging = Paging(prepared.architecture, [*lengths])
    cache = prepared.kernels.allocate_cache(paging.spec)
    inputs = paging.inputs({s: (0, [1] * n) for s, n in enumerate(lengths)})
    x = prepared.kernels.embed(inputs.ids_T, prepared.weights.embedding)
    step = {
        "positions_T": inputs.positions_T,
        "cache": cache,
        "layer": 1,
        "index": inputs.full,
    }
    return x, step, inputs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 2}, "a layer of the cache, 0 to 1, got 2"),
        ({"layer": -1}, "a layer of the cache, 0 to 1, got -1"),
        ({"index": None}, "expected slots and block tables with a cache"),
        ({"positions_T": int32(0, 1, 2)}, "expected"),
        ({"positions_T": int32(0, 1, 2, 3, 0, 1, -2)}, "expected positions from 0 on"),
        ({"positions_T": np.arange(7)}, "expected"),
        ({"rope": Rope((1.0,), 1.0)}, r"cos of shape \[4096, 16\], got \[4096, 1\]"),
    ],
    ids=str,
)
def test_wrong_arguments_of_attn_in(prepared, changes, message):
    x, step, _ = attention_inputs(prepared)
    step = {"rope": prepared.architecture.rope} | step | changes
    with pytest.raises(KernelError, match=message) as caught:
        prepared.kernels.attn_in(x, prepared.weights.layers[0].attention, **step)
    assert "\n" not in str(caught.value)


def with_slots(index, slots):
    return PagedIndex(slots, index.block_tables_SB)


@pytest.mark.parametrize("wrong", ["beyond", "negative", "few", "int64"])
def test_wrong_slots(prepared, wrong):
    x, step, inputs = attention_inputs(prepared)
    slots = inputs.full.slot_mapping_T.copy()
    if wrong == "beyond":
        slots[3] = 10**6
    if wrong == "negative":
        slots[3] = -1
    slots = {"few": slots[1:], "int64": slots.astype(np.int64)}.get(wrong, slots)
    step["index"] = with_slots(inputs.full, slots)
    with pytest.raises(KernelError, match=r"\[attn_in\] expected"):
        prepared.kernels.attn_in(
            x, prepared.weights.layers[0].attention, rope=prepared.architecture.rope, **step
        )


@pytest.mark.parametrize("wrong", ["freed", "beyond", "short", "missing row", "lengths", "order"])
def test_wrong_tables_and_lengths(prepared, wrong):
    x, step, inputs = attention_inputs(prepared)
    weight = prepared.weights.layers[0].attention
    tables, cu_seqlens = inputs.full.block_tables_SB.copy(), inputs.cu_seqlens_S1
    if wrong == "freed":
        tables[1, 0] = NO_BLOCK
    if wrong == "beyond":
        tables[1, 0] = 1000
    tables = {"short": tables[:, :0], "missing row": tables[:1]}.get(wrong, tables)
    cu_seqlens = {"lengths": int32(0, 4, 6), "order": int32(0, 5, 4, 7)}.get(wrong, cu_seqlens)
    qkv = prepared.kernels.attn_in(x, weight, rope=prepared.architecture.rope, **step)
    step["index"] = PagedIndex(inputs.full.slot_mapping_T, tables)
    with pytest.raises(KernelError, match=r"\[att(n_in|ention)\] expected"):
        prepared.kernels.attention(qkv, weight, cu_seqlens_S1=cu_seqlens, window=None, **step)


def test_a_block_that_the_window_has_passed_may_be_freed(prepared):
    """And one that it has not may not, even by one position."""
    document = random_documents(MODEL, [200])[0]
    assert MODEL.config.sliding_window == 40
    expected = prepared.in_steps([document], [{0: 200}])[0]
    found = prepared.in_steps([document], in_chunks([200], 13))[0]  # Paging frees what it may
    same_bits(found, expected)
    paging = Paging(prepared.architecture, [200])
    cache = prepared.kernels.allocate_cache(paging.spec)
    inputs = paging.inputs({0: (103, [1])})  # sees positions 64 to 103: blocks 2 and 3
    assert (inputs.sliding.block_tables_SB[0] != NO_BLOCK).tolist() == [False, False, True, True]
    inputs = replace(inputs, ids_T=inputs.ids_T, positions_T=int32(102))  # sees 63, in block 1
    x = prepared.kernels.embed(inputs.ids_T, prepared.weights.embedding)
    weight = prepared.weights.layers[0].attention
    step = {"positions_T": inputs.positions_T, "cache": cache, "layer": 0, "index": inputs.sliding}
    qkv = prepared.kernels.attn_in(x, weight, rope=prepared.architecture.rope, **step)
    with pytest.raises(KernelError, match="every visible block"):
        prepared.kernels.attention(
            qkv, weight, cu_seqlens_S1=inputs.cu_seqlens_S1, window=40, **step
        )


def test_a_cache_of_another_shape(prepared):
    other = Prepared.of(small_model(num_key_value_heads=1))
    x, step, _ = attention_inputs(prepared)
    spec = Paging(other.architecture, [4, 3]).spec
    step["cache"] = prepared.kernels.allocate_cache(spec)
    with pytest.raises(KernelError, match="expected a cache of 2 kv heads of 32, got 1 of 32"):
        prepared.kernels.attn_in(
            x, prepared.weights.layers[0].attention, rope=prepared.architecture.rope, **step
        )
    with pytest.raises(KernelError, match="blocks of 32 tokens; got block_size=16"):
        prepared.kernels.allocate_cache(replace(spec, block_size=16))


def test_handles_of_other_kernels_and_of_other_ops(prepared):
    other = Prepared.of(MODEL)
    foreign = other.kernels.embed(int32(1, 2), other.weights.embedding)
    moe, attention = prepared.weights.layers[0].moe, prepared.weights.layers[0].attention
    kernels = prepared.kernels
    with pytest.raises(KernelError, match="expected a value of these kernels"):
        kernels.moe(foreign, moe)
    with pytest.raises(KernelError, match="expected a value of these kernels"):
        kernels.to_host(foreign)
    with pytest.raises(KernelError, match=r"\[to_host\]"):
        kernels.to_host(np.zeros(3))
    x = kernels.embed(int32(1, 2), prepared.weights.embedding)
    y = kernels.logits(x, prepared.weights.head, int32(0))
    with pytest.raises(KernelError, match=r"\[moe\] expected 96 columns, got 83"):
        kernels.moe(y, moe)
    with pytest.raises(KernelError, match=r"\[attn_out\] expected 192 columns, got 96"):
        kernels.attn_out(x, x, attention)
    with pytest.raises(KernelError, match=r"\[moe\]"):
        kernels.moe(x, attention)
    same_bits(kernels.to_host(y), kernels.to_host(y))  # all that was refused has left no trace


# -- Numbers that are not finite ---------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 3e38])
@pytest.mark.parametrize("settings", [{}, {"exact": True}, {"dense_dtype": "bf16"}], ids=str)
@pytest.mark.parametrize("name", SETS)
def test_one_bad_sequence_leaves_the_others_alone(name, settings, value):
    """In the batch, and in blocks of the cache that are used again.

    Within its own sequence a value that is not finite reaches earlier tokens of the same step too:
    they weigh it with 0, and 0 · NaN is NaN. So such a sequence alone depends on how it is cut.
    """

    def spoiled(part, layer):
        tensors = MODEL.part(part, layer)
        if part is Part.EMBEDDING:
            tensors["weight"][13, 5] = value
        return tensors

    good = Prepared.of(MODEL, instruction_set=name, **settings)
    bad = replace(good, weights=prepare_weights(good.architecture, good.kernels, spoiled))
    documents = [[token for token in d if token != 13] for d in DOCUMENTS]
    poisoned = [3, 4, 13, 5]
    expected = good.uncached(documents)
    beside = bad.uncached([documents[0], poisoned, documents[1]])
    same_bits(beside[0], expected[0])
    same_bits(beside[2], expected[1])
    if not np.isfinite(value):
        assert np.isnan(beside[1][2:]).all()
    rest = [len(documents[0]) - 4, len(documents[1]) - 7]
    steps = [{2: 4, 0: 3}, {0: 1, 1: 7}, *in_chunks(rest, 5)]
    found = bad.in_steps([*documents, poisoned], steps)
    same_bits(found[0], expected[0])
    same_bits(found[1], expected[1])

    paging = Paging(good.architecture, [len(documents[0])])
    cache = good.kernels.allocate_cache(paging.spec)
    for document, weights in ((poisoned * 6, bad.weights), (documents[0], good.weights)):
        inputs = paging.inputs({0: (0, document)})
        handle = forward(good.architecture, good.kernels, weights, inputs, cache=cache)
        logits = good.kernels.to_host(handle)
    same_bits(logits, expected[0])


def test_a_router_without_an_order(prepared):
    """NaN router logits choose some experts and give NaN; the token beside is as before."""
    tensors = MODEL.part(Part.MOE, 0)
    kernels = prepared.kernels
    expected = kernels.to_host(
        kernels.moe(
            kernels.embed(int32(1, 2), prepared.weights.embedding), prepared.weights.layers[0].moe
        )
    ).copy()
    tensors["router_bias"] = np.full(5, np.nan, np.float32)
    weight = kernels.prepare(Part.MOE, tensors, DIMS)
    x = kernels.embed(int32(1, 2), prepared.weights.embedding)
    assert np.isnan(kernels.to_host(kernels.moe(x, weight))).all()
    again = kernels.to_host(kernels.moe(x, prepared.weights.layers[0].moe))
    same_bits(again, expected)


# -- Handles, threads, processes ---------------------------------------------------------------


def test_handles_may_be_dropped_kept_and_used_again(prepared):
    kernels, weights = prepared.kernels, prepared.weights
    expected = prepared.uncached(DOCUMENTS[:1])[0]
    inputs = packed_input(DOCUMENTS[:1])
    kept = []
    for _ in range(3):
        handle = forward(prepared.architecture, kernels, weights, inputs)
        dropped = kernels.moe(handle_of_embedding(prepared), weights.layers[0].moe)
        del dropped
        gc.collect()
        kept.append((handle, kernels.to_host(handle)))
    for handle, values in kept:
        same_bits(values, expected)
        same_bits(kernels.to_host(handle), expected)
    # One input of two ops, and an old handle after many steps.
    x = handle_of_embedding(prepared)
    first = kernels.to_host(kernels.moe(x, weights.layers[0].moe)).copy()
    prepared.uncached(DOCUMENTS)
    second = kernels.to_host(kernels.moe(x, weights.layers[0].moe))
    same_bits(first, second)


def handle_of_embedding(prepared):
    return prepared.kernels.embed(int32(1, 2, 3), prepared.weights.embedding)


def test_arrays_of_results_outlive_the_kernels():
    prepared = Prepared.of(MODEL)
    values = prepared.uncached(DOCUMENTS[:1])[0].copy()
    inputs = packed_input(DOCUMENTS[:1])
    handle = forward(prepared.architecture, prepared.kernels, prepared.weights, inputs)
    mapped = prepared.kernels.to_host(handle)
    del prepared, handle
    gc.collect()
    again = [Prepared.of(MODEL).uncached(DOCUMENTS) for _ in range(2)]
    same_bits(mapped, values)
    same_bits(again[1][0], values)


def test_arguments_may_die_before_the_step_runs():
    """Index arrays, tensors, weights and cache are borrowed: the kernels keep them alive."""
    prepared = Prepared.of(MODEL)
    expected = prepared.in_steps(DOCUMENTS, [{0: 40, 1: 23}])
    kernels = prepared.kernels

    def recorded():
        weights = prepare_weights(prepared.architecture, kernels, MODEL.part)
        paging = Paging(prepared.architecture, [40, 23])
        inputs = paging.inputs({s: (0, d) for s, d in enumerate(DOCUMENTS)})
        cache = kernels.allocate_cache(paging.spec)
        return forward(prepared.architecture, kernels, weights, inputs, cache=cache)

    handle = recorded()
    gc.collect()
    _ = [np.full(1000, 7, np.int32) for _ in range(100)]
    same_bits(kernels.to_host(handle), np.concatenate(expected))


@pytest.mark.parametrize("threads", range(1, min(CORES, 2) + 1))
def test_two_python_threads(threads):
    """They take turns; each gets its own numbers."""
    prepared = Prepared.of(MODEL, num_threads=threads)
    expected = prepared.uncached(DOCUMENTS)
    wrong: list[object] = []

    def work(s):
        try:
            for n in range(40):
                (found,) = prepared.uncached([DOCUMENTS[s]])
                if not np.array_equal(found, expected[s]):
                    wrong.append((s, n))
                if n % 10 == 0:  # preparing uses the same threads
                    Prepared.of(MODEL)
                    prepared.kernels.prepare(Part.HEAD, MODEL.part(Part.HEAD, None), DIMS)
        except BaseException as error:  # a thread's exception would go unseen
            wrong.append(error)

    workers = [threading.Thread(target=work, args=(s,)) for s in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


FORK = """
import os, sys, numpy as np
from native_runs import Prepared, random_documents, small_model
model = small_model()
documents = random_documents(model, (40, 23))
prepared = Prepared.of(model, num_threads=int(sys.argv[1]))
expected = prepared.uncached(documents)
child = os.fork()
found = prepared.uncached(documents)
if child == 0:
    # Threads are not forked: the old kernels go on with one, new ones have their own.
    found += Prepared.of(model, num_threads=int(sys.argv[1])).uncached(documents)
    del prepared
same = all(np.array_equal(a, e) for a, e in zip(found, expected * 2))
if child == 0:
    sys.exit(0 if same and len(found) == 4 else 3)
_, status = os.waitpid(child, 0)
sys.exit(0 if same and os.waitstatus_to_exitcode(status) == 0 else 4)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("threads", range(1, min(CORES, 2) + 1))
def test_a_fork_after_use(threads):
    environment = os.environ | {"PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(threads)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_bfloat16_is_a_view_of_what_was_given():
    """No copy of MXFP4 experts and of tensors that are kept as they are."""
    kernels = NativeKernels(num_threads=1, exact=True)
    tensors = MODEL.part(Part.MOE, 0)
    weight = kernels.prepare(Part.MOE, tensors, DIMS)
    kept = [array for array in weight.kept if isinstance(array, np.ndarray)]
    for given in (tensors["gate_up"].blocks, tensors["down"].blocks, tensors["router"]):
        assert any(np.shares_memory(given, array) for array in kept)
    assert tensors["router"].dtype == ml_dtypes.bfloat16

"""The self-test passes for the kernels as they are, and fails for every fault put into them.

Faults come from a proxy around working kernels that changes tensors, dims or arguments on their way
in; the self-test is handed that proxy and knows nothing of it. The self-test's own forward pass is
held against transformers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ossia.kernels.choose import KERNEL_SETS, choose_kernels
from ossia.kernels.interface import Part, Rope
from ossia.kernels.mxfp4 import Mxfp4Tensor
from ossia.kernels.reference import ReferenceKernels
from ossia.model.selftest import (
    TOLERANCE,
    RandomModel,
    plain_logits,
    quantised_self_test,
    self_test,
)
from random_models import tiny_config, transformers_logits, transformers_model
from support import in_full_precision


class FaultyKernels:
    """Delegates every op; a fault is a subclass that overrides what it spoils."""

    def __init__(self, kernels):
        self.kernels = kernels

    def __getattr__(self, name):
        return getattr(self.kernels, name)

    def prepare(self, part, tensors, dims):
        tensors, dims = self.spoiled(part, dict(tensors), dims)
        return self.kernels.prepare(part, tensors, dims)

    def spoiled(self, part, tensors, dims):
        return tensors, dims


def spoils(part):
    """A fault from a function of the tensors of one part that changes the dict it is given."""

    def decorate(change):
        class Fault(FaultyKernels):
            def spoiled(self, of, tensors, dims):
                if of == part:
                    dims = change(tensors, dims) or dims
                return tensors, dims

        Fault.__name__ = change.__name__
        return Fault

    return decorate


def rows(tensor, order):
    """The rows (axis 1) of a stack of expert matrices in another order."""
    if isinstance(tensor, Mxfp4Tensor):
        return Mxfp4Tensor(tensor.blocks[:, order], tensor.scales[:, order])
    return tensor[:, order]


# -- Attention --------------------------------------------------------------------------------


@spoils(Part.ATTENTION)
def no_sinks(tensors, dims):
    tensors["sinks"] = np.full_like(tensors["sinks"], -np.inf)


@spoils(Part.ATTENTION)
def sinks_scaled_like_scores(tensors, dims):
    tensors["sinks"] = tensors["sinks"] / np.sqrt(dims.head_dim).astype(tensors["sinks"].dtype)


@spoils(Part.ATTENTION)
def kv_heads_misgrouped(tensors, dims):
    """Query head h reads kv head h % K: as if those heads stood where h // group leads there."""
    H, K, d = dims.num_heads, dims.num_kv_heads, dims.head_dim
    heads = sorted(range(H), key=lambda h: h % K)
    columns = np.concatenate([np.arange(h * d, (h + 1) * d) for h in heads])
    tensors["q"], tensors["q_bias"] = tensors["q"][columns], tensors["q_bias"][columns]
    tensors["o"], tensors["sinks"] = tensors["o"][:, columns], tensors["sinks"][heads]


@spoils(Part.ATTENTION)
def keys_and_values_swapped(tensors, dims):
    tensors["k"], tensors["v"] = tensors["v"], tensors["k"]


@spoils(Part.ATTENTION)
def output_bias_missing(tensors, dims):
    tensors["o_bias"] = np.zeros_like(tensors["o_bias"])


@spoils(Part.ATTENTION)
def scores_not_divided(tensors, dims):
    for name in ("q", "q_bias"):
        tensors[name] = tensors[name] * np.sqrt(dims.head_dim).astype(tensors[name].dtype)


class WindowFault(FaultyKernels):
    change = 0

    def attention(self, qkv, weight, *, window, **rest):
        window = None if window is None else window + self.change
        return self.kernels.attention(qkv, weight, window=window, **rest)


class window_127(WindowFault):
    change = -1


class window_129(WindowFault):
    """Looks one key further back: at the edge of a block it meets one that has been freed."""

    change = 1


class RopeFault(FaultyKernels):
    def attn_in(self, x, weight, *, rope, **rest):
        return self.kernels.attn_in(x, weight, rope=self.changed(rope), **rest)


class no_yarn(RopeFault):
    def changed(self, rope):
        half = len(rope.inv_freq)
        plain = tuple(150000.0 ** (-j / half) for j in range(half))
        return Rope(inv_freq=plain, concentration=1.0)


class yarn_without_concentration(RopeFault):
    def changed(self, rope):
        return replace(rope, concentration=1.0)


class yarn_ramp_rounded(RopeFault):
    """As with truncate=true: the ramp from 8 to 18 instead of 8.09 to 17.40."""

    def changed(self, rope):
        plain = [150000.0 ** (-j / 32) for j in range(32)]
        ramp = [min(max((j - 8) / 10, 0), 1) for j in range(32)]
        blend = tuple(f * r / 32 + f * (1 - r) for f, r in zip(plain, ramp, strict=True))
        return replace(rope, inv_freq=blend)


class positions_restart_in_each_step(FaultyKernels):
    def attn_in(self, x, weight, *, positions_T, **rest):
        return self.kernels.attn_in(x, weight, positions_T=positions_T - positions_T[0], **rest)


class one_block_table_for_all(FaultyKernels):
    def attention(self, qkv, weight, *, index, **rest):
        if index is not None:
            tables = np.repeat(index.block_tables_SB[:1], len(index.block_tables_SB), axis=0)
            index = replace(index, block_tables_SB=tables)
        return self.kernels.attention(qkv, weight, index=index, **rest)


class sequences_run_together(FaultyKernels):
    """Only without a cache: two documents are taken for one."""

    def attention(self, qkv, weight, *, cu_seqlens_S1, cache, **rest):
        if cache is None:
            cu_seqlens_S1 = cu_seqlens_S1[[0, -1]]
        return self.kernels.attention(qkv, weight, cu_seqlens_S1=cu_seqlens_S1, cache=cache, **rest)


class decoded_token_not_stored(FaultyKernels):
    def attn_in(self, x, weight, *, index, positions_T, **rest):
        if index is not None and len(positions_T) == len(index.block_tables_SB):
            shifted = index.slot_mapping_T ^ 1  # the neighbouring slot of the same block
            index = replace(index, slot_mapping_T=shifted)
        return self.kernels.attn_in(x, weight, index=index, positions_T=positions_T, **rest)


# -- Experts ----------------------------------------------------------------------------------


@spoils(Part.MOE)
def swiglu_without_clamp(tensors, dims):
    return replace(dims, swiglu_limit=float("inf"))


@spoils(Part.MOE)
def swiglu_without_one(tensors, dims):
    bias = tensors["gate_up_bias"].copy()
    bias[:, 1::2] -= 1
    tensors["gate_up_bias"] = bias


@spoils(Part.MOE)
def swiglu_with_plain_silu(tensors, dims):
    return replace(dims, swiglu_alpha=1.0)


@spoils(Part.MOE)
def gate_up_bias_missing(tensors, dims):
    tensors["gate_up_bias"] = np.zeros_like(tensors["gate_up_bias"])


@spoils(Part.MOE)
def down_bias_missing(tensors, dims):
    tensors["down_bias"] = np.zeros_like(tensors["down_bias"])


@spoils(Part.MOE)
def router_bias_missing(tensors, dims):
    tensors["router_bias"] = np.zeros_like(tensors["router_bias"])


@spoils(Part.MOE)
def gate_up_in_halves(tensors, dims):
    """The first half of the rows are taken for gates, the second for ups."""
    halves = np.arange(2 * dims.intermediate_size).reshape(2, -1).T.reshape(-1)
    tensors["gate_up"] = rows(tensors["gate_up"], halves)
    tensors["gate_up_bias"] = tensors["gate_up_bias"][:, halves]


@spoils(Part.MOE)
def gate_and_up_swapped(tensors, dims):
    swapped = np.arange(2 * dims.intermediate_size) ^ 1
    tensors["gate_up"] = rows(tensors["gate_up"], swapped)
    tensors["gate_up_bias"] = tensors["gate_up_bias"][:, swapped]


@spoils(Part.MOE)
def three_experts(tensors, dims):
    return replace(dims, experts_per_token=3)


@spoils(Part.MOE)
def nibbles_swapped(tensors, dims):
    for name in ("gate_up", "down"):
        if isinstance(tensors[name], Mxfp4Tensor):
            blocks = tensors[name].blocks
            tensors[name] = replace(tensors[name], blocks=blocks >> 4 | blocks << 4)


class softmax_over_all_experts(FaultyKernels):
    """The shares of the four sum to less than one: what the experts add is scaled by that sum."""

    def prepare(self, part, tensors, dims):
        weight = self.kernels.prepare(part, tensors, dims)
        return (weight, tensors) if part == Part.MOE else weight

    def moe(self, x, weight):
        weight, tensors = weight
        host = self.kernels.to_host(x)
        normed = host / np.sqrt((host**2).mean(1, keepdims=True) + 1e-5)
        normed *= tensors["norm"].astype(np.float32)
        logits = normed @ tensors["router"].astype(np.float32).T
        shares = np.exp(logits + tensors["router_bias"].astype(np.float32))
        shares = np.sort(shares / shares.sum(1, keepdims=True), axis=1)[:, -4:].sum(1)
        added = self.kernels.moe(x, weight) - x
        for row, share in enumerate(shares.tolist()):
            added[row] *= share
        return x + added


# -- Everything else --------------------------------------------------------------------------


class NormFault(FaultyKernels):
    part = None

    def spoiled(self, part, tensors, dims):
        if part == self.part:
            tensors["norm"] = np.ones_like(tensors["norm"])
        return tensors, dims


class attention_norm_without_weight(NormFault):
    part = Part.ATTENTION


class moe_norm_without_weight(NormFault):
    part = Part.MOE


class final_norm_without_weight(NormFault):
    part = Part.HEAD


class embedding_scaled(FaultyKernels):
    """By √D, as some other models do."""

    def embed(self, ids_T, weight):
        return self.kernels.embed(ids_T, weight) * 96**0.5


class residual_missing(FaultyKernels):
    def moe(self, x, weight):
        return self.kernels.moe(x, weight) - x


class logits_of_neighbouring_rows(FaultyKernels):
    def logits(self, x, weight, rows):
        return self.kernels.logits(x, weight, np.maximum(rows - 1, 0))


class draws_ignore_the_position(FaultyKernels):
    def sample(self, logits, batch):
        return self.kernels.sample(logits, replace(batch, position=[0] * len(batch.position)))


class greedy_draws_at_random(FaultyKernels):
    def sample(self, logits, batch):
        warm = [max(value, 1.0) for value in batch.temperature]
        return self.kernels.sample(logits, replace(batch, temperature=warm))


def leaves(kind):
    subs = kind.__subclasses__()
    return [kind] if not subs else [leaf for sub in subs for leaf in leaves(sub)]


FAULTS = sorted(leaves(FaultyKernels), key=lambda fault: fault.__name__)


@pytest.mark.parametrize("name", KERNEL_SETS)
def test_kernels_pass_by_a_wide_margin(name):
    checks = self_test(in_full_precision(name))
    assert len(checks) == 6
    for check in checks:
        assert check.passed, check
        assert check.error < TOLERANCE / 20, check


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_fault_is_caught(fault):
    failed = [check for check in self_test(fault(ReferenceKernels())) if not check.passed]
    assert failed
    worst = max(check.error for check in failed)
    assert worst > 10 * TOLERANCE, failed  # and not by a hair


def test_what_a_kernel_raises_is_a_finding():
    class Broken(FaultyKernels):
        def moe(self, x, weight):
            raise RuntimeError("no such instruction")

    checks = self_test(Broken(ReferenceKernels()))
    assert not any(check.passed for check in checks)
    assert "RuntimeError: no such instruction" in checks[0].message


def test_not_a_number_does_not_pass():
    class Diverging(FaultyKernels):
        def embed(self, ids_T, weight):
            return self.kernels.embed(ids_T, weight) * np.float32("nan")

    assert not any(check.passed for check in self_test(Diverging(ReferenceKernels())))


# -- int8: faults in how numbers are quantised and packed --------------------------------------


@pytest.fixture(scope="module")
def native():
    """(exact, int8) of the native kernels."""
    return tuple(choose_kernels("native", threads=1, exact=exact)[0] for exact in (True, False))


def stack_of(tensor):
    """The blocks of an MXFP4 stack [E, rows, groups, 16] and its scales, to be changed."""
    return tensor.blocks.copy(), tensor.scales.copy()


@spoils(Part.MOE)
def one_scale_of_one_expert_doubled(tensors, dims):
    """In one of 8 experts, all rows' first block."""
    blocks, scales = stack_of(tensors["gate_up"])
    scales[3, :, 0] += 1
    tensors["gate_up"] = Mxfp4Tensor(blocks, scales)


@spoils(Part.MOE)
def last_block_of_a_row_left_out(tensors, dims):
    """The remainder of two blocks of 32 behind a whole group of 64 columns and more."""
    blocks, scales = stack_of(tensors["down"])
    blocks[:, :, -1] = 0
    tensors["down"] = Mxfp4Tensor(blocks, scales)


@spoils(Part.MOE)
def nibbles_in_the_other_order(tensors, dims):
    blocks, scales = stack_of(tensors["gate_up"])
    tensors["gate_up"] = Mxfp4Tensor(blocks >> 4 | blocks << 4, scales)


@spoils(Part.ATTENTION)
def dense_in_four_bits(tensors, dims):
    """A tenth of the steps that int8 has."""
    for name in "qkvo":
        step = np.abs(tensors[name].astype(np.float32)).max() / 7
        rounded = np.round(tensors[name].astype(np.float32) / step) * step
        tensors[name] = rounded.astype(tensors[name].dtype)


@spoils(Part.HEAD)
def two_rows_of_a_panel_swapped(tensors, dims):
    weight = tensors["weight"].copy()
    weight[[17, 18]] = weight[[18, 17]]
    tensors["weight"] = weight


@spoils(Part.ATTENTION)
def columns_of_a_pair_swapped(tensors, dims):
    """As if even and odd columns were packed the wrong way round, in one block."""
    q = tensors["q"].copy()
    q[:, :32] = q[:, :32].reshape(len(q), 16, 2)[:, :, ::-1].reshape(len(q), 32)
    tensors["q"] = q


class saturating(FaultyKernels):
    """What the largest magnitudes of a block become where sums of pairs saturate."""

    def prepare(self, part, tensors, dims):
        if part is Part.ATTENTION:
            tensors = dict(tensors)
            for name in "qkvo":
                values = tensors[name].astype(np.float32)
                blocks = values.reshape(len(values), -1, 32)
                limit = np.abs(blocks).max(axis=2, keepdims=True) * 0.6
                clipped = np.clip(blocks, -limit, limit).reshape(values.shape)
                tensors[name] = clipped.astype(tensors[name].dtype)
        return self.kernels.prepare(part, tensors, dims)


class depends_on_the_batch(FaultyKernels):
    """One row alone takes another path than many: an error far below any rounding."""

    def embed(self, ids_T, weight):
        if len(ids_T) > 2:
            return self.kernels.embed(ids_T, weight)
        return self.kernels.embed((ids_T + 1) % 160, weight)


QUANTISED_FAULTS = (
    one_scale_of_one_expert_doubled,
    last_block_of_a_row_left_out,
    nibbles_in_the_other_order,
    dense_in_four_bits,
    two_rows_of_a_panel_swapped,
    columns_of_a_pair_swapped,
    saturating,
    depends_on_the_batch,
)


def test_int8_passes_with_room(native):
    checks = quantised_self_test(*native)
    assert len(checks) == 3
    for check in checks:
        assert check.passed, check
        assert check.error <= 0.75 * check.tolerance, check


def test_int8_is_the_same_on_every_instruction_set(native):
    from ossia.kernels.native import instruction_sets

    errors = {
        name: [
            check.error
            for check in quantised_self_test(
                native[0], choose_kernels("native", threads=1, instruction_set=name)[0]
            )
        ]
        for name in instruction_sets()
    }
    assert len({tuple(found) for found in errors.values()}) == 1, errors


@pytest.mark.parametrize("fault", QUANTISED_FAULTS, ids=lambda fault: fault.__name__)
def test_every_fault_of_int8_is_caught(native, fault):
    exact, quantised = native
    failed = [c for c in quantised_self_test(exact, fault(quantised)) if not c.passed]
    assert failed
    assert max(check.error / (check.tolerance or 1e-9) for check in failed) > 1.5, failed


def test_int8_that_is_not_a_number_does_not_pass(native):
    @spoils(Part.ATTENTION)
    def infinite(tensors, dims):
        tensors["q"] = tensors["q"].copy()
        tensors["q"][0, 0] = np.inf

    assert not any(check.passed for check in quantised_self_test(native[0], infinite(native[1])))


@pytest.mark.parametrize("length", [1, 129, 300])
def test_its_own_forward_pass_equals_transformers(length):
    config = tiny_config(num_hidden_layers=3)
    model = RandomModel(config, seed=5)
    ids = np.random.default_rng(length).integers(0, config.vocab_size, length).tolist()
    expected = transformers_logits(transformers_model(model), ids)
    actual = plain_logits(config, model.part, ids)
    assert np.abs(actual - expected).max() < 1e-5 * np.ptp(expected)


def test_the_dense_experts_hold_the_same_values():
    config = tiny_config()
    model = RandomModel(config, seed=3)
    ids = [1, 2, 3]
    np.testing.assert_array_equal(
        plain_logits(config, model.part, ids), plain_logits(config, model.dense_part, ids)
    )
